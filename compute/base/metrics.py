"""What a neuron counts, and where Prometheus fetches it. docs/metrics.md explains every name.

Only what the database does not know is counted here; the rest is read from it at each scrape (``StoreCollector``).
"""

from __future__ import annotations

import asyncio
import collections
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY, Counter, Histogram, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from compute import __version__
from compute.base.clock import Clock
from compute.base.errors import ConfigError, StoreError
from compute.base.options.shared import MetricsOptions

_LAG_SECONDS = 0.25

DUTY_SECONDS = Histogram(
    "compute_duty_seconds",
    "How long a duty worked at a time, failures included.",
    ["duty"],
    buckets=(0.01, 0.1, 1, 10, 60, 600),
)
DUTY_FAILURES = Counter("compute_duty_failures", "How often a duty failed; it is tried again.", ["duty"])
PROOF_SECONDS = Histogram(
    "compute_proof_seconds",
    "How long until a machine's verdict, by its reason.",
    ["reason"],
    buckets=(1, 5, 10, 20, 30, 60, 120, 300),
)
REQUESTS_REFUSED = Counter("compute_requests_refused", "Requests that the gate refused, by the reason.", ["reason"])
LOOP_LAG = Histogram(
    "compute_event_loop_lag_seconds",
    "How much later than asked the event loop went on, four times a second.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)


@asynccontextmanager
async def served(options: MetricsOptions, collectors: Sequence[Collector], clock: Clock) -> AsyncIterator[None]:
    """Serve the metrics while the block runs, if ``options`` name a port.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if options.port is None:
        yield
        return
    try:
        server, thread = start_http_server(options.port, options.ip)
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics on {options.ip}:{options.port}: {error.strerror or error}. Free the port, or choose "
            "with --metrics.port and --metrics.ip"
        ) from error
    for collector in collectors:
        REGISTRY.register(collector)
    lag = asyncio.create_task(_watch_lag(clock))
    try:
        yield
    finally:
        lag.cancel()
        await asyncio.gather(lag, return_exceptions=True)
        for collector in collectors:
            REGISTRY.unregister(collector)
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join(1)


async def _watch_lag(clock: Clock) -> None:
    while True:
        before = clock.monotonic()
        await clock.sleep(_LAG_SECONDS)
        LOOP_LAG.observe(max(0.0, clock.monotonic() - before - _LAG_SECONDS))


class StoreCollector(Collector):
    """A database that cannot be read is a metric too, and not a scrape that fails."""

    def __init__(self, role: str, hotkey: str, netuid: int) -> None:
        self._info = {"role": role, "hotkey": hotkey, "netuid": str(netuid), "version": __version__}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("compute_neuron", "Which neuron this is.", self._info)
        try:
            found = list(self._read())
        except StoreError:
            found = []
        yield GaugeMetricFamily("compute_store_readable", "1 if the database could be read.", float(bool(found)))
        yield from found

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read."""
        return []

    @abstractmethod
    def _read(self) -> Iterator[Metric]:
        """The metrics of the role, at least one. May raise StoreError."""


def by_reason(name: str, text: str, reasons: Iterable[str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["reason"])
    for reason, count in sorted(collections.Counter(reasons).items()):
        family.add_metric([reason], count)
    return family

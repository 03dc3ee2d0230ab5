"""``make bench``: what the subnet costs, in one run on this machine, in build/bench.json and as a table on stdout.

``make bench ARGS="proof subnet"`` measures these sections only; without any it measures all. Ratios compare two things
in the same run; single figures say what this machine did today and nothing about another. ``contention`` is the control
measurement before, between and after the sections: where it is too high, the exit code is 75 and the word "busy".
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bittensor
from benches.leases import lease_bench
from benches.proof import bench as proof_bench
from benches.validator import bench as subnet_bench

from compute.base.console import Column, Output
from compute.base.contention import EXIT_BUSY, Control
from compute.localnet.process import NodeProcess
from compute.miner.hardware import docker_host
from compute.miner.options import MinerOptions
from compute.protocol import Allocate
from compute.testing.crowd import OpenGate
from compute.wire.client import DendriteCaller
from compute.wire.peer import Peer
from compute.wire.server import AxonServer, RequestContext

_RESULT = Path("build") / "bench.json"
_RUNS = 20


def main() -> int:
    """Measure the sections that the command line names, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench.py", description="What the subnet costs, on this machine.")
    parser.add_argument("section", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all without any")
    chosen = parser.parse_args().section or list(SECTIONS)
    for name in chosen:
        if name not in SECTIONS:
            parser.error(f"there is no section {name!r}, only {', '.join(SECTIONS)}")
    figures: dict[str, float] = {}
    control = Control()
    is_busy = False
    for name in chosen:
        figures |= SECTIONS[name]()
        is_busy = control.is_busy()
    figures["contention"] = max(control.found)
    _RESULT.parent.mkdir(exist_ok=True)
    _RESULT.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    output = Output(sys.stdout, sys.stderr)
    output.table(
        (Column("figure"), Column("value", right=True)),
        [(name, f"{value:.4g}") for name, value in sorted(figures.items())],
    )
    output.note(f"written to {_RESULT}")
    if is_busy:
        output.note(control.words())
        return EXIT_BUSY
    return 0


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _headers() -> dict[str, float]:
    """A request's headers as our synapse makes them, against the SDK's own way of finding the required fields."""
    plain = type("Plain", (Allocate,), {"get_required_fields": bittensor.Synapse.get_required_fields})
    theirs, ours = _median(plain().to_headers), _median(Allocate().to_headers)
    return {"synapse_headers_speedup_ratio": theirs / ours}


class _Wallet:
    """The two keys that an axon reads."""

    def __init__(self, uri: str) -> None:
        self.hotkey = bittensor.Keypair.create_from_uri(uri)
        self.coldkeypub = bittensor.Keypair.create_from_uri(f"{uri}/cold")


async def _calls() -> dict[str, float]:
    """One signed ``Allocate`` over HTTP on loopback, Dendrite to Axon."""

    async def answer(synapse: Allocate, context: RequestContext) -> Allocate:
        return synapse

    miner, validator = _Wallet("//miner"), _Wallet("//validator")
    server = AxonServer(miner, OpenGate(), ip="127.0.0.2", port=0, external_ip="127.0.0.2")
    server.attach(Allocate, answer)
    await server.start()
    peer = Peer(miner.hotkey.ss58_address, "127.0.0.2", server.port)
    times = []
    async with DendriteCaller(validator.hotkey) as caller:
        for _ in range(_RUNS):
            start = time.perf_counter()
            await caller.call(peer, Allocate(), timeout_seconds=10)
            times.append(time.perf_counter() - start)
    await server.stop()
    return {"call_ms": statistics.median(times) * 1e3}


def _chain() -> dict[str, float]:
    """The SDK's metagraph of a small localnet."""
    with NodeProcess(block_time_seconds=0.25) as node, bittensor.Subtensor(network=node.endpoint) as subtensor:
        return {"metagraph_small_ms": _median(lambda: subtensor.metagraph(node.netuid)) * 1e3}


def _proof() -> dict[str, float]:
    figures = proof_bench()
    # By this name goes the longest stall of the whole validator, which the subnet section measures.
    figures["loop_stall_verify_ms"] = figures.pop("loop_stall_ms")
    return figures


def _leases() -> dict[str, float]:
    """On the Docker engine of this machine; nothing where there is none."""
    return lease_bench(MinerOptions.image, docker_host(), Output(sys.stdout, sys.stderr).note)


SECTIONS: dict[str, Callable[[], dict[str, float]]] = {
    "proof": _proof,
    "calls": lambda: {**_headers(), **asyncio.run(_calls()), **_chain()},
    "leases": _leases,
    "subnet": subnet_bench,
}
"""``subnet`` takes some minutes."""

if __name__ == "__main__":
    sys.exit(main())

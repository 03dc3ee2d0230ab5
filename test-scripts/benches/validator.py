"""What a full subnet costs a validator: 256 neurons, of which a tenth is dead and a tenth hostile.

``python test-scripts/benches/validator.py ENDPOINT FOLDER ROUNDS`` is the validator that is measured: the neuron's own
objects in a process of their own, all duties at work. It prints its figures as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from compute.base import logs
from compute.base.clock import SystemClock
from compute.base.errors import ComputeError
from compute.base.options.shared import LoggingOptions
from compute.base.process import child_environment, run_neuron, settled
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.base.tasks import beside
from compute.chain.access_lists import AccessLists
from compute.chain.metagraph_process import SubnetReader
from compute.chain.subtensor import SubtensorChain
from compute.incentive.config import load_config
from compute.localnet.newcomer import make_wallet
from compute.localnet.pallet.state import Hyperparameters
from compute.localnet.process import NodeProcess
from compute.proof.models import Claim, DeviceMeasurement, MachineVerdict
from compute.rental.remote import SshRemote
from compute.testing.crowd import Crowd, Kind, kind_of, machine_of, neuron_of, wallet_of
from compute.testing.filled import fill_chain
from compute.validator.eligibility import QueryPolicy
from compute.validator.rented import OwnRentals
from compute.validator.service import ValidatorService, ValidatorSettings
from compute.validator.store import FactStore, WeightsState
from compute.wire.client import DendriteCaller
from compute.wire.lease_client import AllocationClient
from compute.wire.signing import verify_signature

NETUID = 27
NEURONS = 256
ROUNDS = 50
VALIDATORS = 16
"""So many others have stake and weights, as on a subnet that lives."""

_WARM_UP_ROUNDS = 10
_AVERAGED_ROUNDS = 5
_QUICK_REQUEST_SECONDS = 1.0
"""For the rounds after the first: what happens is the same, and nobody waits ten seconds for the dead each time."""
_POLL_SECONDS = 1.0
_HEARTBEAT_SECONDS = 0.002
_NICE = 10
_RAO = 10**9
_DOUBLINGS = 7
_MIB = 1 << 20


def bench(rounds: int = ROUNDS) -> dict[str, float]:
    """Flat figures, the unit in each name. Takes some minutes.

    ``specs_256_seconds`` is the first round, with the deadlines of the real neuron; ``loop_stall_ms`` the longest that
    the event loop stood still in all of them, every other duty included, and ``loop_stall_own_ms`` the most of such a
    time in which this process had a CPU: the rest is other programs' doing. ``rss_mb`` is the most memory after a
    round, and ``rss_growth_percent`` compares the median of the last five rounds with that of the sixth to the tenth.
    """
    with tempfile.TemporaryDirectory(prefix="compute-bench-") as folder, Crowd(NEURONS) as crowd:
        chain = Path(folder) / "chain.db"
        _fill(chain, _wallet(folder), crowd.ports)
        with NodeProcess(block_time_seconds=1.0, netuid=NETUID, state=chain) as node:
            # They stand for other machines: the two CPUs are the validator's, as far as it wants them.
            for other in psutil.Process().children(recursive=True):
                other.nice(_NICE)
            done = subprocess.run(
                [sys.executable, __file__, node.endpoint, folder, str(rounds)],
                capture_output=True,
                text=True,
                env=child_environment(),
            )
    if done.returncode:
        raise ComputeError(f"the validator that was to be measured ended with {done.returncode}: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _wallet(folder: str) -> Any:
    return make_wallet("validator", "default", folder)


def _fill(path: Path, own: Any, ports: dict[int, int]) -> None:
    neurons = [neuron_of(uid, own if uid == 0 else wallet_of(uid), ports.get(uid, 0)) for uid in range(NEURONS)]
    stakes = {neuron.hotkey: 10_000 * _RAO for neuron in neurons[: 1 + VALIDATORS]}
    fill_chain(path, NETUID, neurons, stakes, Hyperparameters(tempo=100, weights_rate_limit=5))


class _Measured(ValidatorService):
    """The validator, with a clock and a scale beside its specs duty: one call of it asks everybody."""

    def __init__(self, rounds: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._rounds = rounds
        self.seconds: list[float] = []
        self.rss_bytes: list[int] = []
        self.over = asyncio.Event()

    async def query_due_specs(self) -> None:
        start = time.perf_counter()
        await super().query_due_specs()
        self.seconds.append(time.perf_counter() - start)
        own = psutil.Process()
        self.rss_bytes.append(sum(process.memory_info().rss for process in (own, *own.children())))
        self._settings = replace(self._settings, specs_request_seconds=_QUICK_REQUEST_SECONDS)
        if len(self.seconds) == self._rounds:
            self.over.set()


@dataclass
class _Stalls:
    """The longest, in seconds. A list of all would be what grows in these rounds: some MB in fifty."""

    late: float = 0.0
    own: float = 0.0


async def _heartbeat(longest: _Stalls) -> None:
    """Notes how much later than asked for it wakes up, and how much of that time this process had a CPU."""
    while True:
        start, busy = time.perf_counter(), time.process_time()
        await asyncio.sleep(_HEARTBEAT_SECONDS)
        late = time.perf_counter() - start - _HEARTBEAT_SECONDS
        longest.late = max(longest.late, late)
        longest.own = max(longest.own, min(late, time.process_time() - busy))


def _remember(facts: FactStore, database: Database) -> None:
    """What a validator knows of the honest after weeks: each has been proven, and proven again, and is not due now."""
    for uid in range(1, NEURONS):
        if kind_of(uid) is Kind.HONEST:
            claim = Claim(machine_of(uid).gpus[0].name, len(machine_of(uid).gpus))
            devices = tuple(
                DeviceMeasurement(number, ProofReason.OK, tflops16=500.0, uuid=gpu.uuid)
                for number, gpu in enumerate(machine_of(uid).gpus)
            )
            verdict = MachineVerdict(ProofReason.OK, claim, claim.gpu, claim.count, devices)
            facts.record_verdict(
                str(wallet_of(uid).hotkey.ss58_address), verdict, at=time.time(), block=1, seconds=20.0
            )
    columns = "hotkey, at, block, seconds, reason, claim_gpu, claim_count, gpu, count, tflops16, devices, detail"
    with database.transaction() as connection:
        for _ in range(_DOUBLINGS):
            connection.execute(f"INSERT INTO verdict ({columns}) SELECT {columns} FROM verdict")  # noqa: S608


async def _validate(endpoint: str, folder: str, rounds: int) -> None:
    logs.configure(LoggingOptions())
    wallet = _wallet(folder)
    own_hotkey = str(wallet.hotkey.ss58_address)
    database = Database(Path(folder) / "validator.db")
    facts = FactStore(database)
    _remember(facts, database)
    clock = SystemClock()
    chain = SubtensorChain(endpoint, NETUID, wallet, reader=SubnetReader(endpoint, NETUID))
    caller = DendriteCaller(wallet.hotkey)
    service = _Measured(
        rounds,
        own_hotkey=own_hotkey,
        chain=chain,
        caller=caller,
        client=AllocationClient(caller, clock),
        facts=facts,
        own_rentals=OwnRentals(rentals=list, penalized=list, host_keys=SshRemote(), verify=verify_signature),
        config=load_config(),
        settings=ValidatorSettings(
            policy=QueryPolicy(AccessLists()),
            specs_interval_blocks=1,
            proof_interval_blocks=1_000_000,
            poll_seconds=_POLL_SECONDS,
        ),
        clock=clock,
    )
    # The neuron has announced its version before its service runs: by then the SDK is connected.
    await chain.block()
    stalls = _Stalls()
    tasks = [asyncio.create_task(service.run()), asyncio.create_task(service.over.wait())]
    async with beside(_heartbeat(stalls), settled(service.up)):
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    _check(facts)
    await caller.close()
    await chain.close()
    database.close()
    print(json.dumps(_figures(service, stalls)))


def _check(facts: FactStore) -> None:
    """A round that is quick because nobody was asked is no round."""
    reasons = {hotkey: fact.reason for hotkey, fact in facts.specs().items()}
    for uid in range(1, NEURONS):
        is_honest, reason = kind_of(uid) is Kind.HONEST, reasons[str(wallet_of(uid).hotkey.ss58_address)]
        if is_honest is not (reason is ProofReason.OK):
            raise ComputeError(f"uid {uid} is {kind_of(uid).value}, and what was found out is {reason}")
    confirmed = facts.last_weights((WeightsState.CONFIRMED,))
    if confirmed is None:
        raise ComputeError("the chain was never seen to hold weights")


def _figures(service: _Measured, stalls: _Stalls) -> dict[str, float]:
    before = service.rss_bytes[_WARM_UP_ROUNDS - _AVERAGED_ROUNDS : _WARM_UP_ROUNDS]
    after = service.rss_bytes[-_AVERAGED_ROUNDS:]
    growth = statistics.median(after) / statistics.median(before) - 1 if before else 0.0
    return {
        "specs_256_seconds": round(service.seconds[0], 2),
        "loop_stall_ms": round(stalls.late * 1e3, 1),
        "loop_stall_own_ms": round(stalls.own * 1e3, 1),
        "rss_mb": round(max(service.rss_bytes) / 1e6, 1),
        "rss_growth_percent": round(100 * growth, 2),
    }


if __name__ == "__main__":
    sys.exit(run_neuron(lambda: _validate(sys.argv[1], sys.argv[2], int(sys.argv[3]))))

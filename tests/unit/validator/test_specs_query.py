"""Asking everybody: whoever is slow or silent holds up nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from compute.base.errors import BadAnswer, CallError, CallFailed, CallRefused, CallTimeout, CallUnreachable
from compute.base.reasons import ProofReason
from compute.chain.subtensor import Neuron
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.validator.specs_query import query_specs
from compute.validator.store import SpecsFact
from compute.wire.peer import Peer
from compute.wire.specs import Gpu, MachineSpecs

MACHINE = MachineSpecs(8, 2000.0, 1, 1, 0, 1, 1, 0, 1, (Gpu("NVIDIA L4", 23_034),))


class Miners:
    """Answer as told by hotkey; the silent ones never do."""

    def __init__(self, **answers: str | CallError) -> None:
        self.answers = answers
        self.in_flight: set[str] = set()
        self.most_at_once = 0
        self.cancelled: set[str] = set()

    async def call(self, peer: Peer, synapse: Any, *, timeout_seconds: float) -> Any:
        self.in_flight.add(peer.hotkey)
        self.most_at_once = max(self.most_at_once, len(self.in_flight))
        try:
            answer = self.answers.get(peer.hotkey, MACHINE.to_json())
            if answer == "silent":
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            if isinstance(answer, CallError):
                raise answer
            return synapse.model_copy(update={"specs_output": answer})
        except asyncio.CancelledError:
            self.cancelled.add(peer.hotkey)
            raise
        finally:
            self.in_flight.remove(peer.hotkey)


def neurons(count: int) -> list[Neuron]:
    chain = FakeChain("validator")
    return [chain.add(f"m{number}") for number in range(count)]


async def answered(miners: Miners, count: int, *, at_once: int, stop_after: int) -> dict[str, SpecsFact]:
    known: dict[str, SpecsFact] = {}
    asking = query_specs(neurons(count), caller=miners, clock=ManualClock(), block=7, at_once=at_once)
    async for facts in asking:
        known |= {fact.hotkey: fact for fact in facts}
        if len(known) == stop_after:
            break
    await asking.aclose()
    return known


async def test_the_silent_hold_up_nobody() -> None:
    miners = Miners(m0="silent", m1="silent", m2="silent")
    known = await answered(miners, 50, at_once=4, stop_after=47)
    assert set(known) == {f"m{number}" for number in range(3, 50)}
    assert miners.most_at_once == 4


async def test_whoever_leaves_takes_all_requests_along() -> None:
    miners = Miners(m0="silent")
    await answered(miners, 10, at_once=4, stop_after=9)
    assert miners.cancelled == {"m0"}
    assert miners.in_flight == set()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (CallUnreachable("down"), ProofReason.UNREACHABLE),
        (CallTimeout("late"), ProofReason.UNREACHABLE),
        (CallFailed("broken"), ProofReason.UNREACHABLE),
        (CallRefused("not_enough_stake"), ProofReason.REFUSED),
        (BadAnswer("no JSON"), ProofReason.BAD_SPECS),
        ("[" * 60_000, ProofReason.BAD_SPECS),
        ("{}", ProofReason.BAD_SPECS),
        (MACHINE.with_gpus(()).to_json(), ProofReason.NO_GPU),
        (MACHINE.to_json(), ProofReason.OK),
    ],
)
async def test_every_answer_is_a_fact(answer: str | CallError, reason: ProofReason) -> None:
    known = await answered(Miners(m0=answer), 1, at_once=1, stop_after=1)
    assert known["m0"].reason is reason
    assert known["m0"].block == 7

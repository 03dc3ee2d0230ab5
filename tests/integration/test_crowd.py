"""Every kind of miner that the bench's crowd has, asked for its specs over the wire: each is a fact with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psutil
import pytest

from compute.base.clock import SystemClock
from compute.base.reasons import ProofReason
from compute.chain.subtensor import Neuron
from compute.testing.crowd import ATTACKS, Crowd, Kind, address_of, kind_of, wallet_of
from compute.validator.specs_query import REQUEST_SECONDS, query_specs
from compute.validator.store import SpecsFact
from compute.wire.client import DendriteCaller

SIZE = 10 * len(ATTACKS)


def reason_of(uid: int) -> ProofReason:
    """What a validator has to make of it."""
    if kind_of(uid) is Kind.HONEST:
        return ProofReason.OK
    never_ends = ATTACKS[uid // 10].__name__ in ("_drip", "_silence")
    return ProofReason.UNREACHABLE if kind_of(uid) is Kind.DEAD or never_ends else ProofReason.BAD_SPECS


def neuron(uid: int, port: int) -> Neuron:
    hotkey = str(wallet_of(uid).hotkey.ss58_address)
    return Neuron(uid, hotkey, hotkey, address_of(uid), port, 200, 0.0, False, 1, 1, 0.0, 0.0)


async def asked(neurons: list[Neuron], *, at_once: int = 64, seconds: float = 2.0) -> dict[str, SpecsFact]:
    facts: dict[str, SpecsFact] = {}
    async with DendriteCaller(wallet_of(0).hotkey) as caller:
        answers = query_specs(
            neurons, caller=caller, clock=SystemClock(), block=1, at_once=at_once, request_seconds=seconds
        )
        async for batch in answers:
            facts |= {fact.hotkey: fact for fact in batch}
    return facts


@pytest.fixture(scope="module")
def neurons() -> Iterator[list[Neuron]]:
    with Crowd(SIZE) as crowd:
        yield [neuron(uid, crowd.ports[uid]) for uid in range(1, SIZE)]


async def test_each_is_a_fact_with_its_reason(neurons: list[Neuron]) -> None:
    # Only who never answers is worth no wait; the others have their time, and not too much company.
    lost = [one for one in neurons if reason_of(one.uid) is ProofReason.UNREACHABLE]
    others = [one for one in neurons if one not in lost]
    facts = await asked(lost) | await asked(others, at_once=8, seconds=REQUEST_SECONDS)
    for one in neurons:
        fact = facts[one.hotkey]
        assert fact.reason is reason_of(one.uid), (one.uid, fact)
        if kind_of(one.uid) is Kind.HONEST:
            assert fact.specs is not None
        else:
            assert len(fact.detail) <= 300


async def test_what_hostile_answers_weigh_is_gone_afterwards(neurons: list[Neuron]) -> None:
    hostile = [one for one in neurons if kind_of(one.uid) is Kind.HOSTILE]
    before = psutil.Process().memory_info().rss
    await asyncio.gather(*(asked(hostile) for _ in range(3)))
    assert psutil.Process().memory_info().rss - before < 64e6

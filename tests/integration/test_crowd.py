"""Every kind of miner that the bench's crowd has, asked for its specs over the wire: each is a fact with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psutil
import pytest

from compute.chain import Neuron
from compute.clock import SystemClock
from compute.localnet.crowd import ATTACKS, Crowd, Kind, address_of, kind_of, wallet_of
from compute.reasons import ProofReason
from compute.transport.caller import DendriteCaller
from compute.validator.facts import SpecsFact
from compute.validator.specs_query import query_specs

SIZE = 10 * len(ATTACKS)
REASONS = {
    "_endless": ProofReason.BAD_SPECS,
    "_drip": ProofReason.UNREACHABLE,
    "_silence": ProofReason.UNREACHABLE,
}
"""Of the attacks that take their time; all others are bad specs too."""


def neuron(uid: int, port: int) -> Neuron:
    hotkey = str(wallet_of(uid).hotkey.ss58_address)
    return Neuron(uid, hotkey, hotkey, address_of(uid), port, 200, 0.0, False, 1, 1, 0.0, 0.0)


async def asked(neurons: list[Neuron]) -> dict[str, SpecsFact]:
    facts: dict[str, SpecsFact] = {}
    async with DendriteCaller(wallet_of(0).hotkey) as caller:
        answers = query_specs(neurons, caller=caller, clock=SystemClock(), block=1, at_once=64, request_seconds=2.0)
        async for batch in answers:
            facts |= {fact.hotkey: fact for fact in batch}
    return facts


@pytest.fixture(scope="module")
def neurons() -> Iterator[list[Neuron]]:
    with Crowd(SIZE) as crowd:
        yield [neuron(uid, crowd.ports[uid]) for uid in range(1, SIZE)]


async def test_each_is_a_fact_with_its_reason(neurons: list[Neuron]) -> None:
    facts = await asked(neurons)
    for one in neurons:
        fact = facts[one.hotkey]
        if kind_of(one.uid) is Kind.HONEST:
            assert fact.reason is ProofReason.OK, fact
            assert fact.specs is not None
        elif kind_of(one.uid) is Kind.DEAD:
            assert fact.reason is ProofReason.UNREACHABLE, fact
        else:
            attack = ATTACKS[one.uid // 10]
            assert fact.reason is REASONS.get(attack.__name__, ProofReason.BAD_SPECS), (one.uid, fact)
            assert len(fact.detail) <= 300


async def test_what_hostile_answers_weigh_is_gone_afterwards(neurons: list[Neuron]) -> None:
    hostile = [one for one in neurons if kind_of(one.uid) is Kind.HOSTILE]
    before = psutil.Process().memory_info().rss
    await asyncio.gather(*(asked(hostile) for _ in range(3)))
    assert psutil.Process().memory_info().rss - before < 64e6

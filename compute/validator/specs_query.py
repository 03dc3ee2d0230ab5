"""Asks miners for their specs, a bounded number at once, each with a deadline."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable

from compute.base.clock import Clock, within
from compute.base.errors import BadAnswer, CallError, CallRefused
from compute.base.reasons import ProofReason
from compute.chain.subtensor import Neuron
from compute.protocol import Specs
from compute.validator.store import SpecsFact
from compute.wire.peer import Caller, Peer
from compute.wire.specs import SpecsError, parse_specs

REQUEST_SECONDS = 10.0
_TURN_SECONDS = 15.0
_MAX_DETAIL = 300


async def query_specs(
    neurons: Iterable[Neuron],
    *,
    caller: Caller,
    clock: Clock,
    block: int,
    at_once: int,
    request_seconds: float = REQUEST_SECONDS,
) -> AsyncIterator[list[SpecsFact]]:
    """Ask the neurons for their specs, ``at_once`` at a time; yields facts as they become known.

    The next neuron is taken from ``neurons`` when there is room for it. A miner that is slow, gone or hostile is a
    fact with a reason, and holds up nobody else: it only takes one of the places, for 15 seconds at most.
    """
    waiting = iter(neurons)
    asked: set[asyncio.Task[SpecsFact]] = set()
    try:
        while True:
            for neuron in itertools.islice(waiting, at_once - len(asked)):
                asked.add(asyncio.create_task(_ask(neuron, caller, clock, block, request_seconds)))
                await asyncio.sleep(0)  # a request costs a millisecond: one per turn of the event loop
            if not asked:
                return
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            yield [task.result() for task in done]
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _ask(neuron: Neuron, caller: Caller, clock: Clock, block: int, request_seconds: float) -> SpecsFact:
    def fact(reason: ProofReason, specs: str | None = None, detail: str = "") -> SpecsFact:
        return SpecsFact(neuron.hotkey, clock.now(), block, reason, specs, detail[:_MAX_DETAIL])

    peer = Peer(neuron.hotkey, neuron.ip, neuron.port)
    try:
        request = caller.call(peer, Specs(), timeout_seconds=request_seconds)
        answer = await within(_TURN_SECONDS, request)
        machine = parse_specs(answer.specs_output)
    except (asyncio.TimeoutError, TimeoutError):
        return fact(ProofReason.TIMEOUT, detail=f"no answer within {_TURN_SECONDS:.0f} s")
    except (BadAnswer, SpecsError) as error:
        return fact(ProofReason.BAD_SPECS, detail=str(error))
    except CallRefused as error:
        return fact(ProofReason.REFUSED, detail=str(error))
    except CallError as error:
        return fact(ProofReason.UNREACHABLE, detail=str(error))
    if not machine.gpus:
        return fact(ProofReason.NO_GPU, answer.specs_output)
    return fact(ProofReason.OK, answer.specs_output)

"""Asks miners for their specs, in batches with a deadline each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from compute.chain import Neuron
from compute.clock import Clock
from compute.deadline import within
from compute.errors import CallError
from compute.protocol import Specs
from compute.reasons import ProofReason
from compute.specs import SpecsError, parse_specs
from compute.transport.peer import Caller, Peer
from compute.validator.facts import SpecsFact

REQUEST_SECONDS = 10.0
_BATCH_SECONDS = 15.0
_MAX_DETAIL = 300


async def query_specs(
    neurons: Sequence[Neuron], *, caller: Caller, clock: Clock, block: int, batch_size: int
) -> AsyncIterator[list[SpecsFact]]:
    """Ask every neuron for its specs, ``batch_size`` at once; yields a batch's facts when the batch is over.

    A miner that is slow, gone or hostile is a fact with a reason, and costs its batch 15 seconds at most.
    """
    for start in range(0, len(neurons), batch_size):
        batch = neurons[start : start + batch_size]
        yield list(await asyncio.gather(*(_ask(neuron, caller, clock, block) for neuron in batch)))


async def _ask(neuron: Neuron, caller: Caller, clock: Clock, block: int) -> SpecsFact:
    def fact(reason: ProofReason, specs: str | None = None, detail: str = "") -> SpecsFact:
        return SpecsFact(neuron.hotkey, clock.now(), block, reason, specs, detail[:_MAX_DETAIL])

    peer = Peer(neuron.hotkey, neuron.ip, neuron.port)
    try:
        request = caller.call(peer, Specs(), timeout_seconds=REQUEST_SECONDS)
        answer = await within(_BATCH_SECONDS, request)
        machine = parse_specs(answer.specs_output)
    except (asyncio.TimeoutError, TimeoutError):
        return fact(ProofReason.TIMEOUT, detail=f"no answer within {_BATCH_SECONDS:.0f} s")
    except CallError as error:
        refused = 400 <= error.status < 500 and error.status != 408
        return fact(ProofReason.REFUSED if refused else ProofReason.UNREACHABLE, detail=str(error))
    except SpecsError as error:
        return fact(ProofReason.BAD_SPECS, detail=str(error))
    if not machine.gpus:
        return fact(ProofReason.NO_GPU, answer.specs_output)
    return fact(ProofReason.OK, answer.specs_output)

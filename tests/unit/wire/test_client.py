"""What a failed request comes out as: an error of ours whose class says what happened, and never another's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import bittensor
import pytest
from aiohttp.client_exceptions import ServerDisconnectedError

from compute.base.errors import BadAnswer, CallError, CallFailed, CallRefused, CallTimeout, CallUnreachable
from compute.protocol import Specs
from compute.wire.client import DendriteCaller
from compute.wire.peer import Peer

PEER = Peer("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "127.0.0.9", 8091)


async def failure_of(what: Any) -> CallError:
    """The error of a request whose exchange raises ``what``, or fills in ``what`` as the peer's status."""

    async def exchange(axon: Any, synapse: Any, timeout_seconds: float) -> None:
        if isinstance(what, Exception):
            raise what
        synapse.dendrite = bittensor.TerminalInfo(status_code=what, status_message="because")

    async with DendriteCaller(None) as caller:
        caller._dendrite.exchange = exchange  # type: ignore[method-assign]
        with pytest.raises(CallError) as caught:
            await caller.call(PEER, Specs(), timeout_seconds=1)
    return caught.value


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (asyncio.TimeoutError(), CallTimeout),
        (aiohttp.ServerTimeoutError(), CallTimeout),
        (ServerDisconnectedError(), CallUnreachable),
        (ConnectionRefusedError(111, "no"), CallUnreachable),
        (aiohttp.ClientPayloadError("half"), BadAnswer),
        (json.JSONDecodeError("no JSON", "", 0), BadAnswer),
        (RecursionError(), BadAnswer),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_no_exception_of_another_library_comes_out(raised: Exception, kind: type[CallError]) -> None:
    assert type(await failure_of(raised)) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (None, BadAnswer),
        (-1, BadAnswer),
        (204, CallUnreachable),
        (307, CallUnreachable),
        (400, CallRefused),
        (408, CallTimeout),
        (499, CallRefused),
        (500, CallFailed),
        (502, BadAnswer),
        (503, CallUnreachable),
        (504, CallFailed),
    ],
)
async def test_a_status_of_the_peers_own_says_what_happened(status: int | None, kind: type[CallError]) -> None:
    error = await failure_of(status)
    assert type(error) is kind
    assert error.status == (status if status is not None and status > 0 else BadAnswer.status)

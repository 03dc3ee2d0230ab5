"""Sends requests to peers, over the SDK's Dendrite."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
import bittensor

from compute.base.errors import BadAnswer, CallError, CallFailed, CallRefused, CallTimeout, CallUnreachable
from compute.protocol import Allocate, Synapse
from compute.wire import signing
from compute.wire.peer import MAX_PARTS, Peer, S, has_many_parts

MAX_ANSWER_BYTES = 128 * 1024
"""Twice the longest specs that are read, whose quotes are escaped."""
_MAX_CONNECTIONS = 128
_MAX_MESSAGE = 300


class _Dendrite(bittensor.Dendrite):
    """What the SDK's Dendrite says and understands, without the rest: it looks up our public address on the internet,
    keeps every answer for ever, and turns an answer that it cannot read into a status that a peer may have sent.
    """

    def __init__(self, hotkey: Any, external_ip: str) -> None:
        # Deliberately not calling the parent: its constructor asks a web service who we are, and fails offline.
        self.uuid = str(uuid.uuid1())
        self.external_ip = external_ip
        self.keypair = hotkey
        self._session: aiohttp.ClientSession | None = None
        self._parsing = asyncio.Lock()

    def __del__(self) -> None:
        """Nothing: the parent's would run an event loop to close connections, which ``DendriteCaller.close`` closes."""

    @property
    async def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    async def exchange(self, axon: Any, synapse: Any, timeout_seconds: float) -> None:
        """Send ``synapse`` and fill it with the answer. Raises whatever aiohttp, json and the SDK raise."""
        self.preprocess_synapse_for_request(axon, synapse, timeout_seconds)
        host = f"[{axon.ip}]" if ":" in axon.ip else axon.ip
        request = (await self.session).post(
            f"http://{host}:{axon.port}/{type(synapse).__name__}",
            headers=synapse.to_headers(),
            json=synapse.model_dump(),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            allow_redirects=False,
        )
        async with request as response:
            body = await _bounded(response.content)
            # Parsing takes a millisecond, and several for a hostile answer, so one answer is parsed per turn of the
            # event loop: the sleep ends the turn while the others wait for the lock.
            async with self._parsing:
                await asyncio.sleep(0)
                if has_many_parts(body):
                    raise ValueError(f"the answer has more than {MAX_PARTS} parts")
                answer = json.loads(body)
                if not isinstance(answer, dict):
                    raise ValueError("the answer is not a JSON object")
                self.process_server_response(response, answer, synapse)

    def preprocess_synapse_for_request(self, target_axon_info: Any, synapse: Any, timeout: float = 12.0) -> Any:
        synapse = super().preprocess_synapse_for_request(target_axon_info, synapse, timeout)
        if isinstance(synapse, Allocate):
            message = signing.request_message(type(synapse).__name__, synapse.dendrite.nonce, synapse.model_dump())
            synapse.body_signature = signing.encode(self.keypair.sign(message))
        return synapse


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """All of ``content``, up to a bound: the far side does not choose how much memory we spend."""
    try:
        await content.readexactly(MAX_ANSWER_BYTES + 1)
    except asyncio.IncompleteReadError as end:
        return end.partial
    raise ValueError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")


class DendriteCaller:
    """A ``Caller`` over the SDK's Dendrite.

    Concurrent requests of one Dendrite to one axon race for its nonce and draw "nonce is too old", so there is one in
    flight per axon. Use as an async context manager, or call ``close``.
    """

    def __init__(self, hotkey: Any, *, external_ip: str | None = None) -> None:
        """``hotkey`` is the wallet's hotkey Keypair; ``external_ip`` is what peers are told of our address."""
        self._dendrite = _Dendrite(hotkey, external_ip or "0.0.0.0")  # noqa: S104 - a header's text, nothing binds it
        self._turns: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> DendriteCaller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._dendrite.aclose_session()

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        turn = self._turns.setdefault((peer.ip, peer.port), asyncio.Lock())
        async with turn:
            return await self._call(peer, synapse, timeout_seconds)

    async def _call(self, peer: Peer, synapse: S, timeout_seconds: float) -> S:
        axon = bittensor.AxonInfo(
            version=0, ip=peer.ip, port=peer.port, ip_type=6 if ":" in peer.ip else 4, hotkey=peer.hotkey, coldkey=""
        )
        filled: S = synapse.model_copy(deep=True)
        try:
            await self._dendrite.exchange(axon, filled, timeout_seconds)
        except asyncio.TimeoutError:
            raise CallTimeout(f"{peer}: no answer within {timeout_seconds:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise CallUnreachable(f"{peer}: no connection: {_short(error)}") from error
        except Exception as error:  # whatever aiohttp, json, pydantic or the SDK find wrong with what the peer sent
            raise BadAnswer(f"{peer}: {type(error).__name__}: {error}"[:_MAX_MESSAGE]) from error
        _check_success(peer, filled)
        return filled


def _short(error: Exception) -> str:
    """aiohttp's own text names the address again, and speaks of TLS where there is none."""
    told = getattr(error, "os_error", error)
    return os.strerror(told.errno) if isinstance(told, OSError) and told.errno else str(error) or type(error).__name__


def _check_success(peer: Peer, answer: Synapse) -> None:
    terminal = answer.dendrite
    status = terminal.status_code if terminal is not None else None
    if status is None or not str(status).isdigit():
        raise BadAnswer(f"{peer}: no status in the answer")
    if int(status) != 200:
        message = str(terminal.status_message or "no message")[:_MAX_MESSAGE] if terminal is not None else "no message"
        raise _kind_of(int(status))(f"{peer}: {message}", status=int(status))


def _kind_of(status: int) -> type[CallError]:
    """What a status of the peer's own, other than 200, means."""
    for kind in (CallTimeout, CallUnreachable, BadAnswer):
        if status == kind.status:
            return kind
    if status < 400:
        return CallUnreachable
    return CallRefused if status < 500 else CallFailed

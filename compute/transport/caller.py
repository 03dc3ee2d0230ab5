"""The calling side: one Dendrite, tamed."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
import bittensor

from compute import signing
from compute.errors import CallError
from compute.protocol import Allocate, Synapse
from compute.transport.peer import Peer, S

MAX_ANSWER_BYTES = 256 * 1024
_MAX_CONNECTIONS = 128


class _BoundedResponse(aiohttp.ClientResponse):
    """A response whose JSON is read up to a bound: the far side does not choose how much memory we spend."""

    async def json(self, **_: Any) -> Any:
        try:
            await self.content.readexactly(MAX_ANSWER_BYTES + 1)
        except asyncio.IncompleteReadError as end:
            answer = json.loads(end.partial)
            if not isinstance(answer, dict):
                raise aiohttp.ClientPayloadError("the answer is not a JSON object") from None
            return answer
        raise aiohttp.ClientPayloadError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")


class _Dendrite(bittensor.Dendrite):
    """The SDK's Dendrite without its look-up of our public address on the internet, and without its endless history."""

    def __init__(self, hotkey: Any, external_ip: str) -> None:
        # Deliberately not calling the parent: its constructor asks a web service who we are, and fails offline.
        self.uuid = str(uuid.uuid1())
        self.external_ip = external_ip
        self.keypair = hotkey
        self.synapse_history: deque[Any] = deque(maxlen=0)
        self._session: aiohttp.ClientSession | None = None

    def __del__(self) -> None:
        """Nothing: the parent's would run an event loop to close connections, which ``DendriteCaller.close`` closes."""

    @property
    async def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                response_class=_BoundedResponse,
                connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, force_close=True),
                auto_decompress=False,
            )
        return self._session

    def preprocess_synapse_for_request(self, target_axon_info: Any, synapse: Any, timeout: float = 12.0) -> Any:
        synapse = super().preprocess_synapse_for_request(target_axon_info, synapse, timeout)
        if isinstance(synapse, Allocate):
            message = signing.request_message(type(synapse).__name__, synapse.dendrite.nonce, synapse.model_dump())
            synapse.body_signature = signing.encode(self.keypair.sign(message))
        return synapse


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
        try:
            answer = await self._dendrite.call(
                axon, synapse.model_copy(deep=True), timeout=timeout_seconds, deserialize=False
            )
        except Exception as error:  # the SDK parses the peer's headers outside its own error handling
            raise CallError(502, f"{peer}: {type(error).__name__}: {error}") from error
        _check_success(peer, answer)
        if not isinstance(answer, type(synapse)):
            raise CallError(502, f"{peer}: the answer is a {type(answer).__name__}")
        return answer


def _check_success(peer: Peer, answer: Synapse) -> None:
    terminal = answer.dendrite
    status = terminal.status_code if terminal is not None else None
    if status is None or not str(status).isdigit():
        raise CallError(502, f"{peer}: no status in the answer")
    if int(status) != 200:
        message = str(terminal.status_message or "no message")[:300] if terminal is not None else "no message"
        raise CallError(int(status), f"{peer}: {message}")

"""The node: one ledger behind a WebSocket on 127.0.0.1, and a clock that makes blocks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.server import ServerConnection, broadcast, serve

from compute.base.clock import Clock, SystemClock
from compute.base.errors import ConfigError
from compute.localnet.pallet.ledger import Amendment, Ledger, Sealed
from compute.localnet.pallet.state import Hyperparameters
from compute.localnet.pallet.store import Store
from compute.localnet.rpc import json_rpc as rpc
from compute.localnet.rpc.methods import NodeMethods, header_of
from compute.localnet.rpc.own_methods import OwnMethods
from compute.localnet.rpc.subscriptions import Subscriptions
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.runtime import RUNTIME

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_MAX_MESSAGE_BYTES = 15 * 1024 * 1024
_PING_SECONDS = 20.0
_PONG_SECONDS = 60.0


@dataclass(frozen=True)
class NodeOptions:
    """How to run a node: with ``block_time_seconds`` 0 blocks are made on request only, ``port`` 0 is any free one."""

    port: int = 9944
    block_time_seconds: float = 1.0
    state: Path | None = None
    netuid: int = 27
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


class _Connection:
    """One client, as subscriptions see it."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self._after_reply: list[str] = []

    def send(self, message: str) -> None:
        # broadcast() neither waits for a slow client nor minds a closed one: a block must not depend on either.
        broadcast([self._socket], message)

    def send_after_reply(self, message: str) -> None:
        self._after_reply.append(message)

    async def reply(self, message: str | None) -> None:
        if message is not None:
            await self._socket.send(message)
        notices, self._after_reply = self._after_reply, []
        for notice in notices:
            self.send(notice)


class Node:
    """A chain and its server."""

    def __init__(self, options: NodeOptions, clock: Clock | None = None) -> None:
        """Open or begin the chain.

        Raises:
            ConfigError: a hyperparameter is unknown or out of range, or the saved chain has no such subnet.
            StoreError: the state cannot be opened.
        """
        settings = Hyperparameters()
        try:
            for name, value in options.hyperparameters.items():
                settings = settings.with_value(name, value)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._options = options
        self._clock = clock or SystemClock()
        self._store = Store(options.state)
        codec = Codec(RUNTIME)
        self.ledger = Ledger(self._store, codec, self._clock, netuid=options.netuid, settings=settings)
        self._check_continued()
        self._subscriptions = Subscriptions()
        self._methods = NodeMethods(self.ledger, codec, self._subscriptions)
        self._own_methods = OwnMethods(self.ledger, self.seal)

    def _check_continued(self) -> None:
        if self.ledger.head.number == 0:
            return
        subnets = self.ledger.head_state.subnets
        if self._options.netuid not in subnets:
            self._store.close()
            raise ConfigError(
                f"the chain in {self._options.state} has subnet {', '.join(map(str, subnets))}, not "
                f"{self._options.netuid}: name that one with --netuid, or another file with --state"
            )
        logger.info("going on with the chain in %s at block %d", self._options.state, self.ledger.head.number)
        if self._options.hyperparameters:
            logger.warning("options that set hyperparameters only apply to a new chain: ignored")

    def seal(self, amendment: Amendment | None = None) -> Sealed:
        """Make a block now, and tell the subscribers.

        Raises:
            StoreError: it cannot be saved.
        """
        sealed = self.ledger.seal(amendment)
        self._subscriptions.publish(sealed, header_of(sealed.block))
        return sealed

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM; the first line on stdout says where, as a JSON object.

        Raises:
            OSError: the port is taken.
            StoreError: a block could not be saved.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            async with serve(
                self._serve,
                HOST,
                self._options.port,
                max_size=_MAX_MESSAGE_BYTES,
                compression=None,  # nothing to win on loopback
                ping_interval=_PING_SECONDS,
                ping_timeout=_PONG_SECONDS,
            ) as server:
                port = next(iter(server.sockets)).getsockname()[1]
                print(json.dumps(self._greeting(port)), flush=True)
                await self._make_blocks_until(stop)
        finally:
            self._store.close()

    def _greeting(self, port: int) -> dict[str, Any]:
        return {
            "endpoint": f"ws://{HOST}:{port}",
            "netuid": self._options.netuid,
            "block": self.ledger.head.number,
            "block_time_seconds": self._options.block_time_seconds,
            "genesis": "0x" + self.ledger.genesis.hash.hex(),
        }

    async def _make_blocks_until(self, stop: asyncio.Event) -> None:
        interval = self._options.block_time_seconds
        due = self._clock.monotonic() + interval
        while not stop.is_set():
            timeout = max(due - self._clock.monotonic(), 0.0) if interval else None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), timeout)
                return
            self.seal()
            # After a pause of the machine blocks go on at their pace; they do not catch up.
            due = max(due + interval, self._clock.monotonic())

    async def _serve(self, socket: ServerConnection) -> None:
        connection = _Connection(socket)
        methods = {**self._methods.table(connection), **self._own_methods.table()}
        names = {"methods": sorted([*methods, "rpc_methods"])}

        async def list_methods(_: list[Any]) -> Any:
            return names

        methods["rpc_methods"] = list_methods
        try:
            async for message in socket:
                await connection.reply(await rpc.answer(message, methods))
        except websockets.ConnectionClosed:
            logger.debug("a client went away without a word")
        finally:
            self._subscriptions.drop(connection)

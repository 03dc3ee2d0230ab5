"""Answers peers' requests, over the SDK's Axon."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, Tuple, TypeVar  # noqa: UP035 - the SDK compares with typing.Tuple itself

import bittensor
from bittensor.utils import networking
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compute.base.clock import within
from compute.base.errors import ConfigError
from compute.protocol import Synapse

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
MAX_NONCE_AHEAD_SECONDS = 30.0
_MAX_CONNECTIONS = 512
_HANDLER_DEADLINE_SECONDS = 60.0
_BODY_SECONDS = 10.0
_FIND_SECONDS = 20.0
# pm2 kills after 1.6 s by default.
_STOP_SECONDS = 1

S = TypeVar("S", bound=Synapse)


@dataclass(frozen=True)
class RequestContext:
    """Who asks, as the SDK verified it from the request's signed headers (never from its body)."""

    hotkey: str
    nonce: int
    ip: str


class Gate(Protocol):
    """Decides who may call. Runs on the server's thread before the signature is checked: it must not act on a hotkey,
    only refuse one. Must not block or raise."""

    def refusal(self, hotkey: str, synapse_name: str) -> str | None:
        """None to let the caller in, else the reason code that it is told."""

    def overuse(self, hotkey: str) -> str | None:
        """The same of a caller whose signature has been verified: the reason if it has asked too often."""

    def priority(self, hotkey: str, synapse_name: str) -> float:
        """Higher goes first."""


class AxonServer:
    """Serves synapses on an Axon whose socket is bound here, so that a taken port is an error and not a hang.

    Handlers run on the event loop that created the server; the Axon runs on a thread of its own, so a slow handler
    delays nobody else's.
    """

    def __init__(
        self,
        wallet: Any,
        gate: Gate,
        *,
        ip: str = "0.0.0.0",  # noqa: S104 - a miner serves the internet
        port: int = 8091,
        external_ip: str | None = None,
        external_port: int | None = None,
        max_workers: int = 10,
        find_ip: Callable[[], str] = networking.get_external_ip,
    ) -> None:
        """Bind ``ip:port`` (port 0: any free one) and build the Axon; nothing is answered before ``start``.

        Without ``external_ip``, ``find_ip`` says what our public address is; it blocks, and may raise anything.

        Raises:
            ConfigError: the address cannot be bound, or our public address cannot be found out.
        """
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._socket = _bind(ip, port)
        self.port: int = self._socket.getsockname()[1]
        self._find_ip = None if external_ip else find_ip
        self._found_ip: str | None = None
        self._finding: Future[str] | None = None
        try:
            self.axon = bittensor.Axon(
                wallet=wallet,
                ip=ip,
                port=self.port,
                external_ip=external_ip or find_ip(),
                external_port=external_port or self.port,
                max_workers=max_workers,
            )
        except Exception as error:  # the SDK raises whatever its address look-up raised
            self._socket.close()
            raise ConfigError(
                f"the axon cannot be made: {error}. Offline, or behind a proxy, name your address with "
                "--axon.external_ip"
            ) from error
        # The SDK's ping answers whoever signs with any key, and remembers the nonce of each for ever.
        del self.axon.forward_class_types["Synapse"]
        self.axon.app.add_middleware(_BodyLimit)
        self._server = self.axon.fast_server
        self._server.config.limit_concurrency = _MAX_CONNECTIONS
        self._server.config.timeout_graceful_shutdown = _STOP_SECONDS
        self._thread: threading.Thread | None = None

    def attach(self, synapse: type[S], handler: Callable[[S, RequestContext], Awaitable[S]]) -> None:
        """Answer ``synapse`` with ``handler``, which fills it in and returns it."""
        name = synapse.__name__

        async def forward(synapse: Any, request: Request) -> Any:
            context = RequestContext(
                hotkey=request.headers["bt_header_dendrite_hotkey"],
                nonce=int(request.headers["bt_header_dendrite_nonce"]),
                ip=request.client.host if request.client else "",
            )
            return await asyncio.wrap_future(self._submit(handler(synapse, context)))

        def blacklist(synapse: Any) -> tuple[bool, str]:
            hotkey = synapse.dendrite.hotkey
            reason = self._gate.refusal(hotkey, name) if isinstance(hotkey, str) else "not_registered"
            return reason is not None, reason or "allowed"

        def priority(synapse: Any) -> float:
            return self._gate.priority(synapse.dendrite.hotkey, name)

        async def verify(synapse: Any) -> None:
            # The SDK accepts any nonce of the future, and then nothing older: one request with a nonce of next year
            # would lock its own caller out until then.
            nonce = synapse.dendrite.nonce
            if nonce is not None and nonce > time.time_ns() + MAX_NONCE_AHEAD_SECONDS * 1e9:
                raise ValueError("Nonce is from the future: set this machine's clock")
            await self.axon.default_verify(synapse)
            reason = self._gate.overuse(synapse.dendrite.hotkey)
            if reason is not None:
                raise PermissionError(reason)

        parameter = inspect.Parameter("synapse", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=synapse)
        request = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)
        _set_signature(forward, [parameter, request], synapse)
        _set_signature(blacklist, [parameter], Tuple[bool, str])  # noqa: UP006
        _set_signature(priority, [parameter], float)
        _set_signature(verify, [parameter], None)
        self.axon.attach(forward, blacklist, priority, verify)

    def _submit(self, answer: Awaitable[Any]) -> Future[Any]:
        async def bounded() -> Any:
            return await within(_HANDLER_DEADLINE_SECONDS, answer)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop)

    async def start(self) -> None:
        """Begin answering; returns once the socket is served."""
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._server.serve(sockets=[self._socket]),), name="axon", daemon=True
        )
        self._thread.start()
        # uvicorn tells nobody when it has started.
        while not self._server.started and self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if not self._server.started:
            raise ConfigError(f"the axon on port {self.port} did not start; the log above says why")
        self.axon.started = True

    async def refresh_address(self) -> None:
        """Look our public address up again, unless it was given: the provider may have given us another one.

        What is found counts when it is found twice in a row; where nobody can say, the address stays as it is.
        """
        if self._find_ip is None:
            return
        if self._finding is None:
            self._finding = _in_a_thread(self._find_ip)
        try:
            found = await within(_FIND_SECONDS, asyncio.shield(asyncio.wrap_future(self._finding)))
        except asyncio.TimeoutError:
            # It may hang for ever: the next call waits for this one, and starts no other beside it.
            return
        except Exception as error:  # whatever the look-up raised
            logger.info("our public address cannot be looked up now: %s", error)
            found = None
        self._finding = None
        if found is not None and found == self._found_ip != self.axon.external_ip:
            details = {"before": self.axon.external_ip, "now": found}
            logger.warning("our public address has changed", extra=details)
            self.axon.external_ip = found
        self._found_ip = found

    async def stop(self) -> None:
        """Stop answering, finish what is in flight for up to a second, and close the socket. Idempotent."""
        self._server.should_exit = True
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 2 * _STOP_SECONDS)
            self._thread = None
        with contextlib.suppress(OSError):
            self._socket.close()
        self.axon.thread_pool.shutdown(wait=False)


def _in_a_thread(work: Callable[[], str]) -> Future[str]:
    """Run ``work`` in a thread that keeps no process alive: the SDK's look-up has no deadline of its own."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="address", daemon=True).start()
    return future


def _set_signature(function: Callable[..., Any], parameters: list[inspect.Parameter], returns: Any) -> None:
    # Annotations of this module are text; the SDK compares signatures by their types.
    setattr(function, "__signature__", inspect.Signature(parameters, return_annotation=returns))  # noqa: B010


def _bind(ip: str, port: int) -> socket.socket:
    # "[::]" is how the SDK spells "every address".
    host = "0.0.0.0" if ip in ("[::]", "") else ip  # noqa: S104
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Free the port, or choose with --axon.port "
            "and --axon.ip"
        ) from error
    return listener


class _BodyLimit:
    """Refuses a request whose body is too large before anything of it is parsed (pure ASGI)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            try:
                message = await within(_BODY_SECONDS, receive())
            except asyncio.TimeoutError:
                return
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                refusal = JSONResponse({"message": f"the body is larger than {MAX_BODY_BYTES} bytes"}, status_code=413)
                await refusal(scope, receive, send)
                return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

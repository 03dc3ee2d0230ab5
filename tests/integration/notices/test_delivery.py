"""A real HTTP server that fails in every way, and the sender in front of it."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from aiohttp import web

from compute.base.store import Database
from compute.notices.delivery import Delivery
from compute.notices.notice import Notice, NoticeKind, Topic
from compute.notices.outbox import Outbox
from compute.testing.clock import ManualClock

from .. import web_server
from ..web_server import Handler

BOTH = tuple(Topic)
Certificate = Callable[[str], tuple[ssl.SSLContext, Path]]


class Receiver:
    """Keeps what it was sent, and answers as it is told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, str]] = []
        self.answer: Handler = self.ok

    async def ok(self, request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(json.loads(await request.read()))
        return await self.answer(request)


def serving(receiver: Receiver, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[str]:
    return web_server.serving(receiver.handle, "/token-in-the-path", tls)


class Office:
    """An outbox with the end of one rental in it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.database = Database(":memory:")
        self.outbox = Outbox(self.database)
        self.ended("r1")

    def ended(self, rental: str) -> None:
        """Another rental has ended."""
        notice = Notice.new(NoticeKind.DEALLOCATION, "hk1", rental, self.clock.now(), "")
        with self.database.transaction() as connection:
            self.outbox.put(connection, [notice], BOTH)

    async def send(self, url: str, trust: ssl.SSLContext | None = None, *, seconds: float = 20.0) -> int:
        """One round; returns how many notices still wait."""
        delivery = Delivery(self.outbox, dict.fromkeys(BOTH, url), self.clock, trust=trust, timeout_seconds=seconds)
        await delivery.deliver_due()
        return len(self.outbox.due(self.clock.now() + 1e6, BOTH))


async def test_a_notice_arrives_once() -> None:
    office, receiver = Office(), Receiver()
    async with serving(receiver) as url:
        assert await office.send(url) == 0
        assert await office.send(url) == 0
    (body,) = receiver.bodies
    assert (body["status"], body["hotkey"], body["uuid"]) == (NoticeKind.DEALLOCATION.value, "hk1", "r1")


async def refuse(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="x" * 10**6)


async def redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/elsewhere")


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def drop(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half_an_answer(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200")
    request.transport.close()
    return web.Response()


async def garbage(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"\x00\xff not HTTP at all\r\n\r\n")
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize("failure", [refuse, redirect, hang, drop, half_an_answer, garbage])
async def test_after_a_failure_it_waits_and_tries_again_with_the_same_id(failure: Handler) -> None:
    office, receiver = Office(), Receiver()
    receiver.answer = failure
    async with serving(receiver) as url:
        assert await office.send(url, seconds=1.0 if failure is hang else 20.0) == 1
        assert await office.send(url) == 1, "its pause is not over"
        receiver.answer = receiver.ok
        office.clock.advance(10.0)
        assert await office.send(url) == 0
    assert len({body["id"] for body in receiver.bodies}) == 1
    assert len(receiver.bodies) == 2


async def test_nobody_listening_loses_nothing() -> None:
    office, receiver = Office(), Receiver()
    assert await office.send("http://127.0.0.1:1/x") == 1
    office.clock.advance(10.0)
    async with serving(receiver) as url:
        assert await office.send(url) == 0


async def test_an_unknown_host_loses_nothing() -> None:
    assert await Office().send("http://no-such-host.invalid/x", seconds=1.0) == 1


async def test_one_notice_that_is_refused_does_not_hold_up_the_others() -> None:
    office, receiver = Office(), Receiver()
    office.ended("r2")

    async def picky(request: web.Request) -> web.StreamResponse:
        return web.Response(status=400 if receiver.bodies[-1]["uuid"] == "r1" else 204)

    receiver.answer = picky
    async with serving(receiver) as url:
        assert await office.send(url) == 1
    assert [body["uuid"] for body in receiver.bodies] == ["r1", "r2"]


async def test_a_receiver_that_is_away_is_asked_once_a_round() -> None:
    office, receiver = Office(), Receiver()
    office.ended("r2")
    receiver.answer = drop
    async with serving(receiver) as url:
        assert await office.send(url) == 2
    assert len(receiver.bodies) == 1


async def test_the_log_names_the_host_and_not_the_path(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    office, receiver = Office(), Receiver()
    receiver.answer = refuse
    async with serving(receiver) as url:
        await office.send(url)
        office.clock.advance(10.0)
        receiver.answer = receiver.ok
        await office.send(url)
    ours = [record for record in caplog.records if record.name.startswith("compute.")]
    assert [record.message for record in ours] == ["notice not delivered", "notice delivered"]
    assert all("token-in-the-path" not in str(vars(record)) for record in ours)
    assert len(str(vars(ours[0])["problem"])) < 300


# --- TLS ------------------------------------------------------------------------------------------------------------


async def test_a_certificate_that_nobody_vouches_for_gets_no_notice(certificate: Certificate) -> None:
    office, receiver = Office(), Receiver()
    server, _ = certificate("localhost")
    async with serving(receiver, server) as url:
        assert await office.send(url) == 1
    assert receiver.bodies == []


async def test_a_certificate_for_another_name_gets_no_notice(certificate: Certificate) -> None:
    office, receiver = Office(), Receiver()
    server, pem = certificate("elsewhere.example")
    async with serving(receiver, server) as url:
        assert await office.send(url, ssl.create_default_context(cafile=str(pem))) == 1
    assert receiver.bodies == []


async def test_a_certificate_that_is_vouched_for_does(certificate: Certificate) -> None:
    office, receiver = Office(), Receiver()
    server, pem = certificate("localhost")
    async with serving(receiver, server) as url:
        assert await office.send(url, ssl.create_default_context(cafile=str(pem))) == 0
    assert len(receiver.bodies) == 1

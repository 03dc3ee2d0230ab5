"""A real HTTP server that serves a version file in every wrong way, and what holds after it."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from aiohttp import web

from compute.base.store import Database
from compute.chain.versions import MAX_BYTES, OWN, MinimalVersions, VersionFile, VersionFileError, read_version_file
from compute.testing.clock import ManualClock
from tests.waiting import DEADLINE_SECONDS

from . import web_server
from .web_server import Handler

LINES = '__version__ = "3.0.0"\n__minimal_miner_version__ = "2.5.0"\n__minimal_validator_version__ = "2.7.1"\n'
READ = MinimalVersions(250, 271)
LINES_OF_MORE = LINES.replace("2.5.0", "2.9.0")

PACKED = gzip.compress(LINES.encode() + b"#" * 10**7)

Certificate = Callable[[str], tuple[ssl.SSLContext, Path]]


class Site:
    """Serves what it is told to."""

    def __init__(self) -> None:
        self.answer: Handler = good
        self.asked = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        return await self.answer(request)


async def good(request: web.Request) -> web.StreamResponse:
    return web.Response(text=LINES)


async def away(request: web.Request) -> web.StreamResponse:
    return web.Response(status=503, text=LINES_OF_MORE)


async def moved(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere" if request.path != "/elsewhere" else "/again")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"#" * 8192)
    except ConnectionError:
        return response


async def drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"#")
            await asyncio.sleep(0.05)
    except ConnectionError:
        return response


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def aborted(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut_short(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "4000"})
    await response.prepare(request)
    await response.write(LINES.encode())
    assert request.transport is not None
    request.transport.close()
    return response


async def packed(request: web.Request) -> web.StreamResponse:
    return web.Response(body=gzip.compress(LINES.encode() + b"#" * 10**8), headers={"Content-Encoding": "gzip"})


async def nonsense(request: web.Request) -> web.StreamResponse:
    return web.Response(body=os.urandom(1000))


async def greedy(request: web.Request) -> web.StreamResponse:
    return web.Response(text=LINES.replace("2.5.0", "9.9.9"))


def serving(site: Site, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[str]:
    return web_server.serving(site.handle, "/compute/__init__.py?token=secret", tls)


async def test_a_version_file_is_read_over_http() -> None:
    async with serving(Site()) as url:
        assert await read_version_file(url) == READ


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (away, "status 503"),
        (moved, "status 302"),
        (endless, f"larger than {MAX_BYTES}"),
        (drip, "did not come within 1 s"),
        (silent, "did not come within 1 s"),
        (aborted, "Disconnected"),
        (cut_short, "PayloadError|not completed"),
        (packed, "lines|larger than"),
        (nonsense, "0 lines"),
        (greedy, "newer versions than its own"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_every_failure_is_one_error_and_changes_nothing(
    answer: Handler, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "compute")
    site = Site()
    seconds = 1.0 if answer in (drip, silent) else 20.0
    async with serving(site) as url:
        versions = VersionFile(url, Database(":memory:"), ManualClock(), timeout_seconds=DEADLINE_SECONDS)
        await versions.refresh()
        assert versions.of_miners() == (OWN.miner, READ.miner)
        site.answer, versions._timeout_seconds = answer, seconds
        with pytest.raises(VersionFileError, match=problem):
            await read_version_file(url, timeout_seconds=seconds)
        for _ in range(2):
            await versions.refresh()
        assert versions.of_miners() == (OWN.miner, READ.miner)
        assert versions.of_validators() == (OWN.validator, READ.validator)
        site.answer, versions._timeout_seconds = good, 20.0
        await versions.refresh()
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1, "it is said once that the file is away"
    assert [record.message for record in caplog.records if record.levelno == logging.INFO] == ["version file read"] * 2
    assert "secret" not in caplog.text


async def test_a_file_that_never_came_leaves_our_own_versions() -> None:
    site = Site()
    site.answer = nonsense
    async with serving(site) as url:
        versions = VersionFile(url, Database(":memory:"), ManualClock())
        await versions.refresh()
    await versions.refresh()
    assert (versions.of_miners(), versions.of_validators()) == ((OWN.miner,), (OWN.validator,))


async def test_certificates_are_verified(certificate: Certificate) -> None:
    trusted, pem = certificate("localhost")
    stranger, _ = certificate("example.org")
    async with serving(Site(), trusted) as url:
        assert await read_version_file(url, trust=ssl.create_default_context(cafile=str(pem))) == READ
        with pytest.raises(VersionFileError, match="CERTIFICATE_VERIFY_FAILED"):
            await read_version_file(url)
    async with serving(Site(), stranger) as url:
        with pytest.raises(VersionFileError, match="CERTIFICATE_VERIFY_FAILED"):
            await read_version_file(url, trust=ssl.create_default_context(cafile=str(pem)))


async def test_a_path_that_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none", "."):
        with pytest.raises(VersionFileError, match="no such file"):
            await read_version_file(str(tmp_path / name))
    (tmp_path / "large").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(VersionFileError, match="larger than"):
        await read_version_file(str(tmp_path / "large"))

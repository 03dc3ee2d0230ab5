"""A small disk: leases with a quota of it, and what happens when it is full."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import RuntimeFailure

from ..conftest import passing_until

pytestmark = pytest.mark.docker

MIB = 1 << 20


@pytest.fixture(scope="module")
def engine(make_engine: Any, small_disk: Path) -> Iterator[Any]:
    engine = make_engine(small_disk / "data")
    yield engine
    engine.clean_up()


async def test_a_lease_gets_the_disk_that_it_asked_for_and_no_more(
    engine: Any, runtime_on: Any, make_spec: Any, login: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # The image counts on btrfs: 100 of the 300 MiB are used at the start.
    runtime, spec = runtime_on(engine), make_spec(disk_bytes=300 * MIB)
    endpoint = runtime.start(spec)
    assert "no disk quota" not in caplog.text
    async with login(endpoint) as session:
        assert (await session.run("head -c 100M /dev/zero >/root/fits")).exit_code == 0
        result = await session.run("head -c 200M /dev/zero >/root/much")
        assert result.exit_code != 0
        assert b"quota exceeded" in result.stderr or b"No space left" in result.stderr
        written = int((await session.run("stat -c %s /root/much")).stdout)
        assert 50 * MIB < written < 110 * MIB
        # The engine has no room for keys either, and says so.
        with pytest.raises(RuntimeFailure, match="disk is full"):
            runtime.set_keys(spec.lease_id, spec.authorized_keys)
        assert (await session.run("rm /root/much && head -c 20M /dev/zero >/root/more")).exit_code == 0
        runtime.set_keys(spec.lease_id, spec.authorized_keys)
    runtime.stop(spec.lease_id)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        subprocess.run(["cat", "/dev/zero"], stdout=file, stderr=subprocess.DEVNULL, check=False)
    try:
        yield
    finally:
        ballast.unlink()


async def test_a_full_disk_is_a_reason_and_leaves_nothing(
    engine: Any, small_disk: Path, runtime_on: Any, running: Any, renter_of: Any
) -> None:
    runtime = runtime_on(engine)
    # As a miner's start does: the network is there before any lease.
    runtime.check()
    async with running(runtime) as miner:
        alice = renter_of(miner)
        with filled(small_disk):
            output = await alice.allocate()
        assert (output["status"], output["reason"]) == (False, "runtime_failed")
        assert "disk is full" in output["message"]
        await passing_until(miner, lambda: miner.store.live() == [], "the lease that failed is over")
        assert miner.runtime.list() == []
        assert (await alice.allocate())["status"]
        assert await alice.says() == "hello"
        assert (await alice.deallocate())["status"]

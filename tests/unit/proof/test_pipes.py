from __future__ import annotations

import os
import sys

import pytest

from compute.base.errors import SshError, SshTimeout, SshUnreachable
from compute.proof.pipes import ProcessChannel, local_worker
from tests.waiting import DEADLINE_SECONDS

ECHO = """
import sys
while data := sys.stdin.buffer.read1(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
"""


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


async def test_bytes_come_and_go_exactly() -> None:
    async with local_worker(python(ECHO)) as channel:
        data = os.urandom(100_000)
        for _ in range(10):
            await channel.write(data, timeout_seconds=DEADLINE_SECONDS)
            assert await channel.read_exactly(7, timeout_seconds=DEADLINE_SECONDS) == data[:7]
            assert await channel.read_exactly(len(data) - 7, timeout_seconds=DEADLINE_SECONDS) == data[7:]


async def test_silence_is_a_timeout() -> None:
    async with local_worker(python(ECHO)) as channel:
        with pytest.raises(SshTimeout):
            await channel.read_exactly(1, timeout_seconds=0.05)


async def test_an_early_end_is_an_error_that_says_how_much_came() -> None:
    async with local_worker(python("print('abc')")) as channel:
        with pytest.raises(SshError, match="4 of 100 bytes"):
            await channel.read_exactly(100, timeout_seconds=DEADLINE_SECONDS)


async def test_a_program_that_takes_no_input_is_a_timeout() -> None:
    async with local_worker(python("import time; time.sleep(60)")) as channel:
        with pytest.raises(SshTimeout):
            await channel.write(bytes(10_000_000), timeout_seconds=0.05)


async def test_a_missing_program_is_unreachable() -> None:
    with pytest.raises(SshUnreachable, match="/nowhere/python"):
        async with local_worker(["/nowhere/python"]):
            pass


async def test_the_way_out_ends_the_process_with_output_unread() -> None:
    async with local_worker(python("import sys\nwhile True: sys.stdout.write('x' * 65536)")) as channel:
        assert isinstance(channel, ProcessChannel)
        await channel.read_exactly(10, timeout_seconds=DEADLINE_SECONDS)
    assert channel._process.returncode == -9
    await channel.close()

"""The subnet read in a process of its own, against a localnet node."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from compute.base.errors import ChainError, ChainUnreachable
from compute.chain.metagraph_process import SubnetReader
from compute.chain.subtensor import SubtensorChain
from compute.localnet.pallet.state import Hyperparameters
from compute.localnet.process import NodeProcess
from compute.testing.crowd import neuron_of, wallet_of
from compute.testing.filled import fill_chain
from tests.waiting import DEADLINE_SECONDS

NETUID = 27
OWNER = """
import asyncio, sys
from compute.chain.metagraph_process import SubnetReader

async def main():
    await SubnetReader(sys.argv[1], 27).metagraph()
    print("read", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    state = tmp_path_factory.mktemp("chain") / "chain.db"
    neurons = [neuron_of(uid, wallet_of(uid), 9000 + uid) for uid in range(5)]
    fill_chain(state, NETUID, neurons, {neurons[1].hotkey: 10**13}, Hyperparameters())
    with NodeProcess(state=state, netuid=NETUID) as node:
        yield node


@pytest.fixture
async def reader(node: NodeProcess) -> AsyncIterator[SubnetReader]:
    reader = SubnetReader(node.endpoint, NETUID)
    yield reader
    await reader.close()


def other_process(owner: int) -> psutil.Process:
    (child,) = psutil.Process(owner).children()
    assert child.cmdline()[1:] == ["-m", "compute.chain.metagraph_process"], (
        "nothing of the question is on its command line"
    )
    return child


async def test_it_reads_what_a_thread_here_would_read(node: NodeProcess, reader: SubnetReader) -> None:
    here, apart = SubtensorChain(node.endpoint, NETUID, None), SubtensorChain("nowhere", 0, None, reader=reader)
    expected, found = await here.metagraph(), await apart.metagraph()
    assert (found.netuid, found.neurons) == (expected.netuid, expected.neurons)
    assert found.block >= expected.block
    assert found.by_hotkey[found.neurons[1].hotkey].stake > 0
    reader_process = reader._process
    await apart.close()
    await here.close()
    assert reader_process is not None
    assert reader_process.returncode is not None, "who closes the chain ends it"


async def test_errors_are_those_of_a_chain(node: NodeProcess) -> None:
    for reader, error, message in (
        (SubnetReader(node.endpoint, 9), ChainError, "no subnet has netuid 9"),
        (SubnetReader("ws://127.0.0.1:9", NETUID), ChainUnreachable, "no chain at ws://127.0.0.1:9"),
    ):
        with pytest.raises(ChainError, match=message) as raised:
            await reader.metagraph()
        assert type(raised.value) is error
        await reader.close()


async def test_after_it_has_died_the_next_question_starts_another(reader: SubnetReader) -> None:
    await reader.metagraph()
    assert reader._process is not None
    reader._process.kill()
    with pytest.raises(ChainUnreachable, match="the process that reads the subnet"):
        await reader.metagraph()
    assert len((await reader.metagraph()).neurons) == 5


async def test_signals_to_everybody_are_not_for_it(reader: SubnetReader) -> None:
    await reader.metagraph()
    assert reader._process is not None
    # Ctrl-C at the neuron's terminal does not come here.
    assert os.getsid(reader._process.pid) == reader._process.pid
    for number in (signal.SIGINT, signal.SIGTERM):
        reader._process.send_signal(number)
    assert len((await reader.metagraph()).neurons) == 5


async def test_nobody_gets_the_answer_to_another_question(reader: SubnetReader) -> None:
    await reader.metagraph()
    first = reader._process
    question = asyncio.create_task(reader.metagraph())
    await asyncio.sleep(0)
    question.cancel()
    with pytest.raises(asyncio.CancelledError):
        await question
    assert len((await reader.metagraph()).neurons) == 5
    assert reader._process is not first


def test_it_ends_with_a_neuron_that_is_killed(node: NodeProcess) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, node.endpoint], stdout=subprocess.PIPE, env=os.environ
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"read\n"
        child = other_process(owner.pid)
        owner.kill()
    child.wait(DEADLINE_SECONDS)

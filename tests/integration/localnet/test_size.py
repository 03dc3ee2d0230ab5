"""A full subnet: 256 neurons, of which 64 are validators with weights on everybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bittensor
import pytest

from compute.localnet.pallet.state import Axon, Neuron
from compute.localnet.process import NodeProcess
from compute.localnet.substrate.codec import key_to_address
from compute.testing.filled import fill_chain
from tests.waiting import until

NEURONS, VALIDATORS = 256, 64
STAKE = 10**13


@pytest.fixture(scope="module")
def full_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    path = tmp_path_factory.mktemp("full") / "chain.db"
    _fill(path)
    with NodeProcess(block_time_seconds=0.25, state=path) as running:
        running.client.advance(25)  # the end of an epoch, so that there are bonds
        yield running


def _fill(path: Path) -> None:
    keys = [key_to_address(bytes([uid, 7]) + bytes(30)) for uid in range(NEURONS)]
    row = tuple((uid, 65535 - uid) for uid in range(NEURONS))
    neurons = [
        Neuron(
            key,
            key,
            registered_at=1,
            last_update=2,
            axon=Axon(block=1, version=200, ip=2130706434 + uid, port=8091, ip_type=4, protocol=4),
            weights=row if uid < VALIDATORS else (),
        )
        for uid, key in enumerate(keys)
    ]
    fill_chain(path, 27, neurons, dict.fromkeys(keys[:VALIDATORS], STAKE))


def test_the_whole_metagraph_is_read(full_node: NodeProcess) -> None:
    subtensor = bittensor.Subtensor(network=full_node.endpoint)
    lite = subtensor.metagraph(27)
    assert int(lite.n) == NEURONS
    assert int(lite.validator_permit.sum()) == VALIDATORS
    assert lite.axons[255].ip == "127.0.1.1"
    full = subtensor.metagraph(27, lite=False)
    assert full.W.shape == (NEURONS, NEURONS)
    assert full.W[0].sum() == pytest.approx(1, abs=1e-3)
    assert not full.W[VALIDATORS:].any()
    assert full.B[0].any()
    assert full.I.sum() == pytest.approx(1, abs=1e-2)
    subtensor.close()


def test_blocks_keep_coming_while_it_is_read(full_node: NodeProcess) -> None:
    height = full_node.client.snapshot()["block"]
    for _ in range(3):
        full_node.client.call("state_call", "NeuronInfoRuntimeApi_get_neurons", "0x1b00")
    until(lambda: int(full_node.client.call("chain_getHeader")["number"], 16) > height + 2, "more blocks")

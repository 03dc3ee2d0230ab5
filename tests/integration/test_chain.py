"""``SubtensorChain`` over an unmodified SDK, against a localnet node in a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import bittensor
import pytest

from compute.base.errors import ChainError, ChainUnreachable, ExtrinsicRefused, NotRegistered
from compute.chain.subtensor import SubtensorChain
from compute.localnet.process import NodeProcess

NETUID = 27
TAO = 10**9


def make_wallet(path: Path, name: str) -> Any:
    wallet = bittensor.Wallet(name=name, hotkey="default", path=str(path))
    wallet.create_new_coldkey(use_password=False, overwrite=True, suppress=True)
    wallet.create_new_hotkey(use_password=False, overwrite=True, suppress=True)
    return wallet


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with NodeProcess(block_time_seconds=0.25, options=["--weights-rate-limit", "2", "--tempo", "10"]) as node:
        yield node


@pytest.fixture(scope="module")
def wallets(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("wallets")
    wallets = {name: make_wallet(folder, name) for name in ("validator", "one", "two", "stranger")}
    with bittensor.Subtensor(network=node.endpoint) as subtensor:
        for name in ("validator", "one", "two"):
            node.client.faucet(wallets[name].coldkeypub.ss58_address, 1000 * TAO)
            assert subtensor.burned_register(wallets[name], netuid=NETUID).success
    node.client.stake(NETUID, wallets["validator"].hotkey.ss58_address, 10_000 * TAO)
    return wallets


@pytest.fixture
async def chain(node: NodeProcess, wallets: dict[str, Any]) -> AsyncIterator[SubtensorChain]:
    chain = SubtensorChain(node.endpoint, NETUID, wallets["validator"])
    yield chain
    await chain.close()


async def test_a_subnet_that_does_not_exist_is_named(node: NodeProcess, wallets: dict[str, Any]) -> None:
    chain = SubtensorChain(node.endpoint, 9, wallets["validator"])
    with pytest.raises(ChainError, match="no subnet has netuid 9"):
        await chain.metagraph()
    await chain.close()


async def test_the_subnet_as_a_snapshot(chain: SubtensorChain, wallets: dict[str, Any]) -> None:
    metagraph = await chain.metagraph()
    assert [neuron.uid for neuron in metagraph.neurons] == [0, 1, 2]
    own = metagraph.by_hotkey[wallets["validator"].hotkey.ss58_address]
    assert own.coldkey == wallets["validator"].coldkeypub.ss58_address
    assert own.stake == pytest.approx(10_000)
    assert own.validator_permit
    assert not own.is_serving
    assert own.registered_at > 0
    assert not metagraph.neurons[1].validator_permit
    assert await chain.block() >= metagraph.block


async def test_weights_are_set_and_read_back(chain: SubtensorChain, node: NodeProcess) -> None:
    rules = await chain.rules()
    assert rules.weights_rate_limit == 2
    assert not rules.commit_reveal
    assert rules.weights.min_allowed_weights >= 1
    node.client.advance(5)
    await chain.set_weights({1: 32768, 2: 65535})
    held = await chain.held_weights(0)
    assert pytest.approx(held, abs=1) == {1: 32768, 2: 65535}
    assert await chain.held_weights(1) == {}


async def test_too_early_is_the_chains_own_error(chain: SubtensorChain, node: NodeProcess) -> None:
    node.client.set_hyperparameter(NETUID, "weights_rate_limit", 1000)
    try:
        with pytest.raises(ExtrinsicRefused) as refusal:
            await chain.set_weights({1: 65535})
        assert refusal.value.name == "SettingWeightsTooFast"
    finally:
        node.client.set_hyperparameter(NETUID, "weights_rate_limit", 2)


async def test_the_chain_s_refusal_has_its_error_name(node: NodeProcess, wallets: dict[str, Any]) -> None:
    miner = SubtensorChain(node.endpoint, NETUID, wallets["one"])
    node.client.advance(5)
    try:
        # Refused by the pool, before dispatch, with a number.
        with pytest.raises(ExtrinsicRefused) as refusal:
            await miner.set_weights({0: 65535, 2: 65535})
        assert refusal.value.name == "NotEnoughStakeToSetWeights"
        node.client.stake(NETUID, wallets["one"].hotkey.ss58_address, 2000 * TAO)
        node.client.set_hyperparameter(NETUID, "max_validators", 1)
        node.client.advance(11)
        with pytest.raises(ExtrinsicRefused) as refusal:
            await miner.set_weights({0: 65535, 2: 65535})
        assert refusal.value.name == "NeuronNoValidatorPermit"
    finally:
        await miner.close()


async def test_axon_and_version_are_announced_once(node: NodeProcess, wallets: dict[str, Any]) -> None:
    miner = SubtensorChain(node.endpoint, NETUID, wallets["two"])
    try:
        assert await miner.serve("127.0.0.2", 8091, 200)
        assert not await miner.serve("127.0.0.2", 8091, 200)
        neuron = (await miner.metagraph()).by_hotkey[wallets["two"].hotkey.ss58_address]
        assert (neuron.ip, neuron.port, neuron.version) == ("127.0.0.2", 8091, 200)
        assert neuron.is_serving
        assert await miner.announce_version(210, "192.0.2.1", 8091)
        assert not await miner.announce_version(210, "192.0.2.1", 8091)
        # It is asked for all the same, though it comes too early for this chain.
        with pytest.raises(ExtrinsicRefused):
            await miner.announce_version(210, "192.0.2.1", 8091, force=True)
        neuron = (await miner.metagraph()).by_hotkey[wallets["two"].hotkey.ss58_address]
        assert neuron.version == 210
    finally:
        await miner.close()


async def test_a_stranger_is_told_how_to_register(node: NodeProcess, wallets: dict[str, Any]) -> None:
    stranger = SubtensorChain(node.endpoint, NETUID, wallets["stranger"])
    try:
        with pytest.raises(NotRegistered, match="btcli subnets register --netuid 27"):
            await stranger.serve("127.0.0.3", 8091, 200)
    finally:
        await stranger.close()


async def test_no_chain_says_what_to_do(wallets: dict[str, Any]) -> None:
    lost = SubtensorChain("ws://127.0.0.1:9", NETUID, wallets["validator"])
    with pytest.raises(ChainUnreachable, match="--subtensor"):
        await lost.block()
    await lost.close()


async def test_a_chain_that_comes_back_is_used_again(
    wallets: dict[str, Any], tmp_path: Path, hold_port: Callable[..., int]
) -> None:
    with NodeProcess(state=tmp_path / "chain.db", port=hold_port()) as node:
        chain = SubtensorChain(node.endpoint, NETUID, wallets["validator"])
        assert await chain.block() >= 0
        node.kill()
        with pytest.raises(ChainUnreachable):
            await chain.block()
        node.start()
        assert await chain.block() >= 0
        await chain.close()

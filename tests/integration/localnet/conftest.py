"""A node as a process of its own, an unmodified SDK client, and throw-away wallets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import bittensor
import pytest

from compute.localnet.process import NodeProcess

TAO = 10**9


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    """A node that the tests of a module share."""
    with NodeProcess(block_time_seconds=0.25, options=["--tempo", "1000", "--weights-rate-limit", "2"]) as running:
        yield running


@pytest.fixture
def subtensor(node: NodeProcess) -> Iterator[bittensor.Subtensor]:
    client = bittensor.Subtensor(network=node.endpoint)
    yield client
    client.close()


@pytest.fixture
def make_wallet(tmp_path: Path) -> Callable[[str], bittensor.Wallet]:
    """Makes wallets with unencrypted keys in the test's own folder."""

    def make(name: str) -> bittensor.Wallet:
        wallet = bittensor.Wallet(name=name, hotkey="default", path=str(tmp_path))
        wallet.create_new_coldkey(n_words=12, use_password=False, overwrite=True, suppress=True)
        wallet.create_new_hotkey(n_words=12, use_password=False, overwrite=True, suppress=True)
        return wallet

    return make


@pytest.fixture
def make_registered(
    node: NodeProcess, subtensor: bittensor.Subtensor, make_wallet: Callable[[str], bittensor.Wallet]
) -> Callable[..., bittensor.Wallet]:
    """Makes wallets with a thousand TAO and a uid; with ``stake_rao``, staked and with a validator permit."""

    def make(name: str, *, stake_rao: int = 0) -> bittensor.Wallet:
        wallet = make_wallet(name)
        node.client.faucet(wallet.coldkeypub.ss58_address, 1000 * TAO)
        response = subtensor.burned_register(wallet, netuid=node.netuid)
        assert response.success, response.message
        if stake_rao:
            node.client.stake(node.netuid, wallet.hotkey.ss58_address, stake_rao)
        return wallet

    return make

"""Puts a wallet on a localnet: makes it, gives it money, registers it, and stakes to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bittensor

from compute.base.errors import ComputeError, ConfigError
from compute.localnet.client import LocalnetClient

RAO = 10**9
_FUNDS = 1000 * RAO


@dataclass(frozen=True)
class Newcomer:
    """A registered hotkey."""

    uid: int
    hotkey: str
    coldkey: str


def make_wallet(name: str, hotkey: str, path: str) -> Any:
    """Open a wallet, after making what is missing of it, without a password. Existing keys are never overwritten.

    Raises:
        ConfigError: the key files cannot be written or read.
    """
    try:
        wallet = bittensor.Wallet(name=name, hotkey=hotkey, path=path)
        # The SDK's own create_if_non_existent talks on stdout.
        if not wallet.coldkey_file.exists_on_device():
            wallet.create_new_coldkey(use_password=False, suppress=True)
        if not wallet.hotkey_file.exists_on_device():
            wallet.create_new_hotkey(use_password=False, suppress=True)
        _ = wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address
    except Exception as error:  # the wallet library raises types of its own, which it does not export
        raise ConfigError(f"wallet {name!r} in {path}: {error}") from error
    return wallet


def register(endpoint: str, netuid: int, wallet: Any, *, stake_alpha: int = 0) -> Newcomer:
    """Give the coldkey 1000 TAO, register the hotkey where it is not yet, and stake ``stake_alpha`` to it. Blocks.

    Raises:
        ChainUnreachable: no localnet at ``endpoint``.
        ComputeError: it refuses to register.
    """
    client = LocalnetClient(endpoint)
    hotkey, coldkey = str(wallet.hotkey.ss58_address), str(wallet.coldkeypub.ss58_address)
    client.faucet(coldkey, _FUNDS)
    with bittensor.Subtensor(network=endpoint) as subtensor:
        uid = subtensor.get_uid_for_hotkey_on_subnet(hotkey, netuid)
        if uid is None:
            response = subtensor.burned_register(wallet, netuid=netuid)
            if not response.success:
                raise ComputeError(f"the chain does not register {hotkey}: {response.message}")
            uid = subtensor.get_uid_for_hotkey_on_subnet(hotkey, netuid)
    if stake_alpha:
        client.stake(netuid, hotkey, stake_alpha * RAO)
    return Newcomer(int(uid), hotkey, coldkey)

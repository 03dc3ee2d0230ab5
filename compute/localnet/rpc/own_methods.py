"""The methods that only this chain has, for tests and for playing: whoever reaches the port may call them.

Each change is made in a block of its own, which is there when the reply comes.

``localnet_faucet [coldkey, rao]``
    Add free balance to an account, given by its ss58 address. Returns the hash of the block.
``localnet_stake [netuid, hotkey, rao]``
    Stake new money to a registered hotkey on behalf of its coldkey, and give validator permits by the new stakes at
    once, where the real chain waits for the end of the epoch. Returns the hash of the block.
``localnet_setHyperparameter [netuid, name, value]``
    Change a setting: the names are the fields of ``localnet.pallet.state.Hyperparameters``. Returns the hash of the
    block.
``localnet_advance [blocks]``
    Make that many blocks at once (1 to 10000). Returns the number of the newest.
``localnet_signRound [round, signature]``
    Tell a node without a network drand's signature of a round (hexadecimal), so that it opens what was committed for
    it. Returns the round.
``localnet_snapshot [netuid?]``
    The chain, or one subnet, as plain JSON: numbers and names as in ``compute.localnet.pallet.state``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from compute.localnet.pallet.epoch import grant_permits
from compute.localnet.pallet.ledger import Amendment, Ledger, Sealed
from compute.localnet.pallet.state import U16_MAX, U64_MAX, State, Subnet
from compute.localnet.rpc import parameters
from compute.localnet.rpc.json_rpc import InvalidParams, Method

# All TAO that there will ever be: nobody can have, or stake, more.
MAX_RAO = 21_000_000 * 1_000_000_000
MAX_BLOCKS = 10_000
_BLOCKS_BETWEEN_PAUSES = 20
_SIGNATURE_BYTES = 48

Seal = Callable[[Amendment | None], Sealed]


class OwnMethods:
    """The ``localnet_`` methods. ``seal`` makes a block and tells the subscribers."""

    def __init__(self, ledger: Ledger, seal: Seal) -> None:
        self._ledger = ledger
        self._seal = seal

    def table(self) -> dict[str, Method]:
        """The methods by name."""
        return {
            "localnet_faucet": self._faucet,
            "localnet_stake": self._stake,
            "localnet_setHyperparameter": self._set_hyperparameter,
            "localnet_advance": self._advance,
            "localnet_signRound": self._sign_round,
            "localnet_snapshot": self._snapshot,
        }

    async def _faucet(self, params: list[Any]) -> str:
        coldkey, rao = parameters.take(params, "coldkey", "rao")
        address = parameters.address("coldkey", coldkey)
        amount = parameters.integer("rao", rao, 1, MAX_RAO - self._ledger.head_state.account(address).free)

        def fund(state: State) -> State:
            account = state.account(address)
            return state.with_account(address, replace(account, free=account.free + amount))

        return self._amend(fund)

    async def _stake(self, params: list[Any]) -> str:
        netuid, hotkey, rao = parameters.take(params, "netuid", "hotkey", "rao")
        number, subnet = self._subnet(netuid)
        address = parameters.address("hotkey", hotkey)
        amount = parameters.integer("rao", rao, 1, MAX_RAO - subnet.stake_of(address))
        uid = subnet.uid_of(address)
        if uid is None:
            raise InvalidParams(f"hotkey {address} is not registered on subnet {number}")
        coldkey = subnet.neurons[uid].coldkey

        def stake(state: State) -> State:
            return state.with_subnet(number, grant_permits(state.subnets[number].with_stake(address, coldkey, amount)))

        return self._amend(stake)

    async def _set_hyperparameter(self, params: list[Any]) -> str:
        netuid, name, value = parameters.take(params, "netuid", "name", "value")
        number, subnet = self._subnet(netuid)
        try:
            settings = subnet.hyperparameters.with_value(str(name), value)
        except ValueError as error:
            raise InvalidParams(str(error)) from error

        def change(state: State) -> State:
            return state.with_subnet(number, replace(state.subnets[number], hyperparameters=settings))

        return self._amend(change)

    async def _advance(self, params: list[Any]) -> int:
        (blocks,) = parameters.take(params, "blocks")
        for count in range(parameters.integer("blocks", blocks, 1, MAX_BLOCKS)):
            self._seal(None)
            if count % _BLOCKS_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)  # other clients get their answers meanwhile
        return self._ledger.head.number

    async def _sign_round(self, params: list[Any]) -> int:
        number, signature = parameters.take(params, "round", "signature")
        reveal_round = parameters.integer("round", number, 1, U64_MAX)
        self._ledger.beacon.know(reveal_round, parameters.hex_bytes("signature", signature, _SIGNATURE_BYTES).hex())
        return reveal_round

    async def _snapshot(self, params: list[Any]) -> dict[str, Any]:
        (netuid,) = parameters.take(params, "netuid", optional=1)
        state = self._ledger.head_state
        subnets = state.subnets if netuid is None else dict([self._subnet(netuid)])
        return {
            "block": state.number,
            "hash": "0x" + self._ledger.head.hash.hex(),
            "genesis": "0x" + self._ledger.genesis.hash.hex(),
            "timestamp_milliseconds": state.timestamp_milliseconds,
            "accounts": {address: asdict(account) for address, account in state.accounts.items()},
            "subnets": {str(number): _plain(subnet) for number, subnet in subnets.items()},
        }

    def _amend(self, amendment: Amendment) -> str:
        return "0x" + self._seal(amendment).block.hash.hex()

    def _subnet(self, netuid: Any) -> tuple[int, Subnet]:
        subnets = self._ledger.head_state.subnets
        number = parameters.integer("netuid", netuid, 0, U16_MAX)
        if number not in subnets:
            raise InvalidParams(f"there is no subnet {number} here, only {', '.join(map(str, sorted(subnets)))}")
        return number, subnets[number]


def _plain(subnet: Subnet) -> dict[str, Any]:
    """A subnet as JSON can hold it; rows of weights and bonds as objects from uid to value."""
    neurons = [
        {
            **asdict(neuron),
            "uid": uid,
            "stake": subnet.stake_of(neuron.hotkey),
            "weights": {str(target): value for target, value in neuron.weights},
            "bonds": {str(target): value for target, value in neuron.bonds},
        }
        for uid, neuron in enumerate(subnet.neurons)
    ]
    commits = [{**asdict(commit), "ciphertext": commit.ciphertext.hex()} for commit in subnet.commits]
    return {**asdict(replace(subnet, neurons=(), commits=())), "neurons": neurons, "commits": commits}

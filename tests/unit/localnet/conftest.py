"""A chain in memory, keys, and transactions signed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import pytest
from bittensor_wallet import Keypair

from compute.localnet.pallet.epoch import grant_permits
from compute.localnet.pallet.ledger import Ledger, Sealed
from compute.localnet.pallet.state import Account, Hyperparameters, Neuron, State, Subnet
from compute.localnet.pallet.store import Store
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.extrinsics import Era
from compute.localnet.substrate.runtime import RUNTIME, SPEC_VERSION, TRANSACTION_VERSION
from compute.localnet.substrate.scale import compact
from compute.testing.clock import ManualClock

NETUID = 27
TAO = 10**9
SETTINGS = Hyperparameters(tempo=10, weights_rate_limit=3, serving_rate_limit=3, stake_threshold=1000 * TAO)
ALICE, BOB, CAROL, DAVE = (Keypair.create_from_uri(f"//{name}") for name in ("Alice", "Bob", "Carol", "Dave"))


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(RUNTIME)


@dataclass
class Chain:
    """A ledger, and the shortest way to put a signed call into it."""

    ledger: Ledger
    codec: Codec
    clock: ManualClock
    alice: Keypair = ALICE
    bob: Keypair = BOB
    carol: Keypair = CAROL
    dave: Keypair = DAVE
    netuid: int = NETUID

    def call(self, name: str, **arguments: Any) -> bytes:
        """The bytes of a call."""
        pallet, call = next((p, c) for p in RUNTIME.pallets for c in p.calls if c.name == name)
        encoded = (self.codec.encode(target, arguments[argument]) for argument, target in call.arguments)
        return bytes([pallet.index, call.index]) + b"".join(encoded)

    def sign(
        self,
        key: Keypair,
        call: bytes,
        *,
        nonce: int | None = None,
        era: Era | None = None,
        genesis: bytes | None = None,
        anchor: bytes | None = None,
        spec_version: int = SPEC_VERSION,
        signature: bytes | None = None,
    ) -> bytes:
        """An extrinsic as a client makes it; what is not given is what a client would take from this chain."""
        nonce = self.ledger.next_nonce(key.ss58_address) if nonce is None else nonce
        genesis = genesis or self.ledger.genesis.hash
        if anchor is None:
            birth = None if era is None else self.ledger.block(era.birth(self.ledger.head.number))
            anchor = birth.hash if birth else genesis
        extra = encode_era(era) + compact(nonce) + compact(0) + b"\x00"
        versions = spec_version.to_bytes(4, "little") + TRANSACTION_VERSION.to_bytes(4, "little")
        payload = call + extra + versions + genesis + anchor + b"\x00"
        if len(payload) > 256:
            payload = blake2b(payload, digest_size=32).digest()
        signature = signature or key.sign(payload)
        body = b"\x84\x00" + bytes(key.public_key) + b"\x01" + signature + extra + call
        return compact(len(body)) + body

    def submit(self, key: Keypair, name: str, **arguments: Any) -> None:
        self.ledger.submit(self.sign(key, self.call(name, **arguments)))

    def run(self, key: Keypair, name: str, **arguments: Any) -> str | None:
        """Submit a call, make a block, and tell the name of the pallet error; None for success."""
        self.submit(key, name, **arguments)
        self.ledger.seal()
        return self.last_error()

    def last_error(self) -> str | None:
        """The error of the newest block's last extrinsic."""
        outcome: Mapping[str, Any] = self.ledger.head_state.events[-1]["event"]["System"]
        if "ExtrinsicSuccess" in outcome:
            return None
        position = outcome["ExtrinsicFailed"]["dispatch_error"]["Module"]["error"][0]
        subtensor = next(pallet for pallet in RUNTIME.pallets if pallet.name == "SubtensorModule")
        return subtensor.errors[position]

    def seal(self, blocks: int = 1) -> Sealed:
        for _ in range(blocks):
            sealed = self.ledger.seal()
        return sealed

    @property
    def subnet(self) -> Subnet:
        return self.ledger.head_state.subnets[NETUID]

    def set(self, **settings: Any) -> None:
        """Change hyperparameters, in a block of its own."""
        changed = self.subnet.hyperparameters
        for name, value in settings.items():
            changed = changed.with_value(name, value)
        self.change(hyperparameters=changed)

    def change(self, **fields: Any) -> None:
        """Change the subnet, in a block of its own."""
        self.ledger.seal(lambda state: state.with_subnet(NETUID, replace(state.subnets[NETUID], **fields)))

    def change_neuron(self, uid: int, **fields: Any) -> None:
        neuron: Neuron = replace(self.subnet.neurons[uid], **fields)
        self.ledger.seal(lambda state: state.with_subnet(NETUID, state.subnets[NETUID].with_neuron(uid, neuron)))

    def fund(self, *keys: Keypair, rao: int = 1000 * TAO) -> None:
        for key in keys:
            nonce = self.ledger.head_state.account(key.ss58_address).nonce
            account = Account(nonce, rao)
            self.ledger.seal(lambda state, a=account, k=key: state.with_account(k.ss58_address, a))

    def register(self, *keys: Keypair) -> None:
        """Register each key as its own coldkey and hotkey."""
        for key in keys:
            self.fund(key)
            assert self.run(key, "burned_register", netuid=NETUID, hotkey=key.ss58_address) is None

    def stake(self, key: Keypair, rao: int = 2000 * TAO) -> None:

        def stake(state: State) -> State:
            subnet = state.subnets[NETUID].with_stake(key.ss58_address, key.ss58_address, rao)
            return state.with_subnet(NETUID, grant_permits(subnet))

        self.ledger.seal(stake)


def encode_era(era: Era | None) -> bytes:
    if era is None:
        return b"\x00"
    factor = max(era.period >> 12, 1)
    number = min(max(era.period.bit_length() - 2, 1), 15) | (era.phase // factor) << 4
    return number.to_bytes(2, "little")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def chain(codec: Codec, clock: ManualClock) -> Chain:
    """A new chain with the subnet 27 and nobody on it."""
    return Chain(Ledger(Store(None), codec, clock, netuid=NETUID, settings=SETTINGS), codec, clock)


@pytest.fixture
def validator(chain: Chain) -> Chain:
    """A chain where Alice (uid 0) is a validator with a permit and Bob (uid 1) a miner, past every rate limit."""
    chain.register(ALICE, BOB)
    chain.stake(ALICE)
    chain.seal(4)
    return chain

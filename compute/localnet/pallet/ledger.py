"""The chain itself: blocks, the states behind them, and the transactions that wait. No sockets, no timers."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from compute.base.clock import Clock
from compute.localnet.pallet import calls
from compute.localnet.pallet.epoch import end_epoch
from compute.localnet.pallet.errors import DispatchError, PoolError
from compute.localnet.pallet.pool import PendingExtrinsic, Pool
from compute.localnet.pallet.registration import decayed_burn
from compute.localnet.pallet.reveal import Beacon, reveal_due
from compute.localnet.pallet.state import Hyperparameters, State, Subnet
from compute.localnet.pallet.store import Block, Store
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.extrinsics import Extrinsic, decode_extrinsic, timestamp_extrinsic, verify_signature
from compute.localnet.substrate.runtime import BLOCK_HASH_COUNT, SUBTENSOR_INDEX
from compute.localnet.substrate.scale import compact, vector

RECENT_STATES = 300
_NO_HASH = bytes(32)
_DISPATCH_INFO: dict[str, Any] = {
    "weight": {"ref_time": 0, "proof_size": 0},
    "class": "Normal",
    "pays_fee": "No",
}

Amendment = Callable[[State], State]


@dataclass(frozen=True)
class Sealed:
    """A new block: what it includes, and what the pool gave up on meanwhile."""

    block: Block
    included: tuple[Extrinsic, ...]
    dropped: tuple[Extrinsic, ...]


class Ledger:
    """One chain in one store. Not thread-safe.

    Blocks are final as they are made, and no fees are charged. The last ``BLOCK_HASH_COUNT`` blocks can be read, and
    the last :data:`RECENT_STATES` states of those that this process made: a restarted chain knows its head's only.
    """

    def __init__(self, store: Store, codec: Codec, clock: Clock, *, netuid: int, settings: Hyperparameters) -> None:
        """Go on with the chain in ``store``, or begin one with the subnet ``netuid``.

        Raises:
            StoreError: the store cannot be read or written.
        """
        self._store = store
        self._codec = codec
        self._clock = clock
        self._pool = Pool()
        self.beacon = Beacon(clock)
        """Opens the committed weights; it asks the internet, and takes what it is told."""
        self._blocks: dict[int, Block] = {}
        self._numbers: dict[bytes, int] = {}
        self._states: dict[int, State] = {}
        saved = store.load()
        if saved is None:
            self._add(_genesis_block(), _genesis_state(netuid, settings, self._now_milliseconds()))
        else:
            blocks, state = saved
            for block in blocks:
                self._blocks[block.number] = block
                self._numbers[block.hash] = block.number
            self._states[state.number] = state

    @property
    def head(self) -> Block:
        """The newest block."""
        return self._blocks[next(reversed(self._blocks))]

    @property
    def genesis(self) -> Block:
        """Block 0."""
        return self._blocks[0]

    def block(self, number: int) -> Block | None:
        """The block of that number, None if it is not known (any more)."""
        return self._blocks.get(number)

    def number_of(self, block_hash: bytes) -> int | None:
        """The number of the block of that hash, None if it is not known (any more)."""
        return self._numbers.get(block_hash)

    def state(self, number: int) -> State | None:
        """The state after a block, None if it is not known (any more)."""
        return self._states.get(number)

    @property
    def head_state(self) -> State:
        """The state after the newest block."""
        return self._states[self.head.number]

    def next_nonce(self, address: str) -> int:
        """The nonce that an account's next transaction should have, those in the pool included."""
        return self._pool.next_nonce(address, self.head_state.account(address).nonce)

    def submit(self, raw: bytes) -> Extrinsic:
        """Take a transaction into the pool.

        Raises:
            PoolError: what the real pool refuses before dispatch is refused here, with the same words.
        """
        extrinsic = decode_extrinsic(raw, self._codec)
        block = self.head.number + 1
        account_nonce = self.head_state.account(extrinsic.signer).nonce
        verify_signature(extrinsic, block=block, genesis_hash=self.genesis.hash, hash_of=self._hash_of)
        if extrinsic.nonce >= account_nonce:
            calls.guard(replace(self.head_state, number=block), extrinsic.signer, extrinsic.call, extrinsic.arguments)
        expires_at = None if extrinsic.era is None else extrinsic.era.death(block)
        self._pool.add(PendingExtrinsic(extrinsic, expires_at), account_nonce)
        return extrinsic

    def seal(self, amendment: Amendment | None = None) -> Sealed:
        """Make the next block from the pool, and save it. ``amendment`` changes the state ahead of the transactions.

        Raises:
            StoreError: the block cannot be saved; the chain stays as it was, but the pool has lost its transactions.
        """
        parent = self.head
        number = parent.number + 1
        now = max(self._now_milliseconds(), self.head_state.timestamp_milliseconds + 1)
        state = _begin_block(self.head_state, number, now, self.beacon)
        if amendment is not None:
            state = amendment(state)
        included: list[Extrinsic] = []
        dropped = self._pool.take_expired(number)
        raw = [timestamp_extrinsic(now)]
        state = _with_outcome(state, 0, None)
        while extrinsic := self._pool.take_ready(state):
            try:
                calls.guard(state, extrinsic.signer, extrinsic.call, extrinsic.arguments)
            except PoolError:
                dropped.append(extrinsic)
                continue
            state = _apply(state, len(raw), extrinsic)
            raw.append(extrinsic.raw)
            included.append(extrinsic)
        block = _make_block(number, parent.hash, _NO_HASH, tuple(raw))
        self._add(block, state)
        self.beacon.want(commit.reveal_round for subnet in state.subnets.values() for commit in subnet.commits)
        return Sealed(block, tuple(included), tuple(dropped))

    def _add(self, block: Block, state: State) -> None:
        oldest = block.number - BLOCK_HASH_COUNT
        self._store.save(block, state, forget_before=oldest)
        self._blocks[block.number] = block
        self._numbers[block.hash] = block.number
        self._states[block.number] = state
        self._states.pop(block.number - RECENT_STATES, None)
        if oldest > 1:
            forgotten = self._blocks.pop(oldest - 1, None)
            if forgotten is not None:
                del self._numbers[forgotten.hash]

    def _hash_of(self, number: int) -> bytes | None:
        block = self._blocks.get(number)
        return None if block is None else block.hash

    def _now_milliseconds(self) -> int:
        return int(self._clock.now() * 1000)


def _genesis_block() -> Block:
    # The root is drawn at random so that no two chains share a genesis hash, and no transaction fits both.
    return _make_block(0, _NO_HASH, secrets.token_bytes(32), ())


def _genesis_state(netuid: int, settings: Hyperparameters, now_milliseconds: int) -> State:
    subnet = Subnet(registered_at=0, hyperparameters=settings, burn=settings.min_burn, last_epoch_block=0)
    return State(timestamp_milliseconds=now_milliseconds, subnets={netuid: subnet})


def _make_block(number: int, parent_hash: bytes, state_root: bytes, extrinsics: tuple[bytes, ...]) -> Block:
    extrinsics_root = blake2b(vector(extrinsics), digest_size=32).digest()
    header = parent_hash + compact(number) + state_root + extrinsics_root + vector([])
    block_hash = blake2b(header, digest_size=32).digest()
    return Block(number, block_hash, parent_hash, state_root, extrinsics_root, extrinsics)


def _begin_block(state: State, number: int, now_milliseconds: int, beacon: Beacon) -> State:
    """What happens at the start of a block: weights are revealed, the burn price falls, and epochs end."""
    state = replace(state, number=number, timestamp_milliseconds=now_milliseconds, events=())
    state = reveal_due(state, beacon.signature_of)
    for netuid, subnet in state.subnets.items():
        burn = decayed_burn(subnet)
        changed = subnet if burn == subnet.burn else replace(subnet, burn=burn)
        changed = end_epoch(changed, number) if changed.epoch_is_due(number) else changed
        if changed is not subnet:
            state = state.with_subnet(netuid, changed)
    return state


def _apply(state: State, index: int, extrinsic: Extrinsic) -> State:
    """The state after a transaction: a refused one uses its nonce up, and changes nothing else."""
    account = state.account(extrinsic.signer)
    state = state.with_account(extrinsic.signer, replace(account, nonce=account.nonce + 1))
    fee = {"who": extrinsic.signer, "actual_fee": 0, "tip": 0}
    state = state.with_event({"ApplyExtrinsic": index}, "TransactionPayment", "TransactionFeePaid", fee)
    try:
        called = calls.dispatch(state, extrinsic.signer, extrinsic.call, extrinsic.arguments)
    except DispatchError as error:
        return _with_outcome(state, index, error)
    return _with_outcome(called, index, None)


def _with_outcome(state: State, index: int, error: DispatchError | None) -> State:
    phase = {"ApplyExtrinsic": index}
    if error is None:
        return state.with_event(phase, "System", "ExtrinsicSuccess", {"dispatch_info": _DISPATCH_INFO})
    module = {"index": SUBTENSOR_INDEX, "error": [error.position, 0, 0, 0]}
    failure = {"dispatch_error": {"Module": module}, "dispatch_info": _DISPATCH_INFO}
    return state.with_event(phase, "System", "ExtrinsicFailed", failure)

"""Transactions that wait for a block: one for each account and nonce, in the order of their arrival."""

from __future__ import annotations

from dataclasses import dataclass

from compute.localnet.pallet.errors import ALREADY_IMPORTED, IMMEDIATELY_DROPPED, INVALID, PRIORITY_TOO_LOW, PoolError
from compute.localnet.pallet.state import State
from compute.localnet.substrate.extrinsics import Extrinsic

MAX_TRANSACTIONS = 8192


@dataclass(frozen=True)
class PendingExtrinsic:
    """A transaction in the pool; ``expires_at`` is the first block that may not include it, None for never."""

    extrinsic: Extrinsic
    expires_at: int | None


class Pool:
    """Ready transactions, and those whose nonce is ahead of their account's, which wait for the ones before them."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], PendingExtrinsic] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: PendingExtrinsic, account_nonce: int) -> None:
        """Take a transaction in.

        Raises:
            PoolError: its nonce is used up, its place is taken, or the pool is full.
        """
        extrinsic = pending.extrinsic
        place = (extrinsic.signer, extrinsic.nonce)
        if extrinsic.nonce < account_nonce:
            raise PoolError(INVALID, "Transaction is outdated")
        if place in self._pending:
            if self._pending[place].extrinsic.hash == extrinsic.hash:
                raise PoolError(ALREADY_IMPORTED, f"(hash {extrinsic.hash})")
            raise PoolError(
                PRIORITY_TOO_LOW, f"nonce {extrinsic.nonce} of {extrinsic.signer} has a transaction in the pool already"
            )
        if len(self._pending) >= MAX_TRANSACTIONS:
            raise PoolError(IMMEDIATELY_DROPPED, f"the pool holds {MAX_TRANSACTIONS} transactions")
        self._pending[place] = pending

    def next_nonce(self, address: str, account_nonce: int) -> int:
        """The first nonce that neither the chain nor the pool has used."""
        while (address, account_nonce) in self._pending:
            account_nonce += 1
        return account_nonce

    def take_expired(self, block: int) -> list[Extrinsic]:
        """Remove the transactions that ``block`` may not include any more."""
        expired = [each for each in self._pending.values() if each.expires_at is not None and each.expires_at <= block]
        for each in expired:
            del self._pending[each.extrinsic.signer, each.extrinsic.nonce]
        return [each.extrinsic for each in expired]

    def take_ready(self, state: State) -> Extrinsic | None:
        """Remove the first transaction whose nonce is its account's; None if there is none."""
        for (signer, nonce), pending in self._pending.items():
            if nonce == state.account(signer).nonce:
                del self._pending[signer, nonce]
                return pending.extrinsic
        return None

"""Opening committed weights: a commit is locked until drand, a public beacon of randomness, signs its reveal round.

The signatures come from drand's servers, so weights are revealed where there is a network and stay sealed where there
is none. Nothing else here needs one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

import bittensor_drand

from compute.base.clock import Clock
from compute.localnet.pallet.errors import DispatchError
from compute.localnet.pallet.state import Commit, State
from compute.localnet.pallet.weights import store_weights
from compute.localnet.substrate.codec import address_to_key, take
from compute.localnet.substrate.scale import read_compact

logger = logging.getLogger(__name__)

# The quicknet beacon, which the commits are made for: its first round and the seconds between two.
_GENESIS_SECONDS = 1_692_803_367
_PERIOD_SECONDS = 3


def open_commit(commit: Commit, signature: str) -> tuple[list[int], list[int], int]:
    """Uids, weights and version key inside a commit, by drand's signature (hexadecimal) of its reveal round.

    Raises:
        ValueError: the signature is of another round, or the content is no weights of this hotkey.
    """
    locked = commit.ciphertext + commit.reveal_round.to_bytes(8, "little")
    content = bytes(bittensor_drand.decrypt_with_signature(locked, signature))
    size, offset = read_compact(content, 0)
    if take(content, offset, size) != address_to_key(commit.hotkey):
        raise ValueError(f"the commit of {commit.hotkey} holds weights of another hotkey")
    uids, offset = _read_u16s(content, offset + size)
    values, offset = _read_u16s(content, offset)
    return uids, values, int.from_bytes(take(content, offset, 8), "little")


def reveal_due(state: State, signature_of: Callable[[int], str | None]) -> State:
    """The state with the weights of every commit whose epoch has come, and whose round is signed.

    Comes before the end of an epoch, so that the weights count in it. A commit that cannot be opened, or whose weights
    break a rule, is gone without effect.
    """
    for netuid, subnet in state.subnets.items():
        epoch = subnet.epoch_index + subnet.epoch_is_due(state.number)
        for commit in subnet.commits:
            signature = signature_of(commit.reveal_round)
            if signature is None or commit.epoch + subnet.hyperparameters.commit_reveal_period != epoch:
                continue
            state = state.with_subnet(netuid, state.subnets[netuid].without_commit(commit))
            try:
                uids, values, version_key = open_commit(commit, signature)
                state = store_weights(
                    state, commit.hotkey, netuid=netuid, dests=uids, weights=values, version_key=version_key
                )
            except (ValueError, DispatchError) as error:
                logger.warning("the weights that %s committed in block %d: %s", commit.hotkey, commit.block, error)
    return state


class Beacon:
    """Fetches drand's signatures in the background, one at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._signatures: dict[int, str] = {}
        self._fetching: threading.Thread | None = None

    def signature_of(self, reveal_round: int) -> str | None:
        """The signature of a round, None as long as it has not been fetched. Does not block."""
        return self._signatures.get(reveal_round)

    def know(self, reveal_round: int, signature: str) -> None:
        """Take a round's signature (hexadecimal) from whoever has it."""
        self._signatures[reveal_round] = signature

    def want(self, rounds: Iterable[int]) -> None:
        """Fetch the first of these rounds that is over and missing, unless a fetch is under way. Does not block."""
        if self._fetching is not None and self._fetching.is_alive():
            return
        newest = (self._clock.now() - _GENESIS_SECONDS) // _PERIOD_SECONDS
        missing = sorted(each for each in rounds if each <= newest and each not in self._signatures)
        if missing:
            # A daemon, because the library's request has no deadline and the node must be able to stop.
            self._fetching = threading.Thread(target=self._fetch, args=(missing[0],), daemon=True)
            self._fetching.start()

    def _fetch(self, reveal_round: int) -> None:
        try:
            self._signatures[reveal_round] = str(bittensor_drand.get_signature_for_round(reveal_round))
        except ValueError as error:
            logger.info("drand's signature of round %d is not to be had: %s", reveal_round, error)


def _read_u16s(content: bytes, offset: int) -> tuple[list[int], int]:
    count, offset = read_compact(content, offset)
    raw = take(content, offset, 2 * count)
    return [int.from_bytes(raw[start : start + 2], "little") for start in range(0, 2 * count, 2)], offset + 2 * count

"""Proves the free machines that are due, in two lanes: whoever is new, or to be tried again, waits for no round.

Each lane proves one batch at a time, and both together at most ``max_workers`` machines. What is due is found out anew
before each batch, so a round is not a list that was made at its beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum

from compute.base import ssh
from compute.base.channel import Channel
from compute.base.clock import Clock
from compute.base.errors import StoreError
from compute.base.metrics import PROOF_SECONDS
from compute.base.reasons import ProofReason
from compute.base.tasks import give_way
from compute.chain.subtensor import Neuron
from compute.incentive.config import Config
from compute.proof.bootstrap import BOOTSTRAP
from compute.proof.models import Claim, MachineVerdict
from compute.proof.session import Target, prove_batch
from compute.validator.eligibility import Due, due
from compute.validator.store import FactStore, SpecsFact, VerdictHistory
from compute.wire.lease_client import AllocationClient, LeaseKeys
from compute.wire.peer import Peer
from compute.wire.requirements import DeviceRequirement
from compute.wire.specs import claim_of, machine_of

logger = logging.getLogger(__name__)

_NEW = frozenset({Due.FIRST, Due.CHANGED})


class Lane(Enum):
    """``MAIN`` proves whatever is due; ``EXPRESS`` only what is new, has changed, or is to be tried again."""

    MAIN = "main"
    EXPRESS = "express"


def lane_sizes(config: Config) -> dict[Lane, int]:
    """How many machines a batch of each lane has at most.

    With one worker there is one lane. On a localnet too: its miners share this machine's processor, and two batches at
    once would measure each other.
    """
    workers = config.rounds.max_workers
    if workers == 1 or config.proof.device == "cpu":
        return {Lane.MAIN: workers}
    express = max(1, workers // 4)
    return {Lane.MAIN: workers - express, Lane.EXPRESS: express}


class Turns:
    """A lock of two kinds: the lanes go side by side, each with one batch; whoever ``acquire``s it goes alone."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._locks = {lane: asyncio.Lock() for lane in lanes}

    def turn(self, lane: Lane) -> asyncio.Lock:
        """What this lane holds while a batch of its is under way."""
        return self._locks[lane]

    async def acquire(self) -> None:
        """Return when no batch is under way; none begins until ``release``."""
        taken: list[asyncio.Lock] = []
        try:
            for lock in self._locks.values():
                await lock.acquire()
                taken.append(lock)
        except asyncio.CancelledError:
            for lock in taken:
                lock.release()
            raise

    def release(self) -> None:
        """Let the lanes go on."""
        for lock in self._locks.values():
            lock.release()

    def locked(self) -> bool:
        """Whether a batch is under way, or somebody goes alone."""
        return any(lock.locked() for lock in self._locks.values())


@dataclass(frozen=True)
class _Candidate:
    neuron: Neuron
    why: Due
    claim: Claim | None
    specs: SpecsFact


class Prover:
    """Finds what is due and proves it. All methods belong to one event loop; one ``prove`` per lane at a time."""

    def __init__(
        self,
        *,
        own_hotkey: str,
        client: AllocationClient,
        facts: FactStore,
        config: Config,
        interval_blocks: int,
        clock: Clock,
        uid: Callable[[str], int | None],
        on_refused: Callable[[str], object],
    ) -> None:
        """``on_refused`` is told the hotkeys that refused a probe: they may have been rented since they were asked."""
        self._own_hotkey = own_hotkey
        self._client = client
        self._facts = facts
        self._config = config
        self._interval_blocks = interval_blocks
        self._clock = clock
        self._uid = uid
        self._on_refused = on_refused
        self._lanes = lane_sizes(config)
        # One thread: U and the openings of one batch, one after the other, on at most one core.
        self._executor = ThreadPoolExecutor(1, "proof")
        self._random = secrets.SystemRandom()
        self._delays: dict[str, float] = {}
        self._proving: set[str] = set()

    def close(self) -> None:
        """Begin nothing more. Idempotent."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def lanes(self) -> Collection[Lane]:
        """The lanes that there are."""
        return self._lanes.keys()

    async def prove(self, lane: Lane, free: Sequence[Neuron], block: int) -> None:
        """Prove one batch of those ``free`` machines that are due.

        A machine that is due and has no specs that could be proven gets a verdict with the specs' reason at once.
        """
        claimed = []
        for candidate in self._due(lane, free, block):
            if candidate.claim is None:
                reason = candidate.specs.reason
                verdict = MachineVerdict(reason=reason, claim=Claim("", 0), detail="its specs could not be read")
                self._publish(candidate.neuron.hotkey, verdict, block, seconds=0.0)
                # Five milliseconds each, and there may be dozens.
                await give_way()
            else:
                claimed.append((candidate.neuron, candidate.claim))
        batch = claimed[: self._lanes[lane]]
        hotkeys = {neuron.hotkey for neuron, _ in batch}
        self._proving |= hotkeys
        for hotkey in hotkeys:
            self._delays.pop(hotkey, None)
        try:
            await self._prove(batch, block)
        finally:
            self._proving -= hotkeys

    def _due(self, lane: Lane, free: Sequence[Neuron], block: int) -> list[_Candidate]:
        """What this lane may prove now, in the order in which it does: what is new first, and otherwise by lot.

        By lot, so that nobody who shows one card under two hotkeys can arrange that they are in different batches.
        """
        histories = self._facts.histories()
        specs = self._facts.specs()
        rentals = self._facts.rentals.by_hotkey()
        now = self._clock.now()
        found = []
        for neuron in free:
            fact = specs.get(neuron.hotkey)
            if fact is None or neuron.hotkey in self._proving:
                continue
            machine = machine_of(fact.specs)
            claim = claim_of(machine, self._config.aliases) if machine is not None else None
            changed_at = (row.differs_since for row in rentals.get(neuron.hotkey, ()) if row.change is not None)
            why = due(
                histories.get(neuron.hotkey, VerdictHistory()),
                claim if fact.reason is ProofReason.OK else None,
                fact.at,
                registered_at=neuron.registered_at,
                block=block,
                now=now,
                interval_blocks=self._interval_blocks,
                rounds=self._config.rounds,
                changed_at_block=max((block for block in changed_at if block is not None), default=0),
            )
            if why is None or (why is Due.ROUTINE and not self._may_begin(lane, neuron.hotkey, now)):
                continue
            found.append(_Candidate(neuron, why, claim, fact))
        self._random.shuffle(found)
        return sorted(found, key=lambda candidate: candidate.why not in _NEW)

    def _may_begin(self, lane: Lane, hotkey: str, now: float) -> bool:
        """A routine proof is for the main lane, and begins at a moment that only this process knows."""
        if lane is Lane.EXPRESS:
            return False
        maximum = self._config.rounds.max_random_delay_seconds
        return now >= self._delays.setdefault(hotkey, now + self._random.uniform(0, maximum))

    async def _prove(self, batch: Sequence[tuple[Neuron, Claim]], block: int) -> None:
        started = self._clock.monotonic()
        targets = [
            Target(neuron.hotkey, claim, worker_on(self._client, Peer(neuron.hotkey, neuron.ip, neuron.port), claim))
            for neuron, claim in batch
        ]

        def publish(target: Target, verdict: MachineVerdict) -> None:
            self._publish(target.hotkey, verdict, block, seconds=self._clock.monotonic() - started)
            # Its retry need not wait for the slowest of this batch.
            self._proving.discard(target.hotkey)

        await prove_batch(
            targets,
            validator_hotkey=self._own_hotkey,
            models=self._config.models,
            tolerance_pairs=self._config.tolerance_pairs,
            settings=self._config.proof,
            on_verdict=publish,
            executor=self._executor,
            clock=self._clock,
        )

    def _publish(self, hotkey: str, verdict: MachineVerdict, block: int, *, seconds: float) -> None:
        details = {
            "uid": self._uid(hotkey),
            "claim": f"{verdict.claim.count} x {verdict.claim.gpu}",
            "reason": verdict.reason,
            "gpu": verdict.gpu,
            "count": verdict.count,
            "seconds": round(seconds, 1),
            "detail": verdict.detail,
        }
        PROOF_SECONDS.labels(verdict.reason.value).observe(seconds)
        logger.info("machine proven" if verdict.ok else "machine not proven", extra=details)
        try:
            self._facts.record_verdict(hotkey, verdict, at=self._clock.now(), block=block, seconds=seconds)
        except StoreError as error:
            # One verdict that cannot be written must not end the proofs of the others.
            logger.error("a verdict is lost: %s", error, extra={"uid": self._uid(hotkey)})
        if verdict.reason is ProofReason.REFUSED:
            self._on_refused(hotkey)


_LOGIN_SECONDS = 30.0
_START_SECONDS = 120.0


def worker_on(client: AllocationClient, peer: Peer, claim: Claim) -> Callable[[], AbstractAsyncContextManager[Channel]]:
    """What ``proof.session.Target.connect`` needs: lease, log in, start the worker, and undo all of it."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Channel]:
        requirement, keys = DeviceRequirement(gpu_count=claim.count), await LeaseKeys.generate()
        # An older peer names no host key. A probe brings no secrets, and what it finds is checked by arithmetic.
        async with (
            client.rented(
                peer, requirement, days=1, keys=keys, testing=True, allow_unpinned=True, start_seconds=_START_SECONDS
            ) as login,
            ssh.connect(
                peer.ip,
                login.port,
                username=login.username,
                pinned=login.host_key,
                private_key=keys.session.private_openssh,
                password=login.password,
                timeout_seconds=_LOGIN_SECONDS,
            ) as session,
        ):
            channel = await session.open(BOOTSTRAP)
            try:
                yield channel
            finally:
                await channel.close()

    return connect

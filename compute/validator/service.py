"""The validator: its duties, each in its own task, driven by block numbers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from compute.allocation.client import AllocationClient
from compute.chain import Chain, Metagraph, Neuron
from compute.clock import Clock
from compute.config import Config
from compute.duty import repeat
from compute.errors import NotRegistered, StoreError
from compute.proof.models import Claim, MachineVerdict
from compute.proof.session import Target, prove_batch
from compute.reasons import ProofReason
from compute.renter.evidence import Rental
from compute.specs import MachineSpecs, SpecsError, parse_specs
from compute.telemetry.metrics import PROOF_SECONDS
from compute.transport.peer import Caller, Peer
from compute.validator.facts import FactStore, SpecsFact, VerdictHistory
from compute.validator.probing import worker_on
from compute.validator.scores import Known, score_all
from compute.validator.setting import Outcome, WeightSetter
from compute.validator.specs_query import REQUEST_SECONDS, query_specs
from compute.validator.standing import QueryPolicy, claim_of, is_due, unqueried
from compute.validator.watching import HostKeys, Watched, alive

logger = logging.getLogger(__name__)

SYNC_BLOCKS = 25
WATCH_POLLS = 10
"""Rented machines are looked at once in so many polls: once a minute on finney."""


@dataclass(frozen=True)
class ValidatorSettings:
    """What a validator is told besides ``config.yaml``. Intervals in blocks; ``poll_seconds`` is how often a duty
    looks whether it is due; ``rounds`` 0 is for ever (a round ends when the chain holds new weights)."""

    policy: QueryPolicy
    specs_batch_size: int = 64
    specs_interval_blocks: int = 150
    specs_request_seconds: float = REQUEST_SECONDS
    proof_interval_blocks: int = 360
    perform_hardware_query: bool = True
    rounds: int = 0
    poll_seconds: float = 6.0


@dataclass(frozen=True)
class Leases:
    """Evidence from this validator's own renting, read anew at every use, and how to check that a rental lives.

    ``watched`` is told after every look; what it raises is an error of that duty.
    """

    rentals: Callable[[], Sequence[Rental]]
    penalized: Callable[[], Collection[str]]
    host_keys: HostKeys
    watched: Watched = lambda rentals, alive: None


class ValidatorService:
    """Finds out what the miners' machines are and sets weights by it, until cancelled or ``rounds`` are over."""

    def __init__(
        self,
        *,
        own_hotkey: str,
        chain: Chain,
        caller: Caller,
        client: AllocationClient,
        facts: FactStore,
        leases: Leases,
        config: Config,
        settings: ValidatorSettings,
        clock: Clock,
    ) -> None:
        self._own_hotkey = own_hotkey
        self._chain = chain
        self._caller = caller
        self._client = client
        self._facts = facts
        self._leases = leases
        self._config = config
        self._settings = settings
        self._clock = clock
        self._setter = WeightSetter(chain, facts, clock)
        # One thread: U and the openings of one batch, one after the other, on at most one core.
        self._executor = ThreadPoolExecutor(1, "proof")
        self._metagraph: Metagraph | None = None
        self._unqueried: Mapping[str, ProofReason] = {}
        self._delays: dict[str, float] = {}
        self._leased: set[str] = set()
        self._rounds_left = settings.rounds
        self._rounds_over = asyncio.Event()
        self.up = asyncio.Event()
        """Set once the subnet has been read, and the duties begin."""
        self.between_proofs = asyncio.Lock()
        """Held while a batch of proofs is under way. Whoever else holds it keeps the next one from beginning."""

    async def run(self) -> None:
        """Do all duties until cancelled, or until the rounds are over.

        Raises:
            ChainError: at the start: no chain, or this hotkey is not registered on the subnet.
        """
        await self.sync()
        await self.watch()
        poll = self._settings.poll_seconds
        duties = [
            repeat("sync", self.sync_if_due, clock=self._clock, pause_seconds=poll),
            repeat("watch", self.watch, clock=self._clock, pause_seconds=WATCH_POLLS * poll),
            repeat("weights", self.set_weights, clock=self._clock, pause_seconds=poll),
        ]
        if self._settings.perform_hardware_query:
            duties.append(repeat("specs", self.query_due_specs, clock=self._clock, pause_seconds=poll))
            duties.append(repeat("proof", self.prove_due, clock=self._clock, pause_seconds=poll))
        tasks = [asyncio.create_task(duty) for duty in duties]
        over = asyncio.create_task(self._rounds_over.wait())
        self.up.set()
        try:
            await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, over):
                task.cancel()
            await asyncio.gather(*tasks, over, return_exceptions=True)
            self._executor.shutdown(wait=False, cancel_futures=True)

    # --- sync ---------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Read the subnet and decide whom to ask.

        Raises:
            ChainError: no answer, or we are not registered.
            StoreError: old facts cannot be dropped.
        """
        metagraph = await self._chain.metagraph()
        if self._own_hotkey not in metagraph.by_hotkey:
            raise NotRegistered(
                f"hotkey {self._own_hotkey} is not registered on netuid {metagraph.netuid}; register it with: "
                f"btcli subnets register --netuid {metagraph.netuid}"
            )
        before = set(self._metagraph.by_hotkey) if self._metagraph is not None else set()
        reasons = unqueried(metagraph, self._own_hotkey, self._settings.policy)
        self._facts.forget_absent(metagraph.by_hotkey.keys(), self._clock.now())
        self._metagraph, self._unqueried = metagraph, reasons
        now = set(metagraph.by_hotkey)
        if before != now:
            logger.info(
                "subnet read",
                extra={
                    "block": metagraph.block,
                    "neurons": len(now),
                    "queryable": len(now) - len(reasons),
                    "new": len(now - before),
                    "gone": len(before - now),
                },
            )

    async def sync_if_due(self) -> None:
        """Sync where the last one is ``SYNC_BLOCKS`` old."""
        block = await self._chain.block()
        if block - self._known_metagraph().block >= min(SYNC_BLOCKS, self._settings.specs_interval_blocks):
            await self.sync()

    # --- specs --------------------------------------------------------------------------------------------------

    async def query_due_specs(self) -> None:
        """Ask every miner whose specs are older than the interval, or unknown."""
        block = await self._chain.block()
        known = self._facts.specs()
        due = [
            neuron
            for neuron in self._queryable()
            if neuron.hotkey not in known
            or block - known[neuron.hotkey].block >= self._settings.specs_interval_blocks
            or known[neuron.hotkey].block < neuron.registered_at
        ]
        batches = query_specs(
            due,
            caller=self._caller,
            clock=self._clock,
            block=block,
            at_once=self._settings.specs_batch_size,
            request_seconds=self._settings.specs_request_seconds,
        )
        async for batch in batches:
            self._facts.record_specs(batch)
            for fact in batch:
                if fact.reason is not ProofReason.OK:
                    details = {"uid": self._uid(fact.hotkey), "reason": fact.reason, "detail": fact.detail}
                    logger.info("no usable specs", extra=details)

    # --- rented machines ----------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """See which of our rentals are alive: those are not proven, keep their last verdict, and score double."""
        rentals = self._leases.rentals()
        still_alive = await alive(rentals, self._leases.host_keys)
        now_alive = {rental.hotkey for rental in still_alive}
        for hotkey in self._leased ^ now_alive:
            event = "rented machine is alive" if hotkey in now_alive else "rented machine is gone, or given back"
            logger.info(event, extra={"uid": self._uid(hotkey)})
        self._leased = now_alive
        self._leases.watched(rentals, still_alive)

    # --- proof --------------------------------------------------------------------------------------------------

    async def prove_due(self) -> None:
        """Prove every free machine that is due, newcomers first, ``max_workers`` at a time.

        A machine that is due and has no specs that could be proven gets a verdict with the specs' reason at once.
        """
        block = await self._chain.block()
        due: list[tuple[Neuron, Claim]] = []
        for neuron, claim, reason in self._due_for_proof(block):
            if claim is None:
                verdict = MachineVerdict(reason=reason, claim=Claim("", 0), detail="its specs could not be read")
                self._publish(neuron.hotkey, verdict, block, seconds=0.0)
            else:
                due.append((neuron, claim))
        size = self._config.rounds.max_workers
        for start in range(0, len(due), size):
            async with self.between_proofs:
                await self._prove(due[start : start + size], block)

    def _due_for_proof(self, block: int) -> list[tuple[Neuron, Claim | None, ProofReason]]:
        """The free machines that are due, with their claim (None without usable specs) and the specs' reason."""
        histories = self._facts.histories()
        specs = self._facts.specs()
        machines = self._machines(specs)
        now = self._clock.now()
        due: list[tuple[Neuron, Claim | None, ProofReason]] = []
        for neuron in self._queryable():
            fact = specs.get(neuron.hotkey)
            if fact is None or neuron.hotkey in self._leased:
                continue
            machine = machines.get(neuron.hotkey)
            claim = claim_of(machine, self._config.aliases) if machine is not None else None
            history = histories.get(neuron.hotkey, VerdictHistory())
            if not is_due(
                history,
                claim if fact.reason is ProofReason.OK else None,
                fact.at,
                registered_at=neuron.registered_at,
                block=block,
                now=now,
                interval_blocks=self._settings.proof_interval_blocks,
                rounds=self._config.rounds,
            ):
                continue
            routine = history.latest is not None and history.latest.reason is ProofReason.OK
            if not routine or self._delay_is_over(neuron.hotkey, now):
                self._delays.pop(neuron.hotkey, None)
                due.append((neuron, claim, fact.reason))
        return sorted(due, key=lambda item: item[0].hotkey in histories)

    def _delay_is_over(self, hotkey: str, now: float) -> bool:
        """A routine proof begins at a moment that only this process knows."""
        maximum = self._config.rounds.max_random_delay_seconds
        end = self._delays.setdefault(hotkey, now + secrets.SystemRandom().uniform(0, maximum))
        return now >= end

    async def _prove(self, batch: Sequence[tuple[Neuron, Claim]], block: int) -> None:
        started = self._clock.monotonic()
        targets = [
            Target(neuron.hotkey, claim, worker_on(self._client, Peer(neuron.hotkey, neuron.ip, neuron.port), claim))
            for neuron, claim in batch
        ]

        def publish(target: Target, verdict: MachineVerdict) -> None:
            self._publish(target.hotkey, verdict, block, seconds=self._clock.monotonic() - started)

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

    # --- weights ------------------------------------------------------------------------------------------------

    async def set_weights(self) -> None:
        """Score everybody and bring the chain's weights in line, when the chain's rate limit allows."""
        metagraph = await self._chain.metagraph()
        own = metagraph.by_hotkey.get(self._own_hotkey)
        if own is None:
            raise NotRegistered(f"hotkey {self._own_hotkey} has been deregistered from netuid {metagraph.netuid}")
        specs = self._facts.specs()
        scores = score_all(
            Known(
                metagraph=metagraph,
                own_hotkey=self._own_hotkey,
                unqueried=unqueried(metagraph, self._own_hotkey, self._settings.policy),
                specs=specs,
                histories=self._facts.histories(),
                allocated=self._leased,
                penalized=self._leases.penalized(),
            ),
            self._config,
            self._clock.now(),
        )
        self._facts.record_scores(scores, at=self._clock.now(), block=metagraph.block)
        result = await self._setter.set(
            {fact.uid: fact.total for fact in scores}, own, uids=len(metagraph.neurons), block=metagraph.block
        )
        level = logging.DEBUG if result.outcome in (Outcome.TOO_EARLY, Outcome.NOTHING_TO_SET) else logging.INFO
        details = {"block": metagraph.block, "outcome": result.outcome.value, "detail": result.detail}
        logger.log(level, "weights", extra=details)
        if result.outcome is Outcome.CONFIRMED and self._rounds_left > 0:
            self._rounds_left -= 1
            if self._rounds_left == 0:
                self._rounds_over.set()

    # --- shared -------------------------------------------------------------------------------------------------

    def _known_metagraph(self) -> Metagraph:
        assert self._metagraph is not None, "run() syncs before any duty begins"
        return self._metagraph

    def _queryable(self) -> list[Neuron]:
        return [neuron for neuron in self._known_metagraph().neurons if neuron.hotkey not in self._unqueried]

    def _uid(self, hotkey: str) -> int | None:
        neuron = self._known_metagraph().by_hotkey.get(hotkey)
        return neuron.uid if neuron is not None else None

    @staticmethod
    def _machines(specs: Mapping[str, SpecsFact]) -> dict[str, MachineSpecs]:
        machines = {}
        for hotkey, fact in specs.items():
            if fact.specs is None:
                continue
            try:
                machines[hotkey] = parse_specs(fact.specs)
            except SpecsError:
                # Written by a version that was less strict; the next answer replaces it.
                continue
        return machines

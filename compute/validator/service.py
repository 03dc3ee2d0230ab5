"""The validator: its duties, each in its own task, driven by block numbers."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from compute.base.clock import Clock
from compute.base.errors import NotRegistered
from compute.base.reasons import ProofReason
from compute.base.tasks import give_way, repeat
from compute.chain.subtensor import Chain, Metagraph, Neuron
from compute.incentive.config import Config
from compute.validator.eligibility import QueryPolicy, ineligible
from compute.validator.proving import Lane, Prover, Turns
from compute.validator.rented import OwnRentals, RentedMachines
from compute.validator.scores import ScoreInputs, score_all
from compute.validator.specs_query import REQUEST_SECONDS, query_specs
from compute.validator.store import FactStore, SpecsFact
from compute.validator.weight_setter import Outcome, WeightSetter
from compute.wire.lease_client import AllocationClient
from compute.wire.peer import Caller

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
        own_rentals: OwnRentals,
        config: Config,
        settings: ValidatorSettings,
        clock: Clock,
    ) -> None:
        self._own_hotkey = own_hotkey
        self._chain = chain
        self._caller = caller
        self._facts = facts
        self._own_rentals = own_rentals
        self._config = config
        self._settings = settings
        self._clock = clock
        self._setter = WeightSetter(chain, facts, clock)
        self._rented = RentedMachines(
            own_hotkey=own_hotkey,
            own_rentals=own_rentals,
            facts=facts,
            lists=settings.policy.lists,
            clock=clock,
            uid=self._uid,
            on_rented=self._ask_soon,
        )
        self._ask_again: set[str] = set()
        self._news = False
        self._prover = Prover(
            own_hotkey=own_hotkey,
            client=client,
            facts=facts,
            config=config,
            interval_blocks=settings.proof_interval_blocks,
            clock=clock,
            uid=self._uid,
            on_refused=self._ask_soon,
        )
        self._metagraph: Metagraph | None = None
        self._forgot_at_block = 0
        self._rounds_left = settings.rounds
        self._rounds_over = asyncio.Event()
        self.up = asyncio.Event()
        """Set once the subnet has been read, and the duties begin."""
        self.between_proofs = Turns(self._prover.lanes)
        """Held while a batch of proofs is under way. Whoever else holds it keeps the next one from beginning."""

    async def run(self) -> None:
        """Do all duties until cancelled, or until the rounds are over.

        Raises:
            ChainError: at the start: no chain, or this hotkey is not registered on the subnet.
        """
        await self.sync()
        # Before anybody is proven: who is rented is left alone.
        await self.watch()
        await self.look_at_receipts()
        poll = self._settings.poll_seconds
        duties: dict[str, tuple[Callable[[], Awaitable[None]], float]] = {
            "sync": (self.sync_if_due, poll),
            "watch": (self.watch, WATCH_POLLS * poll),
            "receipts": (self.look_at_receipts, poll),
            "own leases": (self._rented.keep_own, WATCH_POLLS * poll),
            "weights": (self.set_weights, poll),
        }
        if self._settings.perform_hardware_query:
            duties["specs"] = (self.query_due_specs, poll)
            for lane in self._prover.lanes:
                duties[f"proof ({lane.value})"] = (functools.partial(self.prove_due, lane), poll)
        tasks = [
            asyncio.create_task(repeat(name, work, clock=self._clock, pause_seconds=pause))
            for name, (work, pause) in duties.items()
        ]
        over = asyncio.create_task(self._rounds_over.wait())
        self.up.set()
        try:
            await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, over):
                task.cancel()
            await asyncio.gather(*tasks, over, return_exceptions=True)
            self._prover.close()

    # --- sync ---------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Read the subnet and decide whom to ask.

        Raises:
            ChainError: no answer, or we are not registered.
            StoreError: as ``_know``.
        """
        metagraph = await self._chain.metagraph()
        if self._own_hotkey not in metagraph.by_hotkey:
            raise NotRegistered(
                f"hotkey {self._own_hotkey} is not registered on netuid {metagraph.netuid}; register it with: "
                f"btcli subnets register --netuid {metagraph.netuid}"
            )
        self._know(metagraph)

    def _know(self, metagraph: Metagraph) -> None:
        """Take what was read for whatever purpose; now and then, drop the facts of who is absent.

        Raises:
            StoreError: they cannot be dropped.
        """
        if self._metagraph is None or metagraph.block - self._forgot_at_block >= self._sync_blocks:
            self._facts.forget_absent(metagraph.by_hotkey.keys(), self._clock.now())
            self._forgot_at_block = metagraph.block
        before = set(self._metagraph.by_hotkey) if self._metagraph is not None else set()
        self._metagraph = metagraph
        now = set(metagraph.by_hotkey)
        if before != now:
            self._news = True
            logger.info(
                "subnet read",
                extra={
                    "block": metagraph.block,
                    "neurons": len(now),
                    "queryable": len(now) - len(self._ineligible(self._facts.specs())),
                    "new": len(now - before),
                    "gone": len(before - now),
                },
            )

    async def sync_if_due(self) -> None:
        """Sync where what is known is ``SYNC_BLOCKS`` old."""
        block = await self._chain.block()
        if block - self._known_metagraph().block >= self._sync_blocks:
            await self.sync()

    @property
    def _sync_blocks(self) -> int:
        return min(SYNC_BLOCKS, self._settings.specs_interval_blocks)

    # --- specs --------------------------------------------------------------------------------------------------

    async def query_due_specs(self) -> None:
        """Ask every miner whose specs are older than the interval, or unknown: these first, and at once."""
        block = await self._chain.block()
        batches = query_specs(
            self._due_specs(block),
            caller=self._caller,
            clock=self._clock,
            block=block,
            at_once=self._settings.specs_batch_size,
            request_seconds=self._settings.specs_request_seconds,
        )
        async for batch in batches:
            self._facts.record_specs(batch)
            self._rented.compare(batch, self._settings.specs_interval_blocks)
            for fact in batch:
                if fact.reason is not ProofReason.OK:
                    details = {"uid": self._uid(fact.hotkey), "reason": fact.reason, "detail": fact.detail}
                    logger.info("no usable specs", extra=details)

    def _due_specs(self, block: int) -> Iterator[Neuron]:
        """Whom to ask, one after the other, those of whom nothing is known first.

        A newcomer takes the next place that is free, also where it has come after the round began.
        """
        asked: set[str] = set()
        waiting: list[Neuron] = []
        self._news = True
        while True:
            if self._news:
                self._news = False
                waiting = [neuron for neuron in self._unasked(block) if neuron.hotkey not in asked][::-1]
            if not waiting:
                return
            neuron = waiting.pop()
            asked.add(neuron.hotkey)
            self._ask_again.discard(neuron.hotkey)
            yield neuron

    def _unasked(self, block: int) -> list[Neuron]:
        """Whom to ask, those of whom nothing is known first. Who shares an address with another is asked too."""
        known = self._facts.specs()
        ineligible = self._ineligible(known)

        def is_new(neuron: Neuron) -> bool:
            fact = known.get(neuron.hotkey)
            return fact is None or fact.block < neuron.registered_at or neuron.hotkey in self._ask_again

        def is_due(neuron: Neuron) -> bool:
            reason = ineligible.get(neuron.hotkey)
            if reason is not None and reason is not ProofReason.DUPLICATE_IP:
                return False
            return is_new(neuron) or block - known[neuron.hotkey].block >= self._settings.specs_interval_blocks

        due = [neuron for neuron in self._known_metagraph().neurons if is_due(neuron)]
        return sorted(due, key=lambda neuron: not is_new(neuron))

    def _ask_soon(self, hotkey: str) -> None:
        """Its specs are wanted now: it may have been rented since it was asked, or is rented by us."""
        self._ask_again.add(hotkey)
        self._news = True

    # --- rented machines ----------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """See which of our rentals are alive: those are not proven, keep their last verdict, and score double."""
        await self._rented.watch_own(self._known_metagraph().block)

    async def look_at_receipts(self) -> None:
        """See which machines others have rented, by the receipts that these show: the same holds for them."""
        await self._rented.look_at_receipts(self._known_metagraph())

    # --- proof --------------------------------------------------------------------------------------------------

    async def prove_due(self, lane: Lane = Lane.MAIN) -> None:
        """Prove a batch of the free machines that are due."""
        async with self.between_proofs.turn(lane):
            block = await self._chain.block()
            ineligible = self._ineligible(self._facts.specs())
            rented = self._rented.through()
            neurons = self._known_metagraph().neurons
            free = [neuron for neuron in neurons if neuron.hotkey not in ineligible and neuron.hotkey not in rented]
            await self._prover.prove(lane, free, block)

    # --- weights ------------------------------------------------------------------------------------------------

    async def set_weights(self) -> None:
        """Score everybody and bring the chain's weights in line, when the chain's rate limit allows."""
        metagraph = await self._chain.metagraph()
        own = metagraph.by_hotkey.get(self._own_hotkey)
        if own is None:
            raise NotRegistered(f"hotkey {self._own_hotkey} has been deregistered from netuid {metagraph.netuid}")
        # Read for the weights, and of use to the other duties: a newcomer is known a poll after it has registered.
        self._know(metagraph)
        specs = self._facts.specs()
        inputs = ScoreInputs(
            metagraph=metagraph,
            own_hotkey=self._own_hotkey,
            ineligible=self._ineligible(specs),
            answering=self._answering(specs),
            specs=specs,
            histories=self._facts.histories(),
            allocated=self._rented.through(),
            penalized=self._own_rentals.penalized(),
        )
        # Of 256 miners each of these three takes 10 ms. The inputs stay as they are.
        await give_way()
        scores = score_all(inputs, self._config, self._clock.now())
        await give_way()
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

    def _ineligible(self, specs: Mapping[str, SpecsFact]) -> dict[str, ProofReason]:
        """Ineligible hotkeys and the reason, by the subnet as it was last read and who answers at its own address."""
        answering = self._answering(specs)
        return ineligible(self._known_metagraph(), self._own_hotkey, self._settings.policy, answering)

    def _answering(self, specs: Mapping[str, SpecsFact]) -> set[str]:
        """The hotkeys that answered their last question, at the address that they announce."""
        neurons = self._known_metagraph().by_hotkey
        return {
            hotkey
            for hotkey, fact in specs.items()
            if fact.reason in (ProofReason.OK, ProofReason.NO_GPU)
            and hotkey in neurons
            and fact.block >= neurons[hotkey].registered_at
        }

    def _uid(self, hotkey: str) -> int | None:
        neuron = self._metagraph.by_hotkey.get(hotkey) if self._metagraph is not None else None
        return neuron.uid if neuron is not None else None

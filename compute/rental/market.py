"""What the subnet has to offer right now: the miners, their specs, and who would take a requirement."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compute.base.errors import CallError, LeaseError
from compute.protocol import Specs
from compute.rental.records import RenterStore
from compute.rental.selection import Candidate, Explanation, Proven, describe, rank
from compute.wire.lease_client import AllocationClient
from compute.wire.peer import Caller, Peer
from compute.wire.requirements import DeviceRequirement
from compute.wire.specs import MachineSpecs, SpecsError, parse_specs

if TYPE_CHECKING:
    from compute.chain.subtensor import Metagraph, Neuron

SPECS_TIMEOUT_SECONDS = 10.0
_CALLS_AT_ONCE = 64


@dataclass(frozen=True)
class Offer:
    """One miner that serves an axon. ``specs`` are its own claim; ``problem`` says why it cannot be rented now."""

    uid: int
    peer: Peer
    specs: MachineSpecs | None = None
    problem: str | None = None
    proven: Proven | None = None
    incentive: float = 0.0

    def describe(self) -> str:
        """The machine in a few words."""
        return "a machine of unknown specs" if self.specs is None else describe(self.specs)


class Market:
    """Asks the subnet. ``metagraph`` gives a fresh snapshot or raises ChainError."""

    def __init__(
        self,
        *,
        metagraph: Callable[[], Awaitable[Metagraph]],
        caller: Caller,
        client: AllocationClient,
        gpu_scores: Mapping[str, float],
        proofs: Callable[[], Mapping[str, Proven]],
    ) -> None:
        self._metagraph = metagraph
        self._caller = caller
        self._client = client
        self._gpu_scores = gpu_scores
        self._proofs = proofs

    async def survey(self, only: str | None = None) -> list[Offer]:
        """Every serving miner (or the one of hotkey ``only``) with its specs, by uid.

        All are asked at once within bounds; one that gives no readable specs has a ``problem``.

        Raises:
            ChainError: no snapshot of the subnet.
        """
        metagraph = await self._metagraph()
        proofs = self._proofs()
        slots = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def ask(neuron: Neuron) -> Offer:
            offer = Offer(
                uid=neuron.uid,
                peer=Peer(neuron.hotkey, neuron.ip, neuron.port),
                proven=proofs.get(neuron.hotkey),
                incentive=neuron.incentive,
            )
            try:
                async with slots:
                    return replace(offer, specs=await self._specs(offer.peer))
            except CallError as error:
                return replace(offer, problem=f"no answer ({error.status})")
            except SpecsError as error:
                return replace(offer, problem=str(error))

        serving = [
            neuron for neuron in metagraph.neurons if neuron.is_serving and (only is None or neuron.hotkey == only)
        ]
        return sorted(await asyncio.gather(*map(ask, serving)), key=lambda offer: offer.uid)

    async def locate(self, hotkey: str) -> Peer | None:
        """Where the chain says that the miner is now, or ``None``.

        Raises:
            ChainError: no snapshot of the subnet.
        """
        neuron = (await self._metagraph()).by_hotkey.get(hotkey)
        return Peer(neuron.hotkey, neuron.ip, neuron.port) if neuron is not None and neuron.is_serving else None

    async def check(self, offers: Sequence[Offer], requirement: DeviceRequirement) -> list[Offer]:
        """Ask each miner without a problem whether it would take ``requirement`` now; a no becomes its problem."""
        slots = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def checked(offer: Offer) -> Offer:
            if offer.problem is not None:
                return offer
            try:
                async with slots:
                    await self._client.check(offer.peer, requirement, days=1)
            except LeaseError as error:
                return replace(offer, problem=error.reason.value)
            except CallError as error:
                return replace(offer, problem=f"no answer ({error.status})")
            return offer

        return list(await asyncio.gather(*map(checked, offers)))

    def rank(
        self, requirement: DeviceRequirement, offers: Sequence[Offer], store: RenterStore, seed: int | None
    ) -> list[Explanation]:
        """The offers with specs, best first, each with why; draws a seed where none is given."""
        penalized = {penalty.hotkey for penalty in store.penalties()}
        histories = store.histories()
        ours = store.hotkeys()
        candidates = []
        for offer in offers:
            if offer.specs is None:
                continue
            hotkey = offer.peer.hotkey
            candidate = Candidate(
                hotkey=hotkey,
                specs=offer.specs,
                uid=offer.uid,
                available=hotkey not in ours,
                penalized=hotkey in penalized,
                weight=offer.incentive,
                proven=offer.proven,
            )
            if hotkey in histories:
                past = histories[hotkey]
                candidate = replace(candidate, reliability=past.reliability, last_leased_at=past.last_leased_at)
            candidates.append(candidate)
        if seed is None:
            seed = random.SystemRandom().getrandbits(64)
        return rank(requirement, candidates, gpu_scores=self._gpu_scores, seed=seed)

    async def _specs(self, peer: Peer) -> MachineSpecs:
        answer = await self._caller.call(peer, Specs(), timeout_seconds=SPECS_TIMEOUT_SECONDS)
        output: object = answer.specs_output
        # The transport does not validate what the peer put into the field.
        if not isinstance(output, str):
            raise SpecsError(f"specs are a {type(output).__name__}, not text")
        return parse_specs(output)

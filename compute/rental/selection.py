"""Which miner for which request. Pure: everything known of the miners comes in, a ranking with its reasons goes out.

Filter by the requirement, then: the tightest fit (no H200 for what an L4 serves), then reliability, then least recently
leased, and a seeded shuffle among equals, so that no miner is overburdened.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from compute.wire.lease_terms import GIB, MIB_PER_GIB
from compute.wire.requirements import DeviceRequirement, shortfall
from compute.wire.specs import Gpu, MachineSpecs

#: GPUs within this many GiB in total are the same size: drivers report a little less than the label says.
_MEMORY_STEP_GIB = 8


@dataclass(frozen=True)
class Proven:
    """What a proof of GPU found in a machine."""

    gpu: str
    count: int


@dataclass(frozen=True)
class Candidate:
    """What is known of one miner.

    Args:
        reliability: share of this renter's leases there that came up and stayed, 0 to 1; 0.5 where there were none.
        weight: the network's weight or incentive for it, 0 to 1; 0 means that no validator pays it.
        last_leased_at: Unix seconds of this renter's last lease there.
        proven: overrides the GPUs that the miner claims.
    """

    hotkey: str
    specs: MachineSpecs
    uid: int | None = None
    available: bool = True
    penalized: bool = False
    reliability: float = 0.5
    weight: float = 0.0
    last_leased_at: float | None = None
    proven: Proven | None = None

    def believed_specs(self) -> MachineSpecs:
        """The specs as far as they may be believed: with the proven GPUs where there was a proof."""
        if self.proven is None:
            return self.specs
        claimed = self.specs.gpus
        real = [gpu for gpu in claimed if gpu.name == self.proven.gpu]
        if not real and claimed:
            smallest = min(gpu.capacity_mib for gpu in claimed)
            real = [Gpu(name=self.proven.gpu, capacity_mib=smallest)] * len(claimed)
        return replace(self.specs, gpus=tuple(real[: self.proven.count]))


@dataclass(frozen=True)
class Explanation:
    """The place of one candidate and why, in one line. ``rank`` is 1 for the choice, None for those filtered out."""

    candidate: Candidate
    rank: int | None
    why: str


@dataclass(frozen=True, order=True)
class _Fit:
    """The size of a machine, coarse enough that near-equals tie. Smaller is tighter, because all of them suffice."""

    gpu_value: float
    gpu_count: int
    gpu_memory_steps: int
    host_doublings: int


@dataclass(frozen=True, order=True)
class _Rank:
    """What candidates are ordered by, most important first; lower is better."""

    fit: _Fit
    unreliability: float
    unpaid: bool
    last_leased_at: float


def rank(
    requirement: DeviceRequirement,
    candidates: Iterable[Candidate],
    *,
    gpu_scores: Mapping[str, float],
    seed: int,
) -> list[Explanation]:
    """Order ``candidates`` for ``requirement``: those that serve it, best first, then those that do not.

    The result depends on the set of candidates and the seed, not on their order.

    Args:
        gpu_scores: value of one GPU by model name, as in config.yaml; a model without one counts by its memory alone.
    """
    pool = sorted(candidates, key=lambda candidate: candidate.hotkey)
    random.Random(seed).shuffle(pool)  # noqa: S311 - load balancing, not a secret
    fitting: list[Candidate] = []
    excluded: list[Explanation] = []
    for candidate in pool:
        obstacle = _obstacle(requirement, candidate)
        if obstacle is None:
            fitting.append(candidate)
        else:
            excluded.append(Explanation(candidate, None, obstacle))
    ordered = sorted(((_rank_of(candidate, gpu_scores), candidate) for candidate in fitting), key=lambda pair: pair[0])
    ranked = []
    for place, (rank_key, candidate) in enumerate(ordered, start=1):
        if place == 1:
            why = f"tightest fit: {_describe(candidate)}"
        else:
            why = _lost_to(ordered[place - 2], (rank_key, candidate))
        ranked.append(Explanation(candidate, place, why))
    return ranked + sorted(excluded, key=lambda explanation: explanation.candidate.hotkey)


def _obstacle(requirement: DeviceRequirement, candidate: Candidate) -> str | None:
    if candidate.penalized:
        return "penalized by you"
    missing = shortfall(requirement, candidate.believed_specs())
    if missing is not None:
        return missing.text
    if not candidate.available:
        return "rented by somebody"
    return None


def _rank_of(candidate: Candidate, gpu_scores: Mapping[str, float]) -> _Rank:
    machine = candidate.believed_specs()
    memory_gib = sum(gpu.capacity_mib for gpu in machine.gpus) / MIB_PER_GIB
    host_size = max(machine.cpu_count, 1) * max(machine.ram_total / GIB, 1.0)
    return _Rank(
        fit=_Fit(
            gpu_value=round(sum(gpu_scores.get(gpu.name, 0.0) for gpu in machine.gpus), 3),
            gpu_count=len(machine.gpus),
            gpu_memory_steps=round(memory_gib / _MEMORY_STEP_GIB),
            host_doublings=round(math.log2(host_size)),
        ),
        unreliability=round(1 - candidate.reliability, 1),
        unpaid=candidate.weight <= 0,
        last_leased_at=-math.inf if candidate.last_leased_at is None else candidate.last_leased_at,
    )


def _lost_to(above: tuple[_Rank, Candidate], here: tuple[_Rank, Candidate]) -> str:
    better, other = above
    worse, candidate = here
    what = _describe(candidate)
    if worse.fit != better.fit:
        return f"larger than needed: {what}"
    if worse.unreliability != better.unreliability:
        return f"less reliable ({candidate.reliability:.0%} against {other.reliability:.0%}): {what}"
    if worse.unpaid != better.unpaid:
        return f"earns no weight on the network: {what}"
    if worse.last_leased_at != better.last_leased_at:
        return f"leased more recently: {what}"
    return f"equal to the one above, the draw decided: {what}"


def describe(specs: MachineSpecs, *, claimed: bool = False) -> str:
    """A machine in a few words; ``claimed`` adds that nobody has proven its GPUs."""
    models = sorted({gpu.name for gpu in specs.gpus})
    gpus = f"{len(specs.gpus)} × {' / '.join(models)}" if models else "no GPU"
    unproven = " (claimed)" if models and claimed else ""
    return f"{gpus}{unproven}, {specs.cpu_count} CPUs, {specs.ram_total / GIB:.0f} GiB RAM"


def _describe(candidate: Candidate) -> str:
    return describe(candidate.believed_specs(), claimed=candidate.proven is None)

"""Which miner for which request."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.rental.selection import Candidate, Explanation, Proven, rank
from compute.wire.requirements import DeviceRequirement, shortfall
from compute.wire.specs import Gpu, MachineSpecs

GIB = 1 << 30
SCORES = {"NVIDIA H200": 4.0, "NVIDIA L40": 1.0, "NVIDIA L4": 0.43}
ONE_GPU = DeviceRequirement(cpu_count=1, gpu_count=1, ram_bytes=GIB, disk_bytes=10 * GIB)


def machine(gpu: str = "NVIDIA L4", count: int = 1, *, mib: int = 23_034, cpus: int = 8, ram: int = 64) -> MachineSpecs:
    return MachineSpecs(
        cpu_count=cpus,
        cpu_frequency_mhz=3000,
        ram_total=ram * GIB,
        ram_available=ram * GIB,
        ram_used=0,
        ram_free=ram * GIB,
        disk_total=500 * GIB,
        disk_used=0,
        disk_free=500 * GIB,
        gpus=(Gpu(gpu, mib),) * count,
    )


L4 = Candidate("l4", machine(), weight=0.1)
L40 = Candidate("l40", machine("NVIDIA L40", mib=46_068), weight=0.1)
H200 = Candidate("h200", machine("NVIDIA H200", 8, mib=143_771, cpus=192, ram=2048), weight=0.1)


def order(*candidates: Candidate, requirement: DeviceRequirement = ONE_GPU, seed: int = 1) -> list[str]:
    ranking = rank(requirement, candidates, gpu_scores=SCORES, seed=seed)
    return [entry.candidate.hotkey for entry in ranking if entry.rank is not None]


def explain(*candidates: Candidate, requirement: DeviceRequirement = ONE_GPU) -> dict[str, Explanation]:
    ranking = rank(requirement, candidates, gpu_scores=SCORES, seed=1)
    return {entry.candidate.hotkey: entry for entry in ranking}


def test_the_tightest_fit_goes_first() -> None:
    assert order(H200, L40, L4) == ["l4", "l40", "h200"]


def test_fewer_gpus_are_tighter_even_of_a_model_without_a_score() -> None:
    one, two = (replace(L4, hotkey=str(count), specs=machine("new", count, mib=1024)) for count in (1, 2))
    assert {order(one, two, seed=seed)[0] for seed in range(8)} == {"1"}


def test_no_h200_for_what_an_l4_serves_however_reliable_it_is() -> None:
    assert order(replace(H200, reliability=1.0), replace(L4, reliability=0.1)) == ["l4", "h200"]


def test_what_only_the_large_one_serves_goes_to_it() -> None:
    assert order(L4, L40, H200, requirement=DeviceRequirement(gpu_count=1, gpu_capacity_mib=80 * 1024)) == ["h200"]


def test_of_equal_fits_the_reliable_one_goes_first() -> None:
    good, bad = replace(L4, hotkey="good", reliability=0.9), replace(L4, hotkey="bad", reliability=0.4)
    assert order(bad, good) == ["good", "bad"]


def test_then_one_that_the_network_pays() -> None:
    paid, unpaid = replace(L4, hotkey="paid"), replace(L4, hotkey="unpaid", weight=0.0, last_leased_at=None)
    assert order(unpaid, paid) == ["paid", "unpaid"]


def test_then_the_one_that_was_leased_longest_ago() -> None:
    never = replace(L4, hotkey="never")
    old, new = replace(L4, hotkey="old", last_leased_at=1.0), replace(L4, hotkey="new", last_leased_at=2.0)
    assert order(new, never, old) == ["never", "old", "new"]


def test_equals_share_the_load_and_a_seed_repeats() -> None:
    equals = [replace(L4, hotkey=f"miner-{number}") for number in range(4)]
    assert order(*equals, seed=7) == order(*equals, seed=7)
    firsts = {order(*equals, seed=seed)[0] for seed in range(64)}
    assert firsts == {candidate.hotkey for candidate in equals}


def test_drivers_that_report_slightly_different_memory_are_equals() -> None:
    near = [replace(L4, hotkey=str(mib), specs=machine(mib=mib)) for mib in (23_034, 23_028, 22_731)]
    assert len({order(*near, seed=seed)[0] for seed in range(64)}) == 3


def test_what_is_out_says_why() -> None:
    small = replace(L4, hotkey="small", specs=machine(ram=0))
    entries = explain(
        L4, small, replace(L4, hotkey="penalized", penalized=True), replace(L4, hotkey="taken", available=False)
    )
    assert entries["l4"].rank == 1
    assert {name: entry.rank for name, entry in entries.items() if name != "l4"} == {
        "small": None,
        "penalized": None,
        "taken": None,
    }
    assert "RAM" in entries["small"].why
    assert entries["penalized"].why == "penalized by you"
    assert entries["taken"].why == "rented by somebody"


def test_every_place_says_what_it_lost_to() -> None:
    entries = explain(
        L4,
        replace(L4, hotkey="unreliable", reliability=0.2),
        replace(L40, hotkey="larger"),
        replace(L4, hotkey="recent", last_leased_at=5.0),
        replace(L4, hotkey="unpaid", weight=0.0),
    )
    assert entries["l4"].why.startswith("tightest fit: 1 × NVIDIA L4 (claimed), 8 CPUs")
    assert entries["recent"].why.startswith("leased more recently")
    assert entries["unpaid"].why.startswith("earns no weight")
    assert entries["unreliable"].why.startswith("less reliable (20% against 50%)")
    assert entries["larger"].why.startswith("larger than needed: 1 × NVIDIA L40")
    assert all("\n" not in entry.why for entry in entries.values())


def test_a_proof_outweighs_the_claim() -> None:
    liar = replace(H200, hotkey="liar", proven=Proven("NVIDIA L4", 1))
    assert [gpu.name for gpu in liar.believed_specs().gpus] == ["NVIDIA L4"]
    wanted = DeviceRequirement(gpu_count=1, gpu_type="H200")
    entries = explain(liar, H200, requirement=wanted)
    assert entries["liar"].rank is None
    assert entries["h200"].rank == 1


def test_a_proof_of_fewer_gpus_counts_fewer() -> None:
    assert len(replace(H200, proven=Proven("NVIDIA H200", 3)).believed_specs().gpus) == 3
    assert len(replace(L4, proven=Proven("NVIDIA L4", 8)).believed_specs().gpus) == 1


def test_nobody_is_no_error() -> None:
    assert rank(ONE_GPU, [], gpu_scores=SCORES, seed=1) == []


_candidates = st.lists(
    st.builds(
        Candidate,
        hotkey=st.text("abcdef", min_size=1, max_size=4),
        specs=st.builds(
            machine,
            gpu=st.sampled_from([*SCORES, "unknown"]),
            count=st.integers(0, 8),
            mib=st.integers(0, 150_000),
            cpus=st.integers(0, 256),
            ram=st.integers(0, 2048),
        ),
        available=st.booleans(),
        penalized=st.booleans(),
        reliability=st.floats(0, 1),
        weight=st.floats(0, 1),
        last_leased_at=st.none() | st.floats(0, 1e10),
        proven=st.none() | st.builds(Proven, st.sampled_from([*SCORES]), st.integers(0, 8)),
    ),
    max_size=8,
    unique_by=lambda candidate: candidate.hotkey,
)
_requirements = st.builds(
    DeviceRequirement,
    cpu_count=st.integers(0, 64),
    gpu_count=st.integers(0, 8),
    gpu_capacity_mib=st.integers(0, 100_000),
    ram_bytes=st.integers(0, 256 * GIB),
)


@settings(max_examples=60)
@given(candidates=_candidates, requirement=_requirements, seed=st.integers(), data=st.data())
def test_a_ranking_is_complete_sound_and_independent_of_the_order(
    candidates: list[Candidate], requirement: DeviceRequirement, seed: int, data: st.DataObject
) -> None:
    ranking = rank(requirement, candidates, gpu_scores=SCORES, seed=seed)
    assert sorted(entry.candidate.hotkey for entry in ranking) == sorted(c.hotkey for c in candidates)
    places = [entry.rank for entry in ranking if entry.rank is not None]
    assert places == list(range(1, len(places) + 1))
    for entry in ranking:
        able = shortfall(requirement, entry.candidate.believed_specs()) is None
        free = entry.candidate.available and not entry.candidate.penalized
        assert (entry.rank is not None) == (able and free)
        assert entry.why
    shuffled = data.draw(st.permutations(candidates))
    assert rank(requirement, shuffled, gpu_scores=SCORES, seed=seed) == ranking


@pytest.mark.parametrize("gpu_count", [0, 1])
def test_a_request_without_gpus_does_not_spend_one(gpu_count: int) -> None:
    bare = Candidate("bare", machine(count=0), weight=0.1)
    assert order(L4, bare, requirement=DeviceRequirement(cpu_count=1, gpu_count=gpu_count)) == (
        ["l4"] if gpu_count else ["bare", "l4"]
    )

"""Machines that are slower, smaller or fewer than they claim."""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compute.base.reasons import ProofReason
from compute.proof import digest, generator
from compute.proof.models import Claim
from compute.testing.clock import ManualClock
from compute.testing.proof import FakeDevice, FakeMachine
from tests.waiting import DEADLINE_SECONDS

Build = Callable[..., FakeMachine]


class SerialisesItsDevices(FakeMachine):
    """One card behind all of its devices: each in turn."""

    async def on_compute(self, nonce: bytes, count: int) -> None:
        for index in range(count):
            device = self.make_device(nonce, index)
            self.devices.append(device)
            await self.spend(self.compute_seconds())
            self.send_root(index, 0, self.digest_pass(device, digest.commit_key(nonce)))

    def pass_seconds(self) -> float:
        return self.count * super().pass_seconds()


class SaysItWasFast(SerialisesItsDevices):
    """Writes its own times into its frames."""

    def send_root(self, index: int, number: int, root: bytes) -> None:
        self.send({"type": "root", "device": index, "pass": number, "seconds": 0.001, "tflops16": 1000.0}, root)


class DropsCAfterCommitting(FakeMachine):
    """Lets C go and computes it again for every pass."""

    def pass_seconds(self) -> float:
        return self.compute_seconds()


class RecomputesAThirdOfC(FakeMachine):
    """Has two thirds of the memory that it claims, and computes the rest of C again in every pass."""

    def pass_seconds(self) -> float:
        return self.compute_seconds() / 3 + super().pass_seconds()


class DropsCAndMakesDigestsUp(FakeMachine):
    """Lets C go after the commitment and answers the passes with anything, in time."""

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        if not device.digests:
            return super().pass_digests(device, key)
        return np.frombuffer(secrets.token_bytes(8 * self.dims.rows), "<i8")


class FakesThePassesBetween(FakeMachine):
    """Does the first and the last pass, and makes the others up."""

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        if 1 < len(device.digests) < self.dims.passes:
            return np.frombuffer(secrets.token_bytes(8 * self.dims.rows), "<i8")
        return super().pass_digests(device, key)


class PacksC(FakeMachine):
    """Holds three quarters of C's memory: the top twelve bits of each entry, after committing to all sixteen."""

    def pass_digests(self, device: FakeDevice, key: bytes) -> NDArray[np.int64]:
        held = digest.stored(device.c)
        if device.digests:
            held &= np.int16(-16)
        return digest.row_digests(held, digest.word_keys(self.dims.columns, key))


class HasTooLittleMemory(FakeMachine):
    async def on_prepare(self, count: int) -> None:
        self.send({"type": "failed", "code": "memory", "message": "CUDA out of memory"})


class ShowsOneDevice(FakeMachine):
    async def on_hello(self, count: int) -> None:
        self.send({"type": "hello", "torch": "2.13.0", "devices": [self.describe(0)]})


class ShowsOneDeviceTwice(FakeMachine):
    def describe(self, index: int) -> dict[str, object]:
        return super().describe(0)


class Together:
    """Several machines at work at the same time: all are done when ``total`` of their seconds has passed.

    ``sum`` for one card behind all of them, ``max`` for a card each.
    """

    def __init__(self, clock: ManualClock, users: int, total: Callable[[list[float]], float]) -> None:
        self._clock = clock
        self._users = users
        self._total = total
        self._waiting: list[tuple[asyncio.Event, float]] = []

    async def spend(self, seconds: float) -> None:
        done = asyncio.Event()
        self._waiting.append((done, seconds))
        if len(self._waiting) == self._users:
            self._clock.advance(self._total([needed for _, needed in self._waiting]))
            for event, _ in self._waiting:
                event.set()
            self._waiting = []
        await done.wait()


@pytest.mark.parametrize(
    ("cheat", "devices", "reason"),
    [
        (SerialisesItsDevices, 2, ProofReason.SLOWER_THAN_CLAIMED),
        (SerialisesItsDevices, 8, ProofReason.SLOWER_THAN_CLAIMED),
        (SaysItWasFast, 2, ProofReason.SLOWER_THAN_CLAIMED),
        (DropsCAfterCommitting, 1, ProofReason.NOT_RESIDENT),
        (RecomputesAThirdOfC, 1, ProofReason.SLOWER_THAN_CLAIMED),
        (DropsCAndMakesDigestsUp, 1, ProofReason.NOT_RESIDENT),
        (FakesThePassesBetween, 1, ProofReason.NOT_RESIDENT),
        (PacksC, 1, ProofReason.NOT_RESIDENT),
        (HasTooLittleMemory, 1, ProofReason.NOT_RESIDENT),
        (ShowsOneDevice, 8, ProofReason.DEVICE_COUNT_MISMATCH),
        (ShowsOneDeviceTwice, 2, ProofReason.SHARED_DEVICE),
    ],
)
async def test_is_caught(cheat: type[FakeMachine], devices: int, reason: ProofReason, build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(cheat, devices=devices))
    assert (verdict.reason, verdict.ok) == (reason, False)
    assert verdict.count < devices


def test_c_does_not_compress() -> None:
    a = generator.rows(np.arange(64), 4096, generator.seed(b"a")).astype(np.float64)
    b = generator.rows(np.arange(4096), 512, generator.seed(b"b")).astype(np.float64)
    held = digest.stored(a @ b)
    assert len(zlib.compress(held.tobytes(), 6)) > 0.99 * held.nbytes


async def test_two_machines_with_a_card_each_measure_all_of_it(build: Build, prove: Any, clock: ManualClock) -> None:
    cards = Together(clock, 2, max)
    verdicts = await prove(build(spend=cards.spend), build(spend=cards.spend))
    assert [verdict.reason for verdict in verdicts] == [ProofReason.OK] * 2


class RelaysToAnotherMachine(FakeMachine):
    """Has no card: hands nonce and keys on to one that is in the batch too, whose card then works for both."""


async def test_a_relay_to_another_machine_of_the_batch_leaves_both_with_half(
    build: Build, prove: Any, clock: ManualClock
) -> None:
    card = Together(clock, 2, sum)
    verdicts = await prove(build(spend=card.spend), build(RelaysToAnotherMachine, spend=card.spend))
    assert [verdict.reason for verdict in verdicts] == [ProofReason.SLOWER_THAN_CLAIMED] * 2
    assert [verdict.devices[0].tflops16 for verdict in verdicts] == pytest.approx([2.5e-6] * 2)


@pytest.mark.parametrize("share", [0.5, 0.74])
async def test_a_rate_below_the_tolerance_is_slower_than_claimed(share: float, build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(tflops16=5e-6 * share))
    assert verdict.reason is ProofReason.SLOWER_THAN_CLAIMED
    assert verdict.devices[0].tflops16 == pytest.approx(5e-6 * share)


async def test_a_rate_within_the_tolerance_is_fine(build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(tflops16=5e-6 * 0.8))
    assert verdict.ok


async def test_a_claim_above_the_hardware_is_never_paid_at_the_claim(build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(), claims=[Claim("Big Card", 1)])
    assert (verdict.reason, verdict.gpu) == (ProofReason.SLOWER_THAN_CLAIMED, None)
    assert verdict.devices[0].nearest == "Card"
    assert "looks like Card" in verdict.detail


async def test_a_claim_below_the_hardware_is_paid_at_the_claim(build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(tflops16=50e-6, bandwidth_gbs=10e-3), claims=[Claim("Card", 1)])
    assert (verdict.reason, verdict.gpu, verdict.devices[0].nearest) == (ProofReason.OK, "Card", "Big Card")


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (Claim("Card", 0), ProofReason.NO_GPU),
        (Claim("Card", -1), ProofReason.NO_GPU),
        (Claim("Card", 10**9), ProofReason.DEVICE_COUNT_MISMATCH),
        (Claim("Toaster", 1), ProofReason.UNKNOWN_MODEL),
    ],
)
async def test_an_impossible_claim_costs_no_connection(
    claim: Claim, reason: ProofReason, build: Build, prove: Any, clock: ManualClock
) -> None:
    machine = build()
    machine.channel.closed = True
    (verdict,) = await prove(machine, claims=[claim])
    assert verdict.reason is reason
    assert machine.log == []


class OneOfItsDevicesIsSlow(FakeMachine):
    async def on_compute(self, nonce: bytes, count: int) -> None:
        self.devices = [self.make_device(nonce, index) for index in range(count)]
        for device, seconds in zip(self.devices, (1.0, 2.0), strict=True):
            await self.spend(seconds * self.compute_seconds())
            self.send_root(device.index, 0, self.digest_pass(device, digest.commit_key(nonce)))


async def test_a_slow_device_beside_a_good_one_counts_the_good_one(build: Build, prove: Any) -> None:
    (verdict,) = await prove(build(OneOfItsDevicesIsSlow, devices=2))
    assert (verdict.reason, verdict.count) == (ProofReason.SLOWER_THAN_CLAIMED, 1)


class OpensNothing(FakeMachine):
    async def on_open(self, lines: Sequence[NDArray[np.int32]]) -> None:
        return


async def test_one_that_never_opens_does_not_hold_the_others_up(build: Build, prove: Any, clock: ManualClock) -> None:
    cards = Together(clock, 2, max)
    machines = build(OpensNothing, spend=cards.spend), build(spend=cards.spend)
    # Time passes only once the honest one has its verdict.
    proof = prove(*machines, then=lambda verdict: clock.advance(3600.0))
    verdicts = await asyncio.wait_for(proof, timeout=DEADLINE_SECONDS)
    assert [verdict.reason for verdict in verdicts] == [ProofReason.TIMEOUT, ProofReason.OK]

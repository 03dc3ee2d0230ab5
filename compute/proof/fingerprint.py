"""From measurements to a model, and from devices to a machine's verdict. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from compute.base.reasons import ProofReason
from compute.proof.models import Claim, DeviceMeasurement, GpuModel, MachineVerdict, ProofSettings, TolerancePairs
from compute.proof.statement import Dims, dims_for

# Which reason speaks for a machine whose devices failed for several: what arithmetic says comes first, then the
# product's rate, because devices that share their computing share their memory too.
_GRAVITY = (
    ProofReason.WRONG_ROW,
    ProofReason.BAD_OPENING,
    ProofReason.SLOWER_THAN_CLAIMED,
    ProofReason.NOT_RESIDENT,
)

_PASS_OF_COMPUTE = 0.5
"""A pass must take less than this part of computing C, or C could be computed anew in every pass."""


_SPREAD = 0.1
"""How far apart two honest runs of one model may be, as a fraction: three deviations of 3 % each. A rate that close to
the claim is the claim's, however near another model is; models closer than this are not told apart."""


def nearest_model(measured: DeviceMeasurement, models: Mapping[str, GpuModel], settings: ProofSettings) -> str | None:
    """The model whose rate and memory ``measured`` is nearest to, by the mean of the logarithms of their ratios.

    A ratio and not a difference: half of a rate and twice of it are equally far, so that something a thousand times
    slower than every card is nearest to the slowest. The memory of a model is what a claim of it would have had to
    hold. The bandwidth does not count: the table's is the least that a model must reach, not what it looks like.
    """
    if measured.tflops16 is None or not models:
        return None
    return min(models, key=lambda name: _deviation(measured, models[name], settings))


def judge_device(
    measured: DeviceMeasurement, dims: Dims, claimed: GpuModel, models: Mapping[str, GpuModel], settings: ProofSettings
) -> DeviceMeasurement:
    """``measured`` with ``nearest`` filled in, and with the reason why its times disprove the claim, if they do."""
    judged = replace(measured, nearest=nearest_model(measured, models, settings))
    if judged.reason is not ProofReason.OK:
        return judged
    least = 1 - settings.time_tolerance
    if judged.tflops16 is not None and judged.tflops16 < least * claimed.tflops16:
        return replace(judged, reason=ProofReason.SLOWER_THAN_CLAIMED)
    if judged.rehash_seconds is None or judged.compute_seconds is None or judged.bandwidth_gbs is None:
        return judged
    # Not of the time that it took if that was longer than the claim's: a device may be slow on purpose.
    seconds = min(judged.compute_seconds, dims.operations / (claimed.tflops16 * 1e12))
    if judged.rehash_seconds / dims.passes > _PASS_OF_COMPUTE * seconds:
        return replace(judged, reason=ProofReason.NOT_RESIDENT)
    if claimed.bandwidth_gbs is not None and judged.bandwidth_gbs < least * claimed.bandwidth_gbs:
        return replace(judged, reason=ProofReason.SLOWER_THAN_CLAIMED)
    return judged


def worth(device: DeviceMeasurement, claimed: GpuModel, models: Mapping[str, GpuModel], pairs: TolerancePairs) -> str:
    """The model that a device which proved itself is worth.

    The claim, if the rate is within the spread of honest runs of it, or if nothing separates it from what the device
    looks like; else the lesser of the claim and what it looks like.
    """
    nearest = device.nearest
    if nearest is None or (claimed.name, nearest) in pairs or (nearest, claimed.name) in pairs:
        return claimed.name
    if device.tflops16 is not None and device.tflops16 >= (1 - _SPREAD) * claimed.tflops16:
        return claimed.name
    return min(claimed.name, nearest, key=lambda name: (models[name].score, models[name].tflops16))


def machine_verdict(
    claim: Claim, devices: Sequence[DeviceMeasurement], models: Mapping[str, GpuModel], pairs: TolerancePairs
) -> MachineVerdict:
    """The verdict on a machine whose ``claim.count`` devices have all been judged."""
    claimed = models[claim.gpu]
    proven = [device for device in devices if device.reason is ProofReason.OK]
    values = [worth(device, claimed, models, pairs) for device in proven]
    reason = _gravest([device.reason for device in devices])
    return MachineVerdict(
        reason=reason,
        claim=claim,
        gpu=min(values, key=lambda name: (models[name].score, models[name].tflops16)) if values else None,
        count=len(proven),
        devices=tuple(devices),
        detail=_explain(reason, devices, claimed),
    )


def shared_devices(proven: Sequence[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """Which hotkeys show a device that an earlier one has shown: hotkey to the uuid.

    ``proven`` holds hotkeys in the order of their registration with the uuids of devices that proved themselves.
    Only those: the uuid is the worker's word, and a machine that proves nothing must not be able to name another's.
    """
    owner: dict[str, str] = {}
    shared: dict[str, str] = {}
    for hotkey, uuids in proven:
        for uuid in uuids:
            if owner.setdefault(uuid, hotkey) != hotkey:
                shared.setdefault(hotkey, uuid)
    return shared


def _deviation(measured: DeviceMeasurement, model: GpuModel, settings: ProofSettings) -> float:
    pairs = [(measured.tflops16, model.tflops16)]
    pairs.append((float(measured.vram_bytes), float(dims_for(model, settings).resident_bytes)))
    ratios = [abs(math.log(found / expected)) for found, expected in pairs if found and expected]
    return sum(ratios) / len(ratios)


def _gravest(reasons: Sequence[ProofReason]) -> ProofReason:
    failed = [reason for reason in reasons if reason is not ProofReason.OK]
    if not failed:
        return ProofReason.OK if reasons else ProofReason.NO_GPU
    return min(failed, key=lambda reason: _GRAVITY.index(reason) if reason in _GRAVITY else len(_GRAVITY))


def _explain(reason: ProofReason, devices: Sequence[DeviceMeasurement], claimed: GpuModel) -> str:
    if reason not in (ProofReason.SLOWER_THAN_CLAIMED, ProofReason.NOT_RESIDENT):
        return ""
    computes = min((device.tflops16 for device in devices if device.tflops16 is not None), default=0.0)
    reads = min((device.bandwidth_gbs for device in devices if device.bandwidth_gbs is not None), default=None)
    looks = ", ".join(sorted({device.nearest for device in devices if device.nearest is not None}))
    measured = _rates(computes, reads)
    return (
        f"measured {measured}; {claimed.name} has {_rates(claimed.tflops16, claimed.bandwidth_gbs)}; looks like {looks}"
    )


def _rates(tflops16: float, bandwidth_gbs: float | None) -> str:
    return f"{tflops16:.4g} TFLOPS" + ("" if bandwidth_gbs is None else f" and {bandwidth_gbs:.4g} GB/s")

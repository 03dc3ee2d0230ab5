"""The real worker, in real processes, through real pipes. Each process imports torch, so there are few of them."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from compute.base.clock import SystemClock
from compute.base.errors import ProofError
from compute.base.reasons import ProofReason
from compute.incentive.config import load_config
from compute.proof import bootstrap, worker
from compute.proof.conversation import Conversation
from compute.proof.models import MAX_DEVICES, Claim, GpuModel, ProofSettings
from compute.proof.pipes import ProcessChannel, local_worker
from compute.proof.session import Target
from compute.proof.statement import Dims, dims_for
from tests.waiting import DEADLINE_SECONDS

SOURCE = Path(worker.__file__).read_text(encoding="utf-8")
MODEL = GpuModel("CPU core", tflops16=1e-6, vram_gb=1.0, bandwidth_gbs=None)
# Three tiles, the last one short; three blocks, the last one short. So many passes that a pause of this machine among
# them does not make each of them look as long as half of computing.
SETTINGS = ProofSettings(
    device="cpu",
    rows=2500,
    k=4096,
    columns=256,
    tile_rows=1024,
    min_passes=64,
    max_passes=64,
    phase_deadline_floor_seconds=DEADLINE_SECONDS,
)
DIMS = Dims(rows=64, k=32, columns=32, passes=3, tile_rows=64)


async def test_an_honest_machine_proves_both_its_devices(prove: Any) -> None:
    target = Target("miner", Claim("CPU core", 2), local_worker)
    (verdict,) = await prove([target], model=MODEL, settings=SETTINGS, clock=SystemClock())
    assert (verdict.reason, verdict.gpu, verdict.count, verdict.detail) == (ProofReason.OK, "CPU core", 2, "")
    for device in verdict.devices:
        assert device.tflops16 is not None
        assert device.compute_seconds is not None
        assert 0 < device.tflops16 < 100
        assert device.compute_seconds > 0
        assert device.vram_bytes == 2 * 2500 * 256


@pytest.mark.gpu
async def test_every_gpu_here_proves_itself(prove: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU for torch on this machine")
    settings = ProofSettings(device="cuda", rows=65536, k=8192, columns=8192, tile_rows=4096, min_passes=5)
    model = GpuModel("GPU", tflops16=1e-3, vram_gb=8.0, bandwidth_gbs=None)
    target = Target("miner", Claim("GPU", torch.cuda.device_count()), local_worker)
    (verdict,) = await prove([target], model=model, settings=settings, clock=SystemClock())
    assert (verdict.reason, verdict.detail) == (ProofReason.OK, "")
    assert all(device.uuid for device in verdict.devices)


async def test_a_real_worker_is_slower_than_a_claim_of_something_better(prove: Any) -> None:
    target = Target("miner", Claim("CPU core", 1), local_worker)
    better = GpuModel("CPU core", tflops16=1e6, vram_gb=1.0, bandwidth_gbs=None)
    (verdict,) = await prove([target], model=better, settings=SETTINGS, clock=SystemClock())
    assert (verdict.reason, verdict.count) == (ProofReason.SLOWER_THAN_CLAIMED, 0)


async def test_a_worker_without_a_gpu_shows_none_and_says_so_when_asked_for_one() -> None:
    async with local_worker() as channel:
        conversation = Conversation(channel, SystemClock())
        hello = await conversation.hello("cuda", 1, timeout_seconds=DEADLINE_SECONDS)
        if hello.devices:
            pytest.skip("this machine has a GPU")
        with pytest.raises(ProofError) as caught:
            await conversation.prepare(DIMS, "cuda", 1, ("v", "m"), timeout_seconds=DEADLINE_SECONDS)
        assert caught.value.reason is ProofReason.DEVICE_COUNT_MISMATCH


async def test_a_statement_beyond_the_memory_is_not_resident() -> None:
    huge = Dims(rows=2**31 - 1, k=2, columns=32768, passes=3, tile_rows=64)
    async with local_worker() as channel:
        conversation = Conversation(channel, SystemClock())
        await conversation.hello("cpu", 1, timeout_seconds=DEADLINE_SECONDS)
        with pytest.raises(ProofError, match="memory") as caught:
            await conversation.prepare(huge, "cpu", 1, ("v", "m"), timeout_seconds=DEADLINE_SECONDS)
        assert caught.value.reason is ProofReason.NOT_RESIDENT


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("no /proc on this machine")
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
    return int(kib) * 1024


async def test_a_worker_takes_little_memory_of_its_host() -> None:
    """Its peak, torch included, beside the 42 MB of A, B and C that the CPU device has on the host."""
    dims = Dims(rows=8192, k=4096, columns=1024, passes=3, tile_rows=512)
    async with local_worker() as channel:
        assert isinstance(channel, ProcessChannel)
        conversation = Conversation(channel, SystemClock())
        await conversation.hello("cpu", 1, timeout_seconds=DEADLINE_SECONDS)
        await conversation.prepare(dims, "cpu", 1, ("v", "m"), timeout_seconds=DEADLINE_SECONDS)
        await conversation.compute(bytes(32), 1, timeout_seconds=DEADLINE_SECONDS)
        await conversation.rehash(bytes(32), 3, 1, timeout_seconds=DEADLINE_SECONDS)
        assert peak_bytes(channel.pid) < 1e9


@pytest.mark.parametrize("devices", [8, MAX_DEVICES])
def test_what_a_gpu_worker_keeps_on_its_host_is_bounded_for_every_model_of_the_table(devices: int) -> None:
    """Per device: the trees of all passes, the digests of one pass on their way, and the answer to ``open``.

    Measured at the size of the statement, because a list of hashes takes twice what the hashes do. C, B and the tiles
    are the device's own memory, and nothing else of their size is copied.
    """
    for model in load_config().models.values():
        dims = dims_for(model, ProofSettings())
        tracemalloc.start()
        try:
            data = bytes(8 * dims.rows)
            digests = tracemalloc.get_traced_memory()[0]
            levels = worker.tree_levels(data)
            tree = tracemalloc.get_traced_memory()[0] - digests
        finally:
            tracemalloc.stop()
        assert len(levels[-1]) == 1
        # Twice: as a tensor on the host, and as bytes.
        under_way = 2 * 8 * dims.rows
        opened = 2 * dims.opened_bytes(list(range(24)), 3)
        kept = (1 + dims.passes) * tree
        assert devices * (kept + under_way + opened) < 1e9, model.name


def test_the_bootstrap_works_as_one_shell_command_and_ends_with_its_input() -> None:
    command = shlex.join(bootstrap.bootstrap_argv(sys.executable))
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    source = b"import os, sys; print(__name__, sys.stdin.buffer.read(3), flush=True)\n"
    ended = subprocess.run(
        ["/bin/sh", "-c", command],
        input=b"%d\n" % len(source) + source + b"abc",
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=True,
        env=environment,
    )
    assert ended.stdout == b"__main__ b'abc'\n"


def test_a_validator_that_hangs_up_ends_the_worker() -> None:
    ended = subprocess.run(
        bootstrap.bootstrap_argv(sys.executable),
        input=bootstrap.worker_source(),
        capture_output=True,
        timeout=DEADLINE_SECONDS,
    )
    assert (ended.returncode, ended.stdout) == (0, b"")


def test_the_bootstrap_ships_the_worker_with_its_length() -> None:
    length, source = bootstrap.worker_source().split(b"\n", 1)
    assert int(length) == len(source)
    assert source.decode() == SOURCE


def test_the_worker_is_python_3_8_and_imports_torch_and_the_standard_library_only() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 8))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"torch"}

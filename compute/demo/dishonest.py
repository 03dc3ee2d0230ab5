"""Miners that do not play fair, as real processes: ``python -m compute.demo.dishonest KIND MINER-OPTIONS…``.

They are the real miner, with its hardware or its runtime exchanged for one that cheats.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from compute.base import logs
from compute.base.process import run_neuron
from compute.demo.cast import LIE, LIE_MIB, Kind
from compute.miner import program
from compute.miner.hardware import Hardware, hardware_of
from compute.miner.options import MinerOptions, parse_miner
from compute.miner.runtimes.base import ContainerSpec, Endpoint
from compute.miner.runtimes.local import LocalRuntime
from compute.update.guard import leave
from compute.wire.specs import Gpu, MachineSpecs

_SECONDS_TO_LIVE = 1.0
"""A proof takes twice as long at least."""


class Lying(Hardware):
    """A machine that claims a GPU which it does not have."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware

    def specs(self) -> MachineSpecs:
        return self._hardware.specs().with_gpus((Gpu(LIE, LIE_MIB, uuid="GPU-00000000-0000-0000-0000-00000000dead"),))


class Mortal(LocalRuntime):
    """The whole machine, miner and lease, vanishes a second into its first lease, as in a power cut."""

    def start(self, spec: ContainerSpec, *, wanted: Callable[[], bool] = lambda: True) -> Endpoint:
        endpoint = super().start(spec, wanted=wanted)
        threading.Timer(_SECONDS_TO_LIVE, self._die, [spec.lease_id]).start()
        return endpoint

    def _die(self, lease_id: str) -> None:
        self.stop(lease_id)
        os.kill(os.getpid(), signal.SIGKILL)


def main(argv: Sequence[str]) -> int:
    """Run a miner of the kind ``argv[0]``; returns the exit code."""
    kind = Kind(argv[0])
    options = parse_miner(argv[1:], os.environ)
    return run_neuron(lambda: _serve(kind, options))


async def _serve(kind: Kind, options: MinerOptions) -> None:
    logs.configure(options.logging, program="miner")
    hardware = hardware_of(options)
    if kind is Kind.LIAR:
        hardware = Lying(hardware)
    runtime = program.local_runtime(options, Mortal if kind is Kind.DYING else LocalRuntime)
    await program.serve(options, hardware, runtime)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))

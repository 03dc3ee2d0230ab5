import pytest

from compute.incentive.config import load_config
from compute.miner.program import say_what_it_earns
from compute.wire.specs import Gpu, MachineSpecs

MACHINE = MachineSpecs(8, 3000.0, 64, 64, 0, 64, 100, 0, 100)


@pytest.mark.parametrize(
    ("gpus", "level", "fields"),
    [
        (("NVIDIA GeForce RTX 4090",) * 2, "INFO", {"gpu": "NVIDIA RTX 4090", "free": 2.125, "rented": 4.25}),
        (("NVIDIA A100-SXM4-40GB",), "WARNING", {"reason": "unknown_model", "free": 0.0}),
        ((), "WARNING", {"reason": "no_gpu", "count": 0}),
    ],
)
def test_a_miner_says_what_its_machine_earns(
    gpus: tuple[str, ...], level: str, fields: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "compute")
    say_what_it_earns(MACHINE.with_gpus(tuple(Gpu(name, 24_000) for name in gpus)), load_config())
    (record,) = caplog.records
    assert record.levelname == level
    assert fields.items() <= vars(record).items()

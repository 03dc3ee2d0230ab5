"""Releases that need other packages: real pip, wheels of our own, no network."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from .conftest import Lab

USES = "import tiny; note(options, tiny=tiny.VERSION)"


def make_wheel(folder: Path, version: str) -> None:
    info = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": f'VERSION = "{version}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


@pytest.fixture
def packaged(lab: Lab) -> Lab:
    """The neuron in an environment of its own, with a package of version 1.0."""
    wheels = lab.folder / "wheels"
    make_wheel(wheels, "1.0")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", lab.folder / "environment"], check=True)
    lab.python = str(lab.folder / "environment" / "bin" / "python")
    lab.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_CACHE_DIR": "1"}
    # There is no network: what the neuron needs besides, and pip, each environment sees in the tests' own.
    lab.environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    subprocess.run([lab.python, "-m", "pip", "install", "--quiet", "tiny==1.0"], env=lab.environment, check=True)
    return lab


def installed(lab: Lab) -> str:
    code = "import tiny; print(tiny.VERSION)"
    return subprocess.run([lab.python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_release_brings_its_packages_and_takes_them_back(packaged: Lab) -> None:
    lab = packaged
    process = lab.start()
    lab.until(lambda: "up_to_date" in lab.log(), "the first look")
    make_wheel(lab.folder / "wheels", "2.0")
    lab.publish("crashes", requirements="tiny>=2.0\n", at_start=f"{USES}; raise OSError")
    lab.until(lambda: "passed its check" in lab.log(), "an environment is made, and pip is asked four times")
    lab.until(lambda: lab.words()[-2:] == ["crashes", "one"], "the old one is back")
    assert [event["tiny"] for event in lab.events() if "tiny" in event] == ["2.0"] * 3
    assert installed(lab) == "1.0"
    assert not lab.state("environment")
    assert {event["pid"] for event in lab.events()} == {process.pid}


def test_packages_that_cannot_be_had_leave_the_environment_as_it_is(packaged: Lab) -> None:
    lab = packaged
    lab.start()
    new = lab.push({"requirements.txt": "tiny==9.0\n"}, "needs what there is not")
    lab.until(lambda: new in lab.failures(), "it is not taken")
    assert lab.failures()[new]["for_good"] is False, "the network may be back later"
    lab.until(lambda: "install_failed" in lab.log(), "it says so")
    assert installed(lab) == "1.0"
    assert lab.words() == ["one"]

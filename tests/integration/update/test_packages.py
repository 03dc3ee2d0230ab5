"""Releases that need other packages: real pip, wheels of our own, no network."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import check

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
    """The neuron in an environment of its own, on top of the tests', with a package of version 1.0."""
    wheels = lab.folder / "wheels"
    make_wheel(wheels, "1.0")
    lab.python = check.make_overlay(lab.folder / "environment")
    lab.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_CACHE_DIR": "1"}
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
    lab.publish("two", requirements="tiny==2.0\n", at_start=USES)
    lab.until_settled("two")
    assert lab.events()[-1]["tiny"] == installed(lab) == "2.0"
    assert not lab.state("packages")

    make_wheel(lab.folder / "wheels", "3.0")
    lab.publish("crashes", requirements="tiny>=3.0\n", at_start=f"{USES}; raise OSError")
    lab.until(lambda: "crashes" in lab.words() and lab.events()[-1].get("tiny") == "2.0", "the old one is back")
    crashes = [event["tiny"] for event in lab.events() if event["word"] == "crashes" and "tiny" in event]
    assert crashes == ["3.0"] * 3
    assert installed(lab) == "2.0"
    assert {event["pid"] for event in lab.events()} == {process.pid}


def test_packages_that_cannot_be_had_leave_the_environment_as_it_is(packaged: Lab) -> None:
    lab = packaged
    lab.start()
    new = lab.push({"requirements.txt": "tiny==9.0\n"}, "needs what there is not")
    lab.until(lambda: new in lab.failures(), "it is not taken")
    assert lab.failures()[new]["for_good"] is False, "the network may be back later"
    assert "install_failed" in lab.log()
    assert installed(lab) == "1.0"
    lab.until(lambda: "failed_before" in lab.log(), "it is left for today")
    assert lab.failures()[new]["times"] == 3
    assert lab.words() == ["one"]


def test_the_check_sees_the_new_packages_and_the_neuron_does_not(packaged: Lab) -> None:
    lab = packaged
    make_wheel(lab.folder / "wheels", "2.0")
    needs = "import tiny\nassert tiny.VERSION == '2.0', tiny.VERSION\n"
    lab.push({"requirements.txt": "tiny==2.0\n", "compute/needs.py": needs}, "needs tiny 2 to be imported")
    lab.push({"compute/broken.py": "import nothing_of_that_name\n"}, "does not import for another reason")
    lab.start()
    lab.until(lambda: "check_failed" in lab.log(), "the check has failed")
    assert "nothing_of_that_name" in lab.log()
    assert installed(lab) == "1.0"


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "neurons").mkdir()
    child = tmp_path / "child"
    starts = "import subprocess, time\np = subprocess.Popen(['sleep', '1000'])\n"
    hangs = f"{starts}open({str(child)!r}, 'w').write(str(p.pid))\ntime.sleep(1000)\n"
    (tmp_path / "neurons" / "miner.py").write_text(hangs)
    # Three seconds are enough to start a child, but for a machine that does too much else.
    for seconds in (3, 30):
        with pytest.raises(UpdateError, match=f"was not done after {seconds} s") as caught:
            check.self_test(tmp_path, sys.executable, "miner", [], seconds=seconds)
        assert caught.value.reason is UpdateReason.CHECK_TIMEOUT
        if child.exists():
            break
    # It has been killed, and ends in a moment. Who inherits it may leave it a zombie.
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(child.read_text()))
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it still runs"
            time.sleep(0.02)


RIGHT_ROOT = "str(pathlib.Path(__file__).resolve().parents[1])"


@pytest.mark.parametrize(
    "answer",
    [
        *("b''", "b'{}'", "b'[1]'", "b'\\xff'", "b'{' * 9000"),
        "json.dumps({'nonce': nonce, 'root': '/'}).encode()",
        f"json.dumps({{'nonce': 'guessed', 'root': {RIGHT_ROOT}}}).encode()",
    ],
)
def test_an_answer_that_is_none_is_not_believed(tmp_path: Path, answer: str) -> None:
    with pytest.raises(UpdateError, match="without an answer"):
        answering(tmp_path, answer)


def test_the_right_answer_is_believed(tmp_path: Path) -> None:
    answering(tmp_path, f"json.dumps({{'nonce': nonce, 'root': {RIGHT_ROOT}}}).encode()")


def answering(folder: Path, answer: str) -> None:
    (folder / "neurons").mkdir()
    text = f"import json, os, pathlib, sys\nfd, nonce = sys.argv[2:4]\nos.write(int(fd), {answer})\n"
    (folder / "neurons" / "miner.py").write_text(text)
    check.self_test(folder, sys.executable, "miner", [])

"""The self-test of a commit, and programs that do not end: real processes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil
import pytest

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import check
from tests.waiting import until

RIGHT_ROOT = "str(pathlib.Path(__file__).resolve().parents[1])"


@pytest.mark.parametrize(
    "answer",
    [
        *("b''", "b'[1]'", "b'{' * 9000"),
        "json.dumps({'nonce': nonce, 'root': '/'}).encode()",
        f"json.dumps({{'nonce': 'guessed', 'root': {RIGHT_ROOT}}}).encode()",
    ],
)
def test_an_answer_that_is_none_is_not_believed(tmp_path: Path, answer: str) -> None:
    with pytest.raises(UpdateError, match="without an answer") as caught:
        answering(tmp_path, answer)
    assert caught.value.reason is UpdateReason.CHECK_FAILED


def test_the_right_answer_is_believed(tmp_path: Path) -> None:
    answering(tmp_path, f"json.dumps({{'nonce': nonce, 'root': {RIGHT_ROOT}}}).encode()")


def answering(folder: Path, answer: str) -> None:
    (folder / "neurons").mkdir()
    text = f"import json, os, pathlib, sys\nfd, nonce = sys.argv[2:4]\nprint(nonce)\nos.write(int(fd), {answer})\n"
    (folder / "neurons" / "miner.py").write_text(text)
    check.self_test(folder, sys.executable, "miner", [])


def test_a_self_test_that_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "neurons").mkdir()
    (tmp_path / "neurons" / "miner.py").write_text("import nothing_of_that_name")
    with pytest.raises(UpdateError, match="nothing_of_that_name") as caught:
        check.self_test(tmp_path, sys.executable, "miner", [])
    assert caught.value.reason is UpdateReason.CHECK_FAILED


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    (tmp_path / "neurons").mkdir()
    child = tmp_path / "child"
    starts = "import subprocess, time\np = subprocess.Popen(['sleep', '1000'])\n"
    hangs = f"{starts}open({str(child)!r}, 'w').write(str(p.pid))\ntime.sleep(1000)\n"
    (tmp_path / "neurons" / "miner.py").write_text(hangs)
    # A second is enough to start a child, but for a machine that does too much else.
    for seconds in (1, 5, 60):
        with pytest.raises(UpdateError, match=f"was not done after {seconds} s") as caught:
            check.self_test(tmp_path, sys.executable, "miner", [], seconds=seconds)
        assert caught.value.reason is UpdateReason.CHECK_TIMEOUT
        if child.exists() and child.read_text():
            break
    # It has been killed, and ends in a moment. Who inherits it may leave it a zombie.
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(child.read_text()))
        until(lambda: process.status() == psutil.STATUS_ZOMBIE, "its child has ended")

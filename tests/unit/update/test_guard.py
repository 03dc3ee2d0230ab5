import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compute.update import trial as trials
from compute.update.trial import Trial

ROOT = Path(__file__).resolve().parents[3]


def test_the_guard_needs_nothing_but_the_standard_library() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import compute.update.guard; print(sorted(sys.modules))"
    # -S: there are no installed packages.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    ours = [name for name in eval(done.stdout) if name.startswith("compute")]
    assert ours == ["compute", *(f"compute.update{name}" for name in ("", ".back", ".guard", ".trial"))]


@pytest.mark.parametrize("role", ["miner", "validator"])
def test_the_guard_begins_before_anything_that_may_be_broken(role: str) -> None:
    code = f"import sys; sys.argv = ['x']; import neurons.{role}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    ours = {name for name in eval(done.stdout) if name.startswith("compute.")}
    assert ours == {f"compute.update{name}" for name in ("", ".back", ".guard", ".trial")}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    return tmp_path


def test_a_trial_is_read_as_it_was_written(clone: Path) -> None:
    assert trials.load() is None
    trial = Trial("a", "b", "refs/heads/main", "a", ["x==1"], "db", 1.5, 2, "failed", for_good=False)
    trials.save(trial)
    assert trials.load() == trial
    trials.forget()
    trials.forget()
    assert trials.load() is None


def test_a_trial_of_another_release_may_have_more_or_fewer_fields(clone: Path) -> None:
    trials.save(Trial("a", "b", "refs/heads/main", "a"))
    (file,) = (clone / ".git" / "compute-update").glob("trial-*")
    document = json.loads(file.read_text())
    del document["packages"], document["for_good"]
    file.write_text(json.dumps({**document, "more": 1}))
    assert trials.load() == Trial("a", "b", "refs/heads/main", "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"x"'])
def test_a_broken_trial_is_none(clone: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    trials.save(Trial("a", "b", "refs/heads/main", "a"))
    (file,) = (clone / ".git" / "compute-update").glob("trial-*")
    file.write_text(text)
    assert trials.load() is None
    assert "cannot be read" in capsys.readouterr().err


def test_another_command_line_is_another_neuron(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials.save(Trial("a", "b", "refs/heads/main", "a"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "neurons/miner.py", "--status"])
    assert trials.load() is None


def test_failures_are_counted_and_the_oldest_forgotten(clone: Path) -> None:
    assert trials.failures() == {}
    for number in range(60):
        trials.remember(str(number), "reason", for_good=False)
    trials.remember("20", "again", for_good=True)
    known = trials.failures()
    assert len(known) == 50
    assert (known["20"]["times"], known["20"]["reason"], known["20"]["for_good"]) == (2, "again", True)
    assert "5" not in known


def test_what_failed_for_good_stays_so(clone: Path) -> None:
    trials.remember("a", "it crashed", for_good=True)
    trials.remember("a", "it was interrupted", for_good=False)
    assert (trials.failures()["a"]["for_good"], trials.failures()["a"]["reason"]) == (True, "it crashed")


def test_the_trials_of_other_neurons_are_seen_for_an_hour(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials.save(Trial("a", "b", "refs/heads/main", "a"))
    assert not trials.others(), "its own does not count"
    monkeypatch.setattr(sys, "orig_argv", ["python", "neurons/validator.py"])
    assert trials.others()
    (file,) = (clone / ".git" / "compute-update").glob("trial-*")
    os.utime(file, (0, 0))
    assert not trials.others()


def test_without_a_clone_there_is_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    assert trials.state_folder() is None
    assert trials.load() is None
    assert trials.failures() == {}
    trials.forget()

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from compute.update import guard
from compute.update import trial as trials
from compute.update.trial import Trial

ROOT = Path(__file__).resolve().parents[3]


def test_the_guard_needs_nothing_but_the_standard_library() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import compute.update.guard; print(sorted(sys.modules))"
    # -S: there are no installed packages.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    ours = [name for name in eval(done.stdout) if name.startswith("compute")]
    assert ours == ["compute", *(f"compute.update{name}" for name in ("", ".guard", ".trial"))]


@pytest.mark.parametrize("role", ["miner", "validator"])
def test_the_guard_begins_before_anything_that_may_be_broken(role: str) -> None:
    code = f"import sys; sys.argv = ['x']; import neurons.{role}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    ours = {name for name in eval(done.stdout) if name.startswith("compute.")}
    assert ours == {f"compute.update{name}" for name in ("", ".guard", ".trial")}


def test_a_trial_is_read_as_it_was_written(clone: Path) -> None:
    assert trials.load() is None
    trial = Trial("a", "b", "refs/heads/main", ["x==1"], 1.5, 2, "failed", for_good=False)
    trials.save(trial)
    assert trials.load() == trial
    trials.forget()
    trials.forget()
    assert trials.load() is None


def test_a_trial_of_another_release_may_have_more_or_fewer_fields(clone: Path) -> None:
    trials.save(Trial("a", "b", "refs/heads/main"))
    file = clone / ".git" / "compute-update" / "trial"
    document = json.loads(file.read_text())
    del document["packages"], document["for_good"]
    file.write_text(json.dumps({**document, "more": 1}))
    assert trials.load() == Trial("a", "b", "refs/heads/main")


# As release 2.0.0 (f252ea9) leaves it when it has just switched to this one.
OLD_TRIAL = {
    **{"old": "a", "new": "b", "ref": "refs/heads/main", "old_value": "a", "packages": ["x==1"]},
    **{"database": "/db", "up_seconds": 600.0, "starts": 0, "failed": "", "for_good": True},
}


def test_the_trial_of_a_release_that_had_one_for_each_command_line_goes_on(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clone / ".git" / "compute-update"
    folder.mkdir()
    monkeypatch.setattr(trials, "FOLDER", "/home/someone")
    monkeypatch.setattr(sys, "orig_argv", ["python", "neurons/miner.py", "--netuid", "27"])
    name = "7b3bfd263cc10312"
    for kind in ("trial", "database"):
        (folder / f"{kind}-{name}").write_text(json.dumps(OLD_TRIAL))
    (folder / "trial-0123456789abcdef").write_text("another neuron's")
    trial = trials.load()
    assert trial == Trial("a", "b", "refs/heads/main", ["x==1"])
    assert trial.is_own
    trial.starts = 1
    trials.save(trial)
    assert trials.load() == trial
    trials.forget()
    assert trials.load() is None
    assert [file.name for file in folder.iterdir()] == ["trial-0123456789abcdef"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"x"'])
def test_a_broken_trial_is_none(clone: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    trials.save(Trial("a", "b", "refs/heads/main"))
    (clone / ".git" / "compute-update" / "trial").write_text(text)
    assert trials.load() is None
    assert "cannot be read" in capsys.readouterr().err


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


def test_without_a_clone_there_is_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    assert trials.state_folder() is None
    assert trials.load() is None
    assert trials.failures() == {}
    trials.forget()


def test_a_program_of_the_clone_outlives_its_neuron_with_the_lock(clone: Path) -> None:
    with trials.lock(wait=False) as first:
        assert first
        with trials.lock(wait=False) as second:
            assert not second
        # What was started under it, and is not ours to end.
        child = subprocess.Popen(["sleep", "1000"], pass_fds=tuple(trials._locks))
    with trials.lock(wait=False) as third:
        assert not third
    child.kill()
    child.wait()
    with trials.lock(wait=False) as fourth:
        assert fourth


@pytest.mark.parametrize(("of_the_watched", "restarts"), [(True, True), (False, False), (None, False)])
def test_what_is_not_up_in_time_goes_back(
    clone: Path, monkeypatch: pytest.MonkeyPatch, of_the_watched: bool | None, restarts: bool
) -> None:
    class Restart(BaseException):
        pass

    def restart() -> None:
        raise Restart

    monkeypatch.setattr(guard, "restart", restart)
    watched = Trial("a", "b", "refs/heads/main", up_seconds=0.0)
    if of_the_watched is not None:
        # The next trial of the same process, about to restart, is not the watched one.
        trials.save(watched if of_the_watched else Trial("b", "c", "refs/heads/main"))
    with pytest.raises(Restart) if restarts else contextlib.nullcontext():
        guard._watch(watched)
    trial = trials.load()
    assert (trial.failed if trial else "") == ("it was not up after 0 s" if restarts else "")

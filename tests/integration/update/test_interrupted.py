"""Switches and ways back that are broken off, and clones in which somebody works: nothing is lost, nothing is mixed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compute.update import back
from compute.update import trial as trials
from compute.update.trial import Trial

from .conftest import SECONDS, Lab, Repositories, git


def trial_of(there: Repositories, new: str) -> Trial:
    return Trial(old=there.old, new=new, ref="refs/heads/main", old_value=there.old)


def assert_old(there: Repositories) -> None:
    assert git(there.root, "rev-parse", "HEAD") == there.old
    assert git(there.root, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(there.root, "status", "--porcelain", "--untracked-files=no") == ""
    assert (there.root / "changed").read_text() == (there.root / "removed").read_text() == "one"
    assert not (there.root / "added").exists()


def test_a_whole_switch_is_put_back(there: Repositories) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    (there.root / "notes").write_text("mine")
    back.put_back(trial_of(there, new))
    assert_old(there)
    assert (there.root / "notes").read_text() == "mine"
    back.put_back(trial_of(there, new))
    assert_old(there)


def test_a_half_written_tree_is_put_back(there: Repositories) -> None:
    new = there.release()
    git(there.root, "fetch", "--quiet")
    # As git leaves it when it is killed: files first, one of them half, and the lock of an index that was not written.
    (there.root / "removed").unlink()
    (there.root / "changed").write_text("t")
    (there.root / "added").write_text("two")
    (there.root / ".git" / "index.lock").write_bytes(b"DIRC")
    back.put_back(trial_of(there, new))
    assert_old(there)


def test_an_index_without_its_branch_is_put_back(there: Repositories) -> None:
    new = there.release()
    git(there.root, "fetch", "--quiet")
    git(there.root, "read-tree", "-m", "-u", there.old, new)
    assert git(there.root, "rev-parse", "HEAD") == there.old
    back.put_back(trial_of(there, new))
    assert_old(there)


def test_git_may_be_killed_at_any_moment(there: Repositories) -> None:
    many = {f"file{number}": "x" * 4000 for number in range(200)}
    there.old = there.commit(**many)
    git(there.author, "push", "--quiet", "origin", "main")
    git(there.root, "pull", "--quiet")
    new = there.commit(**dict.fromkeys(many, "y" * 4000), added="two", changed="two", removed=None)
    git(there.author, "push", "--quiet", "origin", "main")
    git(there.root, "fetch", "--quiet")
    begun = time.monotonic()
    git(there.root, "merge", "--quiet", "--ff-only", new)
    took = time.monotonic() - begun
    back.put_back(trial_of(there, new))
    assert_old(there)
    broken_off = tried = 0
    # The first merge may have taken longer than any after it does.
    while tried < 15 or (broken_off == 0 and tried < 200):
        tried += 1
        process = subprocess.Popen(["git", "merge", "--quiet", "--ff-only", new], cwd=there.root)
        # The moment is what is drawn here, not a wait for something.
        time.sleep(random.uniform(0, took))
        process.kill()
        process.wait()
        broken_off += git(there.root, "rev-parse", "HEAD") == there.old
        back.put_back(trial_of(there, new))
        assert_old(there)
        assert {(there.root / name).read_text() for name in many} == {"x" * 4000}
    assert broken_off > 0


@pytest.mark.parametrize("name", ["changed", "added", "removed"])
@pytest.mark.parametrize("broken_off", [False, True])
def test_work_of_somebodys_own_stops_the_way_back(there: Repositories, name: str, broken_off: bool) -> None:
    new = there.release()
    git(there.root, "fetch" if broken_off else "pull", "--quiet")
    (there.root / name).write_text("mine")
    before = git(there.root, "rev-parse", "HEAD")
    with pytest.raises(back.CannotGoBack, match=f"{name}.*Keep what you need"):
        back.put_back(trial_of(there, new))
    assert (there.root / name).read_text() == "mine"
    assert git(there.root, "rev-parse", "HEAD") == before


@pytest.mark.parametrize("name", ["changed", "added"])
def test_deleting_or_emptying_a_file_is_work_too(there: Repositories, name: str) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    (there.root / name).write_text("")
    with pytest.raises(back.CannotGoBack):
        back.put_back(trial_of(there, new))
    (there.root / name).unlink()
    with pytest.raises(back.CannotGoBack):
        back.put_back(trial_of(there, new))


def test_work_elsewhere_in_the_tree_stays_where_it_is(there: Repositories) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    (there.root / "kept").write_text("mine")
    back.put_back(trial_of(there, new))
    assert (there.root / "kept").read_text() == "mine"
    assert git(there.root, "status", "--porcelain").strip() == "M kept"


def test_a_git_that_runs_keeps_its_lock(there: Repositories) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    lock = there.root / ".git" / "index.lock"
    lock.touch()
    with subprocess.Popen(["git", "cat-file", "--batch"], cwd=there.root, stdin=subprocess.PIPE) as process:
        while Path(f"/proc/{process.pid}/comm").read_text() != "git\n":
            time.sleep(0.01)
        with pytest.raises(back.CannotGoBack, match=f"process {process.pid}"):
            back.put_back(trial_of(there, new))
        assert lock.exists()
    back.put_back(trial_of(there, new))
    assert_old(there)


def test_folders_and_links_are_put_back(there: Repositories) -> None:
    folder = there.author / "folder"
    folder.mkdir()
    (folder / "inside").write_text("one")
    (there.author / "link").symlink_to("kept")
    there.old = there.commit()
    git(there.author, "push", "--quiet", "origin", "main")
    git(there.root, "pull", "--quiet")
    (folder / "inside").unlink()
    folder.rmdir()
    folder.write_text("a file now")
    (there.author / "link").unlink()
    (there.author / "deep" / "er").mkdir(parents=True)
    (there.author / "deep" / "er" / "file").write_text("two")
    new = there.commit()
    git(there.author, "push", "--quiet", "origin", "main")
    git(there.root, "pull", "--quiet")
    back.put_back(trial_of(there, new))
    assert_old(there)
    assert (there.root / "folder" / "inside").read_text() == "one"
    assert os.readlink(there.root / "link") == "kept"
    assert not (there.root / "deep").exists()


@pytest.mark.parametrize("annotated", [False, True])
def test_a_tag_goes_back_with_its_head(there: Repositories, annotated: bool) -> None:
    note = ["-a", "-m", "release"] if annotated else []
    git(there.root, "tag", *note, "stable")
    value = git(there.root, "rev-parse", "refs/tags/stable")
    git(there.root, "checkout", "--quiet", "stable")
    new = there.release()
    git(there.root, "fetch", "--quiet")
    git(there.root, "checkout", "--quiet", new)
    git(there.root, "tag", *note, "--force", "stable")
    back.put_back(Trial(old=there.old, new=new, ref="refs/tags/stable", old_value=value))
    assert git(there.root, "rev-parse", "HEAD", "refs/tags/stable").split() == [there.old, value]
    assert git(there.root, "rev-parse", "main") == there.old
    assert git(there.root, "status", "--porcelain") == ""


def test_two_neurons_of_one_clone_do_not_move_it_at_once(there: Repositories) -> None:
    waiting = (
        f"import sys; sys.path.insert(0, {str(Path(back.__file__).parents[2])!r});"
        "from pathlib import Path; from compute.update import trial as trials;"
        f"trials.ROOT = Path({str(there.root)!r}); print('waits', flush=True)\n"
        "with trials.tree_lock(): print('has it', flush=True)"
    )
    with trials.tree_lock():
        process = subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        assert process.poll() is None
    assert process.communicate(timeout=20)[0] == "has it\n"


DRIVER = """\
import os, runpy, sys
sys.path.insert(0, {clone!r})
# What the guard knows this neuron by is the command that the operator types.
sys.orig_argv[1:] = sys.argv = [{program!r}]
from compute.update import back, check, clone, guard, switching, trial
owner, name, when = {owner}, {name!r}, {when!r}
original = getattr(owner, name)
def killed(*arguments, **options):
    if when == "after":
        original(*arguments, **options)
    os.kill(os.getpid(), 9)
setattr(owner, name, killed)
runpy.run_path({program!r}, run_name="__main__")
"""


def start_and_be_killed(lab: Lab, owner: str, name: str, when: str) -> None:
    """Start the neuron, which is killed before or after one step."""
    program = str(lab.clone / "neurons" / "miner.py")
    driver = lab.home / "driver.py"
    driver.write_text(DRIVER.format(clone=str(lab.clone), program=program, owner=owner, name=name, when=when))
    with open(lab.home / "log", "ab") as log:
        process = subprocess.Popen([sys.executable, str(driver)], cwd=lab.home, env=lab.environment, stderr=log)
    lab.processes.append(process)
    assert process.wait(SECONDS) == -signal.SIGKILL, lab.log()


STEPS = [
    ("trial", "save", "before"),
    ("trial", "save", "after"),
    ("switching", "_keep", "after"),
    ("switching", "install_for", "after"),
    ("clone.Clone", "advance", "after"),
    ("guard", "restart", "before"),
]


@pytest.mark.parametrize(("owner", "name", "when"), STEPS)
def test_sigkill_in_every_step_of_the_switch(lab: Lab, owner: str, name: str, when: str) -> None:
    new = lab.publish("two")
    start_and_be_killed(lab, owner, name, when)
    assert git(lab.clone, "status", "--porcelain") == ""
    lab.start()
    lab.until_settled("two")
    assert lab.head() == new
    assert lab.words().count("two") == 1
    assert not lab.failures().get(new, {}).get("for_good")


STEPS_BACK = [
    ("guard", "go_back", "before"),
    ("back", "put_back", "before"),
    ("back", "put_back", "after"),
    ("back", "_restore_database", "after"),
    ("trial", "remember", "after"),
    ("trial", "forget", "after"),
]


@pytest.mark.parametrize(("owner", "name", "when"), STEPS_BACK)
def test_sigkill_in_every_step_of_the_way_back(lab: Lab, owner: str, name: str, when: str) -> None:
    old = lab.head()
    process = lab.start()
    new = lab.publish("crashes", at_start="os.kill(os.getpid(), 9)")
    for _ in range(3):
        assert process.wait(SECONDS) == -signal.SIGKILL
        process = lab.start() if len(lab.words()) < 4 else process
    start_and_be_killed(lab, owner, name, when)
    lab.start()
    lab.until(lambda: lab.words()[-1] == "one" and "failed_before" in lab.log(), "the old one is back")
    assert (lab.head(), git(lab.clone, "status", "--porcelain")) == (old, "")
    assert lab.failures()[new]["for_good"] is True
    assert not lab.trial()


def test_where_it_cannot_go_back_it_says_how_and_stops(lab: Lab) -> None:
    process = lab.start()
    lab.publish("crashes", at_start="open('../clone/compute/miner/program.py', 'a').write('# mine'); raise OSError")
    lab.until(lambda: process.poll() is not None, "it stops")
    assert process.returncode == 2
    assert "cannot be taken back: these files have changes that are not from git: compute/miner/program.py" in lab.log()
    assert (lab.clone / "compute" / "miner" / "program.py").read_text().endswith("# mine")
    # It is as it was at the next start; once the operator has made room, it goes back.
    assert lab.start().wait(SECONDS) == 2
    git(lab.clone, "checkout", "compute/miner/program.py")
    lab.start()
    lab.until(lambda: lab.words()[-1] == "one", "the old one is back")

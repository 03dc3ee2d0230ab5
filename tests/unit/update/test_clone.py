"""What a neuron makes of its clone and its remote: every situation that an operator can leave them in."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import clone
from compute.update import trial as trials

from .conftest import Repositories, git


def reason_of(there: Repositories, running: str = "") -> UpdateReason:
    with pytest.raises(UpdateError) as caught:
        clone.look(running or there.old)
    return caught.value.reason


def test_a_branch_is_fast_forwarded(there: Repositories) -> None:
    assert reason_of(there) is UpdateReason.UP_TO_DATE
    new = there.release()
    (there.root / "notes").write_text("mine")
    assert clone.look(there.old) == new
    clone.advance(new)
    assert there.tree() == "new at main"
    assert git(there.root, "rev-parse", "main") == new
    assert (there.root / "notes").read_text() == "mine"


def edit_tracked(there: Repositories) -> None:
    (there.root / "kept").write_text("mine")


def stage(there: Repositories) -> None:
    (there.root / "mine").write_text("mine")
    git(there.root, "add", "mine")


def delete_tracked(there: Repositories) -> None:
    (there.root / "kept").unlink()


def hide_a_change(there: Repositories) -> None:
    git(there.root, "update-index", "--assume-unchanged", "changed")
    (there.root / "changed").write_text("mine")


def hide_a_file(there: Repositories) -> None:
    git(there.root, "update-index", "--skip-worktree", "changed")
    (there.root / "changed").write_text("mine")


def collide(there: Repositories) -> None:
    (there.root / "added").write_text("mine")


def collide_ignored(there: Repositories) -> None:
    (there.root / ".git" / "info" / "exclude").write_text("added\n")
    (there.root / "added").write_text("mine")


def collide_by_link(there: Repositories) -> None:
    (there.root / "added").symlink_to("nowhere")


def collide_by_folder(there: Repositories) -> None:
    (there.root / "added").mkdir()
    (there.root / "added" / "inside").write_text("mine")


def detach(there: Repositories) -> None:
    git(there.root, "checkout", "--quiet", "--detach")


def drop_the_remote(there: Repositories) -> None:
    git(there.root, "remote", "remove", "origin")


def follow_a_local_branch(there: Repositories) -> None:
    git(there.root, "checkout", "--quiet", "-b", "mine", "--track", "main")


def lose_the_remote(there: Repositories) -> None:
    shutil.rmtree(there.remote)


def remove_the_branch(there: Repositories) -> None:
    git(there.author, "push", "--quiet", "origin", "main:other")
    git(there.remote, "symbolic-ref", "HEAD", "refs/heads/other")
    git(there.author, "push", "--quiet", "--delete", "origin", "main")


def diverge(there: Repositories) -> None:
    git(there.root, "commit", "--quiet", "--allow-empty", "-m", "mine")


def rewrite(there: Repositories) -> None:
    git(there.author, "checkout", "--quiet", "--orphan", "fresh")
    there.commit(other="history")
    git(there.author, "push", "--quiet", "--force", "origin", "fresh:main")


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        (edit_tracked, UpdateReason.LOCAL_CHANGES, "local changes: 'kept'. Commit them elsewhere or undo them"),
        (stage, UpdateReason.LOCAL_CHANGES, "'mine'"),
        (delete_tracked, UpdateReason.LOCAL_CHANGES, "'kept'"),
        (hide_a_change, UpdateReason.LOCAL_CHANGES, "'changed'"),
        (hide_a_file, UpdateReason.LOCAL_CHANGES, "'changed'"),
        (collide, UpdateReason.UNTRACKED_FILES, "not in git: 'added'. Move them away"),
        (collide_ignored, UpdateReason.UNTRACKED_FILES, "'added'"),
        (collide_by_link, UpdateReason.UNTRACKED_FILES, "'added'"),
        (collide_by_folder, UpdateReason.UNTRACKED_FILES, "'added/inside'"),
        (detach, UpdateReason.DETACHED, "git checkout main"),
        (drop_the_remote, UpdateReason.NO_UPSTREAM, "git branch --set-upstream-to origin/main main"),
        (follow_a_local_branch, UpdateReason.NO_UPSTREAM, "origin/mine"),
        (lose_the_remote, UpdateReason.REMOTE_UNREACHABLE, "fetch origin shows what is wrong"),
        (remove_the_branch, UpdateReason.REMOTE_UNREACHABLE, "cannot be asked"),
        (diverge, UpdateReason.DIVERGED, "git pull --rebase"),
        (rewrite, UpdateReason.DIVERGED, "git pull --rebase"),
    ],
)
def test_in_every_other_case_it_stays_and_says_what_to_do(
    there: Repositories, change: Callable[[Repositories], None], reason: UpdateReason, says: str
) -> None:
    there.release()
    change(there)
    before = snapshot(there.root)
    with pytest.raises(UpdateError) as caught:
        clone.look(git(there.root, "rev-parse", "HEAD"))
    assert caught.value.reason is reason
    assert says in str(caught.value)
    assert snapshot(there.root) == before


def snapshot(root: Path) -> dict[str, object]:
    files = {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.glob("*"))
        if not path.is_dir()
    }
    return {str(path): content for path, content in files.items()} | {
        "status": git(root, "status", "--porcelain", "--ignored"),
        "head": git(root, "rev-parse", "HEAD"),
    }


def test_many_changes_are_counted(there: Repositories) -> None:
    there.old = there.commit(**dict.fromkeys("abcdefg", "one"))
    git(there.author, "push", "--quiet", "origin", "main")
    git(there.root, "pull", "--quiet")
    there.release()
    for name in "abcdefg":
        (there.root / name).write_text("mine\n")
    with pytest.raises(UpdateError, match="'a', 'b', 'c', 'd', 'e' and 2 more"):
        clone.look(there.old)


def test_changes_are_no_matter_while_there_is_nothing_to_take(there: Repositories) -> None:
    edit_tracked(there)
    assert reason_of(there) is UpdateReason.UP_TO_DATE
    git(there.root, "commit", "--quiet", "--all", "-m", "mine")
    assert reason_of(there, running=git(there.root, "rev-parse", "HEAD")) is UpdateReason.AHEAD


def edit_in_the_way(there: Repositories) -> None:
    (there.root / "changed").write_text("mine")


@pytest.mark.parametrize("change", [edit_in_the_way, collide, collide_ignored])
def test_git_itself_refuses_what_appears_between_the_look_and_the_move(
    there: Repositories, change: Callable[[Repositories], None]
) -> None:
    new = there.release()
    assert clone.look(there.old) == new
    change(there)
    before = snapshot(there.root)
    with pytest.raises(UpdateError):
        clone.advance(new)
    assert snapshot(there.root) == before


def test_a_pull_by_hand_is_taken_up_and_a_checkout_of_something_else_is_not(there: Repositories) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    assert clone.look(there.old) == new
    assert reason_of(there, running=new) is UpdateReason.UP_TO_DATE
    newer = there.release()
    assert clone.look(there.old) == newer, "not a stop on the way"
    git(there.root, "reset", "--hard", "--quiet", there.old)
    assert reason_of(there, running=new) is UpdateReason.MOVED_BY_HAND


def test_where_another_neuron_went_back_this_one_does_too(there: Repositories) -> None:
    new = there.release()
    clone.look(there.old)
    with trials.lock(wait=True):
        trials.remember(new, "it crashed", for_good=True)
    assert clone.look(new) == there.old
    assert reason_of(there) is UpdateReason.FAILED_BEFORE


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ({"for_good": True, "reason": "it crashed"}, "(it crashed) and is not tried again"),
        ({"times": 3, "ago": 60.0}, "is tried again tomorrow"),
        ({"times": 2, "ago": 60.0}, ""),
        ({"times": 9, "ago": 86_401.0}, ""),
        ({"for_good": False, "times": 1}, ""),
    ],
)
def test_what_failed_by_chance_is_tried_again(
    there: Repositories, monkeypatch: pytest.MonkeyPatch, failure: dict[str, float], says: str
) -> None:
    new = there.release()
    known = {new: {**failure, "at": time.time() - failure.pop("ago", 0)}, "another": {"for_good": True}}
    monkeypatch.setattr(trials, "failures", lambda: known)
    if not says:
        assert clone.look(there.old) == new
        return
    with pytest.raises(UpdateError) as caught:
        clone.look(there.old)
    assert caught.value.reason is UpdateReason.FAILED_BEFORE
    assert says in str(caught.value)


def test_what_is_no_clone_says_so(tmp_path: Path, there: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = there.root / "vendored"
    inside.mkdir()
    for folder in (tmp_path, inside):
        monkeypatch.setattr(trials, "ROOT", folder)
        with pytest.raises(UpdateError, match="by hand") as caught:
            clone.require()
        assert caught.value.reason is UpdateReason.NOT_A_CLONE


def test_a_linked_working_tree_is_a_clone(tmp_path: Path, there: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    git(there.root, "worktree", "add", "--quiet", str(tmp_path / "linked"), "-b", "linked", "--track", "origin/main")
    monkeypatch.setattr(trials, "ROOT", tmp_path / "linked")
    new = there.release()
    clone.require()
    clone.advance(clone.look(there.old))
    assert git(tmp_path / "linked", "rev-parse", "HEAD") == new
    assert git(there.root, "rev-parse", "HEAD") == there.old


def test_hooks_do_not_run(tmp_path: Path, there: Repositories) -> None:
    there.release()
    for name in ("post-merge", "post-checkout", "reference-transaction"):
        hook = there.root / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {there.root}/ran-{name}\n")
        hook.chmod(0o755)
    commit = clone.look(there.old)
    with clone.checked_out(commit, tmp_path / "check") as tree:
        assert (tree / "added").read_text() == "two"
    assert not (tmp_path / "check").exists()
    clone.advance(commit)
    assert not list(there.root.glob("ran-*"))


def test_an_operator_who_takes_signed_commits_only_gets_no_others(there: Repositories) -> None:
    new = there.release()
    clone.look(there.old)
    clone.verify(new)
    git(there.root, "config", "merge.verifySignatures", "yes")
    with pytest.raises(UpdateError, match="not signed by a key that you trust") as caught:
        clone.verify(new)
    assert caught.value.reason is UpdateReason.CHECK_FAILED


def test_the_password_in_an_address_is_not_repeated(there: Repositories) -> None:
    git(there.root, "remote", "set-url", "origin", "http://someone:hunter2@127.0.0.1:9/project.git")
    with pytest.raises(UpdateError) as caught:
        clone.look(there.old)
    assert caught.value.reason is UpdateReason.REMOTE_UNREACHABLE
    assert "127.0.0.1:9" in str(caught.value)
    assert "hunter2" not in str(caught.value)

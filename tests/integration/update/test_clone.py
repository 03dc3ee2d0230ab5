"""What a clone looks like to a neuron, and what it decides: every situation that an operator can leave it in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import trial as trials
from compute.update.clone import Clone
from compute.update.decision import Stay, Take, decide

from .conftest import Repositories, git


def reason_of(decision: Stay | Take) -> UpdateReason:
    assert isinstance(decision, Stay), decision
    return decision.reason


def test_a_branch_is_fast_forwarded(there: Repositories) -> None:
    assert reason_of(there.look()) is UpdateReason.UP_TO_DATE
    new = there.release()
    decision = there.look()
    assert isinstance(decision, Take)
    assert (decision.offer.ref, decision.offer.commit) == ("refs/heads/main", new)
    Clone(there.root).advance(decision.offer)
    assert git(there.root, "rev-parse", "main") == new
    assert git(there.root, "status", "--porcelain", "--branch") == "## main...origin/main"
    assert (there.root / "added").read_text() == "two"
    assert not (there.root / "removed").exists()


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


def detach(there: Repositories) -> None:
    git(there.root, "checkout", "--quiet", "--detach")


def drop_the_remote(there: Repositories) -> None:
    git(there.root, "remote", "remove", "origin")


def drop_the_upstream(there: Repositories) -> None:
    git(there.root, "branch", "--unset-upstream")


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
    ("change", "reason"),
    [
        (edit_tracked, UpdateReason.LOCAL_CHANGES),
        (stage, UpdateReason.LOCAL_CHANGES),
        (delete_tracked, UpdateReason.LOCAL_CHANGES),
        (hide_a_change, UpdateReason.LOCAL_CHANGES),
        (hide_a_file, UpdateReason.LOCAL_CHANGES),
        (collide, UpdateReason.UNTRACKED_FILES),
        (collide_ignored, UpdateReason.UNTRACKED_FILES),
        (collide_by_link, UpdateReason.UNTRACKED_FILES),
        (detach, UpdateReason.DETACHED),
        (drop_the_remote, UpdateReason.NO_UPSTREAM),
        (drop_the_upstream, UpdateReason.NO_UPSTREAM),
        (follow_a_local_branch, UpdateReason.NO_UPSTREAM),
        (lose_the_remote, UpdateReason.REMOTE_UNREACHABLE),
        (remove_the_branch, UpdateReason.REMOTE_UNREACHABLE),
        (diverge, UpdateReason.DIVERGED),
        (rewrite, UpdateReason.DIVERGED),
    ],
)
def test_in_every_other_case_it_stays(
    there: Repositories, change: Callable[[Repositories], None], reason: UpdateReason
) -> None:
    there.release()
    change(there)
    before = snapshot(there.root)
    try:
        found = reason_of(there.look())
    except UpdateError as error:
        found = error.reason
    assert found is reason
    assert snapshot(there.root) == before


def snapshot(root: Path) -> dict[str, object]:
    files = {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.glob("*"))
        if not path.is_dir()
    }
    return {str(path): content for path, content in files.items()} | {
        "status": git(root, "status", "--porcelain", "--ignored")
    }


def test_changes_that_are_in_nobodys_way_are_no_matter_while_there_is_nothing_to_take(there: Repositories) -> None:
    edit_tracked(there)
    (there.root / "notes").write_text("mine")
    assert reason_of(there.look()) is UpdateReason.UP_TO_DATE


def test_an_untracked_file_elsewhere_stays_where_it_is(there: Repositories) -> None:
    there.release()
    (there.root / "notes").write_text("mine")
    decision = there.look()
    assert isinstance(decision, Take)
    Clone(there.root).advance(decision.offer)
    assert (there.root / "notes").read_text() == "mine"


def edit_in_the_way(there: Repositories) -> None:
    (there.root / "changed").write_text("mine")


@pytest.mark.parametrize("change", [edit_in_the_way, collide, collide_ignored])
@pytest.mark.parametrize("by_tag", [False, True])
def test_git_itself_refuses_what_appears_between_the_look_and_the_move(
    there: Repositories, change: Callable[[Repositories], None], by_tag: bool
) -> None:
    new = there.release()
    decision = there.look()
    assert isinstance(decision, Take)
    offer = replace(decision.offer, ref="refs/tags/stable") if by_tag else decision.offer
    change(there)
    before = snapshot(there.root)
    with pytest.raises(UpdateError):
        Clone(there.root).advance(offer)
    assert snapshot(there.root) == before
    assert git(there.root, "rev-parse", "HEAD") == there.old != new


@pytest.mark.parametrize("annotated", [False, True])
def test_a_tag_that_moves_on_is_followed(there: Repositories, annotated: bool) -> None:
    note = ["-a", "-m", "release"] if annotated else []
    git(there.author, "tag", *note, "stable")
    git(there.author, "tag", *note, "v1")
    git(there.author, "push", "--quiet", "origin", "stable", "v1")
    git(there.root, "fetch", "--quiet", "--tags")
    git(there.root, "checkout", "--quiet", "stable")
    assert reason_of(there.look()) is UpdateReason.UP_TO_DATE
    new = there.release()
    assert reason_of(there.look()) is UpdateReason.UP_TO_DATE, "the branch is not what the operator runs"
    git(there.author, "tag", *note, "--force", "stable")
    git(there.author, "push", "--quiet", "--force", "origin", "stable")
    decision = there.look()
    assert isinstance(decision, Take)
    Clone(there.root).advance(decision.offer)
    assert git(there.root, "rev-parse", "HEAD", "stable^{commit}").split() == [new, new]
    assert git(there.root, "rev-parse", "v1^{commit}") == there.old
    assert reason_of(there.look()) is UpdateReason.UP_TO_DATE


def test_a_tag_that_moves_back_or_elsewhere_is_not_followed(there: Repositories) -> None:
    there.release()
    git(there.author, "tag", "stable")
    git(there.author, "push", "--quiet", "origin", "stable")
    git(there.root, "fetch", "--quiet", "--tags")
    git(there.root, "checkout", "--quiet", "stable")
    git(there.author, "tag", "--force", "stable", there.old)
    git(there.author, "push", "--quiet", "--force", "origin", "stable")
    assert reason_of(there.look()) is UpdateReason.AHEAD


def test_a_pull_by_hand_is_taken_up_and_a_checkout_of_something_else_is_not(there: Repositories) -> None:
    new = there.release()
    git(there.root, "pull", "--quiet")
    decision = there.look(running=there.old)
    assert isinstance(decision, Take)
    assert decision.offer.commit == new
    assert reason_of(there.look(running=new)) is UpdateReason.UP_TO_DATE
    git(there.root, "checkout", "--quiet", there.old)
    assert reason_of(there.look(running=new)) is UpdateReason.MOVED_BY_HAND


def test_where_another_neuron_went_back_this_one_does_too(there: Repositories) -> None:
    new = there.release()
    trials.remember(new, "it crashed", for_good=True)
    decision = there.look(running=new)
    assert isinstance(decision, Take)
    assert decision.offer.commit == there.old
    assert reason_of(there.look(running=there.old)) is UpdateReason.FAILED_BEFORE


def test_what_is_no_clone_says_so(tmp_path: Path, there: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = there.root / "vendored"
    inside.mkdir()
    for folder in (tmp_path, inside):
        monkeypatch.setattr(trials, "ROOT", folder)
        with pytest.raises(UpdateError, match="by hand") as caught:
            Clone(folder)
        assert caught.value.reason is UpdateReason.NOT_A_CLONE


def test_a_linked_working_tree_is_a_clone(tmp_path: Path, there: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    git(there.root, "worktree", "add", "--quiet", str(tmp_path / "linked"), "-b", "linked", "--track", "origin/main")
    monkeypatch.setattr(trials, "ROOT", tmp_path / "linked")
    new = there.release()
    clone = Clone(tmp_path / "linked")
    decision = decide(clone.look())
    assert isinstance(decision, Take)
    clone.advance(decision.offer)
    assert git(tmp_path / "linked", "rev-parse", "HEAD") == new
    assert git(there.root, "rev-parse", "HEAD") == there.old


def test_hooks_do_not_run(there: Repositories) -> None:
    there.release()
    for name in ("post-merge", "post-checkout", "reference-transaction"):
        hook = there.root / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {there.root}/ran-{name}\n")
        hook.chmod(0o755)
    decision = there.look()
    assert isinstance(decision, Take)
    clone = Clone(there.root)
    with clone.checked_out(decision.offer.commit) as tree:
        assert (tree / "added").read_text() == "two"
    clone.advance(decision.offer)
    assert not list(there.root.glob("ran-*"))


def test_an_operator_who_takes_signed_commits_only_gets_no_others(there: Repositories) -> None:
    new = there.release()
    clone = Clone(there.root)
    clone.verify(new)
    git(there.root, "config", "merge.verifySignatures", "yes")
    with pytest.raises(UpdateError, match="not signed by a key that you trust") as caught:
        clone.verify(new)
    assert caught.value.reason is UpdateReason.CHECK_FAILED


def test_the_password_in_an_address_is_not_repeated(there: Repositories) -> None:
    git(there.root, "remote", "set-url", "origin", "http://someone:hunter2@127.0.0.1:9/project.git")
    with pytest.raises(UpdateError) as caught:
        there.look()
    assert caught.value.reason is UpdateReason.REMOTE_UNREACHABLE
    assert "127.0.0.1:9" in str(caught.value)
    assert "hunter2" not in str(caught.value)

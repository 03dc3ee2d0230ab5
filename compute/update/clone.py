"""The operator's clone: what its remote has, whether that is taken, and the fast-forward.

What raises UpdateError gives the reason to stay, and says what to do. Everything blocks, each for a bounded time.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import trial as trials

MAX_TIMES = 3
"""How often a commit is tried that failed for reasons that may pass (an interruption, a network); then once a day."""
REQUIREMENTS = "requirements.txt"
_FETCH_SECONDS = 300.0
_FETCHED = "refs/compute-update/offer"
_DAY_SECONDS = 86_400.0
_LISTED = 5


def require() -> None:
    """Raise UpdateError where this code is no clone, or git is missing."""
    if shutil.which("git") is None:
        raise UpdateError(UpdateReason.NO_GIT, "git is not installed. Install it: apt-get install git")
    import git  # it fails where there is no program

    root = trials.ROOT
    try:
        with git.Repo(root, search_parent_directories=True) as repository:
            top = Path(repository.working_tree_dir or root)
    except git.InvalidGitRepositoryError:
        raise UpdateError(
            UpdateReason.NOT_A_CLONE,
            f"{root} is no clone. To have updates, run the neuron from a clone made with git, or update by hand",
        ) from None
    if top.resolve() != root.resolve():
        raise UpdateError(UpdateReason.NOT_A_CLONE, f"{root} is a part of another project's clone. Update by hand")


def look(running: str) -> str:
    """Ask the remote; returns the commit to run next instead of ``running``. It may be the one that is checked out.

    Raises:
        UpdateError: the neuron runs on as it is.
    """
    head, ref = place()
    if ref == "HEAD":
        raise UpdateError(
            UpdateReason.DETACHED, f"HEAD is at {head[:12]} and at no branch. Check out a branch: git checkout main"
        )
    branch = ref.removeprefix("refs/heads/")
    commit = _newest(branch, head, running)
    if commit == running:
        raise UpdateError(UpdateReason.UP_TO_DATE, f"{branch} is up to date at {head[:12]}")
    refuse_changes(head, commit)
    failure = trials.failures().get(commit, {})
    waits = failure.get("times", 0) >= MAX_TIMES and time.time() - failure.get("at", 0.0) < _DAY_SECONDS
    if failure.get("for_good") or waits:
        again = "is not tried again" if failure.get("for_good") else "is tried again tomorrow"
        raise UpdateError(
            UpdateReason.FAILED_BEFORE,
            f"the commit {commit[:12]} failed here ({failure.get('reason')}) and {again}; a newer one will be "
            "taken. docs/update.md says how to take one by hand",
        )
    return commit


def _newest(branch: str, head: str, running: str) -> str:
    """The upstream's commit, or the clone's own where somebody moved that under this process."""
    remote, theirs = _config(f"branch.{branch}.remote"), _config(f"branch.{branch}.merge")
    if not remote or not theirs or remote == ".":
        raise UpdateError(
            UpdateReason.NO_UPSTREAM,
            f"the branch {branch} follows no branch of a remote. Set one: git branch --set-upstream-to "
            f"origin/{branch} {branch}",
        )
    try:
        options = ("--quiet", "--no-tags", "--no-recurse-submodules")
        _git("fetch", *options, remote, f"+{theirs}:{_FETCHED}", seconds=_FETCH_SECONDS)
    except UpdateError as error:
        raise UpdateError(
            UpdateReason.REMOTE_UNREACHABLE,
            f"the remote {remote!r} cannot be asked: {error}. It is asked again; git -C {trials.ROOT} fetch {remote} "
            "shows what is wrong",
        ) from error
    offered = _git("rev-parse", "--verify", f"{_FETCHED}^{{commit}}")
    moved = head != running
    if moved and _is_ancestor(head, running) and running in trials.failures():
        return head  # another neuron of this clone went back
    if moved and not _is_ancestor(running, head):
        raise UpdateError(
            UpdateReason.MOVED_BY_HAND,
            f"the clone is at {head[:12]}, this neuron runs {running[:12]}. Restart it when the clone is as you want",
        )
    if _is_ancestor(head, offered):
        return offered
    if moved:
        return head
    if _is_ancestor(offered, head):
        raise UpdateError(
            UpdateReason.AHEAD,
            f"{branch} has commits that its upstream has not; nothing is newer there than in the clone",
        )
    raise UpdateError(
        UpdateReason.DIVERGED,
        f"{branch} and its upstream have diverged, so it cannot be fast-forwarded. Bring them together by hand: "
        "git pull --rebase, or check out another branch",
    )


def refuse_changes(head: str, commit: str) -> None:
    """Raise UpdateError where a move from ``head`` to ``commit`` would meet somebody's own work."""
    with _mapped():
        changed, untracked = trials.changed_files(), trials.untracked_files(head, commit)
    if changed:
        raise UpdateError(
            UpdateReason.LOCAL_CHANGES,
            f"there is a new commit {commit[:12]}, but these files have local changes: {_list(changed)}. "
            "Commit them elsewhere or undo them, and the update goes on",
        )
    if untracked:
        raise UpdateError(
            UpdateReason.UNTRACKED_FILES,
            f"there is a new commit {commit[:12]}, but it would overwrite files that are not in git: "
            f"{_list(untracked)}. Move them away, and the update goes on",
        )


def place() -> tuple[str, str]:
    """The commit of the tree, and the branch in full; ``HEAD`` where it is detached."""
    with _mapped():
        return trials.place()


def requirements_differ(old: str, new: str) -> bool:
    """Whether the two commits ask for different packages."""
    return bool(_git("diff-tree", "-r", "--name-only", old, new, "--", REQUIREMENTS))


def verify(commit: str) -> None:
    """Where the operator takes signed commits only (``merge.verifySignatures``), refuse others."""
    if _config("merge.verifySignatures", "--type=bool") != "true":
        return
    try:
        _git("verify-commit", commit)
    except UpdateError as error:
        message = f"merge.verifySignatures is set, and it is not signed by a key that you trust ({error})"
        raise UpdateError(UpdateReason.CHECK_FAILED, message) from error


@contextlib.contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A working tree of its own for ``commit``, gone after the block."""
    _remove_worktree(folder)
    _git("worktree", "add", "--quiet", "--detach", str(folder), commit, seconds=_FETCH_SECONDS)
    try:
        yield folder
    finally:
        _remove_worktree(folder)


def advance(commit: str) -> None:
    """Move the tree and its branch forward; git refuses where that would overwrite anything."""
    _git("merge", "--ff-only", "--no-overwrite-ignore", "--no-autostash", "--quiet", commit)


def _is_ancestor(old: str, new: str) -> bool:
    # A shallow clone, or one that was pruned, may lack the rest of the line: then it is none.
    try:
        _git("merge-base", "--is-ancestor", old, new)
    except UpdateError:
        return False
    return True


def _remove_worktree(folder: Path) -> None:
    if folder.exists():
        _git("worktree", "remove", "--force", "--force", str(folder))
    _git("worktree", "prune")


def _config(key: str, *options: str) -> str:
    try:
        return _git("config", *options, "--get", key)
    except UpdateError:
        return ""


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except trials.Failed as error:
        raise UpdateError(UpdateReason.GIT_FAILED, str(error)) from error


def _git(*arguments: str, seconds: float = trials.GIT_SECONDS) -> str:
    with _mapped():
        return trials.git(*arguments, seconds=seconds)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")

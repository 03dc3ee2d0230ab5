"""The operator's clone, through git: what is there, what the remote offers, and the fast-forward."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import back
from compute.update import trial as trials
from compute.update.decision import Facts, Offer, Relation

_GIT_SECONDS = 60.0
_FETCH_SECONDS = 300.0
_FETCHED = "refs/compute-update/"
REQUIREMENTS = "requirements.txt"


class Clone:
    """The clone that this code runs from. Methods block, each for a bounded time.

    All raise UpdateError, with the reason to stay, where git says no. Hooks do not run, submodules are left alone, and
    nobody is asked for a password.
    """

    def __init__(self, root: Path) -> None:
        """Open the clone, and note the commit that is there."""
        try:
            # Without the program, the import itself fails.
            import git
        except ImportError:
            raise UpdateError(UpdateReason.NO_GIT, "git is not installed. Install it: apt-get install git") from None
        self.root = root
        self._failed = git.GitCommandError
        if trials.state_folder() is None:
            raise UpdateError(
                UpdateReason.NOT_A_CLONE,
                f"{root} is no clone. To have updates, run the neuron from a clone made with git, or update by hand",
            )
        self._git = git.Git(str(root))
        self._environment = back.git_environment()
        if Path(self._run("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            raise UpdateError(UpdateReason.NOT_A_CLONE, f"{root} is a part of another project's clone. Update by hand")
        self.running = self.head()

    @property
    def state(self) -> Path:
        """Where the clone keeps what belongs to its updates."""
        folder = trials.state_folder()
        assert folder is not None, "checked when the clone was opened"
        return folder

    def head(self) -> str:
        """The commit of the tree."""
        return self._run("rev-parse", "--verify", "HEAD^{commit}")

    def ref(self) -> str:
        """The branch in full; empty where HEAD is detached."""
        name = self._run("rev-parse", "--symbolic-full-name", "HEAD")
        return "" if name == "HEAD" else name

    def look(self) -> Facts:
        """Ask the remote, and find out what stands in the way."""
        head, ref = self.head(), self.ref()
        offers = self._offer_of_branch(ref, head) if ref else self._offers_of_tags(head)
        moved = [offer.commit for offer in offers if offer.relation is Relation.DESCENDANT]
        return Facts(
            running=self.running,
            head=head,
            ref=ref,
            offers=offers,
            relation_to_running=self._relation(head, self.running),
            changed=self.changed(),
            colliding=self.colliding(head, moved[0]) if moved else (),
            failures=trials.failures(),
            now=time.time(),
        )

    def changed(self) -> tuple[str, ...]:
        """Tracked files that are not as the commit has them, those included that git was told not to look at."""
        status = self._run("status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
        found = {entry[3:] for entry in status.split("\0") if entry}
        listed = self._run("ls-files", "-v", "-z")
        found |= {entry[2:] for entry in listed.split("\0") if entry and (entry[0].islower() or entry[0] == "S")}
        return tuple(sorted(found))

    def colliding(self, old: str, new: str) -> tuple[str, ...]:
        """Files on the disk that git does not know and ``new`` brings. Ignored ones too: git would overwrite them."""
        added = self._run("diff-tree", "-r", "-z", "--no-renames", "--diff-filter=A", "--name-only", old, new)
        return tuple(sorted(path for path in added.split("\0") if path and self._in_the_way(path, old)))

    def requirements_differ(self, old: str, new: str) -> bool:
        """Whether the two commits ask for different packages."""
        return bool(self._run("diff-tree", "-r", "--name-only", old, new, "--", REQUIREMENTS))

    def verify(self, commit: str) -> None:
        """Where the operator takes signed commits only (``merge.verifySignatures``), refuse others."""
        if self._config("merge.verifySignatures", "--type=bool") != "true":
            return
        try:
            self._run("verify-commit", commit)
        except UpdateError as error:
            message = f"merge.verifySignatures is set, and it is not signed by a key that you trust ({error})"
            raise UpdateError(UpdateReason.CHECK_FAILED, message) from error

    @contextlib.contextmanager
    def checked_out(self, commit: str) -> Iterator[Path]:
        """A working tree of its own for ``commit``, gone after the block."""
        folder = self.state / "check"
        self._remove_worktree(folder)
        self._run("worktree", "add", "--quiet", "--detach", str(folder), commit, seconds=_FETCH_SECONDS)
        try:
            yield folder
        finally:
            self._remove_worktree(folder)

    def value_of(self, ref: str) -> str:
        """What a ref holds."""
        return self._run("rev-parse", "--verify", ref)

    def advance(self, offer: Offer) -> None:
        """Move the tree and its branch, or its tag, forward; git refuses where that would overwrite anything."""
        if offer.branch:
            self._run("merge", "--ff-only", "--no-overwrite-ignore", "--no-autostash", "--quiet", offer.commit)
            return
        self._run("checkout", "--quiet", "--no-overwrite-ignore", "--detach", offer.commit)
        self._run("update-ref", "-m", "auto-update", offer.ref, offer.value)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _offer_of_branch(self, ref: str, head: str) -> tuple[Offer, ...]:
        name = ref.removeprefix("refs/heads/")
        remote, theirs = self._config(f"branch.{name}.remote"), self._config(f"branch.{name}.merge")
        if not remote or not theirs or remote == ".":
            raise UpdateError(
                UpdateReason.NO_UPSTREAM,
                f"the branch {name} follows no branch of a remote. Set one: git branch --set-upstream-to "
                f"origin/{name} {name}",
            )
        fetched = self._fetch(remote, theirs)
        return (Offer(ref, fetched, fetched, self._relation(fetched, head)),)

    def _offers_of_tags(self, head: str) -> tuple[Offer, ...]:
        tags = self._run("for-each-ref", "--points-at", head, "--format=%(refname)", "refs/tags").split()
        remotes = self._run("remote").split()
        if not tags or not remotes:
            return ()
        remote = "origin" if "origin" in remotes else remotes[0]
        there = {line.split("\t")[1] for line in self._ask(remote, *tags)}
        offers = []
        for tag in (tag for tag in tags if tag in there):
            commit = self._fetch(remote, tag)
            value = self._run("rev-parse", "--verify", _FETCHED + "offer")
            offers.append(Offer(tag, commit, value, self._relation(commit, head)))
        return tuple(offers)

    def _ask(self, remote: str, *refs: str) -> list[str]:
        text = self._from_remote(remote, "ls-remote", "--quiet", remote, *refs)
        return [line for line in text.splitlines() if "\t" in line]

    def _fetch(self, remote: str, ref: str) -> str:
        spec = f"+{ref}:{_FETCHED}offer"
        self._from_remote(remote, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", remote, spec)
        return self._run("rev-parse", "--verify", f"{_FETCHED}offer^{{commit}}")

    def _from_remote(self, remote: str, *arguments: str) -> str:
        try:
            return self._run(*arguments, seconds=_FETCH_SECONDS)
        except UpdateError as error:
            message = f"the remote {remote!r} cannot be asked: {error}. It is asked again; git -C {self.root} fetch"
            raise UpdateError(UpdateReason.REMOTE_UNREACHABLE, f"{message} {remote} shows what is wrong") from error

    def _relation(self, commit: str, base: str) -> Relation:
        if commit == base:
            return Relation.SAME
        if self._is_ancestor(base, commit):
            return Relation.DESCENDANT
        return Relation.ANCESTOR if self._is_ancestor(commit, base) else Relation.NEITHER

    def _is_ancestor(self, old: str, new: str) -> bool:
        # A shallow clone, or one that was pruned, may lack the rest of the line: then it is none.
        try:
            self._execute("merge-base", "--is-ancestor", old, new)
        except self._failed:
            return False
        return True

    def _in_the_way(self, path: str, old: str) -> bool:
        file = self.root / path
        if os.path.lexists(file):
            # A folder gives way where all that is in it belongs to the old commit; git looks at that itself.
            return not file.is_dir() or file.is_symlink()
        parents = [parent for parent in file.parents if parent != self.root and self.root in parent.parents]
        blocking = [p for p in parents if os.path.lexists(p) and (p.is_symlink() or not p.is_dir())]
        return any(not self._run("ls-tree", old, "--", str(p.relative_to(self.root))) for p in blocking)

    def _remove_worktree(self, folder: Path) -> None:
        if folder.exists():
            self._run("worktree", "remove", "--force", "--force", str(folder))
        self._run("worktree", "prune")

    def _config(self, key: str, *options: str) -> str:
        try:
            return self._execute("config", *options, "--get", key)
        except self._failed:
            return ""

    def _run(self, *arguments: str, seconds: float = _GIT_SECONDS) -> str:
        try:
            return self._execute(*arguments, seconds=seconds)
        except self._failed as error:
            raise UpdateError(UpdateReason.GIT_FAILED, f"git {arguments[0]}: {_words_of(error)}") from error

    def _execute(self, *arguments: str, seconds: float = _GIT_SECONDS) -> str:
        settings = [word for setting in back.GIT_SETTINGS for word in ("-c", setting)]
        command = ["git", *settings, *arguments]
        answer: Any = self._git.execute(command, env=self._environment, kill_after_timeout=seconds)
        return str(answer)


def _words_of(error: Any) -> str:
    """What git said, without the name and the password that an address may hold."""
    text = str(error.stderr or error).strip().removeprefix("stderr:").strip(" '\n")
    return re.sub(r"://[^/@\s]+@", "://", " ".join(text.split()))[-400:]

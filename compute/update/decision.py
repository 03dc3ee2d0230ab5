"""Whether to take what the remote offers: facts in, one decision out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from compute.base.reasons import UpdateReason

MAX_TIMES = 3
"""How often a commit is tried that failed for reasons that may pass (an interruption, a network); then once a day."""
_DAY_SECONDS = 86_400.0
_LISTED = 5


class Relation(Enum):
    """Where the commit that the remote offers stands to the commit of the tree."""

    SAME = "same"
    DESCENDANT = "descendant"
    ANCESTOR = "ancestor"
    NEITHER = "neither"


@dataclass(frozen=True)
class Offer:
    """A commit that the tree could be moved to. ``ref`` is the branch or the tag, ``value`` what it would hold."""

    ref: str
    commit: str
    value: str
    relation: Relation

    @property
    def branch(self) -> str:
        """``ref`` where it is a branch, else empty."""
        return self.ref if self.ref.startswith("refs/heads/") else ""


@dataclass(frozen=True)
class Facts:
    """A clone, as it was just found. Commits are full ids; paths are relative to the clone."""

    running: str
    head: str
    ref: str
    """The branch in full; empty where HEAD is detached."""
    offers: tuple[Offer, ...] = ()
    """What the upstream of the branch has, or those of the tags at HEAD that the remote has too."""
    relation_to_running: Relation = Relation.SAME
    """Where the tree's commit stands to the one that this process was started from."""
    changed: tuple[str, ...] = ()
    """Tracked files with changes of somebody's own."""
    colliding: tuple[str, ...] = ()
    """Files that are not in git, and that the offered commit has."""
    failures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    now: float = 0.0


@dataclass(frozen=True)
class Stay:
    """Run on; ``message`` says why, and what to do."""

    reason: UpdateReason
    message: str


@dataclass(frozen=True)
class Take:
    """Check the offered commit, and run it. It may be the tree's own, where that was moved under this process."""

    offer: Offer


def decide(facts: Facts) -> Stay | Take:
    """What to do about ``facts``."""
    offer = _offer(facts)
    if isinstance(offer, Stay):
        return offer
    if offer.commit == facts.running:
        return Stay(UpdateReason.UP_TO_DATE, f"{_short(facts.ref or offer.ref)} is up to date at {facts.head[:12]}")
    if facts.changed:
        return Stay(
            UpdateReason.LOCAL_CHANGES,
            f"there is a new commit {offer.commit[:12]}, but these files have local changes: {_list(facts.changed)}. "
            "Commit them elsewhere or undo them, and the update goes on",
        )
    if facts.colliding:
        return Stay(
            UpdateReason.UNTRACKED_FILES,
            f"there is a new commit {offer.commit[:12]}, but it would overwrite files that are not in git: "
            f"{_list(facts.colliding)}. Move them away, and the update goes on",
        )
    failure = facts.failures.get(offer.commit, {})
    waits = failure.get("times", 0) >= MAX_TIMES and facts.now - failure.get("at", 0.0) < _DAY_SECONDS
    if failure.get("for_good") or waits:
        again = "is not tried again" if failure.get("for_good") else "is tried again tomorrow"
        return Stay(
            UpdateReason.FAILED_BEFORE,
            f"the commit {offer.commit[:12]} failed here ({failure.get('reason')}) and {again}; a newer one will be "
            "taken. docs/update.md says how to take one by hand",
        )
    return Take(offer)


def _offer(facts: Facts) -> Offer | Stay:
    """What there is to run: the remote's commit, or the tree's own where this process runs another one."""
    if facts.head != facts.running:
        own = _own(facts)
        if isinstance(own, Stay) or facts.relation_to_running is Relation.ANCESTOR:
            return own
    moved = tuple(offer for offer in facts.offers if offer.relation is Relation.DESCENDANT)
    if len({offer.commit for offer in moved}) > 1:
        return Stay(
            UpdateReason.SEVERAL_TAGS,
            f"several tags at {facts.head[:12]} have moved, to different commits: "
            f"{_list([_short(offer.ref) for offer in moved])}. Check out a branch, or one tag",
        )
    if moved:
        return moved[0]
    if facts.head != facts.running:
        return _own(facts)
    if not facts.offers:
        return Stay(
            UpdateReason.DETACHED,
            f"HEAD is at {facts.head[:12]} and at no branch, nor at a tag of the remote. Check out a branch with an "
            "upstream: git checkout main",
        )
    offer = facts.offers[0]
    name = _short(offer.ref)
    if offer.relation is Relation.ANCESTOR:
        return Stay(
            UpdateReason.AHEAD,
            f"{name} has commits that its upstream has not; nothing is newer there than in the clone",
        )
    if offer.relation is Relation.NEITHER:
        return Stay(
            UpdateReason.DIVERGED,
            f"{name} and its upstream have diverged, so it cannot be fast-forwarded. Bring them together by hand: "
            "git pull --rebase, or check out another branch",
        )
    return offer


def _own(facts: Facts) -> Offer | Stay:
    """The tree was moved under this process: by another neuron of the same clone, or by hand."""
    went_back = facts.relation_to_running is Relation.ANCESTOR and facts.running in facts.failures
    if facts.relation_to_running is Relation.DESCENDANT or went_back:
        ref = facts.ref or (facts.offers[0].ref if facts.offers else "HEAD")
        return Offer(ref, facts.head, facts.head, Relation.SAME)
    return Stay(
        UpdateReason.MOVED_BY_HAND,
        f"the clone is at {facts.head[:12]}, this neuron runs {facts.running[:12]}. Restart it when the clone is as "
        "you want it",
    )


def _short(ref: str) -> str:
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


def _list(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")

import dataclasses
from typing import Any

import pytest

from compute.base.reasons import UpdateReason
from compute.update.decision import Facts, Offer, Relation, Stay, Take, decide

OLD, NEW, NEWER = "a" * 40, "b" * 40, "c" * 40
BRANCH = Offer("refs/heads/main", NEW, NEW, Relation.DESCENDANT)
BEHIND = Facts(running=OLD, head=OLD, ref="refs/heads/main", offers=(BRANCH,), now=1000.0)


def tag(name: str, commit: str, relation: Relation) -> Offer:
    return Offer(f"refs/tags/{name}", commit, commit, relation)


def test_a_descendant_is_taken() -> None:
    assert decide(BEHIND) == Take(BRANCH)


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"offers": (Offer("refs/heads/main", OLD, OLD, Relation.SAME),)}, UpdateReason.UP_TO_DATE, "main is up to"),
        (
            {"offers": (dataclasses.replace(BRANCH, relation=Relation.ANCESTOR),)},
            UpdateReason.AHEAD,
            "nothing is newer",
        ),
        ({"offers": (dataclasses.replace(BRANCH, relation=Relation.NEITHER),)}, UpdateReason.DIVERGED, "git pull"),
        ({"ref": "", "offers": ()}, UpdateReason.DETACHED, "git checkout main"),
        ({"changed": ("a", "b")}, UpdateReason.LOCAL_CHANGES, "'a', 'b'. Commit them elsewhere"),
        ({"changed": tuple("abcdefg")}, UpdateReason.LOCAL_CHANGES, "and 2 more"),
        ({"colliding": ("new\nline",)}, UpdateReason.UNTRACKED_FILES, "'new\\nline'. Move them away"),
        ({"running": NEWER, "relation_to_running": Relation.NEITHER}, UpdateReason.MOVED_BY_HAND, "Restart it"),
        ({"running": NEWER, "relation_to_running": Relation.ANCESTOR}, UpdateReason.MOVED_BY_HAND, "Restart it"),
        ({"failures": {NEW: {"for_good": True, "reason": "it crashed"}}}, UpdateReason.FAILED_BEFORE, "(it crashed)"),
        ({"failures": {NEW: {"times": 3, "at": 999.0}}}, UpdateReason.FAILED_BEFORE, "tomorrow"),
    ],
)
def test_it_stays_and_says_what_to_do(changes: dict[str, Any], reason: UpdateReason, says: str) -> None:
    decision = decide(dataclasses.replace(BEHIND, **changes))
    assert isinstance(decision, Stay)
    assert decision.reason is reason
    assert says in decision.message


@pytest.mark.parametrize(
    "failure", [{"times": 2, "at": 999.0}, {"times": 9, "at": 1000.0 - 86_400}, {"for_good": False, "times": 1}]
)
def test_what_failed_by_chance_is_tried_again(failure: dict[str, object]) -> None:
    assert decide(dataclasses.replace(BEHIND, failures={NEW: failure})) == Take(BRANCH)


def test_a_failed_commit_does_not_stand_in_the_way_of_the_next() -> None:
    assert decide(dataclasses.replace(BEHIND, failures={NEWER: {"for_good": True}})) == Take(BRANCH)


def test_the_one_tag_that_has_moved_is_followed() -> None:
    still = tag("v1", OLD, Relation.SAME)
    moved = tag("stable", NEW, Relation.DESCENDANT)
    facts = Facts(running=OLD, head=OLD, ref="", offers=(still, moved))
    assert decide(facts) == Take(moved)
    assert decide(dataclasses.replace(facts, offers=(still, moved, tag("latest", NEW, Relation.DESCENDANT)))) == Take(
        moved
    )
    several = decide(dataclasses.replace(facts, offers=(moved, tag("nightly", NEWER, Relation.DESCENDANT))))
    assert isinstance(several, Stay)
    assert several.reason is UpdateReason.SEVERAL_TAGS


def test_what_another_neuron_of_the_clone_took_is_taken_too() -> None:
    same = Offer("refs/heads/main", NEW, NEW, Relation.SAME)
    moved = Facts(running=OLD, head=NEW, ref="refs/heads/main", offers=(same,), relation_to_running=Relation.DESCENDANT)
    assert decide(moved) == Take(same)
    further = Offer("refs/heads/main", NEWER, NEWER, Relation.DESCENDANT)
    assert decide(dataclasses.replace(moved, offers=(further,))) == Take(further)


def test_what_another_neuron_of_the_clone_took_back_is_taken_back_too() -> None:
    facts = Facts(
        running=NEW,
        head=OLD,
        ref="refs/heads/main",
        offers=(BRANCH,),
        relation_to_running=Relation.ANCESTOR,
        failures={NEW: {"for_good": True}},
    )
    assert decide(facts) == Take(Offer("refs/heads/main", OLD, OLD, Relation.SAME))

"""Releases, good and bad, as a neuron that runs meets them: real git, real processes, the real guard."""

from __future__ import annotations

import json
import signal
import sqlite3

import pytest

from tests.waiting import DEADLINE_SECONDS

from .conftest import Lab, git


def test_a_good_release_is_run_by_the_same_process(lab: Lab) -> None:
    old = lab.head()
    process = lab.start()
    lab.until(lambda: "up_to_date" in lab.log(), "the first look")
    new = lab.publish("two")
    lab.until_settled("two")
    assert lab.head() == new != old
    assert git(lab.clone, "status", "--porcelain", "--branch") == "## main...origin/main"
    first, second = lab.events()
    assert first["pid"] == second["pid"] == process.pid
    assert first["files"] == second["files"], "a descriptor has leaked over the restart"
    assert "Traceback" not in lab.log()
    # And so on, with what the restart left behind.
    lab.publish("three")
    lab.until_settled("three")
    assert {event["pid"] for event in lab.events()} == {process.pid}
    assert [file.name for file in lab.state("*")] == ["tree.lock"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_SECONDS) == 0


def test_a_release_that_crashes_goes_back_and_leaves_the_database_as_it_is(lab: Lab) -> None:
    with sqlite3.connect(lab.home / "database.db") as connection:
        connection.execute("CREATE TABLE lease (name)")
        connection.execute("INSERT INTO lease VALUES ('a customer''s')")
    old, tables = lab.head(), lab.tables()
    process = lab.start()
    crashing = lab.publish("crashes", at_start='raise ZeroDivisionError("at start")')
    lab.until(lambda: lab.words()[-2:] == ["crashes", "one"], "the old one is back")
    assert lab.words() == ["one", "crashes", "crashes", "crashes", "one"]
    assert {event["pid"] for event in lab.events()} == {process.pid}
    assert (lab.head(), git(lab.clone, "status", "--porcelain")) == (old, "")
    assert lab.failures()[crashing]["for_good"] is True
    lab.until(lambda: "failed_before" in lab.log(), "it is not tried again")
    assert lab.tables() == tables
    assert sorted(file.name for file in lab.home.iterdir()) == ["database.db", "events", "log"]
    lab.publish("two")
    lab.until_settled("two")


def test_a_release_that_kills_its_process_goes_back_under_a_supervisor(lab: Lab) -> None:
    old = lab.head()
    process = lab.start()
    lab.publish("dies", at_start="os.kill(os.getpid(), 9)")
    for _ in range(3):
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
        process = lab.start()
    lab.until(lambda: lab.words()[-1] == "one", "the old one is back")
    assert lab.words() == ["one", "dies", "dies", "dies", "one"]
    assert lab.head() == old


def test_a_release_that_hangs_goes_back_by_itself(lab: Lab) -> None:
    process = lab.start()
    hanging = lab.publish("hangs", at_start="time.sleep(1000)")
    lab.until(lambda: lab.words() == ["one", "hangs"], "it hangs")
    # How long it may take is what the old release says: 30 s, so the trial is shortened here.
    (trial,) = lab.trial()
    trial.write_text(json.dumps({**json.loads(trial.read_text()), "up_seconds": 1.0}))
    process.kill()
    process.wait()
    process = lab.start()
    # Its time may be over before it has come as far as to say a word.
    lab.until(lambda: lab.words() in (["one", "hangs", "hangs", "one"], ["one", "hangs", "one"]), "the old one is back")
    assert process.poll() is None
    assert "it was not up after 1 s" in str(lab.failures()[hanging]["reason"])


def test_a_release_whose_duties_fail_is_not_confirmed(lab: Lab) -> None:
    lab.start()
    # By the real clock it would fail ever more seldom, and be calm for long enough in between.
    hasty = "global hasty; hasty = SystemClock(); hasty.sleep = lambda seconds: asyncio.sleep(0.05)"
    broken = 'lambda: exec("raise KeyError(1)")'
    buggy = f"asyncio.get_running_loop().create_task(tasks.repeat('proof', {broken}, clock=hasty, pause_seconds=0.05))"
    failing = lab.publish("fails", at_start=hasty, in_service=buggy, up=30)
    # For several times what would be calm enough.
    lab.until(lambda: lab.log().count("proof failed unexpectedly") > 20, "its duty fails again and again")
    assert lab.trial()
    assert lab.words() == ["one", "fails"]
    assert failing not in lab.failures()


@pytest.mark.parametrize("broken", ["import nothing_of_that_name\n", None])
def test_a_release_that_fails_its_check_and_one_that_meets_local_changes_are_not_run(
    lab: Lab, broken: str | None
) -> None:
    old = lab.head()
    lab.start()
    lab.until(lambda: "up_to_date" in lab.log(), "the first look")
    if broken:
        new = lab.push({"compute/base/clock.py": broken}, "broken")
        lab.until(lambda: lab.failures().get(new, {}).get("for_good"), "it is refused")
        assert "nothing_of_that_name" in lab.log()
        lab.until(lambda: "failed_before" in lab.log(), "it is not tried again")
        assert lab.log().count("checking it") == 1
        # The branch moves on: what is there now is taken.
        git(lab.author, "revert", "--no-edit", "HEAD")
    else:
        (lab.clone / "config.yaml").write_text("mine")
    assert (lab.head(), lab.words()) == (old, ["one"])
    lab.publish("two")
    if not broken:
        lab.until(lambda: "these files have local changes: 'config.yaml'. Commit them" in lab.log(), "it is refused")
        assert (lab.clone / "config.yaml").read_text() == "mine"
        assert (lab.head(), lab.words()) == (old, ["one"])
        git(lab.clone, "checkout", "config.yaml")
    lab.until_settled("two")


def test_neurons_of_one_clone_take_a_release_one_after_the_other(lab: Lab) -> None:
    processes = {lab.start("--ssh.port", port).pid for port in ("4444", "4445")}
    lab.until(lambda: lab.log().count("up_to_date") == 2, "both look")
    lab.publish("two", calm=1.0)
    lab.until(lambda: lab.words().count("two") == 2 and not lab.trial(), "both run it")
    broken = lab.publish("crashes", at_start="raise OSError")
    lab.until(lambda: lab.log().count("failed_before") == 2, "both leave it alone")
    # The second may have been on its way already, and then goes back as well.
    assert lab.words().count("crashes") <= 6
    assert lab.last_words() == dict.fromkeys(processes, "two")
    assert lab.failures()[broken]["for_good"] is True

"""Releases, good and bad, as a neuron that runs meets them: real git, real processes, the real guard."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from .conftest import SECONDS, Lab, git


def test_a_good_release_is_run_by_the_same_process(lab: Lab) -> None:
    old = lab.head()
    process = lab.start()
    lab.until(lambda: "up_to_date" in lab.log(), "the first look")
    new = lab.publish("two")
    lab.until_settled("two")
    assert lab.head() == new != old
    assert git(lab.clone, "status", "--porcelain") == ""
    assert git(lab.clone, "symbolic-ref", "HEAD") == "refs/heads/main"
    first, second = lab.events()
    assert first["pid"] == second["pid"] == process.pid
    assert first["files"] == second["files"], "a descriptor has leaked over the restart"
    assert "Traceback" not in lab.log()
    # And so on, with what the restart left behind.
    lab.publish("three")
    lab.until_settled("three")
    assert {event["pid"] for event in lab.events()} == {process.pid}
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0


def test_a_release_that_does_not_import_is_never_run(lab: Lab) -> None:
    old = lab.head()
    lab.start()
    broken = lab.push({"compute/base/clock.py": "import nothing_of_that_name\n"}, "broken")
    lab.until(lambda: lab.failures().get(broken, {}).get("for_good"), "it is refused")
    assert "nothing_of_that_name" in lab.log()
    lab.until(lambda: "failed_before" in lab.log(), "it is not tried again")
    assert lab.log().count("checking it") == 1
    assert (lab.head(), lab.words()) == (old, ["one"])
    assert not lab.state("check")
    assert git(lab.clone, "worktree", "list").count("\n") == 0
    # The branch moves on: what is there now is taken.
    git(lab.author, "revert", "--no-edit", "HEAD")
    lab.publish("two")
    lab.until_settled("two")


def test_a_release_that_prints_what_a_test_prints_is_not_believed(lab: Lab) -> None:
    text = 'import os, sys\n_, fd, nonce = sys.argv[1:4]\nprint(\'{"nonce": "%s"}\' % nonce, flush=True)\nos._exit(0)\n'
    lab.start()
    liar = lab.push({"neurons/miner.py": text}, "liar")
    lab.until(lambda: lab.failures().get(liar), "it is refused")
    assert "without an answer" in lab.log()


def test_a_release_that_crashes_at_its_start_goes_back_by_itself(lab: Lab) -> None:
    old = lab.head()
    process = lab.start()
    crashing = lab.publish("crashes", at_start='raise ZeroDivisionError("at start")')
    lab.until(lambda: lab.words()[-2:] == ["crashes", "one"], "the old one is back")
    assert lab.words() == ["one", "crashes", "crashes", "crashes", "one"]
    assert {event["pid"] for event in lab.events()} == {process.pid}
    assert (lab.head(), git(lab.clone, "status", "--porcelain")) == (old, "")
    assert lab.failures()[crashing]["for_good"] is True
    lab.until(lambda: "failed_before" in lab.log(), "it is not tried again")
    lab.publish("two")
    lab.until_settled("two")


def test_a_release_that_kills_its_process_goes_back_under_a_supervisor(lab: Lab) -> None:
    old = lab.head()
    process = lab.start()
    lab.publish("dies", at_start="os.kill(os.getpid(), 9)")
    for _ in range(3):
        assert process.wait(SECONDS) == -signal.SIGKILL
        process = lab.start()
    lab.until(lambda: lab.words()[-1] == "one", "the old one is back")
    assert lab.words() == ["one", "dies", "dies", "dies", "one"]
    assert lab.head() == old


def test_a_release_that_hangs_goes_back_by_itself(lab: Lab) -> None:
    process = lab.start()
    hanging = lab.publish("hangs", at_start="time.sleep(1000)")
    # How long it may take is what the old release says: 30 s, so the trial is shortened here.
    lab.until(lambda: lab.trial(), "it is on trial")
    lab.until(lambda: lab.words() == ["one", "hangs"], "it hangs")
    shorten(lab)
    process.kill()
    process.wait()
    process = lab.start()
    # Its time may be over before it has come as far as to say a word.
    lab.until(lambda: lab.words() in (["one", "hangs", "hangs", "one"], ["one", "hangs", "one"]), "the old one is back")
    assert process.poll() is None
    assert "it was not up after 1 s" in str(lab.failures()[hanging]["reason"])


def shorten(lab: Lab) -> None:
    (trial,) = lab.trial()
    trial.write_text(json.dumps({**json.loads(trial.read_text()), "up_seconds": 1.0}))


def test_a_release_whose_duties_fail_is_not_confirmed(lab: Lab) -> None:
    lab.start()
    # By the real clock it would fail ever more seldom, and be calm for long enough in between.
    hasty = "global hasty; hasty = SystemClock(); hasty.sleep = lambda seconds: asyncio.sleep(0.05)"
    broken = 'lambda: exec("raise KeyError(1)")'
    buggy = f"asyncio.get_running_loop().create_task(duty.repeat('proof', {broken}, clock=hasty, pause_seconds=0.05))"
    failing = lab.publish("fails", at_start=hasty, in_service=buggy)
    lab.until(lambda: lab.words() == ["one", "fails"], "it runs")
    # For several times what would be calm enough.
    lab.until(lambda: lab.log().count("proof failed unexpectedly") > 20, "its duty fails again and again")
    assert lab.trial()
    shorten(lab)
    for process in lab.processes:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    lab.start()
    lab.until(lambda: lab.words()[-1] == "one", "the old one is back")
    assert "was not up" in str(lab.failures()[failing]["reason"])


def test_a_stop_while_on_trial_does_not_count(lab: Lab) -> None:
    process = lab.start()
    lab.publish("two", calm=1000, in_service="note(options, serves=True)")
    for serving in range(1, 6):
        lab.until(lambda: sum("serves" in event for event in lab.events()) == serving, "it serves")  # noqa: B023
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        process = lab.start()
    assert lab.words().count("one") == 1
    assert lab.trial()


def test_the_database_comes_back_where_a_broken_release_changed_its_tables(lab: Lab) -> None:
    database = lab.home / "database.db"
    make_tables(database)
    lab.start()
    change = (
        "c = sqlite3.connect(options.database); c.execute('ALTER TABLE lease ADD COLUMN more'); c.commit(); c.close()"
    )
    lab.publish(
        "migrates", at_start=f"(exec({change!r}) if len(open('events').readlines()) == 2 else None); raise OSError"
    )
    lab.until(lambda: lab.words()[-2:] == ["migrates", "one"], "the old one is back")
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT * FROM lease").fetchall() == [("a customer's",)]
    assert [file.name for file in lab.home.glob("database.db.of-*")] != []
    assert "as it was before the update" in lab.log()


def test_the_database_stays_where_its_tables_have_not_changed(lab: Lab) -> None:
    database = lab.home / "database.db"
    make_tables(database)
    lab.start()
    lease = (
        "c = sqlite3.connect(options.database); c.execute(\"INSERT INTO lease VALUES ('new')\"); c.commit(); c.close()"
    )
    lab.publish("crashes", at_start=f"exec({lease!r}); raise OSError")
    lab.until(lambda: lab.words()[-2:] == ["crashes", "one"], "the old one is back")
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM lease").fetchone() == (4,)


def make_tables(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        connection.execute("CREATE TABLE lease (name)")
        connection.execute("INSERT INTO lease VALUES ('a customer''s')")


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


@pytest.mark.parametrize("missing", ["the clone", "git"])
def test_where_there_is_nothing_to_update_it_says_so_once_and_runs(lab: Lab, missing: str) -> None:
    if missing == "git":
        (lab.home / "bin").mkdir()
        lab.environment["PATH"] = str(lab.home / "bin")
    else:
        (lab.clone / ".git").rename(lab.clone / "elsewhere")
    process = lab.start()
    reason = "no_git" if missing == "git" else "not_a_clone"
    lab.until(lambda: f"reason={reason}" in lab.log(), "it says so")
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert lab.log().count("WARNING") == 1


def test_switched_off_it_asks_nobody(lab: Lab) -> None:
    shutil.rmtree(lab.remote)
    process = lab.start("--no-auto_update")
    lab.until(lambda: "auto-update is off" in lab.log(), "it says so")
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert "WARNING" not in lab.log()
    assert not lab.state("*")

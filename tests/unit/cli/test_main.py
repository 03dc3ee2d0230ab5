"""Command lines: exit code, stdout, stderr, JSON; narrow, in a pipe, and with nobody to ask."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import (
    CallUnreachable,
    ChainError,
    ChainUnreachable,
    ComputeError,
    ConfigError,
    HostKeyMismatch,
    LeaseError,
    NotFound,
    NotRegistered,
    SshError,
    SshTimeout,
    StoreError,
    UsageError,
)
from compute.base.reasons import Refusal
from compute.base.ssh import CommandResult
from compute.cli.exit_codes import Exit, advice, exit_code
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS

DOCUMENTED = (
    "{'cpu':{'count':1}, 'gpu':{'count':1}, 'hard_disk':{'capacity':10737418240}, 'ram':{'capacity':1073741824}}"
)


def allocated(world: Any, *more: str) -> str:
    """The name of a fresh allocation."""
    ran = world.run("allocate", "--json", *more)
    assert ran.code == Exit.OK, ran.stderr
    return str(json.loads(ran.stdout)["name"])


def test_allocate_prints_the_allocation_and_how_to_log_in(world: Any) -> None:
    ran = world.run("allocate", DOCUMENTED, "--name", "mine")
    assert ran.code == Exit.OK
    assert "mine" in ran.stdout
    assert "1 × NVIDIA L4" in ran.stdout
    assert "root@127.0.0.2:4444" in ran.stdout
    assert "register.py ssh mine" in ran.stderr
    assert "allocating: logging in" in ran.stderr
    assert "PRIVATE" not in ran.stdout + ran.stderr


def test_steps_of_a_dockerfile_go_along(world: Any, tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    steps.write_text("WORKDIR /work\nRUN touch here\n")
    ran = world.run("allocate-hotkey", world.large.peer.hotkey, "--dockerfile", str(steps))
    assert ran.code == Exit.OK
    assert world.large.dockerfile == steps.read_text()
    assert "starting the machine and taking its steps" in ran.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"RUN true\nCOPY a b\n", "step 2 of the dockerfile is 'COPY'"),
        (b"\xff", "cannot read the steps"),
        (None, "cannot read the steps"),
    ],
)
def test_steps_that_no_miner_would_take_are_asked_of_none(
    world: Any, tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "steps"
    if content is not None:
        path.write_bytes(content)
    ran = world.run("allocate-hotkey", world.large.peer.hotkey, "--dockerfile", str(path))
    assert ran.code == Exit.USAGE
    assert told in ran.stderr
    assert world.large.requests == []


def test_options_beat_the_typed_requirement(world: Any) -> None:
    name = allocated(world, "--gpu", "h200", "--count", "4", "--min-vram", "100", "--days", "3")
    record = world.service.get(name)
    assert record.hotkey == world.large.peer.hotkey
    assert record.requirement["gpu"] == {"count": 4, "capacity": 102_400, "type": "h200"}
    assert record.requirement["cpu"] == {"count": 1}
    assert record.ends_at - world.clock.now() == 3 * 86_400


def test_json_is_all_of_stdout_and_has_no_secret(world: Any) -> None:
    ran = world.run("allocate-hotkey", world.large.peer.hotkey, "--json")
    data = json.loads(ran.stdout)
    assert data["hotkey"] == world.large.peer.hotkey
    assert (data["host"], data["port"], data["username"]) == ("127.0.0.3", 4444, "root")
    assert data["state"] == "active"
    assert not {"password", "keys"} & set(data)
    assert ran.stderr == ""


def test_explain_ranks_and_leases_nothing(world: Any) -> None:
    ran = world.run("allocate", "--explain", "--json")
    ranking = json.loads(ran.stdout)
    assert [entry["rank"] for entry in ranking] == [1, 2]
    assert "larger than needed" in ranking[1]["why"]
    assert world.small.owner is None
    assert "tightest fit" in world.run("allocate", "--explain").stdout


def test_offers_filter_and_sort(world: Any) -> None:
    assert len(json.loads(world.run("offers", "--json").stdout)) == 2
    assert [o["uid"] for o in json.loads(world.run("offers", "--json", "--sort", "vram").stdout)] == [1, 0]
    (offer,) = json.loads(world.run("offers", "--json", "--gpu", "H200").stdout)
    assert offer["claims"]["gpus"][0] == {"name": "NVIDIA H200", "capacity_mib": 143_771}
    everyone = json.loads(world.run("offers", "--json", "--all", "--gpu", "H200").stdout)
    assert [(o["free"], o["problem"]) for o in everyone] == [(False, "gpu_type"), (True, None)]


def test_list_show_and_deallocate(world: Any) -> None:
    name = allocated(world)
    assert [entry["name"] for entry in json.loads(world.run("list", "--json").stdout)] == [name]
    shown = json.loads(world.run("show", name, "--json").stdout)
    assert shown["live"] is True
    assert "the miner confirms it" in world.run("show", name).stdout
    ran = world.run("deallocate", name, "--yes")
    assert (ran.code, ran.stdout) == (Exit.OK, f"{name}: given back\n")
    assert world.run("list", "--json").stdout == "[]\n"
    assert world.small.owner is None


def test_an_ended_lease_says_so(world: Any) -> None:
    name = allocated(world, "--days", "1")
    world.clock.advance(86_401)
    assert json.loads(world.run("list", "--json").stdout)[0]["state"] == "ended"
    assert "ended" in world.run("show", name).stdout


def test_deallocate_without_a_terminal_says_what_to_run_and_does_nothing(world: Any) -> None:
    name = allocated(world)
    ran = world.run("deallocate", name)
    assert ran.code == Exit.USAGE
    assert ran.stdout == ""
    assert f"To do it, run: register.py deallocate {name} --yes" == ran.stderr.splitlines()[-1]
    assert world.small.owner is not None


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("yes", True), ("", False), ("n", False)])
def test_deallocate_asks_at_a_terminal(world: Any, answer: str, gone: bool) -> None:
    name = allocated(world)
    world.keyboard.is_interactive = True
    world.keyboard.lines = [answer]
    ran = world.run("deallocate", name)
    assert world.keyboard.questions == [f"give back {name}? What is stored there is lost. [y/N] "]
    assert (world.small.owner is None) == gone
    assert ran.code == (Exit.OK if gone else Exit.USAGE)


def test_deallocate_all_goes_on_after_a_failure_and_reports_it(world: Any) -> None:
    first, second = allocated(world), allocated(world)
    world.small.scripts["deallocate"] = CallUnreachable("gone")
    ran = world.run("deallocate", "--all", "--yes", "--json")
    assert ran.code == Exit.NETWORK
    assert json.loads(ran.stdout) == {"done": [second]}
    failure = json.loads(ran.stderr)
    assert first in failure["error"]
    assert failure["next"]
    assert world.run("deallocate", first, "--forget", "--yes").code == Exit.OK
    assert world.run("list", "--json").stdout == "[]\n"


def test_deallocate_wants_names_or_all(world: Any) -> None:
    assert world.run("deallocate", "--yes").code == Exit.USAGE
    name = allocated(world)
    assert world.run("deallocate", name, "--all", "--yes").code == Exit.USAGE


def test_exec_passes_output_and_exit_code(world: Any) -> None:
    name = allocated(world)
    world.remote.result = lambda argv: CommandResult(7, b"out\n", b"err\xff\n")
    ran = world.run("exec", name, "--", "sh", "-c", "exit 7", "--json")
    assert (ran.code, ran.stdout, ran.stderr) == (7, "out\n", "err\ufffd\n")
    assert world.remote.commands[-1] == ("sh", "-c", "exit 7", "--json")
    ran = world.run("exec", "--json", name, "--", "true")
    assert json.loads(ran.stdout)["exit_code"] == 7
    assert ran.code == 7


def test_ssh_runs_the_systems_client_with_pinned_key_and_cleans_up(world: Any) -> None:
    name = allocated(world)
    seen: list[str] = []

    def on_call(argv: Any) -> int:
        (hosts,) = [word.split('"')[1] for word in argv if word.startswith("UserKnownHostsFile")]
        seen.extend([hosts, Path(hosts).read_text()])
        return 5

    world.keyboard.on_call = on_call
    assert world.run("ssh", name, "--", "top").code == 5
    (argv,) = world.keyboard.called
    assert argv[-2:] == ["127.0.0.2", "top"]
    assert seen[1] == f"[127.0.0.2]:4444 {world.small.host_key.public_line}\n"
    assert not Path(seen[0]).exists()


def test_ssh_that_cannot_be_started_says_so(world: Any) -> None:
    name = allocated(world)

    def on_call(argv: Any) -> int:
        raise FileNotFoundError("ssh")

    world.keyboard.on_call = on_call
    ran = world.run("ssh", name)
    assert ran.code == Exit.USAGE
    assert "Install OpenSSH's client" in ran.stderr


def test_pause_resume_restart_extend_and_keys(world: Any, tmp_path: Path) -> None:
    name = allocated(world)
    assert world.run("pause", name).stdout == f"{name}: paused\n"
    assert json.loads(world.run("list", "--json").stdout)[0]["state"] == "paused"
    assert world.run("resume", name).code == Exit.OK
    assert world.run("restart", name).code == Exit.USAGE
    assert world.run("restart", name, "--yes").code == Exit.OK
    assert world.run("extend", name, "--days", "100", "--json").code == Exit.OK
    assert world.run("exchange-key", name).code == Exit.OK
    public = tmp_path / "me.pub"
    public.write_text(SessionKey.generate().public_line + " me\n")
    assert world.run("exchange-key", name, "--terminal", str(public)).code == Exit.OK
    assert public.read_text().startswith(world.small.terminal_key)
    assert world.run("exchange-key", name, "--terminal", str(tmp_path / "none")).code == Exit.USAGE
    changes = [kind for kind in world.small.requests if kind in ("pause", "unpause", "restart", "extend")]
    assert changes == ["pause", "unpause", "restart", "extend"]


def test_penalties(world: Any) -> None:
    hotkey = world.small.peer.hotkey
    assert world.run("penalize", hotkey, "--note", "slow").code == Exit.OK
    (entry,) = json.loads(world.run("penalized", "--json").stdout)
    assert (entry["hotkey"], entry["note"]) == (hotkey, "slow")
    assert hotkey in world.run("penalized").stdout
    assert world.run("unpenalize", hotkey).code == Exit.OK
    assert world.run("unpenalize", hotkey).code == Exit.NOT_FOUND
    assert world.run("penalize", "no-hotkey").code == Exit.USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ChainUnreachable("no chain"), Exit.CHAIN),
        (NotRegistered("no uid"), Exit.CHAIN),
        (ConfigError("no wallet"), Exit.LOCAL),
        (StoreError("full"), Exit.LOCAL),
        (CallUnreachable("down"), Exit.NETWORK),
        (SshTimeout("late"), Exit.NETWORK),
    ],
)
def test_errors_have_documented_codes_and_end_with_what_to_do(world: Any, error: ComputeError, code: int) -> None:
    async def broken(*_: object) -> Any:
        raise error

    world.service._market._metagraph = broken
    ran = world.run("offers")
    assert ran.code == code
    assert ran.stdout == ""
    assert f"error: {error}" in ran.stderr
    assert ran.stderr.rstrip().splitlines()[-1] == advice(error)
    assert exit_code(error) == code


def test_a_refusal_is_six_and_names_its_reason(world: Any) -> None:
    world.large.scripts["check"] = {"status": False, "reason": "gpu_memory", "message": "only 24 GiB"}
    ran = world.run("allocate-hotkey", world.large.peer.hotkey, "--json")
    assert ran.code == Exit.REFUSED
    failure = json.loads(ran.stderr)
    assert failure["reason"] == "gpu_memory"
    assert "only 24 GiB" in failure["error"]
    assert "offers --all" in failure["next"]


def test_what_is_not_there_is_five(world: Any) -> None:
    for words in (["show", "nobody"], ["exec", "nobody", "--", "true"], ["allocate", "--gpu", "B200"]):
        assert world.run(*words).code == Exit.NOT_FOUND


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"],
        ["exec", "name"],
        ["list", "--", "ls"],
        ["allocate", "--days", "0"],
        ["allocate", "--days", "367"],
        ["allocate", "--count", "many"],
        ["deallocate", "x", "--ye"],
        ["--netuid", "a", "list"],
        ["--subtensor.network", "nowhere", "list"],
    ],
)
def test_usage_errors_are_two_with_one_line_and_a_pointer(
    world: Any, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        world.run(*words)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "--help" in said.err
    assert world.opened == []


def test_a_bad_requirement_is_usage_and_shows_a_good_one(world: Any) -> None:
    ran = world.run("allocate", "{'gpus': 1}")
    assert ran.code == Exit.USAGE
    assert "'gpus'" in ran.stderr
    assert DOCUMENTED in world.run("allocate", "nonsense").stderr.replace("\n", "")


def test_chain_and_wallet_options_stand_before_or_after(world: Any) -> None:
    world.run("--netuid", "15", "--wallet.name", "w", "list", "--wallet.hotkey", "h", "--subtensor.network", "local")
    (options,) = world.opened
    assert (options.netuid, options.wallet.name, options.wallet.hotkey) == (15, "w", "h")
    assert options.subtensor.endpoint == "ws://127.0.0.1:9944"
    world.run("list", SQLITE_DB_PATH="/data/x.db")
    assert (str(world.opened[1].database), str(world.opened[1].key_file)) == ("/data/x.db", "/data/x.db.key")
    assert world.opened[1].netuid == 27


def test_eighty_columns_drop_the_least_and_say_so(world: Any) -> None:
    allocated(world)
    for words in (["list"], ["offers"]):
        ran = world.run(*words, width=80, tty=True)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", ran.stdout)
        assert max(map(len, plain.splitlines())) <= 80
        assert "…" not in plain
        assert "no room for:" in ran.stderr
        assert "HOTKEY" in ran.stderr
        assert "NVIDIA" in plain
    assert "STATUS" in ran.stdout


def test_explanations_wrap_rather_than_end_in_dots(world: Any) -> None:
    ran = world.run("allocate", "--explain", width=80)
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "…" not in ran.stdout
    assert "larger than needed" in ran.stdout
    assert "no room for: HOTKEY" in ran.stderr


def test_a_pipe_cuts_nothing(world: Any) -> None:
    name = allocated(world)
    ran = world.run("list")
    (line,) = [line for line in ran.stdout.splitlines() if name in line]
    assert world.small.peer.hotkey in line
    assert "root@127.0.0.2:4444" in line
    assert ran.stderr == ""
    assert "\x1b" not in ran.stdout


def test_empty_lists_say_what_to_do_on_stderr(world: Any) -> None:
    for words in (["list"], ["penalized"], ["deallocate", "--all", "--yes"]):
        ran = world.run(*words)
        assert (ran.code, ran.stdout) == (Exit.OK, "")
        assert ran.stderr


def test_ctrl_c_gives_back_what_was_under_way(world: Any) -> None:
    async def interrupted(*_: object, **__: object) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        await world.clock.sleep(1)
        raise AssertionError("Ctrl-C did not arrive")

    world.remote.run = interrupted
    ran = world.run("allocate")
    assert ran.code == Exit.INTERRUPTED
    assert "interrupted" in ran.stderr
    assert world.small.owner is None
    assert world.service.allocations() == []


def test_help_is_quick_to_import_and_teaches() -> None:
    code = (
        "import sys; from compute.cli import main as cli\n"
        "try: cli.main(['allocate', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'bittensor', 'torch', 'numpy', 'paramiko', 'rich'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'hard_disk':{'capacity':10737418240}" in done.stdout
    assert "--min-vram" in done.stdout


@pytest.mark.parametrize("reason", [None, *Refusal])
def test_advice_fits_a_line_so_that_it_can_be_copied(reason: Refusal | None) -> None:
    kinds = [UsageError, NotRegistered, ChainUnreachable, ChainError, HostKeyMismatch, SshError, NotFound, StoreError]
    errors = [kind("") for kind in kinds] + [CallUnreachable(""), ConfigError("")]
    for error in errors if reason is None else [LeaseError(reason, "")]:
        assert len(advice(error)) <= 80

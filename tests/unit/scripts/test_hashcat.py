"""The legacy benchmark: what is asked, what a challenge is, which command cracks it, and what can go wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hashcat import (
    Attempt,
    Challenge,
    Plan,
    crack,
    crack_argv,
    find_hashcat,
    parse_count,
    parse_difficulties,
    parse_options,
    parse_workload_profile,
    run_plan,
    summary,
)
from hypothesis import given
from hypothesis import strategies as st

from compute.base.errors import NotFound, ProgramFailed, UsageError

SCRIPT = Path(__file__).parents[3] / "test-scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Fake = Callable[[str], str]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A program in hashcat's place: a shell script that leaves its arguments in ``arguments``, then does ``body``."""

    def write(body: str) -> str:
        program = tmp_path / "hashcat"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/arguments\n{body}\n', encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return str(program)

    return write


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("6", (6,)),
        ("7 8 9", (7, 8, 9)),
        ("10, 11, 12", (10, 11, 12)),
        ("10,11 ,12", (10, 11, 12)),
        ("all", (6, 7, 8, 9, 10, 11, 12)),
        (" ALL ", (6, 7, 8, 9, 10, 11, 12)),
        ("5", (6,)),
        ("-3 13", (6, 12)),
        ("100", (12,)),
        ("", (6,)),
        ("hard", (6,)),
        ("7 7", (7, 7)),
    ],
)
def test_difficulties_are_a_number_several_or_all_and_clamped(text: str, found: tuple[int, ...]) -> None:
    assert parse_difficulties(text) == found


@given(st.text())
def test_whatever_is_typed_gives_difficulties_that_exist(text: str) -> None:
    found = parse_difficulties(text)
    assert found
    assert set(found) <= set(range(6, 13))


@pytest.mark.parametrize(("text", "found"), [("2", 2), ("", 1), ("0", 1), ("-4", 1), ("two", 1)])
def test_the_count_is_one_unless_it_is_a_positive_integer(text: str, found: int) -> None:
    assert parse_count(text) == found


@pytest.mark.parametrize(("text", "found"), [("1", 1), ("4", 4), ("0", 3), ("5", 3), ("", 3), ("fast", 3)])
def test_an_invalid_workload_profile_is_3(text: str, found: int) -> None:
    assert parse_workload_profile(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ("-O",)), ("-O", ("-O",)), ("None", ()), ("none", ()), ("-D 1 --force", ("-D", "1", "--force"))],
)
def test_extra_options_are_minus_o_unless_given(text: str, found: tuple[str, ...]) -> None:
    assert parse_options(text) == found


def test_an_open_quote_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="closing quotation"):
        parse_options("-O '")


def test_each_difficulty_runs_as_often_as_asked() -> None:
    assert Plan((6, 7, 8), count=2).benchmarks == [6, 6, 7, 7, 8, 8]


def test_a_challenge_is_blake2b_of_password_and_salt() -> None:
    challenge = Challenge("hashcat", "1033", "acht")
    # hashcat's own example of mode 610.
    assert challenge.hash_line == (
        "$BLAKE2$41fcd44c789c735c08b43a871b81c8f617ca43918d38aee6cf8291c58a0b00a0"
        "3115857425e5ff6f044be7a5bec8536b52d6c9992e21cd43cdca8a55bbf1f5c1:1033"
    )
    assert challenge.mask == "?1" * 7


def test_challenges_are_drawn_at_random_of_ten_characters() -> None:
    first, second = Challenge.draw(8), Challenge.draw(8)
    assert first != second
    for challenge in (first, second):
        assert (len(challenge.password), len(set(challenge.characters)), len(challenge.salt)) == (8, 10, 16)
        assert set(challenge.password) <= set(challenge.characters)
        assert "?" not in challenge.characters  # would begin one of hashcat's own sets


def test_the_command_cracks_one_hash_and_leaves_nothing_behind() -> None:
    challenge = Challenge("aab", "00ff", "ab")
    assert crack_argv("/usr/bin/hashcat", challenge, Plan((6,), 1, 4, ("-O", "-D", "1")), Path("/tmp/x/found")) == [
        "/usr/bin/hashcat",
        "--hash-type=610",
        "--attack-mode=3",
        "--workload-profile=4",
        "--quiet",
        "--potfile-disable",
        "--logfile-disable",
        "--restore-disable",
        "--session=benchmark-00ff",
        "--outfile=/tmp/x/found",
        "--outfile-format=2",
        "--outfile-autohex-disable",
        "--custom-charset1=ab",
        *("-O", "-D", "1"),
        f"$BLAKE2${hashlib.blake2b(b'aab00ff').hexdigest()}:00ff",
        "?1?1?1",
    ]


FOUND = 'for a in "$@"; do case "$a" in --outfile=*) echo aaab > "${a#--outfile=}"; pwd > "$0.folder";; esac; done'


def test_a_cracked_challenge_is_timed_and_its_folder_removed(fake: Fake, tmp_path: Path) -> None:
    attempt = crack(fake(FOUND), Challenge("aaab", "00", "ab"), Plan((6,)))
    assert (attempt.difficulty, attempt.solved) == (4, True)
    assert 0 < attempt.seconds < 60
    assert not Path((tmp_path / "hashcat.folder").read_text(encoding="utf-8").strip()).exists()


def test_the_time_limit_ends_a_search(fake: Fake) -> None:
    attempt = crack(fake("exec sleep 60"), Challenge("ab", "00", "ab"), Plan((6,)), time_limit_seconds=0.3)
    assert not attempt.solved
    assert attempt.seconds < 30


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo No devices found >&2; exit 255", "code 255 and without the password: No devices found"),
        ("exit 1", "code 1"),
        ("exit 0", "code 0 and without"),
        (FOUND.replace("aaab", "wrong"), "code 0 and without"),
    ],
)
def test_a_program_that_fails_is_quoted(fake: Fake, body: str, words: str) -> None:
    with pytest.raises(ProgramFailed, match=words):
        crack(fake(body), Challenge("aaab", "00", "ab"), Plan((6,)))


def test_a_program_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="cannot be started"):
        crack(str(tmp_path / "none"), Challenge("ab", "00", "ab"), Plan((6,)))


def test_the_first_run_has_one_candidate_and_does_not_count(fake: Fake, tmp_path: Path) -> None:
    program = fake(FOUND.replace("aaab", "aaaaaa"))
    with pytest.raises(ProgramFailed):  # the fake knows the warm-up's password and no other
        run_plan(program, Plan((6,)))
    lines = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line.startswith("--custom-charset1=")) == "--custom-charset1=a"
    assert lines.count("?1" * 6) == 2


def test_a_summary_has_the_mean_of_what_was_solved() -> None:
    attempts = [Attempt(7, 9.0, False), Attempt(6, 1.0, True), Attempt(6, 2.0, True), Attempt(6, 9.0, False)]
    assert summary(attempts) == [(6, 3, 2, 1.5), (7, 1, 0, None)]


def test_a_missing_hashcat_says_how_to_install_it(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFound, match="apt-get install hashcat"):
        find_hashcat(str(tmp_path / "hashcat"))
    assert benchmark.main(["hashcat", "--hashcat-path", str(tmp_path / "hashcat")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "apt-get install hashcat" in captured.err


def test_a_path_is_made_absolute_and_its_links_kept(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(fake(""))
    monkeypatch.chdir(tmp_path)
    assert find_hashcat("./link") == str(tmp_path / "link")


class Recorder:
    """In place of ``run_plan``."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def __call__(
        self, program: str, plan: Plan, *, time_limit_seconds: float, on_attempt: Callable[[], None]
    ) -> list[Attempt]:
        self.plans.append(plan)
        on_attempt()
        return [Attempt(6, 1.25, True), Attempt(12, time_limit_seconds, False)]


@pytest.fixture
def recorder(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(benchmark.hashcat, "run_plan", found)
    monkeypatch.setattr(benchmark.hashcat, "find_hashcat", lambda path: path)
    return found


@pytest.mark.parametrize("argv", [[], ["hashcat"]])
def test_without_flags_it_asks_the_documented_questions(
    argv: list[str],
    benchmark: ModuleType,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("6 99\n2\n7\nNone\n"))
    assert benchmark.main(argv) == 0
    assert recorder.plans == [Plan((6, 12), 2, 3, ())]
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.out.splitlines()]
    assert rows[0] == ["difficulty", "solved", "mean", "seconds"]
    assert rows[2:] == [["6", "1", "of", "1", "1.25"], ["12", "0", "of", "1", "–"]]
    for question in (
        "What challenge difficulties would you like to benchmark?",
        "How many benchmarks would you like to perform?",
        "What hashcat workload profile (1, 2, 3, or 4) would you like to use?",
        "Enter any extra hashcat options to use.",
    ):
        assert question in captured.err


def test_an_ended_input_takes_the_defaults(
    benchmark: ModuleType, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert benchmark.main([]) == 0
    assert recorder.plans == [Plan((6,), 1, 3, ("-O",))]


def test_a_flag_is_not_asked_for(benchmark: ModuleType, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("8\n-D 1\n"))
    assert benchmark.main(["hashcat", "--count", "3", "--miner.hashcat.workload.profile", "1"]) == 0
    assert recorder.plans == [Plan((8,), 3, 1, ("-D", "1"))]


def test_with_a_difficulty_nothing_is_asked(
    benchmark: ModuleType, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["hashcat", "--difficulty", "all", "--options=-O -D 2", "--time-limit", "5", "--json"]
    assert benchmark.main(argv) == 0
    assert recorder.plans == [Plan(tuple(range(6, 13)), 1, 3, ("-O", "-D", "2"))]
    assert json.loads(capsys.readouterr().out) == {
        "workload_profile": 3,
        "options": ["-O", "-D", "2"],
        "time_limit_seconds": 5.0,
        "benchmarks": [
            {"difficulty": 6, "seconds": 1.25, "solved": True},
            {"difficulty": 12, "seconds": 5.0, "solved": False},
        ],
    }


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_limit_is_a_number_above_0(limit: str, benchmark: ModuleType) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["hashcat", "--difficulty", "6", f"--time-limit={limit}"])
    assert caught.value.code == 2


def test_an_interrupt_ends_it_quietly(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(path: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark.hashcat, "find_hashcat", interrupt)
    assert benchmark.main(["hashcat"]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "interrupted\n")

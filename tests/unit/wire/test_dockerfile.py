"""Steps of a Dockerfile as a script, run by a real shell."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.base.errors import LeaseError
from compute.base.reasons import Refusal
from compute.wire.dockerfile import MAX_CHARACTERS, MAX_STEPS, failed_step, script_of
from tests.waiting import DEADLINE_SECONDS


def run(text: str, folder: Path) -> tuple[int, str]:
    argv = ["/bin/sh", "-c", script_of(text)]
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, timeout=DEADLINE_SECONDS, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    return failed_step(done.returncode) or done.returncode, done.stdout.decode()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 0, ""),
        ("# nothing\n\n", 0, ""),
        ("RUN echo one\nrun echo two", 0, "one\ntwo\n"),
        ("RUN echo one && \\\n    echo two", 0, "one\ntwo\n"),
        ("RUN echo one && \\\n# a comment\n\n    echo two \\", 0, "one\ntwo\n"),
        ("RUN echo one\r\nRUN echo two\r\n", 0, "one\ntwo\n"),
        ("RUN echo \"it's\" '$HOME' \\$x `echo three`", 0, "it's $HOME $x three\n"),
        ('RUN ["echo", "a  b", "$HOME", "; false"]', 0, "a  b $HOME ; false\n"),
        ("RUN [ 1 = 1 ] && echo yes", 0, "yes\n"),
        ('ENV A=b C="d  e"\nRUN echo "$A $C"', 0, "b d  e\n"),
        ('ENV A b  c\nRUN echo "$A"', 0, "b  c\n"),
        ("ENV A=x\nENV A=$A:${A}y\nRUN echo $A", 0, "x:xy\n"),
        ('ENV A=\'$(echo no)`echo no`"\\\'\nRUN echo "$A"', 0, '$(echo no)`echo no`"\\\n'),
        ('ENV A=b;echo\\ no\nRUN echo "$A"', 0, "b;echo no\n"),
        ('WORKDIR a b/c\nRUN basename "$(pwd)"\nWORKDIR ..\nRUN basename "$(pwd)"', 0, "c\na b\n"),
        ('WORKDIR -x\nRUN basename "$(pwd)"', 0, "-x\n"),
        ("RUN true\nRUN false\nRUN echo never", 2, ""),
        ("RUN exit 77", 1, ""),
        ('RUN ["false"]', 1, ""),
        ("RUN true\nRUN true\nWORKDIR /proc/nowhere", 3, ""),
        # One step cannot end the script, nor what comes after it.
        ("RUN echo one; exit 0\nRUN echo two", 0, "one\ntwo\n"),
    ],
)
def test_steps_do_what_docker_would(text: str, code: int, said: str, tmp_path: Path) -> None:
    assert run(text, tmp_path) == (code, said)


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("FROM scratch", Refusal.UNSUPPORTED, "step 1 of the dockerfile is 'FROM', not one of RUN, ENV, WORKDIR"),
        ("RUN true\nADD http://169.254.169.254/ /x", Refusal.UNSUPPORTED, "step 2 .* 'ADD'"),
        ("COPY --from=other / /", Refusal.UNSUPPORTED, "'COPY'"),
        ("# syntax=evil/frontend\nUSER nobody", Refusal.UNSUPPORTED, "'USER'"),
        ("RUN cat <<END\n}{\nEND", Refusal.UNSUPPORTED, "step 2 .* '}{'"),
        ("RUN --mount=type=secret,id=x cat /x", Refusal.BAD_REQUEST, "BuildKit"),
        ("RUN --security=insecure id", Refusal.BAD_REQUEST, "BuildKit"),
        ("RUN", Refusal.BAD_REQUEST, "step 1 of the dockerfile: RUN takes a command"),
        ("RUN []", Refusal.BAD_REQUEST, "double quotes"),
        ('RUN ["a", 1]', Refusal.BAD_REQUEST, "double quotes"),
        ("WORKDIR", Refusal.BAD_REQUEST, "path"),
        ("ENV", Refusal.BAD_REQUEST, "variable"),
        ("ENV 1=2", Refusal.BAD_REQUEST, "'1' is not the name"),
        ("ENV A=b c;id=x", Refusal.BAD_REQUEST, "'c;id' is not the name"),
        ("ENV A='b", Refusal.BAD_REQUEST, "quotation"),
        ("RUN echo \0", Refusal.BAD_REQUEST, "control character"),
        ("RUN echo \x1b[2J", Refusal.BAD_REQUEST, "control character"),
        ("RUN true\n" * (MAX_STEPS + 1), Refusal.BAD_REQUEST, "65 steps, of at most 64"),
        ("#" * (MAX_CHARACTERS + 1), Refusal.BAD_REQUEST, "65536 characters"),
        ("RUN " + "[" * 50_000, None, ""),
    ],
)
def test_what_is_not_taken(text: str, reason: Refusal | None, message: str) -> None:
    if reason is None:
        script_of(text)
        return
    with pytest.raises(LeaseError, match=message) as refused:
        script_of(text)
    assert refused.value.reason is reason


def test_no_exit_code_of_another_program_is_taken_for_a_step() -> None:
    steps = [failed_step(code) for code in range(256)]
    assert [step for step in steps if step is not None] == list(range(1, MAX_STEPS + 1))
    for code in (0, 1, 2, 126, 127, 137, 143, 255):
        assert steps[code] is None


@given(st.text(max_size=200))
def test_any_text_is_steps_or_a_refusal(text: str) -> None:
    with contextlib.suppress(LeaseError):
        assert "\0" not in script_of(text)

"""A renter's steps of a Dockerfile, as a script that the renter's own machine runs before it is up. Pure.

No image is built of them. ``docker build`` would run them outside of what confines a lease (with more capabilities, on
another network, without its limits), and have the engine itself fetch what ``FROM``, ``ADD`` and ``COPY`` name. Run by
the machine, they can do what its renter can do there anyway, and what they leave goes with the lease.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping

from compute.base.errors import LeaseError
from compute.base.reasons import Refusal

MAX_CHARACTERS = 1 << 16
MAX_STEPS = 64
STEPS_SECONDS = 900.0
"""How long a miner lets them run, and a renter waits for them."""
_EXIT_CODES_BEFORE = 60
"""A script's exit code names the step that failed: above those of sshd, below those of the shell and of signals."""

_COMMENT = re.compile(r"\s*#")
_CONTINUED = re.compile(r"\\[ \t]*\Z")
_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)(?:\s+(.*))?\Z", re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FORBIDDEN = re.compile(r"[^\t\n\r -\x7e\xa0-\U0010ffff]")
_NOT_EXPANDED = re.compile(r"([\"\\`]|\$(?![A-Za-z_{]))")
_MAX_QUOTED = 40


def script_of(text: str) -> str:
    """The script for the steps in ``text``: ``RUN``, ``ENV`` and ``WORKDIR``, as a Dockerfile writes them.

    It ends with 0, or with an exit code for ``failed_step``. ``text`` is hostile, and may have no steps: then the
    script is empty.

    Raises:
        LeaseError: ``bad_request`` or ``unsupported``, with the number of the step and what is wrong.
    """
    if len(text) > MAX_CHARACTERS:
        raise LeaseError(Refusal.BAD_REQUEST, f"the dockerfile has more than {MAX_CHARACTERS} characters")
    if found := _FORBIDDEN.search(text):
        raise LeaseError(Refusal.BAD_REQUEST, f"the dockerfile holds the control character {found[0]!r}")
    steps = list(_logical_lines(text))
    if len(steps) > MAX_STEPS:
        raise LeaseError(Refusal.BAD_REQUEST, f"the dockerfile has {len(steps)} steps, of at most {MAX_STEPS}")
    return "".join(
        f"{_command(number, step)} || exit {_EXIT_CODES_BEFORE + number}\n" for number, step in enumerate(steps, 1)
    )


def failed_step(exit_code: int) -> int | None:
    """The number of the step that ended a script with ``exit_code``, or None where none did."""
    number = exit_code - _EXIT_CODES_BEFORE
    return number if 1 <= number <= MAX_STEPS else None


def _logical_lines(text: str) -> Iterator[str]:
    begun: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        # Docker leaves out comments and empty lines inside of a step too.
        if not line.strip() or _COMMENT.match(line):
            continue
        continued = _CONTINUED.search(line)
        begun.append(line[: continued.start()] if continued else line)
        if not continued:
            yield "".join(begun)
            begun = []
    if begun:
        yield "".join(begun)


def _command(number: int, step: str) -> str:
    found = _INSTRUCTION.match(step)
    name = found[1].upper() if found else ""
    if found is None or name not in _COMMANDS:
        what = repr(name or step.strip()[:_MAX_QUOTED])
        known = ", ".join(_COMMANDS)
        raise LeaseError(Refusal.UNSUPPORTED, f"step {number} of the dockerfile is {what}, not one of {known}")
    try:
        return _COMMANDS[name]((found[2] or "").strip())
    except ValueError as error:
        raise LeaseError(Refusal.BAD_REQUEST, f"step {number} of the dockerfile: {error}") from None


def _run(rest: str) -> str:
    if not rest or rest.startswith("--"):
        raise ValueError("RUN takes a command, and none of BuildKit's options")
    if not rest.startswith("["):
        return f"/bin/sh -c {shlex.quote(rest)}"
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        # So Docker reads it too: [ is a command.
        return f"/bin/sh -c {shlex.quote(rest)}"
    if not (isinstance(words, list) and words and all(isinstance(word, str) and "\0" not in word for word in words)):
        raise ValueError("RUN [...] takes words in double quotes")
    return shlex.join(words)


def _env(rest: str) -> str:
    name, _, value = rest.partition(" ")
    if "=" not in name:
        # The old form: one variable, and the rest of the line.
        return f"export {_name(name)}={_expanding(value.strip())}"
    pairs = [word.partition("=") for word in shlex.split(rest)]
    return "export " + " ".join(f"{_name(name)}={_expanding(value)}" for name, _, value in pairs)


def _workdir(rest: str) -> str:
    if not rest:
        raise ValueError("WORKDIR takes a path")
    path = _expanding(rest)
    return f"{{ mkdir -p -- {path} && cd -- {path}; }}"


def _name(name: str) -> str:
    if not _VARIABLE.match(name):
        raise ValueError(f"{name[:_MAX_QUOTED]!r} is not the name of a variable")
    return name


def _expanding(value: str) -> str:
    """``value`` as one word of the shell, in which variables are expanded and nothing else is done."""
    return '"' + _NOT_EXPANDED.sub(r"\\\1", value) + '"'


_COMMANDS: Mapping[str, Callable[[str], str]] = {"RUN": _run, "ENV": _env, "WORKDIR": _workdir}

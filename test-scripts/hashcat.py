"""The legacy benchmark: a challenge as validators sent them before version 1.6.0, cracked by hashcat on this machine.

A challenge is the BLAKE2b-512 of a password and a salt (hashcat's mode 610), the ten characters that the password is
made of, and its length, which is the difficulty: each step makes the search ten times longer. Nothing is scored by it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import shutil
import string
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compute.base.errors import NotFound, ProgramFailed, UsageError

MIN_DIFFICULTY = 6
MAX_DIFFICULTY = 12
DEFAULT_WORKLOAD_PROFILE = 3
DEFAULT_OPTIONS = ("-O",)
TIME_LIMIT_SECONDS = 600.0
"""For one challenge. Difficulty 12 takes 333 s at the 3000 MH/s that were asked of a miner."""

_MODE = 610
_CHARACTERS = string.ascii_letters + string.digits + "!@#$%^&*()-_+=[]{};:,.<>"
_CHARACTERS_PER_CHALLENGE = 10
_CRACKED = 0
_LAST_WORDS = 400


@dataclass(frozen=True)
class Challenge:
    """A password to find; ``characters`` are all that it may be made of."""

    password: str
    salt: str
    characters: str

    @classmethod
    def draw(cls, difficulty: int) -> Challenge:
        """A fresh one, with a password of ``difficulty`` characters."""
        characters = secrets.SystemRandom().sample(_CHARACTERS, _CHARACTERS_PER_CHALLENGE)
        password = "".join(secrets.choice(characters) for _ in range(difficulty))
        return cls(password, secrets.token_hex(8), "".join(characters))

    @property
    def hash_line(self) -> str:
        """The hash and the salt, as hashcat reads them."""
        return f"$BLAKE2${hashlib.blake2b((self.password + self.salt).encode()).hexdigest()}:{self.salt}"

    @property
    def mask(self) -> str:
        """As many characters of set 1 as the password has."""
        return "?1" * len(self.password)


@dataclass(frozen=True)
class Plan:
    """What to run: each difficulty ``count`` times."""

    difficulties: tuple[int, ...]
    count: int = 1
    workload_profile: int = DEFAULT_WORKLOAD_PROFILE
    options: tuple[str, ...] = DEFAULT_OPTIONS

    @property
    def benchmarks(self) -> list[int]:
        """The difficulties in the order in which they run."""
        return [difficulty for difficulty in self.difficulties for _ in range(self.count)]


@dataclass(frozen=True)
class Attempt:
    """How one challenge went; ``solved`` is false where the time limit ended it."""

    difficulty: int
    seconds: float
    solved: bool


def parse_difficulties(text: str) -> tuple[int, ...]:
    """``"7 8 9"``, ``"10, 11, 12"`` or ``"all"``; out of range becomes the nearest in it, and no number the least."""
    words = text.replace(",", " ").split()
    if [word.lower() for word in words] == ["all"]:
        return tuple(range(MIN_DIFFICULTY, MAX_DIFFICULTY + 1))
    return tuple(_clamped(word) for word in words) or (MIN_DIFFICULTY,)


def parse_count(text: str) -> int:
    """How often; 1 where it is no positive integer."""
    return max(_integer(text, 1), 1)


def parse_workload_profile(text: str) -> int:
    """1 to 4; 3 for everything else."""
    profile = _integer(text, DEFAULT_WORKLOAD_PROFILE)
    return profile if 1 <= profile <= 4 else DEFAULT_WORKLOAD_PROFILE


def parse_options(text: str) -> tuple[str, ...]:
    """Extra options for hashcat, quoted as in a shell; ``-O`` for an empty text, nothing for ``None``.

    Raises:
        UsageError: a quote is not closed.
    """
    if text.strip().lower() == "none":
        return ()
    try:
        return tuple(shlex.split(text)) or DEFAULT_OPTIONS
    except ValueError as error:
        raise UsageError(f"the extra options {text!r} cannot be read: {error}") from None


def find_hashcat(path: str = "hashcat") -> str:
    """The program at ``path``, or of that name.

    Raises:
        NotFound: there is none; says how to install it.
    """
    found = shutil.which(path)
    if found is None:
        raise NotFound(
            f"{path} is not an installed program. Debian and Ubuntu have it: apt-get install hashcat, and on a machine "
            "without a GPU pocl-opencl-icd too. If it is elsewhere: --hashcat-path PATH."
        )
    # Absolute, because it runs in a folder of its own; links are kept, hashcat finds its files beside its own name.
    return os.path.abspath(found)


def crack_argv(hashcat: str, challenge: Challenge, plan: Plan, outfile: Path) -> list[str]:
    """The command that writes the password of ``challenge``, and nothing else, to ``outfile``."""
    return [
        hashcat,
        f"--hash-type={_MODE}",
        "--attack-mode=3",
        f"--workload-profile={plan.workload_profile}",
        "--quiet",
        "--potfile-disable",
        "--logfile-disable",
        "--restore-disable",
        f"--session=benchmark-{challenge.salt}",
        f"--outfile={outfile}",
        "--outfile-format=2",
        "--outfile-autohex-disable",
        f"--custom-charset1={challenge.characters}",
        *plan.options,
        challenge.hash_line,
        challenge.mask,
    ]


def crack(hashcat: str, challenge: Challenge, plan: Plan, *, time_limit_seconds: float = TIME_LIMIT_SECONDS) -> Attempt:
    """Have hashcat find the password. The seconds are those of the whole program, as a validator would have waited.

    Raises:
        ProgramFailed: hashcat cannot run here, or its answer is wrong; with its own last words.
    """
    difficulty = len(challenge.password)
    with tempfile.TemporaryDirectory(prefix="hashcat-") as folder:
        outfile = Path(folder, "found")
        argv = crack_argv(hashcat, challenge, plan, outfile)
        # Its sessions go with the folder; its compiled kernels stay where the next run finds them.
        environment = {**os.environ, "XDG_DATA_HOME": folder}
        start = time.monotonic()
        try:
            ended = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=folder,
                env=environment,
                timeout=time_limit_seconds,
            )
        except subprocess.TimeoutExpired:
            return Attempt(difficulty, time.monotonic() - start, solved=False)
        except OSError as error:
            raise ProgramFailed(f"{hashcat} cannot be started: {error}") from error
        seconds = time.monotonic() - start
        found = outfile.read_text(encoding="utf-8").rstrip("\n") if outfile.exists() else None
    if ended.returncode != _CRACKED or found != challenge.password:
        words = " ".join(f"{ended.stderr} {ended.stdout}".split())[-_LAST_WORDS:]
        raise ProgramFailed(f"hashcat ended with code {ended.returncode} and without the password: {words}")
    return Attempt(difficulty, seconds, solved=True)


def run_plan(
    hashcat: str,
    plan: Plan,
    *,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    on_attempt: Callable[[], None] = lambda: None,
) -> list[Attempt]:
    """Crack a fresh challenge for each benchmark of ``plan``, after one that is not counted.

    That one has a single candidate: hashcat compiles its kernels with it, which takes longer than an easy search.

    Raises:
        ProgramFailed: as ``crack``.
    """
    warm_up = Challenge("a" * plan.difficulties[0], secrets.token_hex(8), "a")
    crack(hashcat, warm_up, plan, time_limit_seconds=time_limit_seconds)
    attempts = []
    for difficulty in plan.benchmarks:
        challenge = Challenge.draw(difficulty)
        attempts.append(crack(hashcat, challenge, plan, time_limit_seconds=time_limit_seconds))
        on_attempt()
    return attempts


def summary(attempts: Sequence[Attempt]) -> list[tuple[int, int, int, float | None]]:
    """Per difficulty, in ascending order: attempts, solved ones, and the mean seconds of those."""
    rows = []
    for difficulty in sorted({attempt.difficulty for attempt in attempts}):
        here = [attempt for attempt in attempts if attempt.difficulty == difficulty]
        times = [attempt.seconds for attempt in here if attempt.solved]
        rows.append((difficulty, len(here), len(times), sum(times) / len(times) if times else None))
    return rows


def _clamped(word: str) -> int:
    return min(max(_integer(word, MIN_DIFFICULTY), MIN_DIFFICULTY), MAX_DIFFICULTY)


def _integer(text: str, default: int) -> int:
    try:
        return int(text)
    except ValueError:
        return default

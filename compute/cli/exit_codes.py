"""From an error to an exit code, and to the next thing to do."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from compute.base.errors import (
    CallError,
    ChainError,
    ChainUnreachable,
    ComputeError,
    ConfigError,
    HostKeyMismatch,
    LeaseError,
    NotFound,
    NotRegistered,
    SshError,
    StoreError,
    UsageError,
)
from compute.base.reasons import Refusal

if TYPE_CHECKING:
    from compute.base.console import Output


class Exit(IntEnum):
    """The documented exit codes."""

    OK = 0
    LOCAL = 1
    USAGE = 2
    CHAIN = 3
    NETWORK = 4
    NOT_FOUND = 5
    REFUSED = 6
    INTERRUPTED = 130


#: The first row that fits an error gives its exit code and what to do next, which ``advice`` knows better of a usage
#: error or a refusal.
_KINDS: tuple[tuple[type[ComputeError], Exit, str], ...] = (
    (UsageError, Exit.USAGE, ""),
    (LeaseError, Exit.REFUSED, ""),
    (NotRegistered, Exit.CHAIN, "Register this hotkey on the subnet first: btcli subnets register"),
    (ChainUnreachable, Exit.CHAIN, "Then try again, or another node: --subtensor.chain_endpoint ws://HOST:PORT"),
    (ChainError, Exit.CHAIN, "Check --subtensor.network, --netuid and --subtensor.chain_endpoint."),
    (CallError, Exit.NETWORK, "It may be down, or not accept you. Take another: register.py offers"),
    (HostKeyMismatch, Exit.NETWORK, "Do not log in. Leave it: register.py deallocate NAME"),
    (SshError, Exit.NETWORK, "Is it up? register.py show NAME; bring it up: register.py restart NAME"),
    (NotFound, Exit.NOT_FOUND, "See what there is: register.py list, register.py offers --all"),
    (StoreError, Exit.LOCAL, "Check the files named with --database and --key.file."),
    (ConfigError, Exit.LOCAL, "Check --wallet.name, --wallet.hotkey, --wallet.path and --config.file."),
    (ComputeError, Exit.LOCAL, "Run it again; if that does not help, report it."),
)

_REFUSAL_ADVICE = {
    Refusal.BUSY: "Somebody has the machine. See what is free: register.py offers",
    Refusal.STARTING: "Give it back and rent another: register.py deallocate NAME",
    Refusal.NOT_OWNER: "It is not yours there. Drop it: register.py deallocate NAME --forget",
    Refusal.NO_LEASE: "It is over. Drop it: register.py deallocate NAME --forget",
    Refusal.UNPINNED: "The miner is out of date. To accept the risk, add --trust-first-use.",
    Refusal.BAD_ANSWER: "Take another miner; to avoid this one: register.py penalize HOTKEY",
    Refusal.UNSUPPORTED: "This miner cannot do it. Take another: register.py offers",
    Refusal.BAD_SIGNATURE: "Check that this is the wallet that rented: --wallet.name, --wallet.hotkey",
}
_SHORT_OF = frozenset(
    {Refusal.CPU_COUNT, Refusal.RAM, Refusal.DISK, Refusal.GPU_COUNT, Refusal.GPU_MEMORY, Refusal.GPU_TYPE}
)


def exit_code(error: ComputeError) -> Exit:
    """The exit code of the command line for ``error``."""
    return next(code for kind, code, _ in _KINDS if isinstance(error, kind))


def advice(error: ComputeError, *, usage: str = "All options: register.py --help") -> str:
    """The next thing to do, in one line; ``usage`` is where to read what may be typed."""
    if isinstance(error, UsageError):
        return error.next_step or usage
    if isinstance(error, LeaseError):
        if error.reason in _SHORT_OF:
            return "Ask for less, or see who has more: register.py offers --all"
        return _REFUSAL_ADVICE.get(error.reason, "Try again in a minute, or take another: register.py offers")
    return next(text for kind, _, text in _KINDS if isinstance(error, kind))


def report(error: ComputeError, output: Output, *, subject: str | None = None, usage: str | None = None) -> Exit:
    """Print ``error`` with what to do next (``usage``: as for ``advice``); returns its exit code."""
    reason = error.reason.value if isinstance(error, LeaseError) else None
    text = f"{subject}: {error}" if subject else str(error)
    output.error(text, reason=reason, advice=advice(error, usage=usage) if usage else advice(error))
    return exit_code(error)

"""One tree of exceptions. Third-party exceptions are mapped to it at the boundary where they arise.

::

    ComputeError
    ├── ConfigError            a key of config.yaml, an option or a variable is wrong: key, value, bound
    ├── UsageError             a person asked for something that makes no sense: value, what would be right
    ├── NotFound               nothing by that name, or no machine that serves the request
    ├── StoreError             SQLite said no: full disk, corrupted file
    ├── ChainError             the chain or the way to it
    │   ├── ChainUnreachable       no node answers; retry later
    │   ├── NotRegistered          this hotkey has no uid on the subnet
    │   └── ExtrinsicRefused       the chain refused: its own error name
    ├── CallError              a request to a peer's axon failed
    │   ├── CallTimeout            no answer in time; the peer may have acted
    │   ├── CallUnreachable        no connection, or nothing there that serves axons; nothing was done
    │   ├── CallRefused            the peer refused (4xx); nothing was done
    │   ├── CallFailed             the peer failed while it worked on the request (5xx); it may have acted
    │   └── BadAnswer              an answer that cannot be read; the peer may have acted
    ├── SshError               an SSH session
    │   ├── SshUnreachable         no TCP, no banner, no login
    │   ├── HostKeyMismatch        somebody else answered
    │   ├── SshTimeout             a deadline passed
    │   └── OutputTooLarge         more bytes than the caller allowed
    ├── LeaseError             a lease request was refused: reason (compute.base.reasons.Refusal)
    ├── RuntimeFailure         the container runtime failed to start, stop or change a machine
    │   └── RuntimeGone            nothing can be asked of it now; what it runs may be well
    ├── ProgramFailed          another program that this one ran ended badly: its last words
    ├── UpdateError            this neuron cannot update itself now: reason (compute.base.reasons.UpdateReason)
    └── ProofError             a proof of GPU ended early: reason (compute.base.reasons.ProofReason)
        └── FrameError             a frame was malformed, too large or late
"""

from __future__ import annotations

from compute.base.reasons import ProofReason, Refusal, UpdateReason


class ComputeError(Exception):
    """Base of everything that this project raises on purpose. Its text is fit for a user's eyes."""


class ConfigError(ComputeError):
    """Configuration is wrong. The message names the key, the bad value and what would be right."""


class UsageError(ComputeError):
    """A person's input makes no sense. The message quotes it; ``next_step``, if any, is the line to type instead."""

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step


class NotFound(ComputeError):
    """Nothing goes by that name, or nothing on the network serves the request."""


class StoreError(ComputeError):
    """The database cannot be read or written."""


class StoreEmpty(StoreError):
    """The database is there, and nothing has been written to it yet: its neuron is about to start."""


class ChainError(ComputeError):
    """The chain, or the way to it."""


class ChainUnreachable(ChainError):
    """No chain node answers at the endpoint."""


class NotRegistered(ChainError):
    """The hotkey has no uid on the subnet."""


class ExtrinsicRefused(ChainError):
    """The chain refused an extrinsic; ``name`` is the pallet's own error name where there is one."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class CallError(ComputeError):
    """A request to a peer's axon failed, and the class says how. ``status`` is the HTTP-like code to show to people."""

    status: int

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class CallTimeout(CallError):
    """No answer in time. The peer may have acted on the request, and may answer the next one."""

    status = 408


class CallUnreachable(CallError):
    """No connection, or whoever answers there serves no axon now. The peer has not acted on the request."""

    status = 503


class CallRefused(CallError):
    """The peer refused the request (a status 4xx of its own) and has not acted on it."""

    status = 403


class CallFailed(CallError):
    """The peer failed while it worked on the request (a status 5xx of its own). It may have acted."""

    status = 500


class BadAnswer(CallError):
    """An answer that cannot be read: no HTTP, no JSON, wrong types, too large. The peer may have acted."""

    status = 502


class SshError(ComputeError):
    """An SSH session failed."""


class SshUnreachable(SshError):
    """No TCP connection, no banner, or no login."""


class HostKeyMismatch(SshError):
    """The server's host key is not the pinned one: somebody else answered."""


class SshTimeout(SshError):
    """A deadline on the SSH session passed."""


class OutputTooLarge(SshError):
    """The remote side sent more bytes than the caller allowed."""


class LeaseError(ComputeError):
    """A lease request was refused."""

    def __init__(self, reason: Refusal, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class RuntimeFailure(ComputeError):
    """The container runtime could not start, stop or change a machine."""


class RuntimeGone(RuntimeFailure):
    """The container runtime does not answer: whether it did what it was told, and how its machines are, is unknown."""


class ProgramFailed(ComputeError):
    """A program that this one ran ended badly. The message quotes its last words."""


class UpdateError(ComputeError):
    """This neuron cannot update itself now."""

    def __init__(self, reason: UpdateReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ProofError(ComputeError):
    """A proof of GPU ended early."""

    def __init__(self, reason: ProofReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FrameError(ProofError):
    """A frame was malformed, too large or late."""

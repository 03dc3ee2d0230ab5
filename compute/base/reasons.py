"""Every reason code of the subnet, in one room. Nobody greps free text: a refusal, a verdict or an alarm carries one.

The values are the wire and database form; renaming one is a breaking change.
"""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """Base of all reason codes: a string that prints as its value."""

    def __str__(self) -> str:
        return str(self.value)


class ProofReason(Reason):
    """Why a machine's proof of GPU has the verdict that it has."""

    OK = "ok"
    # what the arithmetic or the clock says
    SLOWER_THAN_CLAIMED = "slower_than_claimed"
    UNKNOWN_MODEL = "unknown_model"
    DEVICE_COUNT_MISMATCH = "device_count_mismatch"
    NOT_RESIDENT = "not_resident"
    WRONG_ROW = "wrong_row"
    BAD_OPENING = "bad_opening"
    SHARED_DEVICE = "shared_device"
    # what the conversation did
    TIMEOUT = "timeout"
    OVERSIZED_FRAME = "oversized_frame"
    BAD_FRAME = "bad_frame"
    WORKER_FAILED = "worker_failed"
    # the machine could not be reached or rented
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    HOST_KEY_MISMATCH = "host_key_mismatch"
    BAD_SPECS = "bad_specs"
    NO_GPU = "no_gpu"
    DUPLICATE_IP = "duplicate_ip"
    NOT_SERVING = "not_serving"
    RENTED = "rented"
    NOT_PROVEN_YET = "not_proven_yet"
    BLACKLISTED = "blacklisted"
    OLD_VERSION = "old_version"
    INTERNAL_ERROR = "internal_error"


SAYS_NOTHING = frozenset({ProofReason.REFUSED, ProofReason.UNREACHABLE, ProofReason.INTERNAL_ERROR})
"""After these nothing is known of the machine: it may be rented, gone for a while, or the failure was ours."""


class Refusal(Reason):
    """Why a miner said no to an ``Allocate``."""

    BUSY = "busy"
    NOT_OWNER = "not_owner"
    NO_LEASE = "no_lease"
    BAD_REQUEST = "bad_request"
    BAD_KEY = "bad_key"
    BAD_SIGNATURE = "bad_signature"
    CPU_COUNT = "cpu_count"
    RAM = "ram"
    DISK = "disk"
    GPU_COUNT = "gpu_count"
    GPU_MEMORY = "gpu_memory"
    GPU_TYPE = "gpu_type"
    UNSUPPORTED = "unsupported"
    RUNTIME_FAILED = "runtime_failed"
    STARTING = "starting"
    INTERNAL_ERROR = "internal_error"
    # what the caller concludes by itself; never sent
    UNSPECIFIED = "unspecified"
    BAD_ANSWER = "bad_answer"
    UNPINNED = "unpinned"


class AccessReason(Reason):
    """Why a caller may, or may not, talk to a miner."""

    BLACKLISTED_HOTKEY = "blacklisted_hotkey"
    BLACKLISTED_COLDKEY = "blacklisted_coldkey"
    EXPLOITER = "exploiter"
    WHITELISTED_HOTKEY = "whitelisted_hotkey"
    WHITELISTED_COLDKEY = "whitelisted_coldkey"
    NOT_REGISTERED = "not_registered"
    NOT_ENOUGH_STAKE = "not_enough_stake"
    NO_PERMIT = "no_permit"
    OLD_VERSION = "old_version"
    RATE_LIMITED = "rate_limited"
    METAGRAPH_UNKNOWN = "metagraph_unknown"
    ALLOWED = "allowed"


class UpdateReason(Reason):
    """Why a neuron does not update itself now."""

    UP_TO_DATE = "up_to_date"
    NOT_A_CLONE = "not_a_clone"
    NO_GIT = "no_git"
    GIT_FAILED = "git_failed"
    REMOTE_UNREACHABLE = "remote_unreachable"
    NO_UPSTREAM = "no_upstream"
    DETACHED = "detached"
    AHEAD = "ahead"
    DIVERGED = "diverged"
    MOVED_BY_HAND = "moved_by_hand"
    LOCAL_CHANGES = "local_changes"
    UNTRACKED_FILES = "untracked_files"
    CHECK_FAILED = "check_failed"
    CHECK_TIMEOUT = "check_timeout"
    INSTALL_FAILED = "install_failed"
    FAILED_BEFORE = "failed_before"

"""A rental receipt: a validator's signed word that it leases a miner's machine. Pure.

The miner carries it in its specs, so that other validators leave the tenant in peace and still pay. It says: this
miner, this SSH host key at this port, until then. The host key was made for this one lease, so whoever wants to know
asks the machine for it: a receipt whose machine does not answer with that key is worth nothing.

A receipt is short-lived, and renewed while the lease lasts: a lease that is given back early leaves nothing behind
that would be good for months.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from compute.base.clock import Clock
from compute.base.errors import ComputeError
from compute.wire.lease_terms import HOST_KEY, SECONDS_PER_DAY

if TYPE_CHECKING:
    from compute.wire.signing import Signer, Verifier

MAX_SECONDS = 7 * SECONDS_PER_DAY
"""The longest that one receipt may be good for; a longer lease needs more than one."""

RENEW_SECONDS = MAX_SECONDS / 2
"""A receipt with less time left than that is renewed, so that a validator may be down for days."""

CLOCK_SKEW_SECONDS = 600
"""How far the clock of who signed may be ahead of ours."""

_TAG = "compute-subnet rental receipt v1"
_HOTKEY = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_SIGNATURE = re.compile(r"0x[0-9a-f]{128}\Z")
_MAX_UNTIL = 1 << 40


class ReceiptError(ComputeError):
    """A receipt that proves nothing; the message says why."""


@dataclass(frozen=True)
class Receipt:
    """``validator`` leases the machine of ``miner``, both hotkeys, until ``until`` (Unix seconds).

    ``host_key`` is ``SHA256:…`` of what answers SSH at ``port`` of the miner's address; ``signature`` is the
    validator's, as on the wire.
    """

    validator: str
    miner: str
    host_key: str
    port: int
    until: int
    signature: str = ""

    @classmethod
    def from_wire(cls, wire: object) -> Receipt:
        """Parse what a peer sent; nothing is checked but its form.

        Raises:
            ReceiptError: a field is missing, mistyped or out of bounds.
        """
        if not isinstance(wire, Mapping):
            raise ReceiptError(f"a receipt is an object, not a {type(wire).__name__}")
        return cls(
            validator=_text(wire, "validator", _HOTKEY),
            miner=_text(wire, "miner", _HOTKEY),
            host_key=_text(wire, "host_key", HOST_KEY),
            port=_number(wire, "port", 65_535),
            until=_number(wire, "until", _MAX_UNTIL),
            signature=_text(wire, "signature", _SIGNATURE),
        )

    def to_wire(self) -> dict[str, object]:
        """Plain data; ``from_wire`` of it is equal to ``self``."""
        return asdict(self)


class Issuer:
    """Signs receipts for the machines that ``hotkey`` leases on subnet ``netuid``."""

    def __init__(self, signer: Signer, hotkey: str, netuid: int, clock: Clock) -> None:
        self._signer = signer
        self._hotkey = hotkey
        self._netuid = netuid
        self._clock = clock

    def issue(self, miner: str, host_key: str, port: int, ends_at: float) -> Receipt:
        """A receipt for a lease that ends at ``ends_at`` (Unix seconds), good until then or for ``MAX_SECONDS``."""
        until = int(min(ends_at, self._clock.now() + MAX_SECONDS))
        receipt = Receipt(self._hotkey, miner, host_key, port, until)
        return replace(receipt, signature="0x" + self._signer.sign(_message(receipt, self._netuid)).hex())


def check(receipt: Receipt, *, netuid: int, miner: str, now: float, verify: Verifier) -> None:
    """Return if ``receipt`` is ``miner``'s, good at ``now``, and signed for this subnet by the validator it names.

    Who that validator is, and whether the machine answers, is for the caller to find out.

    Raises:
        ReceiptError: what is wrong.
    """
    if receipt.miner != miner:
        raise ReceiptError(f"the receipt is for another miner, {receipt.miner}")
    if receipt.validator == miner:
        raise ReceiptError("the receipt is signed by the miner itself")
    if receipt.until <= now:
        raise ReceiptError("the receipt is over")
    if receipt.until > now + MAX_SECONDS + CLOCK_SKEW_SECONDS:
        raise ReceiptError(f"the receipt ends more than {MAX_SECONDS // SECONDS_PER_DAY} days from now")
    if not verify(receipt.validator, _message(receipt, netuid), bytes.fromhex(receipt.signature[2:])):
        raise ReceiptError("the receipt's signature is not that of the validator that it names")


def _message(receipt: Receipt, netuid: int) -> bytes:
    parts = [_TAG, netuid, receipt.validator, receipt.miner, receipt.host_key, receipt.port, receipt.until]
    return json.dumps(parts, separators=(",", ":")).encode()


def _text(wire: Mapping[object, object], name: str, pattern: re.Pattern[str]) -> str:
    value = wire.get(name)
    if not isinstance(value, str) or not pattern.match(value):
        raise ReceiptError(f"the receipt's {name} is missing or malformed")
    return value


def _number(wire: Mapping[object, object], name: str, most: int) -> int:
    value = wire.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ReceiptError(f"the receipt's {name} is not a whole number from 1 to {most}")
    return value

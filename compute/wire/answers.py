"""What a miner answers to ``Allocate``, parsed. Every byte is hostile; the only exception here is LeaseError."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from compute.base.clock import Clock
from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.protocol import Allocate
from compute.wire import signing
from compute.wire.keys import LoginInfo, RenterKey
from compute.wire.lease_terms import MAX_RETRY_AFTER_SECONDS
from compute.wire.peer import Peer
from compute.wire.signing import SignerMemory, Verifier

_log = logging.getLogger(__name__)

#: 256 bytes of RSA-2048 in base64.
_MAX_INFO_CHARACTERS = 512
_MAX_TEXT_CHARACTERS = 200
_MAX_NUMBER = 1 << 62
#: What only this side concludes; a miner that sends one of these has stated nothing.
_OURS = frozenset({Refusal.UNSPECIFIED, Refusal.BAD_ANSWER, Refusal.UNPINNED})


class SignedAnswers:
    """Checks who signed an ``info``. A miner that has once signed one is believed no unsigned one any more."""

    def __init__(self, verify: Verifier, memory: SignerMemory, clock: Clock) -> None:
        self._verify = verify
        self._memory = memory
        self._clock = clock

    def check(self, peer: Peer, answer: Allocate) -> None:
        """Return if the ``info`` of ``answer`` may be believed, or there is none.

        Raises:
            LeaseError: ``bad_answer``: the signature is missing or not the miner's.
        """
        info, signature = answer.output.get("info"), answer.output.get("info_signature")
        if not isinstance(info, str):
            return
        if signature is None:
            if self._memory.knows(peer.hotkey):
                raise _nonsense(peer, "its info is unsigned, but it has signed before: somebody else may have answered")
            return
        signed, terminal = signing.decode(signature), answer.dendrite
        nonce, caller = (terminal.nonce, terminal.hotkey) if terminal is not None else (None, None)
        if signed is None or not isinstance(nonce, int) or not isinstance(caller, str):
            raise _nonsense(peer, "the signature of its info is malformed")
        if not self._verify(peer.hotkey, signing.answer_message(nonce, caller, info), signed):
            raise _nonsense(peer, "the signature of its info is not the miner's: somebody else may have answered")
        try:
            self._memory.remember([peer.hotkey], self._clock.now())
        except StoreError as error:
            _log.warning("that %s signs its answers could not be recorded: %s", peer.hotkey, error)


def accepted(peer: Peer, output: object) -> Mapping[str, object]:
    """The output of a yes.

    Raises:
        LeaseError: a no with its reason, or ``bad_answer``.
    """
    if not isinstance(output, dict) or not isinstance(output.get("status"), bool):
        raise _nonsense(peer, f"output {_shorten(output)} has no boolean status")
    if output["status"]:
        return output
    stated = output.get("reason")
    reason = _refusal(stated)
    said = output.get("message", stated)
    text = "gave no reason" if said is None or said == "" else f"says {_shorten(said)}"
    raise LeaseError(
        reason, f"miner {peer.hotkey} refused: {text}", retry_after_seconds=_seconds(output.get("retry_after"))
    )


def _refusal(stated: object) -> Refusal:
    try:
        reason = Refusal(stated)
    except ValueError:
        return Refusal.UNSPECIFIED
    return Refusal.UNSPECIFIED if reason in _OURS else reason


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_RETRY_AFTER_SECONDS:
        return None
    return float(value)


def open_info(peer: Peer, owner: RenterKey, sealed: object) -> LoginInfo:
    """Decrypt and parse the ``info`` of a yes.

    Raises:
        LeaseError: ``bad_answer``, with what is wrong. The text never quotes the decrypted content.
    """
    if not isinstance(sealed, str) or len(sealed) > _MAX_INFO_CHARACTERS:
        raise _nonsense(
            peer, f"info {_shorten(sealed)} is not base64 text of at most {_MAX_INFO_CHARACTERS} characters"
        )
    try:
        return LoginInfo.decrypt(sealed, owner)
    except ValueError as error:
        raise _nonsense(peer, str(error)) from None


def _nonsense(peer: Peer, what: str) -> LeaseError:
    return LeaseError(Refusal.BAD_ANSWER, f"miner {peer.hotkey} answered without sense: {what}")


def _shorten(value: object) -> str:
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        return "a huge number"
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= _MAX_TEXT_CHARACTERS else text[:_MAX_TEXT_CHARACTERS] + "…"

"""The meaning of ``Allocate`` on the miner's side: hostile fields in, the ``output`` dictionary out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from compute.base.clock import within
from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.miner.leases.manager import LeaseManager, LeaseRequest
from compute.miner.leases.store import Owner
from compute.protocol import Allocate
from compute.wire import dockerfile
from compute.wire.keys import canonical_rsa, check_public_line
from compute.wire.lease_terms import MAX_DAYS, SECONDS_PER_DAY, Change, KeyLine, LeaseKind
from compute.wire.receipts import Receipt, ReceiptError
from compute.wire.requirements import DeviceRequirement, wants_probe

logger = logging.getLogger(__name__)

_MAX_IMAGE_CHARACTERS = 256
_GRACE_SECONDS = 10.0
_DEFAULT_VOLUME_PATHS = ("", "/tmp")  # noqa: S108 - the wire's default, never a path that this code opens


CheckReceipt = Callable[[Receipt], None]


class AllocateService:
    """Answers ``Allocate`` for one machine.

    The output always has ``status`` (bool) and ``port`` (int). A yes to an allocation adds ``info``; a no adds
    ``reason`` (``base.reasons.Refusal``), ``message`` and, where asking again makes sense, ``retry_after`` in
    seconds. ``extend`` (days from now) and ``receipt`` (``docker_action.receipt``, see ``wire.receipts``) are this
    project's own actions beside those of the network.
    """

    def __init__(
        self, manager: LeaseManager, check_receipt: CheckReceipt | None = None, *, allow_dockerfile: bool = False
    ) -> None:
        """Without ``check_receipt``, which raises ReceiptError, no receipt is taken.

        ``allow_dockerfile`` is the operator's consent to run steps of a renter's Dockerfile.
        """
        self._manager = manager
        self._check_receipt = check_receipt
        self._allow_dockerfile = allow_dockerfile

    async def answer(self, hotkey: str, call: Allocate) -> dict[str, Any]:
        """The ``output`` for what ``hotkey`` asks, which the axon has verified; nothing in ``call`` can be believed.

        Never raises but when cancelled, and answers in bounded time.
        """
        limit = self._manager.answer_seconds + _GRACE_SECONDS
        try:
            return await within(limit, self._answer(hotkey, call))
        except LeaseError as error:
            return self._refused(error)
        except asyncio.TimeoutError:
            return self._refused(LeaseError(Refusal.STARTING, "this takes long: ask again", retry_after_seconds=10))
        except StoreError as error:
            logger.error("an Allocate of %s could not be answered: %s", hotkey, error)
        except Exception:
            # The caller is a stranger: what went wrong is for the operator's log alone.
            logger.exception("an Allocate of %s could not be answered", hotkey)
        return self._refused(LeaseError(Refusal.INTERNAL_ERROR, "the miner has a problem; its operator can see which"))

    async def receipt(self) -> Receipt | None:
        """The receipt of the lease that has the machine now, if there is one. Never raises but when cancelled."""
        try:
            return await self._manager.receipt()
        except StoreError as error:
            logger.error("the receipt of the lease cannot be read: %s", error)
            return None

    async def _answer(self, hotkey: str, call: Allocate) -> dict[str, Any]:
        days = _days(call.timeline)
        if _flag(call.checking, "checking"):
            if days > 0:
                requirement, kind = _requirement(call)
                await self._manager.check(requirement, kind)
            elif not await self._manager.owns(canonical_rsa(call.public_key)):
                raise LeaseError(Refusal.NOT_OWNER, "this public_key holds no lease here")
            return self._accepted()
        owner = Owner(hotkey, canonical_rsa(call.public_key))
        if _flag(call.docker_change, "docker_change"):
            await self._change(owner, _mapping(call.docker_action, "docker_action"), days)
        elif days > 0:
            return await self._allocate(call, owner, days)
        else:
            await self._manager.deallocate(owner)
        return self._accepted()

    async def _allocate(self, call: Allocate, owner: Owner, days: int) -> dict[str, Any]:
        requirement, kind = _requirement(call)
        wishes = _mapping(call.docker_requirement, "docker_requirement")
        image = _text(wishes, "base_image", _MAX_IMAGE_CHARACTERS)
        script = self._script(_text(wishes, "dockerfile", dockerfile.MAX_CHARACTERS), kind)
        if _text(wishes, "volume_path", 4096) not in _DEFAULT_VOLUME_PATHS:
            raise LeaseError(Refusal.UNSUPPORTED, "volumes are not offered: leave volume_path at its default")
        key = wishes.get("ssh_key")
        granted = await self._manager.allocate(
            LeaseRequest(
                owner=owner,
                kind=kind,
                requirement=requirement,
                image=image,
                ssh_key=check_public_line(key) if key not in (None, "") else "",
                seconds=days * SECONDS_PER_DAY,
                script=script,
            )
        )
        return {"status": True, "port": granted.info.port, "info": granted.info.encrypt(owner.public_pem)}

    def _script(self, steps: str, kind: LeaseKind) -> str:
        if not steps.strip():
            return ""
        if not self._allow_dockerfile:
            raise LeaseError(Refusal.UNSUPPORTED, "this miner runs no steps of a dockerfile: run them over SSH")
        if kind is LeaseKind.PROBE:
            raise LeaseError(Refusal.UNSUPPORTED, "a probe has no time for steps of a dockerfile")
        return dockerfile.script_of(steps)

    async def _change(self, owner: Owner, wish: Mapping[str, object], days: int) -> None:
        action = _text(wish, "action", 64)
        if action == Change.EXCHANGE_KEY:
            try:
                line = KeyLine(_text(wish, "key_type", 64))
            except ValueError:
                raise LeaseError(Refusal.BAD_REQUEST, "key_type must be 'user' or 'terminal'") from None
            await self._manager.exchange_key(owner, line, check_public_line(wish.get("ssh_key")))
        elif action == Change.RESTART:
            await self._manager.restart(owner)
        elif action == Change.PAUSE:
            await self._manager.pause(owner)
        elif action in (Change.UNPAUSE, "resume"):
            await self._manager.unpause(owner)
        elif action == Change.RECEIPT and self._check_receipt is not None:
            await self._manager.carry(owner, self._receipt(wish.get("receipt"), self._check_receipt))
        elif action == Change.EXTEND and days > 0:
            await self._manager.extend(owner, days * SECONDS_PER_DAY)
        else:
            known = "exchange_key, restart, pause, unpause, resume, receipt, or extend with a timeline"
            raise LeaseError(Refusal.BAD_REQUEST, f"docker_action.action is {action!r}, not one of {known}")

    @staticmethod
    def _receipt(wire: object, check: CheckReceipt) -> Receipt:
        try:
            receipt = Receipt.from_wire(wire)
            check(receipt)
        except ReceiptError as error:
            raise LeaseError(Refusal.BAD_REQUEST, str(error)) from None
        return receipt

    def _accepted(self) -> dict[str, Any]:
        return {"status": True, "port": self._manager.ssh_port}

    def _refused(self, error: LeaseError) -> dict[str, Any]:
        output = {"status": False, "port": self._manager.ssh_port, "reason": str(error.reason), "message": str(error)}
        if error.retry_after_seconds is not None:
            output["retry_after"] = math.ceil(error.retry_after_seconds)
        return output


def _requirement(call: Allocate) -> tuple[DeviceRequirement, LeaseKind]:
    kind = LeaseKind.PROBE if wants_probe(call.device_requirement) else LeaseKind.CUSTOMER
    return DeviceRequirement.from_wire(call.device_requirement), kind


def _days(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_DAYS:
        raise LeaseError(Refusal.BAD_REQUEST, f"timeline must be a whole number of days from 0 to {MAX_DAYS}")
    return value


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise LeaseError(Refusal.BAD_REQUEST, f"{name} must be true or false")
    return value


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise LeaseError(Refusal.BAD_REQUEST, f"{name} must be a dictionary")
    return value


def _text(part: Mapping[str, object], name: str, most: int) -> str:
    value = part.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > most:
        raise LeaseError(Refusal.BAD_REQUEST, f"{name} must be text of at most {most} characters")
    return value

"""Who wants to hear of new blocks, and of the fate of a transaction."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any, Protocol

from compute.localnet.pallet.ledger import Sealed


class Session(Protocol):
    """One client's connection."""

    def send(self, message: str) -> None:
        """Send at once, without waiting; a connection that is gone is ignored."""

    def send_after_reply(self, message: str) -> None:
        """Send behind the reply to the request that is being answered."""


@dataclass(frozen=True)
class _Subscription:
    session: Session
    method: str


class Subscriptions:
    """Subscriptions by their id. Publishing waits for no client."""

    def __init__(self) -> None:
        self._heads: dict[str, _Subscription] = {}
        self._transactions: dict[str, tuple[str, _Subscription]] = {}

    def watch_heads(self, session: Session, method: str, head: dict[str, Any]) -> str:
        """Tell ``session`` of every new block, and of the newest one now."""
        identity = _new_identity()
        self._heads[identity] = _Subscription(session, method)
        session.send_after_reply(_notice(method, identity, head))
        return identity

    def watch_transaction(self, session: Session, extrinsic_hash: str) -> str:
        """Tell ``session`` what becomes of a transaction."""
        identity = _new_identity()
        self._transactions[identity] = (extrinsic_hash, _Subscription(session, "author_extrinsicUpdate"))
        return identity

    def cancel(self, identity: object) -> bool:
        """End a subscription; False if there is none of that id."""
        if not isinstance(identity, str):
            return False
        found = self._heads.pop(identity, None) or self._transactions.pop(identity, None)
        return found is not None

    def drop(self, session: Session) -> None:
        """End every subscription of a connection that is gone."""
        self._heads = {key: each for key, each in self._heads.items() if each.session is not session}
        self._transactions = {
            key: (extrinsic_hash, each)
            for key, (extrinsic_hash, each) in self._transactions.items()
            if each.session is not session
        }

    def publish(self, sealed: Sealed, header: dict[str, Any]) -> None:
        """Tell of a new block, and of the transactions that it decided."""
        for identity, subscription in self._heads.items():
            subscription.session.send(_notice(subscription.method, identity, header))
        block_hash = "0x" + sealed.block.hash.hex()
        fates: dict[str, list[Any]] = {
            extrinsic.hash: [{"inBlock": block_hash}, {"finalized": block_hash}] for extrinsic in sealed.included
        }
        fates.update((extrinsic.hash, ["invalid"]) for extrinsic in sealed.dropped)
        for identity, (extrinsic_hash, subscription) in list(self._transactions.items()):
            if extrinsic_hash in fates:
                del self._transactions[identity]
                for status in fates[extrinsic_hash]:
                    subscription.session.send(_notice(subscription.method, identity, status))


def _new_identity() -> str:
    return secrets.token_urlsafe(12)


def _notice(method: str, identity: str, result: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": {"subscription": identity, "result": result}})

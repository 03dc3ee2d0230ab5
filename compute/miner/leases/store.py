"""Leases on disk: the one truth about who has this machine. Secrets are stored encrypted only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.base.store import Database
from compute.miner.leases.states import DRAINING, HOLDING, LeaseState, may_move
from compute.miner.runtimes.base import Limits
from compute.wire.keys import SecretBox
from compute.wire.lease_terms import MAX_RETRY_AFTER_SECONDS, LeaseKind
from compute.wire.receipts import Receipt

MAX_HISTORY = 500
"""How many ended leases are kept."""

_SCHEMA = (
    """
    CREATE TABLE leases (
        lease_id TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        kind TEXT NOT NULL,
        hotkey TEXT NOT NULL,
        public_pem TEXT NOT NULL,
        request TEXT NOT NULL,
        image TEXT NOT NULL,
        limits TEXT NOT NULL,
        created_at REAL NOT NULL,
        ends_at REAL NOT NULL,
        activated_at REAL,
        port INTEGER NOT NULL DEFAULT 0,
        reason TEXT NOT NULL DEFAULT '',
        secrets BLOB
    );
    CREATE UNIQUE INDEX leases_one_holder ON leases ((1))
        WHERE state IN ('reserved', 'starting', 'active', 'paused')
    """,
    "ALTER TABLE leases ADD COLUMN receipt TEXT",
)


@dataclass(frozen=True)
class Owner:
    """Who may touch a lease: the caller's hotkey together with its RSA key in canonical PEM form."""

    hotkey: str
    public_pem: str


@dataclass(frozen=True)
class LeaseSecrets:
    """What of a lease is nobody's business. ``host_key`` is private, in OpenSSH form; the other keys are public lines.

    ``script`` is what its machine runs before it is up: a renter may well write a token into it.
    """

    host_key: str = field(repr=False)
    password: str | None = field(repr=False, default=None)
    user_key: str = ""
    terminal_key: str = ""
    script: str = field(repr=False, default="")

    @property
    def authorized_keys(self) -> tuple[str, ...]:
        """Line 1 is the user's key, line 2 the terminal's; a missing user key leaves an empty line 1."""
        if self.terminal_key:
            return (self.user_key, self.terminal_key)
        return (self.user_key,) if self.user_key else ()


@dataclass(frozen=True)
class Lease:
    """One lease; times in Unix seconds. ``request`` identifies what was asked for, so that asking again is recognised.

    ``activated_at`` is None until the machine has been up once; ``port`` is 0 until then. ``reason`` says why it ended.
    ``receipt`` is what its owner gave the miner to show to other validators.
    """

    lease_id: str
    state: LeaseState
    kind: LeaseKind
    owner: Owner
    request: str
    image: str
    limits: Limits
    created_at: float
    ends_at: float
    activated_at: float | None = None
    port: int = 0
    reason: str = ""
    receipt: Receipt | None = None


def _outranked(holder: Lease, lease: Lease) -> str | None:
    """Why ``lease`` ends ``holder``, or None where it does not."""
    if holder.kind is not LeaseKind.PROBE:
        return None
    if lease.kind is LeaseKind.CUSTOMER:
        return "a customer asked for the machine"
    return "its validator probes anew" if holder.owner.hotkey == lease.owner.hotkey else None


class LeaseStore:
    """The leases of one machine, in ``database``. Every method is one transaction, and blocks for as long."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        """
        Raises:
            StoreError: the tables cannot be made.
        """
        database.migrate("leases", _SCHEMA)
        self._database = database
        self._box = box

    def reserve(self, lease: Lease, secrets: LeaseSecrets, *, now: float) -> Lease:
        """Take the machine for ``lease`` (in state ``reserved``), or find that it is taken.

        Asking again for what the same owner already holds returns the existing lease and changes nothing. A
        customer's lease puts a probe's, and any lease past its end, into ``stopping``; so does a new probe of the same
        hotkey with the one before it: a validator that was killed in a probe has lost that probe's keys.

        Raises:
            LeaseError: ``busy``, with the seconds after which to ask again.
            StoreError: the database.
        """
        sealed = self._seal(secrets)
        with self._database.transaction() as connection:
            holder = self._holder(connection)
            if holder is not None:
                over = holder.ends_at <= now
                if not over and (holder.owner, holder.kind, holder.request) == (lease.owner, lease.kind, lease.request):
                    return holder
                reason = "its time was over" if over else _outranked(holder, lease)
                if reason is None:
                    raise busy(holder, lease.owner, now)
                self._update(connection, holder.lease_id, state=LeaseState.STOPPING.value, reason=reason)
            connection.execute(
                "INSERT INTO leases (lease_id, state, kind, hotkey, public_pem, request, image, limits, created_at,"
                " ends_at, secrets) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    lease.lease_id,
                    LeaseState.RESERVED.value,
                    lease.kind.value,
                    lease.owner.hotkey,
                    lease.owner.public_pem,
                    lease.request,
                    lease.image,
                    json.dumps(asdict(lease.limits)),
                    lease.created_at,
                    lease.ends_at,
                    sealed,
                ),
            )
        return replace(lease, state=LeaseState.RESERVED)

    def move(
        self,
        lease_id: str,
        to: LeaseState,
        *,
        reason: str | None = None,
        port: int | None = None,
        activated_at: float | None = None,
    ) -> Lease | None:
        """Move a lease on, if the table of states allows it from where it is; None, and no change, otherwise.

        A lease that becomes free forgets its secrets and joins the history, whose oldest part is dropped.

        Raises:
            StoreError: the database.
        """
        changes: dict[str, object] = {"state": to.value, "reason": reason, "port": port, "activated_at": activated_at}
        changes = {name: value for name, value in changes.items() if value is not None}
        with self._database.transaction() as connection:
            lease = self._find(connection, lease_id)
            if lease is None or not may_move(lease.state, to):
                return None
            if to is LeaseState.FREE:
                changes["secrets"] = None
            self._update(connection, lease_id, **changes)
            if to is LeaseState.FREE:
                connection.execute(
                    "DELETE FROM leases WHERE state = 'free' AND lease_id NOT IN"
                    " (SELECT lease_id FROM leases WHERE state = 'free' ORDER BY created_at DESC LIMIT ?)",
                    (MAX_HISTORY,),
                )
            return self._find(connection, lease_id)

    def set_end(self, lease_id: str, ends_at: float) -> None:
        """Give a lease another end.

        Raises:
            StoreError: the database.
        """
        with self._database.transaction() as connection:
            self._update(connection, lease_id, ends_at=ends_at)

    def set_receipt(self, lease_id: str, receipt: Receipt) -> None:
        """Keep this receipt with the lease, in the place of the one before.

        Raises:
            StoreError: the database.
        """
        with self._database.transaction() as connection:
            self._update(connection, lease_id, receipt=json.dumps(receipt.to_wire()))

    def set_secrets(self, lease_id: str, secrets: LeaseSecrets) -> None:
        """Replace a lease's connection data.

        Raises:
            StoreError: the database.
        """
        sealed = self._seal(secrets)
        with self._database.transaction() as connection:
            self._update(connection, lease_id, secrets=sealed)

    def secrets(self, lease_id: str) -> LeaseSecrets:
        """A lease's connection data.

        Raises:
            StoreError: there is none, or it was sealed with another key.
        """
        rows = self._database.query("SELECT secrets FROM leases WHERE lease_id = ?", (lease_id,))
        if not rows or rows[0]["secrets"] is None:
            raise StoreError("the lease has no connection data")
        try:
            return LeaseSecrets(**json.loads(self._box.open(rows[0]["secrets"])))
        except ValueError:
            raise StoreError("the lease's connection data does not open: was the key file replaced?") from None

    def get(self, lease_id: str) -> Lease | None:
        """One lease, ended ones included.

        Raises:
            StoreError: the database.
        """
        return next(iter(self._select("lease_id = ?", (lease_id,))), None)

    def holder(self) -> Lease | None:
        """The lease that has the machine.

        Raises:
            StoreError: the database.
        """
        return next(iter(self._select(f"state IN ({_marks(HOLDING)})", _values(HOLDING))), None)

    def live(self) -> list[Lease]:
        """The leases that have, or still have something on, the machine; oldest first.

        Raises:
            StoreError: the database.
        """
        states = HOLDING | DRAINING
        return self._select(f"state IN ({_marks(states)})", _values(states))

    def history(self) -> list[Lease]:
        """The ended leases, at most ``MAX_HISTORY``; oldest first.

        Raises:
            StoreError: the database.
        """
        return self._select("state = ?", (LeaseState.FREE.value,))

    def _select(self, where: str, parameters: Sequence[object]) -> list[Lease]:
        rows = self._database.query(f"SELECT * FROM leases WHERE {where} ORDER BY created_at", parameters)  # noqa: S608
        return [_lease(row) for row in rows]

    def _seal(self, secrets: LeaseSecrets) -> bytes:
        return self._box.seal(json.dumps(asdict(secrets)).encode())

    @staticmethod
    def _holder(connection: sqlite3.Connection) -> Lease | None:
        sql = f"SELECT * FROM leases WHERE state IN ({_marks(HOLDING)})"  # noqa: S608
        row = connection.execute(sql, _values(HOLDING)).fetchone()
        return None if row is None else _lease(row)

    @staticmethod
    def _find(connection: sqlite3.Connection, lease_id: str) -> Lease | None:
        row = connection.execute("SELECT * FROM leases WHERE lease_id = ?", (lease_id,)).fetchone()
        return None if row is None else _lease(row)

    @staticmethod
    def _update(connection: sqlite3.Connection, lease_id: str, **changes: object) -> None:
        assignments = ", ".join(f"{name} = ?" for name in changes)
        sql = f"UPDATE leases SET {assignments} WHERE lease_id = ?"  # noqa: S608 - names of our own columns
        connection.execute(sql, (*changes.values(), lease_id))


def busy(holder: Lease, asker: Owner | None, now: float) -> LeaseError:
    """The refusal to whoever asks while ``holder`` has the machine; it says no more about the end than a day."""
    text = "the machine is leased"
    if holder.owner == asker:
        text = "you hold a lease with another requirement, image or key: deallocate it first"
    left = min(max(1.0, holder.ends_at - now), MAX_RETRY_AFTER_SECONDS)
    return LeaseError(Refusal.BUSY, text, retry_after_seconds=left)


def _marks(states: frozenset[LeaseState]) -> str:
    return ", ".join("?" * len(states))


def _values(states: frozenset[LeaseState]) -> tuple[str, ...]:
    return tuple(state.value for state in states)


def _lease(row: sqlite3.Row) -> Lease:
    limits = json.loads(row["limits"])
    return Lease(
        lease_id=row["lease_id"],
        state=LeaseState(row["state"]),
        kind=LeaseKind(row["kind"]),
        owner=Owner(row["hotkey"], row["public_pem"]),
        request=row["request"],
        image=row["image"],
        limits=Limits(**{**limits, "gpu_uuids": tuple(limits["gpu_uuids"])}),
        created_at=row["created_at"],
        ends_at=row["ends_at"],
        activated_at=row["activated_at"],
        port=row["port"],
        reason=row["reason"],
        receipt=None if row["receipt"] is None else Receipt.from_wire(json.loads(row["receipt"])),
    )

"""What a renter keeps: its allocations, their secrets sealed, the penalties, and how each miner has done so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from sqlite3 import Row

from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.base.store import Database
from compute.wire.keys import LoginInfo, RenterKey, SecretBox, SessionKey
from compute.wire.lease_client import LeaseKeys
from compute.wire.peer import Peer

_SCHEMA = (
    """
    CREATE TABLE renter_grant (
        name TEXT PRIMARY KEY,
        hotkey TEXT NOT NULL,
        ip TEXT NOT NULL,
        axon_port INTEGER NOT NULL,
        state TEXT NOT NULL,
        machine TEXT NOT NULL,
        requirement TEXT NOT NULL,
        created_at REAL NOT NULL,
        ends_at REAL NOT NULL,
        username TEXT,
        ssh_port INTEGER,
        host_key TEXT,
        trusted_on_first_use INTEGER NOT NULL,
        secrets BLOB NOT NULL
    );
    CREATE TABLE renter_penalty (hotkey TEXT PRIMARY KEY, note TEXT NOT NULL, since REAL NOT NULL);
    CREATE TABLE renter_history (
        hotkey TEXT PRIMARY KEY,
        last_leased_at REAL,
        good INTEGER NOT NULL DEFAULT 0,
        bad INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE TABLE renter_receipt (host_key TEXT PRIMARY KEY, until REAL NOT NULL)",
)


class AllocationState(str, Enum):
    """Where an allocation stands as far as this side knows; the miner is the one that decides."""

    STARTING = "starting"
    ACTIVE = "active"
    PAUSED = "paused"


@dataclass(frozen=True)
class Allocation:
    """A lease that this renter holds, under its memorable name. Times are Unix seconds by this side's clock.

    ``login`` is ``None`` while it is starting. ``trusted_on_first_use``: an older miner named no host key, so the one
    in ``login`` is the one that answered first.
    """

    name: str
    peer: Peer
    state: AllocationState
    machine: str
    requirement: Mapping[str, object]
    created_at: float
    ends_at: float
    keys: LeaseKeys = field(repr=False)
    login: LoginInfo | None = None
    trusted_on_first_use: bool = False

    @property
    def hotkey(self) -> str:
        """The miner's hotkey."""
        return self.peer.hotkey

    @property
    def host_key(self) -> str | None:
        """``SHA256:…`` of the machine's SSH host key, or ``None`` while none is known."""
        return self.login.host_key if self.login is not None else None

    def require_login(self) -> LoginInfo:
        """How to log in.

        Raises:
            LeaseError: ``starting``: the miner has not said yet.
        """
        if self.login is None:
            raise LeaseError(Refusal.STARTING, f"{self.name} never came up: its allocation was cut short")
        return self.login


@dataclass(frozen=True)
class Penalty:
    """A hotkey that this renter no longer takes machines from. ``since`` is Unix seconds."""

    hotkey: str
    note: str
    since: float


@dataclass(frozen=True)
class History:
    """How a miner has served this renter so far. ``last_leased_at`` is Unix seconds."""

    last_leased_at: float | None = None
    good: int = 0
    bad: int = 0

    @property
    def reliability(self) -> float:
        """Share of leases that came up, with one good and one bad added, so that a first failure does not make it 0."""
        return (self.good + 1) / (self.good + self.bad + 2)


def make_tables(database: Database) -> None:
    """Bring the renter's tables up to date. Raises StoreError: they cannot be made."""
    database.migrate("renter", _SCHEMA)


def read_penalties(database: Database) -> list[Penalty]:
    """Every penalty, oldest first."""
    rows = database.query("SELECT * FROM renter_penalty ORDER BY since, hotkey")
    return [Penalty(hotkey=row["hotkey"], note=row["note"], since=row["since"]) for row in rows]


class RenterStore:
    """The renter's tables. Secrets are sealed with ``box`` before they are written."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        """Raises StoreError: the tables cannot be made."""
        make_tables(database)
        self._database = database
        self._box = box

    def save(self, allocation: Allocation) -> None:
        """Write or overwrite the allocation of that name.

        Raises:
            StoreError: it cannot be written.
        """
        login, keys = allocation.login, allocation.keys
        secrets = {
            "owner": keys.owner.private_pem,
            "owner_public": keys.owner.public_pem,
            "session": keys.session.private_openssh,
            "session_public": keys.session.public_line,
            "password": login and login.password,
        }
        row = (
            allocation.name,
            allocation.peer.hotkey,
            allocation.peer.ip,
            allocation.peer.port,
            allocation.state.value,
            allocation.machine,
            json.dumps(allocation.requirement),
            allocation.created_at,
            allocation.ends_at,
            login and login.username,
            login and login.port,
            allocation.host_key,
            int(allocation.trusted_on_first_use),
            self._box.seal(json.dumps(secrets).encode()),
        )
        with self._database.transaction() as connection:
            connection.execute(f"INSERT OR REPLACE INTO renter_grant VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608

    def delete(self, name: str) -> None:
        """Forget that allocation; idempotent."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM renter_grant WHERE name = ?", (name,))
            connection.execute(
                "DELETE FROM renter_receipt WHERE host_key NOT IN"
                " (SELECT host_key FROM renter_grant WHERE host_key IS NOT NULL)"
            )

    def names(self) -> set[str]:
        """The names that are taken."""
        return {str(row["name"]) for row in self._database.query("SELECT name FROM renter_grant")}

    def hotkeys(self) -> set[str]:
        """The miners that hold an allocation of ours."""
        return {str(row["hotkey"]) for row in self._database.query("SELECT hotkey FROM renter_grant")}

    def all(self) -> list[Allocation]:
        """Every allocation, oldest first.

        Raises:
            StoreError: also where the key file is not the one that sealed the secrets.
        """
        rows = self._database.query("SELECT * FROM renter_grant ORDER BY created_at, name")
        return [self._allocation(row) for row in rows]

    def find(self, name_or_hotkey: str) -> Allocation | None:
        """The allocation of that name, or on that miner."""
        rows = self._database.query(
            "SELECT * FROM renter_grant WHERE name = ? OR hotkey = ? ORDER BY name = ? DESC, created_at DESC",
            (name_or_hotkey, name_or_hotkey, name_or_hotkey),
        )
        return self._allocation(rows[0]) if rows else None

    def note_receipt(self, host_key: str, until: float) -> None:
        """Record that the miner of the lease with this host key has a receipt, good until ``until``."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO renter_receipt VALUES (?, ?)", (host_key, until))

    def receipts(self) -> dict[str, float]:
        """Until when (Unix seconds) each lease's miner has a receipt, by the lease's host key."""
        return {row["host_key"]: row["until"] for row in self._database.query("SELECT * FROM renter_receipt")}

    def penalize(self, penalty: Penalty) -> None:
        """Add or replace a penalty."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO renter_penalty VALUES (?, ?, ?)", (penalty.hotkey, penalty.note, penalty.since)
            )

    def unpenalize(self, hotkey: str) -> bool:
        """Lift a penalty; whether there was one."""
        with self._database.transaction() as connection:
            return connection.execute("DELETE FROM renter_penalty WHERE hotkey = ?", (hotkey,)).rowcount > 0

    def penalties(self) -> list[Penalty]:
        """Every penalty, oldest first."""
        return read_penalties(self._database)

    def note_outcome(self, hotkey: str, now: float, *, good: bool) -> None:
        """Record that a lease on ``hotkey`` came up, or did not."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO renter_history VALUES (?, ?, ?, ?) ON CONFLICT (hotkey) DO UPDATE SET "
                "last_leased_at = coalesce(excluded.last_leased_at, last_leased_at), "
                "good = good + excluded.good, bad = bad + excluded.bad",
                (hotkey, now if good else None, int(good), int(not good)),
            )

    def histories(self) -> dict[str, History]:
        """How each miner has done, by hotkey."""
        return {
            row["hotkey"]: History(last_leased_at=row["last_leased_at"], good=row["good"], bad=row["bad"])
            for row in self._database.query("SELECT * FROM renter_history")
        }

    def _allocation(self, row: Row) -> Allocation:
        secrets = self._open(row["name"], row["secrets"])
        login = None
        if row["username"] is not None and row["ssh_port"] is not None:
            login = LoginInfo(
                username=row["username"],
                port=row["ssh_port"],
                host_key=row["host_key"],
                password=secrets["password"],
            )
        return Allocation(
            name=row["name"],
            peer=Peer(hotkey=row["hotkey"], ip=row["ip"], port=row["axon_port"]),
            state=AllocationState(row["state"]),
            machine=row["machine"],
            requirement=json.loads(row["requirement"]),
            created_at=row["created_at"],
            ends_at=row["ends_at"],
            keys=LeaseKeys(
                owner=RenterKey(public_pem=secrets["owner_public"], private_pem=secrets["owner"]),
                session=SessionKey(public_line=secrets["session_public"], private_openssh=secrets["session"]),
            ),
            login=login,
            trusted_on_first_use=bool(row["trusted_on_first_use"]),
        )

    def _open(self, name: str, sealed: bytes) -> dict[str, str]:
        try:
            opened: dict[str, str] = json.loads(self._box.open(sealed))
        except ValueError:
            raise StoreError(
                f"the secrets of {name} do not open with this key file: put back the one they were sealed with"
            ) from None
        return opened

"""A renter's database as it stands on disks today: what is in it comes out again."""

from __future__ import annotations

import json

from compute.base.store import Database
from compute.rental.records import Allocation, AllocationState, RenterStore
from compute.wire.keys import LoginInfo, RenterKey, SecretBox, SessionKey
from compute.wire.lease_client import LeaseKeys
from compute.wire.peer import Peer

BOX = SecretBox(b"k" * 32)
KEYS = LeaseKeys(
    owner=RenterKey(public_pem="public PEM", private_pem="private PEM"),
    session=SessionKey(public_line="ssh-ed25519 AAAA", private_openssh="private key"),
)
HOST_KEY = "SHA256:" + "A" * 43


def row(name: str, *login: object, password: str | None) -> tuple[object, ...]:
    secrets = {
        "owner": "private PEM",
        "owner_public": "public PEM",
        "session": "private key",
        "session_public": "ssh-ed25519 AAAA",
        "password": password,
    }
    state = "paused" if login[0] else "starting"
    about = (name, f"hotkey of {name}", "192.0.2.7", 8091, state, "1 × L4", '{"cpu": {"count": 1}}', 5.0, 86_405.5)
    return (*about, *login, BOX.seal(json.dumps(secrets).encode()))


def test_every_column_of_todays_database_is_read_and_written_back() -> None:
    database = Database(":memory:")
    store = RenterStore(database, BOX)
    rows = [
        row("bold-hare", "root", 2222, HOST_KEY, 1, password="a password"),
        row("calm-fox", None, None, None, 0, password=None),
    ]
    with database.transaction() as connection:
        connection.executemany(f"INSERT INTO renter_grant VALUES ({', '.join('?' * 14)})", rows)
    leased, starting = store.all()
    assert leased == Allocation(
        name="bold-hare",
        peer=Peer("hotkey of bold-hare", "192.0.2.7", 8091),
        state=AllocationState.PAUSED,
        machine="1 × L4",
        requirement={"cpu": {"count": 1}},
        created_at=5.0,
        ends_at=86_405.5,
        keys=KEYS,
        login=LoginInfo(username="root", port=2222, host_key=HOST_KEY, password="a password"),
        trusted_on_first_use=True,
    )
    assert (starting.state, starting.login, starting.host_key) == (AllocationState.STARTING, None, None)
    for allocation in (leased, starting):
        store.delete(allocation.name)
        store.save(allocation)
    written = [tuple(each)[:-1] for each in database.query("SELECT * FROM renter_grant ORDER BY name")]
    assert written == [each[:-1] for each in rows]
    assert store.all() == [leased, starting]
    assert "password" not in repr(leased)
    assert "private" not in repr(leased)

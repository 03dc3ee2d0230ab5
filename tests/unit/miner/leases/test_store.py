from __future__ import annotations

import secrets as random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.base.store import Database
from compute.miner.leases import store as leases
from compute.miner.leases.states import DRAINING, HOLDING, LeaseState, may_move
from compute.miner.leases.store import Lease, LeaseSecrets, LeaseStore, Owner
from compute.miner.runtimes.base import Limits
from compute.wire.keys import SecretBox, SessionKey
from compute.wire.lease_terms import LeaseKind
from compute.wire.receipts import Receipt

ALICE, BOB = Owner("5Alice", "pem a"), Owner("5Bob", "pem b")
SECRETS = LeaseSecrets(host_key="host private", password="correct horse battery", user_key="ssh-ed25519 USER")


def lease_of(
    owner: Owner = ALICE, *, kind: LeaseKind = LeaseKind.CUSTOMER, request: str = "r", end: float = 100
) -> Lease:
    return Lease(
        lease_id=random.token_hex(16),
        state=LeaseState.RESERVED,
        kind=kind,
        owner=owner,
        request=request,
        image="ubuntu",
        limits=Limits(1, 2, 3, ("GPU-0", "GPU-1")),
        created_at=0,
        ends_at=end,
    )


@pytest.fixture
def store() -> LeaseStore:
    return LeaseStore(Database(":memory:"), SecretBox(bytes(32)))


def test_a_lease_comes_back_as_it_went_in(store: LeaseStore) -> None:
    lease = store.reserve(lease_of(), SECRETS, now=0)
    assert store.get(lease.lease_id) == store.holder() == lease
    assert store.live() == [lease]
    assert store.secrets(lease.lease_id) == SECRETS


def test_one_at_a_time(store: LeaseStore) -> None:
    store.reserve(lease_of(ALICE, end=100), SECRETS, now=0)
    with pytest.raises(LeaseError) as refused:
        store.reserve(lease_of(BOB), SECRETS, now=40)
    assert refused.value.reason is Refusal.BUSY
    assert refused.value.retry_after_seconds == 60


def test_a_stranger_learns_no_more_of_the_end_than_a_day(store: LeaseStore) -> None:
    store.reserve(lease_of(ALICE, end=1e9), SECRETS, now=0)
    with pytest.raises(LeaseError) as refused:
        store.reserve(lease_of(BOB), SECRETS, now=0)
    assert refused.value.retry_after_seconds == 86_400


def test_nobody_is_told_to_ask_again_within_a_second(store: LeaseStore) -> None:
    store.reserve(lease_of(ALICE, end=100), SECRETS, now=0)
    with pytest.raises(LeaseError) as refused:
        store.reserve(lease_of(BOB), SECRETS, now=99.5)
    assert refused.value.retry_after_seconds == 1.0


def test_what_is_told_of_a_lease_is_kept(store: LeaseStore) -> None:
    lease_id = store.reserve(lease_of(), SECRETS, now=0).lease_id
    store.move(lease_id, LeaseState.STARTING)
    up = store.move(lease_id, LeaseState.ACTIVE, port=4444, activated_at=5.0)
    assert up is not None
    assert (up.state, up.port, up.activated_at) == (LeaseState.ACTIVE, 4444, 5.0)
    receipt = Receipt("5Validator", "5Miner", "SHA256:" + "A" * 43, 4444, 1_700_000_000, "0x" + "ab" * 64)
    store.set_end(lease_id, 200.0)
    store.set_receipt(lease_id, receipt)
    store.set_secrets(lease_id, replace(SECRETS, terminal_key="ssh-ed25519 TERMINAL"))
    assert store.holder() == replace(up, ends_at=200.0, receipt=receipt)
    assert store.secrets(lease_id) == replace(SECRETS, terminal_key="ssh-ed25519 TERMINAL")
    # A later move leaves what it does not name.
    assert store.move(lease_id, LeaseState.PAUSED) == replace(
        up, state=LeaseState.PAUSED, ends_at=200.0, receipt=receipt
    )


def test_an_unknown_lease_has_no_connection_data(store: LeaseStore) -> None:
    assert store.get("unknown") is None
    with pytest.raises(StoreError, match="no connection data"):
        store.secrets("unknown")


def test_asking_again_gives_the_same_lease(store: LeaseStore) -> None:
    first = store.reserve(lease_of(), SECRETS, now=0)
    assert store.reserve(lease_of(end=500), replace(SECRETS, password="other"), now=1) == first
    assert store.secrets(first.lease_id) == SECRETS


@pytest.mark.parametrize(
    "other",
    [lease_of(request="other"), lease_of(Owner("5Alice", "pem b")), lease_of(Owner("5Bob", "pem a"))],
    ids=["request", "key", "hotkey"],
)
def test_anything_else_is_another_request(store: LeaseStore, other: Lease) -> None:
    store.reserve(lease_of(), SECRETS, now=0)
    with pytest.raises(LeaseError):
        store.reserve(other, SECRETS, now=0)


def test_a_customer_ends_a_probe_even_its_own(store: LeaseStore) -> None:
    for owner in (ALICE, BOB):
        probe = store.reserve(lease_of(ALICE, kind=LeaseKind.PROBE), SECRETS, now=0)
        customer = store.reserve(lease_of(owner), SECRETS, now=0)
        assert store.holder() == customer
        ended = store.get(probe.lease_id)
        assert ended is not None
        assert (ended.state, ended.reason) == (LeaseState.STOPPING, "a customer asked for the machine")
        store.move(customer.lease_id, LeaseState.STOPPING)


@pytest.mark.parametrize("holder", LeaseKind)
def test_a_probe_ends_nothing_of_others(store: LeaseStore, holder: LeaseKind) -> None:
    store.reserve(lease_of(ALICE, kind=holder), SECRETS, now=0)
    with pytest.raises(LeaseError, match="leased"):
        store.reserve(lease_of(BOB, kind=LeaseKind.PROBE), SECRETS, now=0)


def test_a_probe_replaces_the_one_before_it_of_the_same_hotkey(store: LeaseStore) -> None:
    lost = store.reserve(
        lease_of(Owner("5Alice", "key of a process that was killed"), kind=LeaseKind.PROBE), SECRETS, now=0
    )
    probe = store.reserve(lease_of(ALICE, kind=LeaseKind.PROBE), SECRETS, now=0)
    assert store.holder() == probe
    ended = store.get(lost.lease_id)
    assert ended is not None
    assert (ended.state, ended.reason) == (LeaseState.STOPPING, "its validator probes anew")


def test_a_probe_never_ends_its_own_customers_lease(store: LeaseStore) -> None:
    store.reserve(lease_of(ALICE), SECRETS, now=0)
    with pytest.raises(LeaseError, match="deallocate it first"):
        store.reserve(lease_of(ALICE, kind=LeaseKind.PROBE), SECRETS, now=0)


def test_a_lease_past_its_end_holds_nobody_up(store: LeaseStore) -> None:
    old = store.reserve(lease_of(ALICE, end=100), SECRETS, now=0)
    new = store.reserve(lease_of(ALICE, end=300), SECRETS, now=100)
    assert new.lease_id != old.lease_id
    assert [lease.state for lease in store.live()] == [LeaseState.STOPPING, LeaseState.RESERVED]


def test_moves_outside_the_table_change_nothing(store: LeaseStore) -> None:
    lease = store.reserve(lease_of(), SECRETS, now=0)
    assert store.move(lease.lease_id, LeaseState.PAUSED, reason="no") is None
    assert store.move("unknown", LeaseState.STOPPING) is None
    assert store.get(lease.lease_id) == lease


def test_a_freed_lease_forgets_its_secrets_and_keeps_its_reason(store: LeaseStore) -> None:
    lease = store.reserve(lease_of(), SECRETS, now=0)
    store.move(lease.lease_id, LeaseState.FAILED, reason="no disk")
    store.move(lease.lease_id, LeaseState.STOPPING)
    assert store.secrets(lease.lease_id) == SECRETS
    freed = store.move(lease.lease_id, LeaseState.FREE)
    assert freed is not None
    assert freed.reason == "no disk"
    assert store.history() == [freed]
    assert store.live() == []
    with pytest.raises(StoreError, match="no connection data"):
        store.secrets(lease.lease_id)


def test_the_history_is_bounded(store: LeaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MAX_HISTORY", 3)
    ids = []
    for moment in range(5):
        lease = store.reserve(replace(lease_of(), created_at=float(moment)), SECRETS, now=0)
        ids.append(lease.lease_id)
        store.move(lease.lease_id, LeaseState.STOPPING)
        store.move(lease.lease_id, LeaseState.FREE)
    assert [lease.lease_id for lease in store.history()] == ids[-3:]


def test_no_secret_is_on_the_disk_in_clear(tmp_path: Path) -> None:
    database = Database(tmp_path / "miner.db")
    key = SessionKey.generate()
    secrets = LeaseSecrets(host_key=key.private_openssh, password="correct horse battery")
    LeaseStore(database, SecretBox(bytes(32))).reserve(lease_of(), secrets, now=0)
    database.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"5Alice" in content
    assert b"correct horse" not in content
    assert b"OPENSSH PRIVATE" not in content
    assert "correct" not in repr(secrets)
    assert "OPENSSH" not in repr(secrets)


def test_another_key_file_opens_no_secrets() -> None:
    database = Database(":memory:")
    lease = LeaseStore(database, SecretBox(bytes(32))).reserve(lease_of(), SECRETS, now=0)
    with pytest.raises(StoreError, match="key file"):
        LeaseStore(database, SecretBox(b"x" * 32)).secrets(lease.lease_id)


@pytest.mark.parametrize(
    ("user", "terminal", "lines"),
    [("", "", ()), ("u", "", ("u",)), ("u", "t", ("u", "t")), ("", "t", ("", "t"))],
)
def test_line_one_is_the_users_line_two_the_terminals(user: str, terminal: str, lines: tuple[str, ...]) -> None:
    assert LeaseSecrets("h", None, user, terminal).authorized_keys == lines


class Store(RuleBasedStateMachine):
    """Whatever is asked in whatever order, the table of states and the rule of one holder are kept."""

    ids: Bundle[str] = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(":memory:")
        self.store = LeaseStore(self.database, SecretBox(bytes(32)))
        self.states: dict[str, LeaseState] = {}

    @rule(
        target=ids,
        owner=st.sampled_from([ALICE, BOB]),
        kind=st.sampled_from(LeaseKind),
        end=st.integers(0, 20),
        now=st.integers(0, 20),
    )
    def reserve(self, owner: Owner, kind: LeaseKind, end: int, now: int) -> str:
        wanted = lease_of(owner, kind=kind, end=end)
        before = self.store.holder()
        try:
            got = self.store.reserve(wanted, SECRETS, now=now)
        except LeaseError:
            assert before is not None
            assert before.ends_at > now
            return before.lease_id
        if before is not None and got.lease_id != before.lease_id:
            assert before.ends_at <= now or (before.kind, kind) == (LeaseKind.PROBE, LeaseKind.CUSTOMER)
            self.states[before.lease_id] = LeaseState.STOPPING
        self.states.setdefault(got.lease_id, LeaseState.RESERVED)
        return got.lease_id

    @rule(lease_id=ids, to=st.sampled_from([state for state in LeaseState if state is not LeaseState.RESERVED]))
    def move(self, lease_id: str, to: LeaseState) -> None:
        allowed = may_move(self.states[lease_id], to)
        assert (self.store.move(lease_id, to) is not None) == allowed
        if allowed:
            self.states[lease_id] = to

    @invariant()
    def one_holder_and_the_truth(self) -> None:
        assert sum(state in HOLDING for state in self.states.values()) <= 1
        live = {lease.lease_id: lease.state for lease in self.store.live()}
        assert live == {key: state for key, state in self.states.items() if state in HOLDING | DRAINING}

    def teardown(self) -> None:
        self.database.close()


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=20)

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from compute.base.errors import StoreError
from compute.localnet.pallet.ledger import Ledger
from compute.localnet.pallet.state import Hyperparameters
from compute.localnet.pallet.store import Store
from compute.localnet.substrate.codec import Codec
from compute.testing.clock import ManualClock


def _open(path: Path, codec: Codec) -> tuple[Ledger, Store]:
    store = Store(path)
    settings = Hyperparameters(tempo=4, weights_rate_limit=0, stake_threshold=0)
    return Ledger(store, codec, ManualClock(), netuid=27, settings=settings), store


@pytest.fixture
def lived(tmp_path: Path, chain, codec: Codec):
    """A chain on disk with neurons, stakes, weights, bonds, an axon and a commit, and its store, still open."""
    ledger, store = _open(tmp_path / "chain.db", codec)
    chain.ledger = ledger
    chain.register(chain.alice, chain.bob)
    chain.stake(chain.alice)
    axon = {"version": 200, "ip": 2**127, "port": 1, "ip_type": 6, "protocol": 4, "placeholder1": 0, "placeholder2": 0}
    assert chain.run(chain.bob, "serve_axon", netuid=27, **axon) is None
    assert chain.run(chain.alice, "set_weights", netuid=27, dests=[1], weights=[5], version_key=0) is None
    chain.seal(5)
    chain.set(commit_reveal_weights_enabled=True)
    commit = {"mecid": 0, "commit": b"\xff\x00", "reveal_round": 2**63, "commit_reveal_version": 4}
    assert chain.run(chain.alice, "commit_timelocked_mechanism_weights", netuid=27, **commit) is None
    return chain, store


def test_a_reopened_chain_is_the_same_chain(lived, tmp_path: Path, codec: Codec) -> None:
    chain, store = lived
    before = chain.ledger
    assert chain.subnet.neurons[0].bonds
    assert chain.subnet.commits
    store.close()
    after, reopened = _open(tmp_path / "chain.db", codec)
    assert after.genesis == before.genesis
    assert after.head == before.head
    assert after.head_state == before.head_state
    assert [after.block(number) for number in range(after.head.number + 1)] == [
        before.block(number) for number in range(before.head.number + 1)
    ]
    after.seal()
    assert after.head.parent_hash == before.head.hash
    reopened.close()


def test_only_what_changed_is_written(lived, tmp_path: Path) -> None:
    chain, store = lived
    watcher = sqlite3.connect(tmp_path / "chain.db")

    def rows() -> dict[str, int]:
        return dict(watcher.execute("SELECT path, rowid FROM localnet_state"))

    before = rows()
    chain.seal()
    after = rows()
    watcher.close()
    store.close()
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed <= {"head", "subnet/27"}  # the burn falls
    assert "head" in changed


def test_a_block_that_cannot_be_saved_did_not_happen(lived, tmp_path: Path, codec: Codec) -> None:
    chain, store = lived
    head = chain.ledger.head
    store.close()
    with pytest.raises(StoreError):
        chain.ledger.seal()
    assert chain.ledger.head == head
    after, reopened = _open(tmp_path / "chain.db", codec)
    assert after.head == head
    reopened.close()


def test_a_file_has_one_node_at_a_time(tmp_path: Path, codec: Codec) -> None:
    _, store = _open(tmp_path / "chain.db", codec)
    with pytest.raises(StoreError, match="another node has"):
        Store(tmp_path / "chain.db")
    store.close()
    store.close()
    Store(tmp_path / "chain.db").close()


def test_old_blocks_leave_the_file_and_the_first_stays(tmp_path: Path, codec: Codec, monkeypatch) -> None:
    monkeypatch.setattr("compute.localnet.pallet.ledger.BLOCK_HASH_COUNT", 3)
    ledger, store = _open(tmp_path / "chain.db", codec)
    for _ in range(8):
        ledger.seal()
    store.close()
    after, reopened = _open(tmp_path / "chain.db", codec)
    assert [number for number in range(9) if after.block(number)] == [0, 5, 6, 7, 8]
    reopened.close()


def test_memory_needs_no_file(codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    assert store.load() is None
    store.close()
    assert list(tmp_path.iterdir()) == []

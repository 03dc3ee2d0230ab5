"""The chain on disk: a restarted node goes on with it, and a killed one loses at most the block in the making.

The state is kept as one JSON record for each account, neuron and the like; a block writes those that it changed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compute.base.errors import StoreError
from compute.base.store import Database
from compute.localnet.pallet.state import Account, Axon, Commit, Hyperparameters, Neuron, Prometheus, State, Subnet

_SCHEMA = (
    """
    CREATE TABLE localnet_blocks (
        number INTEGER PRIMARY KEY,
        hash BLOB NOT NULL,
        parent_hash BLOB NOT NULL,
        state_root BLOB NOT NULL,
        extrinsics_root BLOB NOT NULL,
        extrinsics TEXT NOT NULL
    );
    CREATE TABLE localnet_state (path TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
)


@dataclass(frozen=True)
class Block:
    """A block's header and its extrinsics. The roots are no Merkle roots: there is nothing here to prove."""

    number: int
    hash: bytes
    parent_hash: bytes
    state_root: bytes
    extrinsics_root: bytes
    extrinsics: tuple[bytes, ...]


class Store:
    """Blocks and the newest state, in an SQLite file, or in memory only. One node at a time may have the file open."""

    def __init__(self, path: str | Path | None) -> None:
        """Open ``path``, creating it where needed; None keeps everything in memory.

        Raises:
            StoreError: the file cannot be opened, or another node has it open.
        """
        self._lock = None if path is None else _lock(Path(path))
        self._database = Database(":memory:" if path is None else path)
        self._database.migrate("localnet", _SCHEMA)
        self._saved: dict[str, Any] = {}

    def load(self) -> tuple[list[Block], State] | None:
        """The blocks, oldest first, and the state after the last one; None for a new store.

        Raises:
            StoreError: the file cannot be read.
        """
        rows = self._database.query("SELECT * FROM localnet_blocks ORDER BY number")
        if not rows:
            return None
        blocks = [
            Block(
                row["number"],
                row["hash"],
                row["parent_hash"],
                row["state_root"],
                row["extrinsics_root"],
                tuple(bytes.fromhex(extrinsic) for extrinsic in json.loads(row["extrinsics"])),
            )
            for row in rows
        ]
        records = {
            row["path"]: json.loads(row["value"]) for row in self._database.query("SELECT * FROM localnet_state")
        }
        state = _state_from(records)
        self._saved = _records_of(state)
        return blocks, state

    def save(self, block: Block, state: State, *, forget_before: int) -> None:
        """Add a block and the state after it, and forget the blocks before a number, but for the first of all.

        Raises:
            StoreError: the file cannot be written; then nothing is.
        """
        records = _records_of(state)
        changed = {
            path: value
            for path, value in records.items()
            if self._saved.get(path) is not value and self._saved.get(path) != value
        }
        gone = self._saved.keys() - records.keys()
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO localnet_blocks VALUES (?, ?, ?, ?, ?, ?)",
                (
                    block.number,
                    block.hash,
                    block.parent_hash,
                    block.state_root,
                    block.extrinsics_root,
                    json.dumps([extrinsic.hex() for extrinsic in block.extrinsics]),
                ),
            )
            connection.execute("DELETE FROM localnet_blocks WHERE number > 0 AND number < ?", (forget_before,))
            connection.executemany(
                "INSERT OR REPLACE INTO localnet_state VALUES (?, ?)",
                [(path, _to_json(value)) for path, value in changed.items()],
            )
            connection.executemany("DELETE FROM localnet_state WHERE path = ?", [(path,) for path in gone])
        self._saved = records

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StoreError(f"cannot open {path}.lock: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"another node has {path} open: stop it, or give this one a --state of its own") from error
    return descriptor


def _records_of(state: State) -> dict[str, Any]:
    """The state in parts, such that a part that a block does not touch is the same object before and after."""
    records: dict[str, Any] = {
        "head": {
            "number": state.number,
            "timestamp_milliseconds": state.timestamp_milliseconds,
            "events": state.events,
        }
    }
    records.update((f"account/{address}", account) for address, account in state.accounts.items())
    records.update((f"owner/{hotkey}", coldkey) for hotkey, coldkey in state.owners.items())
    for netuid, subnet in state.subnets.items():
        records[f"subnet/{netuid}"] = replace(subnet, neurons=(), stakes={})
        records.update((f"neuron/{netuid}/{uid}", neuron) for uid, neuron in enumerate(subnet.neurons))
        records.update((f"stake/{netuid}/{hotkey}", stakes) for hotkey, stakes in subnet.stakes.items())
    return records


def _state_from(records: Mapping[str, Any]) -> State:
    neurons: dict[int, dict[int, Neuron]] = {}
    stakes: dict[int, dict[str, dict[str, int]]] = {}
    accounts, owners, subnets = {}, {}, {}
    for path, value in records.items():
        kind, *keys = path.split("/")
        if kind == "account":
            accounts[keys[0]] = Account(**value)
        elif kind == "owner":
            owners[keys[0]] = value
        elif kind == "neuron":
            neurons.setdefault(int(keys[0]), {})[int(keys[1])] = _neuron_from(value)
        elif kind == "stake":
            stakes.setdefault(int(keys[0]), {})[keys[1]] = value
        elif kind == "subnet":
            subnets[int(keys[0])] = _subnet_from(value)
    for netuid, subnet in subnets.items():
        by_uid = neurons.get(netuid, {})
        subnets[netuid] = replace(
            subnet, neurons=tuple(by_uid[uid] for uid in sorted(by_uid)), stakes=stakes.get(netuid, {})
        )
    head = {**records["head"], "events": tuple(records["head"]["events"])}
    return State(**head, accounts=accounts, owners=owners, subnets=subnets)


def _subnet_from(value: Mapping[str, Any]) -> Subnet:
    commits = tuple(
        Commit(**{**commit, "ciphertext": bytes.fromhex(commit["ciphertext"])}) for commit in value["commits"]
    )
    settings = Hyperparameters(**value["hyperparameters"])
    return Subnet(**{**value, "hyperparameters": settings, "commits": commits, "neurons": ()})


def _neuron_from(value: Mapping[str, Any]) -> Neuron:
    parts = {
        "axon": Axon(**value["axon"]),
        "prometheus": Prometheus(**value["prometheus"]),
        "weights": tuple((uid, weight) for uid, weight in value["weights"]),
        "bonds": tuple((uid, bond) for uid, bond in value["bonds"]),
    }
    return Neuron(**{**value, **parts})


def _to_json(value: Any) -> str:
    if isinstance(value, (Account, Neuron, Subnet)):
        value = asdict(value)
    return json.dumps(value, default=bytes.hex)

"""No secret of a whole run, wherever it went: files, databases, output, command lines. Then one is planted in each."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import bittensor
import pytest

from compute.base import ssh
from compute.base.errors import CallError
from compute.base.store import Database
from compute.demo.cast import Actor, Kind
from compute.demo.stage import NETUID, VALIDATOR, Stage
from compute.localnet.newcomer import make_wallet, register
from compute.miner.leases.store import LeaseStore
from compute.protocol import Allocate
from compute.rental.records import RenterStore
from compute.testing.rates import easy_config
from compute.wire.client import DendriteCaller
from compute.wire.keys import RenterKey, SecretBox
from compute.wire.peer import Peer
from tests.waiting import DEADLINE_SECONDS, until_async

pytestmark = [pytest.mark.e2e, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
MINER = Actor("miner", Kind.HONEST)
ELDER = "elder"
_ANY_OPENSSH_KEY = base64.b64encode(b"openssh-key-v1\0")[:-4]


@dataclass(frozen=True)
class Secret:
    """What must be nowhere, in every form that one would recognise; ``home`` is the one file that is made for it."""

    name: str
    forms: tuple[bytes, ...]
    home: Path | None = None

    @classmethod
    def text(cls, name: str, text: str, home: Path | None = None) -> Secret:
        """A password or a phrase; of a PEM file, each of its lines: whatever quotes it may break it at their ends."""
        lines = [line for line in text.splitlines() if line and not line.startswith("-----")]
        # A short last line may be anywhere.
        return cls(name, tuple(line.encode() for line in lines if len(line) >= 12 or len(lines) == 1), home)

    @classmethod
    def raw(cls, name: str, key: bytes, home: Path | None = None) -> Secret:
        """A key of bytes."""
        return cls(name, (key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)[:-4]), home)

    def is_in(self, content: bytes) -> bool:
        return any(form in content for form in self.forms)


@dataclass
class Search:
    """Everything that a run leaves, and everything that it must not leave there."""

    folder: Path
    secrets: list[Secret] = field(default_factory=list)
    outputs: dict[str, bytes] = field(default_factory=dict)
    command_lines: set[bytes] = field(default_factory=set)

    def findings(self) -> list[str]:
        """Each secret that is where it should not be, as ``NAME in PLACE``."""
        found = []
        for place, path, content in self._places():
            found += [
                f"{secret.name} in {place}"
                for secret in self.secrets
                if (path is None or path != secret.home) and secret.is_in(content)
            ]
        return found

    def places(self) -> set[str]:
        return {place for place, _, _ in self._places()}

    def _places(self) -> Iterator[tuple[str, Path | None, bytes]]:
        # Of what goes while it is looked at, os.walk says nothing.
        paths = sorted(Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names)
        for path in paths:
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    yield str(path.relative_to(self.folder)), path, path.read_bytes()
        for path in (path for path in paths if path.suffix == ".db"):
            for table, rows in _tables(path):
                yield f"{path.relative_to(self.folder)}, table {table}", None, rows
        for name, output in self.outputs.items():
            yield f"the output of {name}", None, output
        yield "the command lines", None, b"\n".join(self.command_lines)

    @contextlib.contextmanager
    def watching_processes(self) -> Iterator[None]:
        """Remember the command line of every process that is there for a twentieth of a second."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    with contextlib.suppress(OSError):
                        self.command_lines.add(path.read_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _tables(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each table of a database as the values of all its rows, what is only in the -wal file included."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()
            cells = [cell if isinstance(cell, bytes) else str(cell).encode() for row in rows for cell in row]
            yield table, b"\n".join(cells)


class Run:
    """A chain, a miner, a validator with all its keys and URLs, a renter, and a validator of an older release."""

    def __init__(self, folder: Path, search: Search) -> None:
        self.search = search
        self.stage = Stage(folder, [MINER], block_seconds=0.25)

    async def begin(self) -> None:
        stage = self.stage
        stage.config_path.write_text(easy_config(), encoding="utf-8")
        stage.start_chain()
        for name in (VALIDATOR, MINER.name):
            stage.register(name)
        wallet = stage.wallets[ELDER] = make_wallet(ELDER, "default", str(stage.folder / "wallets"))
        register(stage.node.endpoint, NETUID, wallet, stake_alpha=10_000)
        for name in stage.wallets:
            for path in (stage.folder / "wallets" / name).rglob("*"):
                if path.is_file() and not path.name.endswith("pub.txt"):
                    self._wallet_file(path)
        stage.start_miner(MINER)
        stage.start_validator()

    def _wallet_file(self, path: Path) -> None:
        content = json.loads(path.read_text())
        name = "/".join(path.parts[-2:])
        self.search.secrets.append(Secret.text(f"mnemonic of {name}", content["secretPhrase"], path))
        for key in ("secretSeed", "privateKey"):
            self.search.secrets.append(Secret.raw(f"{key} of {name}", bytes.fromhex(content[key][2:]), path))

    def key_file(self, path: Path) -> SecretBox:
        if not any(secret.home == path for secret in self.search.secrets):
            self.search.secrets.append(Secret.raw(path.name, path.read_bytes(), path))
        return SecretBox.from_key_file(path)

    def note_renter(self, when: str) -> None:
        """The keys of the renter's allocation, as its own database has them now."""
        path = self.stage.database_path(VALIDATOR)
        with _opened(path) as database:
            (record,) = RenterStore(database, self.key_file(path.with_name(path.name + ".key"))).all()
        self.search.secrets += [
            Secret.text(f"login key {when}", record.keys.session.private_openssh),
            Secret.text(f"RSA key {when}", record.keys.owner.private_pem),
        ]

    def note_lease(self, when: str) -> str | None:
        """The secrets of the miner's lease; returns its password."""
        path = self.stage.database_path(MINER.name)
        with _opened(path) as database:
            store = LeaseStore(database, self.key_file(path.with_suffix(".data") / "lease.key"))
            lease = store.holder()
            assert lease is not None
            lease_secrets = store.secrets(lease.lease_id)
        self.search.secrets.append(Secret.text(f"host key of {when}", lease_secrets.host_key))
        return lease_secrets.password

    async def register_py(self, *words: str) -> str:
        stage = self.stage
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "neurons" / "register.py"), words[0]),
            *("--subtensor.chain_endpoint", stage.node.endpoint, "--database", str(stage.database_path(VALIDATOR))),
            *("--wallet.path", str(stage.folder / "wallets"), "--wallet.name", VALIDATOR),
            *words[1:],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
        name = f"register.py {' '.join(words)}"
        self.search.outputs[name] = stdout + stderr
        assert process.returncode == 0, f"{name}: {stderr.decode()}"
        return stdout.decode()

    async def probe_by_password(self) -> None:
        """What a validator of an older release does: no signature of the body, no SSH key, a login by password."""
        owner = RenterKey.generate()
        self.search.secrets.append(Secret.text("RSA key of the older peer", owner.private_pem))
        request = Allocate(
            timeline=1,
            checking=False,
            public_key=owner.public_pem,
            device_requirement={"gpu": {"count": 1}, "testing": True},
        )
        async with self._elder() as ask:
            output: dict[str, Any] = {}

            async def granted() -> bool:
                output.update(await ask(request))
                return output["status"] is True

            await until_async(granted, "a lease of the older peer", pause_seconds=0.2)
            info = json.loads(owner.decrypt(base64.b64decode(output["info"])))
            assert info["password"] == self.note_lease("the older peer's lease")
            self.search.secrets.append(Secret.text("password of the older peer", info["password"]))
            async with ssh.connect(
                self.stage.addresses[MINER.name],
                info["port"],
                username=info["username"],
                pinned=None,
                password=info["password"],
            ) as session:
                assert (await session.run("echo hello; env")).stdout.startswith(b"hello")
            assert (await ask(Allocate(timeline=0, checking=False, public_key=owner.public_pem)))["status"] is True

    @contextlib.asynccontextmanager
    async def _elder(self) -> AsyncIterator[Callable[[Allocate], Awaitable[dict[str, Any]]]]:
        hotkey = self.stage.hotkey(MINER.name)
        with bittensor.Subtensor(network=self.stage.node.endpoint) as subtensor:

            async def serving() -> bool:
                return bool(subtensor.get_neuron_for_pubkey_and_subnet(hotkey, NETUID).axon_info.port)

            await until_async(serving, "the miner's axon is on the chain", pause_seconds=0.2)
            port = subtensor.get_neuron_for_pubkey_and_subnet(hotkey, NETUID).axon_info.port
        peer = Peer(hotkey, self.stage.addresses[MINER.name], port)
        async with DendriteCaller(self.stage.wallets[ELDER].hotkey) as caller:
            dendrite: Any = caller._dendrite
            dendrite.preprocess_synapse_for_request = partial(
                bittensor.Dendrite.preprocess_synapse_for_request, dendrite
            )

            async def ask(request: Allocate) -> dict[str, Any]:
                try:
                    answer = await caller.call(peer, request, timeout_seconds=30)
                except CallError as error:
                    # Not registered for the miner yet, or without a permit.
                    return {"status": False, "message": str(error)}
                assert not answer.body_signature
                return dict(answer.output)

            yield ask


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Database]:
    database = Database(path)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def receiver() -> Iterator[list[str]]:
    """A receiver of notices; the first entry is its address, with a secret path."""
    received: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        received.append(f"http://127.0.0.1:{server.server_port}/{secrets.token_hex(16)}")
        yield received
        server.shutdown()
        thread.join()


@pytest.fixture
def search(tmp_path: Path, receiver: list[str], monkeypatch: pytest.MonkeyPatch) -> Search:
    """The search, after the operator has told the processes their secrets and where to leave what they leave."""
    api_key = secrets.token_hex(20)
    variables = {
        "WANDB_API_KEY": api_key,
        "WANDB_MODE": "offline",
        "DEALLOCATION_NOTIFY_URL": receiver[0],
        "STATUS_NOTIFY_URL": receiver[0],
        "PYTHONPATH": str(ROOT),
    }
    for name in ("TMPDIR", "HOME"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        variables[name] = str(folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    known = [Secret.text("API key", api_key), Secret.text("address of notices", receiver[0].rpartition("/")[2])]
    # Of the keys that a validator makes for its own probes, only that they are keys can be known here.
    return Search(tmp_path, [*known, Secret("a private key", (_ANY_OPENSSH_KEY, b"PRIVATE KEY-----"))])


async def test_no_secret_is_left_anywhere(search: Search, receiver: list[str]) -> None:
    folder = search.folder / "run"
    folder.mkdir()
    run = Run(folder, search)
    try:
        with search.watching_processes():
            await run.begin()
            await run.probe_by_password()
            await run.register_py("allocate", "--name", "mine", "--days", "1")
            run.note_renter("of the allocation")
            assert run.note_lease("the allocation") is None
            await run.register_py("exec", "mine", "--", "env")
            await run.register_py("exchange-key", "mine")
            run.note_renter("after the exchange")
            await run.register_py("exec", "mine", "--", "id")
            for words in (("list", "--json"), ("show", "mine", "--json"), ("restart", "mine", "--yes"), ("offers",)):
                await run.register_py(*words)
            assert search.findings() == []
            await run.register_py("deallocate", "mine", "--yes")

            await until_async(lambda: len(receiver) > 1, "the end of the rental is told", pause_seconds=0.2)
        search.outputs["the notices"] = "\n".join(receiver[1:]).encode()
        assert search.findings() == []
        _see_that_it_finds(search, folder)
    finally:
        run.stage.close()
    assert {"run/miner.log", "run/validator.log", "run/chain.db", "run/miner.db-wal"} <= search.places() | {
        "run/miner.db-wal"
    }
    assert any(place.startswith("run/validator.data/wandb/") for place in search.places())


def _see_that_it_finds(search: Search, folder: Path) -> None:
    """The same search, with each of its secrets planted in each kind of place."""
    for secret in search.secrets:
        planted = secret.forms[-1]
        log = folder / "miner.log"
        before = log.read_bytes()
        log.write_bytes(before + b'{"message": "' + planted + b'\\n"}\n')
        with contextlib.closing(sqlite3.connect(folder / "planted.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE leak (value BLOB)")
            connection.execute("INSERT INTO leak VALUES (?)", (planted,))
            connection.commit()
            found = set(search.findings())
        log.write_bytes(before)
        for path in folder.glob("planted.db*"):
            path.unlink()
        expected = {f"{secret.name} in {place}" for place in ("run/miner.log", "run/planted.db, table leak")}
        assert expected <= found, f"{secret.name} was planted, and found were {found}"
    phrase = next(secret for secret in search.secrets if secret.name.startswith("mnemonic"))
    with search.watching_processes():
        argument = phrase.forms[0].decode()
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)", argument], check=True)
    assert search.findings() == [f"{phrase.name} in the command lines"]

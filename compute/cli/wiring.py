"""The real things behind ``register.py``: wallet, chain, transport, database. None is opened before it is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from compute.base.clock import Clock, SystemClock
from compute.base.process import load_wallet
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.subtensor import Metagraph, SubtensorChain
from compute.cli.parser import RenterOptions
from compute.incentive.config import load_config
from compute.rental.records import RenterStore
from compute.rental.remote import SshRemote
from compute.rental.selection import Proven
from compute.rental.service import RenterService
from compute.validator.store import FactStore
from compute.wire.answers import SignedAnswers
from compute.wire.client import DendriteCaller
from compute.wire.keys import SecretBox
from compute.wire.peer import Peer, S
from compute.wire.receipts import Issuer
from compute.wire.signing import SignerMemory, verify_signature


class _Network:
    """Wallet, chain and transport, opened at the first use: listing one's allocations needs none of them."""

    def __init__(self, options: RenterOptions) -> None:
        self._options = options
        self._opened: tuple[SubtensorChain, DendriteCaller] | None = None

    async def metagraph(self) -> Metagraph:
        chain, _ = self._open()
        return await chain.metagraph()

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        _, caller = self._open()
        return await caller.call(peer, synapse, timeout_seconds=timeout_seconds)

    def issuer(self, clock: Clock) -> Issuer:
        hotkey = load_wallet(self._options.wallet).hotkey
        return Issuer(hotkey, str(hotkey.ss58_address), self._options.netuid, clock)

    async def close(self) -> None:
        if self._opened is not None:
            chain, caller = self._opened
            await caller.close()
            await chain.close()

    def _open(self) -> tuple[SubtensorChain, DendriteCaller]:
        if self._opened is None:
            wallet = load_wallet(self._options.wallet)
            chain = SubtensorChain(self._options.subtensor.endpoint, self._options.netuid, wallet)
            self._opened = (chain, DendriteCaller(wallet.hotkey))
        return self._opened


@asynccontextmanager
async def open_service(options: RenterOptions) -> AsyncIterator[RenterService]:
    """The service for one command line; closes everything at the end.

    Raises:
        ConfigError: config.yaml is wrong; later, the wallet cannot be opened.
        StoreError: the database or the key file cannot be used.
    """
    config = load_config(options.config_file)
    clock = SystemClock()
    database = Database(options.database)
    network = _Network(options)
    try:
        facts = FactStore(database)
        yield RenterService(
            metagraph=network.metagraph,
            caller=network,
            store=RenterStore(database, SecretBox.from_key_file(options.key_file)),
            remote=SshRemote(),
            clock=clock,
            gpu_scores=config.scores,
            proofs=lambda: _proofs(facts),
            signatures=SignedAnswers(verify_signature, SignerMemory(database), clock),
            issuer=lambda: network.issuer(clock),
        )
    finally:
        await network.close()
        database.close()


def _proofs(facts: FactStore) -> dict[str, Proven]:
    """What a validator that shares this database has proven last, by hotkey."""
    latest = {hotkey: history.latest for hotkey, history in facts.histories().items()}
    return {
        hotkey: Proven(verdict.gpu, verdict.count)
        for hotkey, verdict in latest.items()
        if verdict is not None and verdict.reason is ProofReason.OK and verdict.gpu is not None
    }

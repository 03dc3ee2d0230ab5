"""The miner's gate in front of a real axon: who is answered, how often, and how much may be sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import bittensor
import pytest

from compute.base.errors import CallError
from compute.chain.access_lists import AccessLists
from compute.chain.subtensor import Metagraph
from compute.miner.access import AccessPolicy
from compute.miner.gate import MinerGate
from compute.protocol import Specs
from compute.testing.chain import FakeChain
from compute.testing.clock import ManualClock
from compute.wire.client import DendriteCaller
from compute.wire.peer import Peer
from compute.wire.server import MAX_BODY_BYTES, AxonServer, RequestContext
from tests.waiting import DEADLINE_SECONDS

IP = "127.0.0.2"
NAMES = ("validator", "poor", "unpermitted", "old", "black", "of-black", "white", "stranger")
KEYS = {name: bittensor.Keypair.create_from_uri(f"//{name}") for name in NAMES}


class KeyWallet:
    """The two attributes of a wallet that an Axon reads."""

    def __init__(self, uri: str) -> None:
        self.hotkey = bittensor.Keypair.create_from_uri(uri)
        self.coldkeypub = bittensor.Keypair.create_from_uri(uri + "cold")


MINER = KeyWallet("//miner")
POLICY = AccessPolicy(
    AccessLists(
        blacklist_hotkeys=frozenset({KEYS["black"].ss58_address}),
        blacklist_coldkeys=frozenset({"black coldkey"}),
        whitelist_hotkeys=frozenset({KEYS["white"].ss58_address}),
    )
)


def snapshot() -> Metagraph:
    chain = FakeChain("miner")
    good = {"stake": 5000.0, "validator_permit": True}
    chain.add(KEYS["validator"].ss58_address, **good)
    chain.add(KEYS["black"].ss58_address, **good)
    chain.add(KEYS["of-black"].ss58_address, coldkey="black coldkey", **good)
    chain.add(KEYS["poor"].ss58_address, stake=1023.9, validator_permit=True)
    chain.add(KEYS["unpermitted"].ss58_address, stake=5000.0)
    chain.add(KEYS["old"].ss58_address, version=180, **good)
    return Metagraph(27, 100, tuple(chain.neurons))


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def server(clock: ManualClock) -> AsyncIterator[AxonServer]:
    async def echo(synapse: Specs, context: RequestContext) -> Specs:
        synapse.specs_output = f"{len(synapse.specs_input)} for {context.hotkey}"
        return synapse

    gate = MinerGate(POLICY, clock)
    gate.update(snapshot())
    server = AxonServer(MINER, gate, ip=IP, port=0, external_ip=IP)
    server.attach(Specs, echo)
    await server.start()
    yield server
    await server.stop()


def peer(server: AxonServer) -> Peer:
    return Peer(MINER.hotkey.ss58_address, IP, server.port)


async def ask(server: AxonServer, name: str, times: int = 1) -> list[str]:
    """What ``name`` is told: "" for an answer, else the refusal."""
    told = []
    async with DendriteCaller(KEYS[name], external_ip="127.0.0.1") as caller:
        for _ in range(times):
            try:
                await caller.call(peer(server), Specs(), timeout_seconds=DEADLINE_SECONDS)
                told.append("")
            except CallError as error:
                told.append(str(error))
    return told


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("validator", ""),
        ("white", ""),
        ("black", "blacklisted_hotkey"),
        ("of-black", "blacklisted_coldkey"),
        ("stranger", "not_registered"),
        ("poor", "not_enough_stake"),
        ("unpermitted", "no_permit"),
        ("old", "old_version"),
    ],
)
async def test_who_is_answered(server: AxonServer, name: str, reason: str) -> None:
    (told,) = await ask(server, name)
    assert reason in told if reason else told == ""


async def test_a_burst_then_a_rate_each_hotkey_for_itself(server: AxonServer, clock: ManualClock) -> None:
    told = await ask(server, "validator", 62)
    assert told[:60] == [""] * 60
    assert all("rate_limited" in answer for answer in told[60:])
    assert await ask(server, "white") == [""]
    clock.advance(1.0)
    told = await ask(server, "validator", 6)
    assert told[:5] == [""] * 5
    assert "rate_limited" in told[5]


class OfflineDendrite(bittensor.Dendrite):
    """The SDK's own request signing, without its look-up of our address."""

    def __init__(self, keypair: Any) -> None:
        self.uuid, self.external_ip, self.keypair, self._session = "u", "127.0.0.1", keypair, None

    def __del__(self) -> None:
        """No connection was ever opened."""


def signed_by(signer: Any, server: AxonServer, claimed: Any = None) -> dict[str, str]:
    """The headers of a request as the SDK makes them, claiming to come from ``claimed``."""
    info = bittensor.AxonInfo(0, IP, server.port, 4, MINER.hotkey.ss58_address, "")
    synapse = OfflineDendrite(signer).preprocess_synapse_for_request(info, Specs(), 10)
    if claimed is not None:
        synapse.dendrite.hotkey = claimed.ss58_address
    return {**synapse.to_headers(), "content-type": "application/json"}


async def post(server: AxonServer, headers: dict[str, str], data: Any) -> tuple[int, str]:
    url = f"http://{IP}:{server.port}/Specs"
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers, data=data) as response:
        return response.status, await response.text()


async def test_nobody_can_use_up_anothers_allowance(server: AxonServer) -> None:
    for _ in range(70):
        status, _ = await post(server, signed_by(KEYS["stranger"], server, claimed=KEYS["validator"]), b"{}")
        assert status == 401
    assert await ask(server, "validator") == [""]


def body_of(size: int) -> bytes:
    empty = json.dumps({"specs_input": ""}).encode()
    return json.dumps({"specs_input": "x" * (size - len(empty))}).encode()


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_size_limit_is_exact_however_it_is_sent(server: AxonServer, chunked: bool) -> None:
    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 5000):
            yield body[start : start + 5000]
            await asyncio.sleep(0)

    for size, expected in ((MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)):
        body = body_of(size)
        assert len(body) == size
        headers = signed_by(KEYS["validator"], server)
        status, text = await post(server, headers, pieces(body) if chunked else body)
        assert status == expected, text


async def test_headers_of_hostile_size_are_refused(server: AxonServer) -> None:
    headers = {**signed_by(KEYS["validator"], server), "x-padding": "x" * (1 << 20)}
    try:
        status, _ = await post(server, headers, b"{}")
    except aiohttp.ClientError:
        status = 400
    assert 400 <= status < 500
    assert await ask(server, "validator") == [""], "and others are answered as before"


async def test_a_size_that_is_refused_costs_no_allowance(server: AxonServer) -> None:
    for _ in range(70):
        status, _ = await post(server, signed_by(KEYS["validator"], server), body_of(MAX_BODY_BYTES + 1))
        assert status == 413
    assert await ask(server, "validator") == [""]

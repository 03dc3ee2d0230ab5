"""A real Dendrite against a real Axon over loopback."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import bittensor
import pytest

from compute.base.errors import BadAnswer, CallError, CallRefused, CallTimeout, CallUnreachable, ConfigError
from compute.protocol import Allocate, Specs
from compute.wire import signing
from compute.wire.client import MAX_ANSWER_BYTES, DendriteCaller
from compute.wire.peer import MAX_PARTS, Peer
from compute.wire.server import MAX_BODY_BYTES, AxonServer, RequestContext
from compute.wire.signing import verify_signature
from tests.waiting import DEADLINE_SECONDS


class KeyWallet:
    """The two attributes of a wallet that an Axon reads."""

    def __init__(self, uri: str) -> None:
        self.hotkey = bittensor.Keypair.create_from_uri(uri)
        self.coldkeypub = bittensor.Keypair.create_from_uri(uri + "cold")


class OpenGate:
    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.calls = 0

    def refusal(self, hotkey: str, synapse_name: str) -> str | None:
        return self.refused.get(hotkey)

    def overuse(self, hotkey: str) -> str | None:
        self.calls += 1
        return "rate_limited" if self.calls > 20 else None

    def priority(self, hotkey: str, synapse_name: str) -> float:
        return 1.0


class OfflineDendrite(bittensor.Dendrite):
    """The SDK's own request signing, without its look-up of our address."""

    def __init__(self, keypair: Any) -> None:
        self.uuid, self.external_ip, self.keypair, self._session = "u", "127.0.0.1", keypair, None

    def __del__(self) -> None:
        """No connection was ever opened."""


MINER = KeyWallet("//miner")
VALIDATOR = KeyWallet("//validator")


@pytest.fixture
async def gate() -> OpenGate:
    return OpenGate()


@pytest.fixture
async def server(gate: OpenGate) -> AsyncIterator[AxonServer]:
    # The SDK asserts 1024 < port < 65535, which every port of the OS fulfils.
    server = AxonServer(MINER, gate, ip="127.0.0.2", port=0, external_ip="127.0.0.2")
    yield server
    await server.stop()


@pytest.fixture
async def caller() -> AsyncIterator[DendriteCaller]:
    async with DendriteCaller(VALIDATOR.hotkey, external_ip="127.0.0.1") as caller:
        yield caller


def peer(server: AxonServer) -> Peer:
    return Peer(MINER.hotkey.ss58_address, "127.0.0.2", server.port)


async def echo(synapse: Specs, context: RequestContext) -> Specs:
    synapse.specs_output = f"{synapse.specs_input} for {context.hotkey}"
    return synapse


async def test_a_call_is_answered_and_the_caller_is_the_verified_one(
    server: AxonServer, caller: DendriteCaller
) -> None:
    server.attach(Specs, echo)
    await server.start()
    answer = await caller.call(peer(server), Specs(specs_input="hello"), timeout_seconds=DEADLINE_SECONDS)
    assert answer.specs_output == f"hello for {VALIDATOR.hotkey.ss58_address}"


async def test_a_request_says_where_its_caller_is(server: AxonServer, caller: DendriteCaller) -> None:
    async def say(synapse: Specs, context: RequestContext) -> Specs:
        synapse.specs_output = str(synapse.dendrite.ip)
        return synapse

    server.attach(Specs, say)
    await server.start()
    assert (await caller.call(peer(server), Specs(), timeout_seconds=10)).specs_output == "127.0.0.1"


async def test_as_many_threads_answer_as_the_axon_is_given(gate: OpenGate) -> None:
    server = AxonServer(MINER, gate, ip="127.0.0.2", port=0, external_ip="127.0.0.2", max_workers=3)
    assert server.axon.thread_pool._max_workers == 3
    await server.stop()


async def test_many_calls_to_one_axon_take_turns(server: AxonServer, caller: DendriteCaller) -> None:
    server.attach(Specs, echo)
    await server.start()
    answers = await asyncio.gather(
        *(caller.call(peer(server), Specs(specs_input=str(n)), timeout_seconds=DEADLINE_SECONDS) for n in range(12))
    )
    assert [answer.specs_output.split()[0] for answer in answers] == [str(n) for n in range(12)]


async def test_a_body_that_names_another_caller_changes_nothing(server: AxonServer) -> None:
    seen: list[str] = []

    async def record(synapse: Specs, context: RequestContext) -> Specs:
        seen.append(context.hotkey)
        return synapse

    server.attach(Specs, record)
    await server.start()

    axon = bittensor.AxonInfo(0, "127.0.0.2", server.port, 4, MINER.hotkey.ss58_address, "")
    synapse = OfflineDendrite(VALIDATOR.hotkey).preprocess_synapse_for_request(axon, Specs(), 10)
    headers = synapse.to_headers()
    body = synapse.model_dump()
    body["dendrite"]["hotkey"] = MINER.hotkey.ss58_address
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.2:{server.port}/Specs", headers=headers, json=body) as response,
    ):
        assert response.status == 200
    assert seen == [VALIDATOR.hotkey.ss58_address]


async def test_a_refused_caller_is_told_the_reason(server: AxonServer, caller: DendriteCaller, gate: OpenGate) -> None:
    server.attach(Specs, echo)
    gate.refused[VALIDATOR.hotkey.ss58_address] = "not_enough_stake"
    await server.start()
    with pytest.raises(CallRefused, match="not_enough_stake") as refusal:
        await caller.call(peer(server), Specs(), timeout_seconds=DEADLINE_SECONDS)
    assert refusal.value.status == 403


async def test_a_caller_that_asks_too_often_is_told_so(
    server: AxonServer, caller: DendriteCaller, gate: OpenGate
) -> None:
    server.attach(Specs, echo)
    gate.calls = 20
    await server.start()
    with pytest.raises(CallError, match="rate_limited"):
        await caller.call(peer(server), Specs(), timeout_seconds=DEADLINE_SECONDS)


async def test_a_forged_signature_and_a_nonce_of_next_year_are_refused(server: AxonServer) -> None:
    server.attach(Specs, echo)
    await server.start()

    class Forger(OfflineDendrite):
        def __init__(self, ahead_ns: int, keypair: Any) -> None:
            super().__init__(keypair)
            self.ahead = ahead_ns

        def preprocess_synapse_for_request(self, target_axon_info: Any, synapse: Any, timeout: float = 12) -> Any:
            synapse = super().preprocess_synapse_for_request(target_axon_info, synapse, timeout)
            info = synapse.dendrite
            info.nonce += self.ahead
            info.hotkey = VALIDATOR.hotkey.ss58_address
            message = f"{info.nonce}.{info.hotkey}.{synapse.axon.hotkey}.{info.uuid}.{synapse.body_hash}"
            info.signature = f"0x{self.keypair.sign(message).hex()}"
            return synapse

    axon = bittensor.AxonInfo(0, "127.0.0.2", server.port, 4, MINER.hotkey.ss58_address, "")
    for forger in (Forger(365 * 86400 * 10**9, VALIDATOR.hotkey), Forger(0, MINER.hotkey)):
        synapse = forger.preprocess_synapse_for_request(axon, Specs(), 10)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"http://127.0.0.2:{server.port}/Specs", headers=synapse.to_headers(), json=synapse.model_dump()
            ) as response,
        ):
            assert response.status == 401


async def test_the_body_of_an_allocate_is_signed(server: AxonServer, caller: DendriteCaller) -> None:
    verdicts: list[bool] = []

    async def check(synapse: Allocate, context: RequestContext) -> Allocate:
        signature = signing.decode(synapse.body_signature)
        assert signature is not None
        message = signing.request_message("Allocate", context.nonce, synapse.model_dump())
        verdicts.append(verify_signature(context.hotkey, message, signature))
        synapse.public_key = "swapped"
        forged = signing.request_message("Allocate", context.nonce, synapse.model_dump())
        verdicts.append(verify_signature(context.hotkey, forged, signature))
        return synapse

    server.attach(Allocate, check)
    await server.start()
    requirement = {"gpu": {"count": 1, "type": "é"}, "ram": {"capacity": 1 << 40}}
    await caller.call(
        peer(server),
        Allocate(timeline=1, public_key="pem", device_requirement=requirement),
        timeout_seconds=DEADLINE_SECONDS,
    )
    assert verdicts == [True, False]


async def test_a_body_of_hostile_size_is_refused_unread(server: AxonServer, caller: DendriteCaller) -> None:
    server.attach(Specs, echo)
    await server.start()
    with pytest.raises(CallRefused) as refusal:
        await caller.call(peer(server), Specs(specs_input="x" * (MAX_BODY_BYTES + 1)), timeout_seconds=DEADLINE_SECONDS)
    assert refusal.value.status == 413


async def test_an_answer_of_hostile_size_is_an_error(server: AxonServer, caller: DendriteCaller) -> None:
    async def flood(synapse: Specs, context: RequestContext) -> Specs:
        synapse.specs_output = "x" * (MAX_ANSWER_BYTES + 1)
        return synapse

    server.attach(Specs, flood)
    await server.start()
    with pytest.raises(BadAnswer):
        await caller.call(peer(server), Specs(), timeout_seconds=DEADLINE_SECONDS)


MANY = b"0," * MAX_PARTS


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"[" * 100_000, b'{"specs_output": 5}', b"\xff", b"null", b'{"specs_output": "", "x": [%s0]}' % MANY],
    ids=["nothing", "a list", "deep", "mistyped", "no text", "null", "many parts"],
)
async def test_an_answer_that_is_none_is_an_error(caller: DendriteCaller, answer: bytes) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    liar = await asyncio.start_server(respond, "127.0.0.3", 0)
    async with liar:
        port = liar.sockets[0].getsockname()[1]
        with pytest.raises(BadAnswer) as error:
            await caller.call(
                Peer(MINER.hotkey.ss58_address, "127.0.0.3", port), Specs(), timeout_seconds=DEADLINE_SECONDS
            )
        assert ("parts" in str(error.value)) is (answer.count(b",") + answer.count(b"[") > MAX_PARTS)


async def test_of_answers_that_come_together_one_is_parsed_per_turn(
    caller: DendriteCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty of a round at once, a millisecond each, would stop the event loop for as long as all of them take."""
    turn, parsed = 0, []

    async def count_turns() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    class Answer:
        def __init__(self) -> None:
            self.content = asyncio.StreamReader()
            self.content.feed_data(b"{}")
            self.content.feed_eof()

        async def __aenter__(self) -> Answer:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

    dendrite, session = caller._dendrite, await caller._dendrite.session
    monkeypatch.setattr(session, "post", lambda *_, **__: Answer())
    monkeypatch.setattr(dendrite, "process_server_response", lambda *_: parsed.append(turn))
    turns = asyncio.create_task(count_turns())
    axon = bittensor.AxonInfo(0, "127.0.0.2", 8091, 4, MINER.hotkey.ss58_address, "")
    await asyncio.gather(*(dendrite.exchange(axon, Specs(), 10.0) for _ in range(5)))
    turns.cancel()
    assert len(parsed) == len(set(parsed)) == 5


async def test_no_peer_sends_us_elsewhere_or_marks_us(caller: DendriteCaller) -> None:
    requests: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        here = b"http://127.0.0.3:%d/internal" % writer.get_extra_info("sockname")[1]
        headers = b"location: " + here + b"\r\nset-cookie: mark=1\r\ncontent-length: 2\r\n\r\n"
        writer.write(b"HTTP/1.1 307 Temporary Redirect\r\n" + headers + b"{}")
        await writer.drain()
        writer.close()

    liar = await asyncio.start_server(respond, "127.0.0.3", 0)
    async with liar:
        peer = Peer(MINER.hotkey.ss58_address, "127.0.0.3", liar.sockets[0].getsockname()[1])
        for _ in range(2):
            with pytest.raises(CallError):
                await caller.call(peer, Specs(), timeout_seconds=DEADLINE_SECONDS)
    assert [request.split()[1] for request in requests] == [b"/Specs", b"/Specs"]
    assert b"mark" not in requests[1]


async def test_nobody_listening_is_unreachable_and_silence_is_a_timeout(caller: DendriteCaller) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.4", 0))
        port = listener.getsockname()[1]
        with pytest.raises(CallUnreachable, match=r"no connection: Connection refused$"):
            await caller.call(
                Peer(MINER.hotkey.ss58_address, "127.0.0.4", port), Specs(), timeout_seconds=DEADLINE_SECONDS
            )
        listener.listen()
        with pytest.raises(CallTimeout):
            await caller.call(Peer(MINER.hotkey.ss58_address, "127.0.0.4", port), Specs(), timeout_seconds=0.2)


async def test_the_sdks_open_ping_is_closed(server: AxonServer) -> None:
    server.attach(Specs, echo)
    await server.start()
    axon = bittensor.AxonInfo(0, "127.0.0.2", server.port, 4, MINER.hotkey.ss58_address, "")
    synapse = OfflineDendrite(VALIDATOR.hotkey).preprocess_synapse_for_request(axon, Specs(), 10)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.2:{server.port}/Synapse", headers=synapse.to_headers(), json={}) as response,
    ):
        assert response.status >= 400
    assert server.axon.nonces == {}


async def test_a_taken_port_says_what_to_do(server: AxonServer, gate: OpenGate) -> None:
    await server.start()
    with pytest.raises(ConfigError, match=r"--axon\.port"):
        AxonServer(MINER, gate, ip="127.0.0.2", port=server.port, external_ip="127.0.0.2")


class Looker:
    """What a look-up of our address says, one after the other; an exception is raised."""

    def __init__(self, *answers: str | Exception) -> None:
        self._answers = list(answers)

    def __call__(self) -> str:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def addresses(gate: OpenGate, *answers: str | Exception) -> list[str]:
    """Our address at the start, and after each look-up."""
    server = AxonServer(MINER, gate, ip="127.0.0.2", port=0, find_ip=Looker(*answers))
    try:
        seen = [server.axon.external_ip]
        for _ in answers[1:]:
            await server.refresh_address()
            seen.append(server.axon.external_ip)
        return seen
    finally:
        await server.stop()


async def test_a_new_public_address_counts_when_it_was_found_twice(gate: OpenGate) -> None:
    assert await addresses(gate, "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2") == [
        *["192.0.2.1"] * 3,
        "192.0.2.2",
    ]


async def test_one_odd_answer_or_none_changes_no_address(gate: OpenGate) -> None:
    gone = OSError("no network")
    answers = ("192.0.2.1", "192.0.2.2", "192.0.2.1", gone, "192.0.2.2", gone, "192.0.2.2")
    assert set(await addresses(gate, *answers)) == {"192.0.2.1"}


async def test_an_address_that_was_given_is_never_looked_up(gate: OpenGate) -> None:
    server = AxonServer(MINER, gate, ip="127.0.0.2", port=0, external_ip="127.0.0.2", find_ip=Looker())
    await server.refresh_address()
    assert server.axon.external_ip == "127.0.0.2"
    await server.stop()


async def test_a_look_up_that_hangs_holds_nobody_up(gate: OpenGate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.wire.server._FIND_SECONDS", 0.01)
    asked, answered, calls = threading.Event(), threading.Event(), []

    def find() -> str:
        calls.append(1)
        if len(calls) == 2:
            asked.set()
            answered.wait(DEADLINE_SECONDS)
        return "192.0.2.1" if len(calls) == 1 else "192.0.2.2"

    server = AxonServer(MINER, gate, ip="127.0.0.2", port=0, find_ip=find)
    for _ in range(3):
        await server.refresh_address()
    assert asked.wait(DEADLINE_SECONDS)
    assert len(calls) == 2
    monkeypatch.setattr("compute.wire.server._FIND_SECONDS", DEADLINE_SECONDS)
    answered.set()
    for _ in range(2):
        await server.refresh_address()
    assert server.axon.external_ip == "192.0.2.2"
    assert len(calls) == 3
    await server.stop()

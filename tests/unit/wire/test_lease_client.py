"""The renter's side of a lease against ordinary, older and hostile miners."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import (
    BadAnswer,
    CallError,
    CallFailed,
    CallRefused,
    CallTimeout,
    CallUnreachable,
    LeaseError,
)
from compute.base.reasons import Refusal
from compute.protocol import Allocate
from compute.testing.clock import ManualClock
from compute.testing.renter import kind_of
from compute.wire.dockerfile import STEPS_SECONDS
from compute.wire.keys import LoginInfo, RenterKey, SessionKey
from compute.wire.lease_client import MAX_RETRY_SECONDS, RELEASE_ATTEMPTS, AllocationClient, LeaseKeys
from compute.wire.lease_terms import Change, KeyLine
from compute.wire.peer import Peer, S
from compute.wire.requirements import DeviceRequirement

PEER = Peer("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "127.0.0.9", 8091)
WANTED = DeviceRequirement(cpu_count=1, gpu_count=1, ram_bytes=1 << 30)
HOST_KEY = SessionKey.generate().fingerprint
KEYS = LeaseKeys(owner=RenterKey.generate(), session=SessionKey.generate())
GOOD = {"username": "root", "password": "", "port": 4444, "version": 200, "host_key": HOST_KEY}

Answer = Callable[[Allocate], Any]
Step = Answer | BaseException | dict[str, Any]


class Clock(ManualClock):
    """Sleeps by moving itself on."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)


class ScriptedMiner:
    """A caller whose miner gives one scripted answer per request, the last one for ever."""

    def __init__(self, *script: Step) -> None:
        self.script = list(script)
        self.requests: list[Allocate] = []

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        assert peer == PEER
        assert isinstance(synapse, Allocate)
        self.requests.append(synapse)
        await asyncio.sleep(0)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, BaseException):
            raise step
        output = step(synapse) if callable(step) else step
        answer: S = synapse.model_copy()
        # As the SDK does: whatever the peer sent goes into the field unchecked.
        answer.__dict__["output"] = output
        return answer

    def kinds(self) -> list[str]:
        return [kind_of(request) for request in self.requests]


def seal(request: Allocate, content: bytes) -> str:
    key = serialization.load_pem_public_key(request.public_key.encode())
    assert isinstance(key, rsa.RSAPublicKey)
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    return base64.b64encode(key.encrypt(content, oaep)).decode()


def granting(info: object = None, **changes: object) -> Answer:
    content = {**GOOD, **changes} if info is None else info

    def answer(request: Allocate) -> dict[str, object]:
        return {"status": True, "port": 4444, "info": seal(request, json.dumps(content).encode())}

    return answer


def refusing(reason: object, **more: object) -> dict[str, object]:
    return {"status": False, "port": 4444, "reason": reason, **more}


def client_for(*script: Step) -> tuple[AllocationClient, ScriptedMiner, Clock]:
    miner, clock = ScriptedMiner(*script), Clock()
    return AllocationClient(miner, clock), miner, clock


async def allocate(client: AllocationClient, **options: Any) -> LoginInfo:
    return await client.allocate(PEER, WANTED, days=2, keys=KEYS, **options)


async def test_a_yes_says_how_to_log_in() -> None:
    client, miner, _ = client_for(granting(port=2222))
    assert await allocate(client) == LoginInfo(username="root", port=2222, host_key=HOST_KEY, password=None)
    (request,) = miner.requests
    assert request.timeline == 2
    assert request.device_requirement == WANTED.to_wire()
    assert request.docker_requirement["ssh_key"] == KEYS.session.public_line
    assert request.public_key == KEYS.owner.public_pem


async def test_no_secret_is_in_a_repr() -> None:
    client, _, _ = client_for(granting(password="hunter2hunter2hunter2"))
    login = await allocate(client)
    assert login.password == "hunter2hunter2hunter2"
    assert "hunter2" not in repr(login)
    assert "PRIVATE" not in repr(KEYS)


async def test_a_probe_says_that_it_is_one() -> None:
    client, miner, _ = client_for(granting())
    await allocate(client, testing=True)
    assert miner.requests[0].device_requirement["testing"] is True


async def test_check_returns_or_says_what_fell_short() -> None:
    client, miner, _ = client_for({"status": True, "port": 4444}, refusing("gpu_memory", message="24 GiB, not 80"))
    await client.check(PEER, WANTED, days=1)
    with pytest.raises(LeaseError, match="24 GiB, not 80") as caught:
        await client.check(PEER, WANTED, days=1)
    assert caught.value.reason is Refusal.GPU_MEMORY
    assert miner.kinds() == ["check", "check"]


async def test_a_starting_machine_is_asked_for_again_with_the_same_keys() -> None:
    client, miner, clock = client_for(refusing("starting", retry_after=7), CallTimeout("late"), granting())
    before = clock.now()
    await allocate(client)
    assert miner.kinds() == ["allocate"] * 3
    assert len({request.public_key for request in miner.requests}) == 1
    assert clock.now() - before == 7 + 2


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        (0.01, 0.1),
        (29.5, 29.5),
        (30, 30),
        (30.5, 30),
        (86_400, 30),
        *((nonsense, 2) for nonsense in (None, 0, -1, 86_401, 10**400, float("nan"), float("inf"), True, "9")),
    ],
)
async def test_a_stranger_has_us_wait_30_seconds_at_most(asked: object, waited: float) -> None:
    client, miner, clock = client_for(refusing("starting", retry_after=asked), granting())
    before = clock.now()
    await allocate(client)
    assert clock.now() - before == pytest.approx(waited, abs=1e-3)
    assert miner.kinds() == ["allocate"] * 2


async def test_a_machine_that_never_comes_up_is_given_back() -> None:
    client, miner, _ = client_for(refusing("starting", retry_after=25))
    with pytest.raises(LeaseError) as caught:
        await allocate(client, start_seconds=60)
    assert caught.value.reason is Refusal.STARTING
    assert miner.kinds()[:3] == ["allocate"] * 3
    assert miner.kinds()[-1] == "deallocate"


async def test_steps_of_a_dockerfile_are_given_their_time() -> None:
    script = [refusing("starting", retry_after=MAX_RETRY_SECONDS)] * int(STEPS_SECONDS / MAX_RETRY_SECONDS)
    client, _, clock = client_for(*script, granting())
    before = clock.now()
    await allocate(client, start_seconds=60, dockerfile="RUN apt-get install -y build-essential")
    assert clock.now() - before == STEPS_SECONDS
    client, miner, _ = client_for(*script, granting())
    with pytest.raises(LeaseError):
        await allocate(client, start_seconds=60)
    assert miner.kinds()[-1] == "deallocate"


async def test_an_older_miner_that_is_still_building_is_waited_for() -> None:
    client, miner, _ = client_for(CallTimeout("late"), {"status": False, "port": 4444}, granting())
    await allocate(client)
    assert miner.kinds() == ["allocate"] * 3


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (refusing("busy", retry_after=30), Refusal.BUSY),
        (refusing("a reason of the future"), Refusal.UNSPECIFIED),
        (refusing("unpinned"), Refusal.UNSPECIFIED),
        (refusing(["busy"]), Refusal.UNSPECIFIED),
        ({"status": False}, Refusal.UNSPECIFIED),
        ({"status": False, "message": 10**5000, "retry_after": 10**5000}, Refusal.UNSPECIFIED),
    ],
)
async def test_a_plain_refusal_is_final_and_leaves_nothing_to_give_back(
    failure: dict[str, object], expected: Refusal
) -> None:
    client, miner, _ = client_for(failure)
    with pytest.raises(LeaseError) as caught:
        await allocate(client)
    assert caught.value.reason is expected
    assert miner.kinds() == ["allocate"]


@pytest.mark.parametrize(
    ("kind", "given_back"), [(CallRefused, False), (CallUnreachable, False), (CallFailed, True), (BadAnswer, True)]
)
async def test_a_failed_call_is_given_back_where_the_miner_may_have_acted(
    kind: type[CallError], given_back: bool
) -> None:
    client, miner, _ = client_for(kind("no"), {"status": True})
    with pytest.raises(kind):
        await allocate(client)
    assert miner.kinds() == ["allocate", "deallocate"][: 1 + given_back]


async def test_an_older_miner_without_host_key_needs_consent() -> None:
    info = {"username": "root", "password": "x" * 20, "port": 4444, "version": 193}
    client, miner, _ = client_for(granting(info))
    with pytest.raises(LeaseError, match="trust on first use") as caught:
        await allocate(client)
    assert caught.value.reason is Refusal.UNPINNED
    assert miner.kinds() == ["allocate", "deallocate"]
    assert (await allocate(client, allow_unpinned=True)).host_key is None


@pytest.mark.parametrize(
    "change",
    [
        {"port": 0},
        {"port": 65_536},
        {"port": "4444"},
        {"port": True},
        {"port": 22.0},
        {"username": ""},
        {"username": "-oProxyCommand=sh"},
        {"username": "root\n"},
        {"username": 5},
        {"password": ["x"]},
        {"password": "a\nb"},
        {"host_key": "SHA256:short"},
        {"host_key": 7},
        {"host_key": HOST_KEY + "\n"},
    ],
)
async def test_hostile_info_is_a_typed_error_and_the_lease_is_given_back(change: dict[str, object]) -> None:
    client, miner, _ = client_for(granting(**change), {"status": True})
    with pytest.raises(LeaseError) as caught:
        await allocate(client)
    assert caught.value.reason is Refusal.BAD_ANSWER
    assert miner.kinds() == ["allocate", "deallocate"]


@pytest.mark.parametrize(
    "sealed",
    [
        None,
        17,
        "",
        "no base64!",
        "é" * 40,
        "A" * 100_000,
        base64.b64encode(b"\0" * 256).decode(),
        base64.b64encode(b"short").decode(),
    ],
)
async def test_info_that_does_not_open_is_a_typed_error(sealed: object) -> None:
    client, _, _ = client_for({"status": True, "info": sealed}, {"status": True})
    with pytest.raises(LeaseError) as caught:
        await allocate(client)
    assert caught.value.reason is Refusal.BAD_ANSWER
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b'"x"', b"[" * 180, b"9" * 180, b"NaN"])
async def test_info_that_is_no_object_is_a_typed_error(content: bytes) -> None:
    client, _, _ = client_for(lambda request: {"status": True, "info": seal(request, content)}, {"status": True})
    with pytest.raises(LeaseError) as caught:
        await allocate(client)
    assert caught.value.reason is Refusal.BAD_ANSWER


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


async def _lease_error(work: Awaitable[object]) -> str:
    try:
        await work
    except LeaseError as error:
        return str(error)
    return ""


_outputs = _json | st.fixed_dictionaries(
    {"status": st.booleans() | _json},
    optional={"info": _json, "reason": _json, "message": _json, "retry_after": _json, "port": _json},
)


@settings(max_examples=40)
@given(output=_outputs, infos=_json)
def test_whatever_a_miner_answers_only_typed_errors_come_out(output: Any, infos: Any) -> None:
    async def scenario() -> None:
        def sealed(request: Allocate) -> dict[str, object]:
            # Questions carry no key.
            key = request.public_key and seal(request, json.dumps(infos).encode()[:190])
            return {"status": True, "info": key}

        plain: Sequence[Answer | dict[str, Any]] = (lambda _: output, sealed)
        for answer in plain:
            client, _, _ = client_for(answer)
            for work in (
                allocate(client, start_seconds=5),
                client.check(PEER, WANTED, days=1),
                client.owns(PEER, KEYS),
                client.deallocate(PEER, KEYS),
            ):
                assert len(await _lease_error(work)) < 1000

    asyncio.run(scenario())


async def test_owns_asks_for_these_keys() -> None:
    client, miner, _ = client_for({"status": True}, refusing("no_lease"), {"status": "nonsense"})
    assert await client.owns(PEER, KEYS) is True
    assert await client.owns(PEER, KEYS) is False
    with pytest.raises(LeaseError):
        await client.owns(PEER, KEYS)
    assert miner.kinds() == ["owns"] * 3
    assert miner.requests[0].public_key == KEYS.owner.public_pem


@pytest.mark.parametrize("reason", ["no_lease", "not_owner"])
async def test_deallocate_of_what_is_gone_is_a_success(reason: str) -> None:
    client, miner, _ = client_for(refusing(reason))
    await client.deallocate(PEER, KEYS)
    assert miner.kinds() == ["deallocate"]


async def test_deallocate_asks_an_older_miner_whether_it_is_gone() -> None:
    client, miner, _ = client_for({"status": False}, {"status": False})
    await client.deallocate(PEER, KEYS)
    assert miner.kinds() == ["deallocate", "owns"]


async def test_deallocate_tries_a_bounded_number_of_times_and_says_why() -> None:
    client, miner, _ = client_for(CallUnreachable("nobody there"))
    with pytest.raises(CallError, match="nobody there"):
        await client.deallocate(PEER, KEYS)
    assert miner.kinds() == ["deallocate"] * RELEASE_ATTEMPTS


async def test_changes_go_out_as_the_wire_says() -> None:
    client, miner, _ = client_for({"status": True})
    await client.change(PEER, KEYS, Change.PAUSE)
    await client.exchange_key(PEER, KEYS, KEYS.session.public_line, KeyLine.TERMINAL)
    assert miner.requests[0].docker_action == {"action": "pause", "ssh_key": "", "key_type": ""}
    assert miner.requests[1].docker_action == {
        "action": "exchange_key",
        "ssh_key": KEYS.session.public_line,
        "key_type": "terminal",
    }
    assert all(request.public_key == KEYS.owner.public_pem for request in miner.requests)


async def test_rented_gives_back_at_the_end_and_after_an_error() -> None:
    client, miner, _ = client_for(granting(), {"status": True}, granting(), {"status": True})
    async with client.rented(PEER, WANTED, days=1, testing=True, keys=KEYS) as login:
        assert login.port == 4444
        assert miner.kinds() == ["allocate"]
    assert miner.kinds() == ["allocate", "deallocate"]
    with pytest.raises(RuntimeError, match="inside"):
        async with client.rented(PEER, WANTED, days=1, keys=KEYS):
            raise RuntimeError("inside")
    assert miner.kinds() == ["allocate", "deallocate"] * 2


async def test_rented_gives_back_when_cancelled_even_twice() -> None:
    client, miner, _ = client_for(granting(), CallUnreachable("gone for a moment"), {"status": True})
    inside = asyncio.Event()

    async def rent() -> None:
        async with client.rented(PEER, WANTED, days=1, keys=KEYS):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(rent())
    await inside.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert miner.kinds() == ["allocate", "deallocate", "deallocate"]


async def test_an_allocation_cancelled_under_way_is_given_back() -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    class Slow(ScriptedMiner):
        async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
            assert isinstance(synapse, Allocate)
            if kind_of(synapse) == "allocate":
                self.requests.append(synapse)
                asked.set()
                await answered.wait()
            return await super().call(peer, synapse, timeout_seconds=timeout_seconds)

    miner = Slow({"status": True})
    task = asyncio.create_task(allocate(AllocationClient(miner, Clock())))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert miner.kinds() == ["allocate", "deallocate"]


async def test_giving_back_that_fails_is_logged_and_does_not_hide_the_result(caplog: pytest.LogCaptureFixture) -> None:
    client, miner, _ = client_for(granting(), refusing("internal_error", message="disk full"))
    async with client.rented(PEER, WANTED, days=1, keys=KEYS):
        pass
    assert miner.kinds() == ["allocate"] + ["deallocate"] * RELEASE_ATTEMPTS
    assert "disk full" in caplog.text


async def test_a_lease_of_no_days_is_refused_here() -> None:
    client, miner, _ = client_for(granting())
    with pytest.raises(ValueError, match="0 days"):
        await client.allocate(PEER, WANTED, days=0, keys=KEYS)
    assert miner.requests == []

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compute.base.reasons import Refusal
from compute.miner.allocate_handler import AllocateService
from compute.miner.leases.store import Owner
from compute.miner.runtimes.base import ContainerState
from compute.protocol import Allocate
from compute.wire.dockerfile import script_of
from compute.wire.keys import RenterKey, SessionKey
from compute.wire.lease_terms import LeaseKind

REQUIREMENT = {"cpu": {"count": 1}, "gpu": {"count": 1, "capacity": 0, "type": ""}, "ram": {"capacity": 1}}


@pytest.fixture
def ask(miner: Any, renter_keys: list[RenterKey]) -> Any:
    """Answer an Allocate of Alice's as the axon would pass it on."""

    async def answer(hotkey: str = "5Alice", **fields: Any) -> dict[str, Any]:
        synapse = Allocate(**{"public_key": renter_keys[0].public_pem, **fields})
        return await miner.service.answer(hotkey, synapse)

    return answer


async def allocate(ask: Any, **fields: Any) -> dict[str, Any]:
    return await ask(**{"checking": False, "timeline": 1, "device_requirement": REQUIREMENT, **fields})


async def test_the_whole_table(ask: Any, miner: Any, renter_keys: list[RenterKey]) -> None:
    assert await ask(timeline=1, device_requirement=REQUIREMENT) == {"status": True, "port": 4444}
    assert (await ask())["reason"] == "not_owner"
    granted = await allocate(ask)
    assert granted.keys() == {"status", "port", "info"}
    info = json.loads(renter_keys[0].decrypt(base64.b64decode(granted["info"])))
    assert info.keys() == {"username", "password", "port", "version", "host_key"}
    assert len(info["password"]) >= 20
    assert await ask() == {"status": True, "port": 4444}
    for action, state in [
        ("pause", ContainerState.PAUSED),
        ("unpause", ContainerState.RUNNING),
        ("pause", ContainerState.PAUSED),
        ("resume", ContainerState.RUNNING),
        ("pause", ContainerState.PAUSED),
        ("restart", ContainerState.RUNNING),
    ]:
        done = await ask(checking=False, docker_change=True, docker_action={"action": action})
        assert done == {"status": True, "port": 4444}
        assert [machine.state for machine in miner.runtime.containers.values()] == [state]
    assert await ask(checking=False) == {"status": True, "port": 4444}
    assert miner.runtime.containers == {}
    assert (await ask(checking=False))["reason"] == "no_lease"


async def test_the_fields_of_older_peers_are_enough(ask: Any, renter_keys: list[RenterKey]) -> None:
    output = await allocate(
        ask,
        device_requirement={"cpu": {"count": 1}, "gpu": {}, "hard_disk": {"capacity": 1}, "testing": True, "x": 1},
        docker_requirement={"base_image": "pytorch/pytorch", "ssh_key": "", "ssh_port": 5555, "volume_path": "/tmp"},
    )
    assert output["status"] is True
    assert len(json.loads(renter_keys[0].decrypt(base64.b64decode(output["info"])))["password"]) >= 20


async def test_testing_is_a_probe(ask: Any, miner: Any) -> None:
    await allocate(ask, device_requirement={**REQUIREMENT, "testing": True})
    assert miner.only().kind is LeaseKind.PROBE


async def test_busy_says_when_to_ask_again(ask: Any) -> None:
    await allocate(ask, device_requirement={"testing": True})
    output = await allocate(ask, hotkey="5Bob", device_requirement={"testing": True})
    assert output == {
        "status": False,
        "port": 4444,
        "reason": "busy",
        "message": "the machine is leased",
        "retry_after": 600,
    }


async def test_exchange_key_by_type(ask: Any, miner: Any, ssh_key: SessionKey) -> None:
    await allocate(ask, docker_requirement={"ssh_key": ssh_key.public_line})
    (machine,) = miner.runtime.containers.values()
    keys = {kind: SessionKey.generate().public_line for kind in ("terminal", "user")}
    for kind, key in keys.items():
        action = {"action": "exchange_key", "ssh_key": key + " comment", "key_type": kind}
        assert (await ask(checking=False, docker_change=True, docker_action=action))["status"]
    assert machine.spec.authorized_keys == (keys["user"], keys["terminal"])


async def test_extend_counts_from_now(ask: Any, miner: Any) -> None:
    await allocate(ask)
    extended = await ask(checking=False, docker_change=True, timeline=9, docker_action={"action": "extend"})
    assert extended["status"]
    assert miner.only().ends_at == miner.clock.now() + 9 * 86_400


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"public_key": ""}, Refusal.BAD_KEY),
        ({"public_key": "nonsense"}, Refusal.BAD_KEY),
        ({"device_requirement": {"cpu": {"count": -1}}}, Refusal.BAD_REQUEST),
        ({"device_requirement": {"testing": "yes"}}, Refusal.BAD_REQUEST),
        ({"timeline": -1}, Refusal.BAD_REQUEST),
        ({"timeline": 367}, Refusal.BAD_REQUEST),
        ({"device_requirement": {"cpu": {"count": 9}}}, Refusal.CPU_COUNT),
        ({"device_requirement": {"gpu": {"count": 1, "type": "H100"}}}, Refusal.GPU_TYPE),
        ({"docker_requirement": {"dockerfile": "RUN rm -rf /"}}, Refusal.UNSUPPORTED),
        ({"docker_requirement": {"volume_path": "/data"}}, Refusal.UNSUPPORTED),
        ({"docker_requirement": {"base_image": 5}}, Refusal.BAD_REQUEST),
        ({"docker_requirement": {"base_image": "x" * 300}}, Refusal.BAD_REQUEST),
        ({"docker_requirement": {"ssh_key": "not a key"}}, Refusal.BAD_KEY),
        ({"docker_requirement": {"ssh_key": 5}}, Refusal.BAD_KEY),
        ({"docker_change": True, "docker_action": {"action": "explode"}}, Refusal.BAD_REQUEST),
        ({"docker_change": True, "docker_action": {"action": "extend"}, "timeline": 0}, Refusal.BAD_REQUEST),
        ({"docker_change": True, "docker_action": {"action": "exchange_key", "key_type": "x"}}, Refusal.BAD_REQUEST),
        ({"docker_change": True, "docker_action": {"action": "exchange_key", "key_type": "user"}}, Refusal.BAD_KEY),
    ],
)
async def test_refusals_have_a_reason_and_change_nothing(
    ask: Any, miner: Any, fields: dict[str, Any], reason: Refusal
) -> None:
    output = await allocate(ask, **fields)
    assert (output["status"], output["reason"]) == (False, reason.value)
    assert isinstance(output["message"], str)
    assert isinstance(output["port"], int)
    assert miner.store.live() == []


async def test_steps_of_a_dockerfile_where_the_operator_lets_them(ask: Any, miner: Any) -> None:
    miner.service = AllocateService(miner.manager, allow_dockerfile=True)
    steps = {"dockerfile": "RUN echo my-token"}
    assert (await allocate(ask, docker_requirement=steps))["status"]
    (machine,) = miner.runtime.containers.values()
    assert machine.spec.script == script_of(steps["dockerfile"])
    assert "my-token" not in repr(machine.spec)
    # Asking again is the same lease; other steps are another.
    assert (await allocate(ask, docker_requirement=steps))["status"]
    assert (await allocate(ask, docker_requirement={"dockerfile": "RUN true"}))["reason"] == "busy"
    assert miner.runtime.calls.count("start") == 1
    files = [path.read_bytes() for path in miner.folder.iterdir()]
    assert any(machine.spec.lease_id.encode() in content for content in files)
    assert not any(b"my-token" in content for content in files)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"docker_requirement": {"dockerfile": "FROM other"}}, Refusal.UNSUPPORTED),
        ({"docker_requirement": {"dockerfile": "RUN"}}, Refusal.BAD_REQUEST),
        ({"docker_requirement": {"dockerfile": "#" * (1 << 17)}}, Refusal.BAD_REQUEST),
        ({"docker_requirement": {"dockerfile": 5}}, Refusal.BAD_REQUEST),
        (
            {"docker_requirement": {"dockerfile": "RUN true"}, "device_requirement": {"testing": True}},
            Refusal.UNSUPPORTED,
        ),
    ],
)
async def test_steps_that_are_none_are_refused(ask: Any, miner: Any, fields: dict[str, Any], reason: Refusal) -> None:
    miner.service = AllocateService(miner.manager, allow_dockerfile=True)
    assert (await allocate(ask, **fields))["reason"] == reason.value
    assert miner.store.live() == []


@pytest.mark.parametrize("change", [False, True])
async def test_a_stranger_cannot_touch_a_lease(ask: Any, miner: Any, change: bool) -> None:
    await allocate(ask)
    before = miner.only()
    output = await ask(hotkey="5Bob", checking=False, docker_change=change, docker_action={"action": "pause"})
    assert (output["status"], output["reason"]) == (False, "not_owner")
    assert miner.only() == before


async def test_a_broken_store_or_a_bug_is_an_internal_error_without_details(
    ask: Any, miner: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("CRITICAL")
    monkeypatch.setattr(miner.manager, "check", lambda *_: 1 / 0)
    output = await ask(timeline=1)
    assert output["reason"] == "internal_error"
    assert "Zero" not in output["message"]
    miner.database.close()
    output = await allocate(ask)
    assert output["reason"] == "internal_error"
    assert "database" not in output["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
actions = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["exchange_key", "restart", "pause", "extend"]) | json_values,
        "ssh_key": json_values,
    },
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    hostile=st.fixed_dictionaries(
        {},
        optional={
            "timeline": st.integers(0, 2) | json_values,
            "checking": st.booleans() | json_values,
            "public_key": json_values,
            "device_requirement": json_values,
            "docker_requirement": json_values,
            "docker_change": st.booleans() | json_values,
            "docker_action": actions | json_values,
        },
    ),
    with_key=st.booleans(),
)
async def test_whatever_comes_is_answered(
    miner: Any, alice: Owner, caplog: Any, hostile: dict[str, Any], with_key: bool
) -> None:
    caplog.clear()
    fields = {**hostile, "public_key": alice.public_pem} if with_key else hostile
    output = await miner.service.answer("5Alice", Allocate.model_construct(**fields))
    assert isinstance(output["status"], bool)
    assert type(output["port"]) is int
    json.dumps(output)
    if not output["status"]:
        assert Refusal(output["reason"]) is not Refusal.INTERNAL_ERROR
    assert not caplog.records

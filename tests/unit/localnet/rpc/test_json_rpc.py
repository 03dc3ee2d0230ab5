from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.localnet.pallet.errors import INVALID, PoolError
from compute.localnet.rpc.json_rpc import MAX_BATCH, InvalidParams, answer


async def _echo(params: list[Any]) -> Any:
    return params


async def _invalid(params: list[Any]) -> Any:
    raise InvalidParams("rao must be positive")


async def _refuse(params: list[Any]) -> Any:
    raise PoolError(INVALID, "Transaction is outdated")


async def _break(params: list[Any]) -> Any:
    raise ZeroDivisionError("a secret of the inside")


METHODS = {"echo": _echo, "invalid": _invalid, "refuse": _refuse, "break": _break}


async def _ask(request: Any) -> Any:
    reply = await answer(request if isinstance(request, (str, bytes)) else json.dumps(request), METHODS)
    return None if reply is None else json.loads(reply)


def _request(method: str, params: Any = None, identity: Any = 1) -> dict[str, Any]:
    request = {"jsonrpc": "2.0", "id": identity, "method": method}
    return request if params is None else {**request, "params": params}


async def test_a_request_gets_its_result_and_its_id() -> None:
    assert await _ask(_request("echo", [1, "x"], "abc")) == {"jsonrpc": "2.0", "id": "abc", "result": [1, "x"]}
    assert (await _ask(_request("echo")))["result"] == []


async def test_a_batch_gets_a_reply_each_in_order() -> None:
    replies = await _ask([_request("echo", [n], n) for n in range(3)])
    assert [(reply["id"], reply["result"]) for reply in replies] == [(0, [0]), (1, [1]), (2, [2])]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ("", -32700),
        ("{", -32700),
        (b"\xff\xfe", -32700),
        ("[" * 100_000, -32700),
        ("1", -32600),
        ("null", -32600),
        ("[]", -32600),
        ('{"id": 1}', -32600),
        ('{"id": 1, "method": 5}', -32600),
        ('{"id": {}, "method": "echo"}', -32600),
        (_request("nothing"), -32601),
        (_request("echo", {"a": 1}), -32602),
        (_request("invalid"), -32602),
        (_request("break"), -32603),
        ([_request("echo")] * (MAX_BATCH + 1), -32010),
    ],
)
async def test_errors_have_the_standard_s_numbers(request_: Any, code: int) -> None:
    assert (await _ask(request_))["error"]["code"] == code


async def test_each_entry_of_a_batch_fails_on_its_own() -> None:
    replies = await _ask([1, _request("nothing"), _request("echo", [5])])
    assert [reply.get("error", {}).get("code") for reply in replies] == [-32600, -32601, None]


async def test_messages_say_what_is_wrong_and_do_not_show_the_inside() -> None:
    assert (await _ask(_request("invalid")))["error"]["message"] == "Invalid params: rao must be positive"
    assert "secret" not in json.dumps(await _ask(_request("break")))


async def test_a_refusal_of_the_pool_keeps_number_message_and_data() -> None:
    assert (await _ask(_request("refuse")))["error"] == {
        "code": 1010,
        "message": "Invalid Transaction",
        "data": "Transaction is outdated",
    }


async def test_notifications_get_no_reply() -> None:
    assert await _ask({"method": "echo"}) is None
    assert await _ask([{"method": "echo"}]) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@given(_JSON | st.fixed_dictionaries({"id": _JSON, "method": st.sampled_from(list(METHODS)), "params": _JSON}))
async def test_any_json_gets_json_or_nothing(request_: Any) -> None:
    reply = await answer(json.dumps(request_), METHODS)
    assert reply is None or json.loads(reply)


@given(st.text() | st.binary())
async def test_any_text_gets_json_or_nothing(message: str | bytes) -> None:
    reply = await answer(message, METHODS)
    assert reply is None or json.loads(reply)

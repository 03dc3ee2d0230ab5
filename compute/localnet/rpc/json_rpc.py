"""JSON-RPC 2.0: requests in, replies out, and the errors between. What the methods do is in ``methods.py``."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from compute.localnet.pallet.errors import PoolError

logger = logging.getLogger(__name__)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
BATCH_TOO_LARGE = -32010
CLIENT_ERROR = 4003
MAX_BATCH = 1000

Method = Callable[[list[Any]], Awaitable[Any]]


class RpcError(Exception):
    """An error reply: JSON-RPC ``code`` and ``message``."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidParams(RpcError):
    """Parameters that a method cannot work with; the message says which, and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(INVALID_PARAMS, f"Invalid params: {message}")


async def answer(message: str | bytes, methods: Mapping[str, Method]) -> str | None:
    """The reply to a message, None where none is due. Never raises for what the message holds."""
    try:
        request = json.loads(message)
    except (ValueError, RecursionError) as error:
        return json.dumps(_failure(None, PARSE_ERROR, f"Parse error: {error}"))
    if not isinstance(request, list):
        reply = await _answer_one(request, methods)
        return None if reply is None else json.dumps(reply)
    if not request:
        return json.dumps(_failure(None, INVALID_REQUEST, "Invalid request: an empty batch"))
    if len(request) > MAX_BATCH:
        text = f"The batch request was too large: {len(request)} requests, at most {MAX_BATCH}"
        return json.dumps(_failure(None, BATCH_TOO_LARGE, text))
    replies = [await _answer_one(one, methods) for one in request]
    due = [reply for reply in replies if reply is not None]
    return json.dumps(due) if due else None


async def _answer_one(request: Any, methods: Mapping[str, Method]) -> dict[str, Any] | None:
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        return _failure(None, INVALID_REQUEST, "Invalid request: not an object with a method")
    identity = request.get("id")
    if not isinstance(identity, (str, int, float, type(None))):
        return _failure(None, INVALID_REQUEST, "Invalid request: the id is no string and no number")
    reply = await _call(identity, request["method"], request.get("params"), methods)
    return reply if "id" in request else None


async def _call(identity: Any, name: str, params: Any, methods: Mapping[str, Method]) -> dict[str, Any]:
    if name not in methods:
        return _failure(identity, METHOD_NOT_FOUND, f"Method not found: {name[:100]}")
    if params is not None and not isinstance(params, list):
        return _failure(identity, INVALID_PARAMS, "Invalid params: not an array")
    try:
        result = await methods[name](params or [])
    except RpcError as error:
        return _failure(identity, error.code, str(error))
    except PoolError as error:
        return _failure(identity, error.code, error.message, error.data)
    except Exception:
        # Whatever a client sends, it gets an answer, and the chain goes on.
        logger.exception("method %s failed", name)
        return _failure(identity, INTERNAL_ERROR, f"Internal error in {name}: see the node's log")
    return {"jsonrpc": "2.0", "id": identity, "result": result}


def _failure(identity: Any, code: int, message: str, data: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": identity, "error": error}

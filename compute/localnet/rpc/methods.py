"""The JSON-RPC methods of a Substrate node that the bittensor SDK calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Any

from compute.localnet.pallet.ledger import Ledger
from compute.localnet.pallet.state import State
from compute.localnet.pallet.store import Block
from compute.localnet.rpc import parameters
from compute.localnet.rpc.json_rpc import CLIENT_ERROR, InvalidParams, Method, RpcError
from compute.localnet.rpc.storage import Storage
from compute.localnet.rpc.subscriptions import Session, Subscriptions
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.extrinsics import Extrinsic
from compute.localnet.substrate.metadata import VERSION, encode_metadata
from compute.localnet.substrate.runtime import RUNTIME, SPEC_NAME, SPEC_VERSION, SS58_FORMAT, TRANSACTION_VERSION
from compute.localnet.substrate.scale import compact

_MAX_KEYS = 1000
_U32_MAX = 2**32 - 1
_HEAD_NOTICES = {"New": "chain_newHead", "Finalized": "chain_finalizedHead", "All": "chain_allHead"}


class NodeMethods:
    """Answers from one ledger."""

    def __init__(self, ledger: Ledger, codec: Codec, subscriptions: Subscriptions) -> None:
        self._ledger = ledger
        self._codec = codec
        self._subscriptions = subscriptions
        self._storage = Storage(RUNTIME, codec)
        self._metadata = encode_metadata(RUNTIME)

    def table(self, session: Session) -> dict[str, Method]:
        """The methods as one client sees them: its subscriptions are its own."""
        plain: dict[str, Callable[[list[Any]], Any]] = {
            "system_chain": lambda _: "Bittensor localnet",
            "system_name": lambda _: SPEC_NAME,
            "system_version": lambda _: f"{SPEC_VERSION}",
            "system_properties": lambda _: {
                "ss58Format": SS58_FORMAT,
                "tokenDecimals": 9,
                "tokenSymbol": "TAO",
            },
            "system_health": lambda _: {"peers": 0, "isSyncing": False, "shouldHavePeers": False},
            "system_accountNextIndex": self._next_nonce,
            "account_nextIndex": self._next_nonce,
            "chain_getHead": lambda _: _hex(self._ledger.head.hash),
            "chain_getFinalizedHead": lambda _: _hex(self._ledger.head.hash),
            "chain_getBlockHash": self._block_hash,
            "chain_getHeader": self._header,
            "chain_getBlock": self._block,
            "state_getRuntimeVersion": self._runtime_version,
            "state_getMetadata": lambda _: _hex(self._metadata),
            "state_call": self._state_call,
            "state_getStorage": self._read_storage,
            "state_getStorageAt": self._read_storage,
            "state_getKeysPaged": self._storage_keys,
            "state_queryStorageAt": self._query_storage,
            "author_submitExtrinsic": lambda params: self._submit(params).hash,
            "author_submitAndWatchExtrinsic": partial(self._submit_and_watch, session),
            "author_unwatchExtrinsic": self._cancel,
        }
        for kind, notice in _HEAD_NOTICES.items():
            plain[f"chain_subscribe{kind}Heads"] = partial(self._watch_heads, session, notice)
            plain[f"chain_unsubscribe{kind}Heads"] = self._cancel
        return {name: _awaitable(method) for name, method in plain.items()}

    # chain

    def _block_hash(self, params: list[Any]) -> str | None:
        (number,) = parameters.take(params, "number", optional=1)
        if number is None:
            return _hex(self._ledger.head.hash)
        if isinstance(number, str):
            number = int.from_bytes(parameters.hex_bytes("number", f"{number.removeprefix('0x'):0>8}", 4), "big")
        block = self._ledger.block(parameters.integer("number", number, 0, _U32_MAX))
        return None if block is None else _hex(block.hash)

    def _header(self, params: list[Any]) -> dict[str, Any] | None:
        (block_hash,) = parameters.take(params, "hash", optional=1)
        block = self._find_block(block_hash)
        return None if block is None else header_of(block)

    def _block(self, params: list[Any]) -> dict[str, Any] | None:
        (block_hash,) = parameters.take(params, "hash", optional=1)
        block = self._find_block(block_hash)
        if block is None:
            return None
        extrinsics = [_hex(extrinsic) for extrinsic in block.extrinsics]
        return {"block": {"header": header_of(block), "extrinsics": extrinsics}, "justifications": None}

    def _watch_heads(self, session: Session, notice: str, params: list[Any]) -> str:
        parameters.take(params)
        return self._subscriptions.watch_heads(session, notice, header_of(self._ledger.head))

    def _cancel(self, params: list[Any]) -> bool:
        (identity,) = parameters.take(params, "subscription")
        return self._subscriptions.cancel(identity)

    # state

    def _runtime_version(self, params: list[Any]) -> dict[str, Any]:
        parameters.take(params, "at", optional=1)
        return {
            "specName": SPEC_NAME,
            "implName": "compute-localnet",
            "authoringVersion": 1,
            "specVersion": SPEC_VERSION,
            "implVersion": 1,
            "apis": [[_hex(blake2b(name.encode(), digest_size=8).digest()), 1] for name in RUNTIME.apis],
            "transactionVersion": TRANSACTION_VERSION,
            "stateVersion": 1,
        }

    def _state_call(self, params: list[Any]) -> str:
        method, data, at = parameters.take(params, "method", "data", "at", optional=1)
        encoded = parameters.hex_bytes("data", data)
        if method == "Metadata_metadata_versions":
            return _hex(compact(1) + VERSION.to_bytes(4, "little"))
        if method == "Metadata_metadata_at_version":
            if encoded != VERSION.to_bytes(4, "little"):
                return "0x00"
            return _hex(b"\x01" + compact(len(self._metadata)) + self._metadata)
        state = self._state(at)
        api, _, name = method.partition("_") if isinstance(method, str) else ("", "", "")
        spec = RUNTIME.apis.get(api, {}).get(name)
        if spec is None:
            raise RpcError(
                CLIENT_ERROR, f"Client error: Execution failed: Other: Exported method {method!s:.100} is not found"
            )
        arguments, offset = [], 0
        try:
            for _, target in spec.arguments:
                argument, offset = self._codec.decode(target, encoded, offset)
                arguments.append(argument)
        except ValueError as error:
            raise RpcError(
                CLIENT_ERROR, f"Client error: Execution failed: bad arguments of {method}: {error}"
            ) from error
        return _hex(self._codec.encode(spec.result, spec.answer(state, *arguments)))

    def _read_storage(self, params: list[Any]) -> str | None:
        key, at = parameters.take(params, "key", "at", optional=1)
        value = self._storage.read(self._state(at), parameters.hex_bytes("key", key))
        return None if value is None else _hex(value)

    def _storage_keys(self, params: list[Any]) -> list[str]:
        prefix, count, start, at = parameters.take(params, "prefix", "count", "start", "at", optional=2)
        keys = self._storage.keys(
            self._state(at),
            parameters.hex_bytes("prefix", prefix or "0x"),
            parameters.integer("count", count, 0, _MAX_KEYS),
            parameters.hex_bytes("start", start) if start else None,
        )
        return [_hex(key) for key in keys]

    def _query_storage(self, params: list[Any]) -> list[dict[str, Any]]:
        keys, at = parameters.take(params, "keys", "at", optional=1)
        if not isinstance(keys, list) or len(keys) > _MAX_KEYS:
            raise InvalidParams(f"keys must be an array of at most {_MAX_KEYS} storage keys")
        state, block_hash = self._state(at), at or _hex(self._ledger.head.hash)
        changes = []
        for key in keys:
            value = self._storage.read(state, parameters.hex_bytes("key", key))
            changes.append([key, None if value is None else _hex(value)])
        return [{"block": block_hash, "changes": changes}]

    # author

    def _next_nonce(self, params: list[Any]) -> int:
        (account,) = parameters.take(params, "account")
        return self._ledger.next_nonce(parameters.address("account", account))

    def _submit(self, params: list[Any]) -> Extrinsic:
        (extrinsic,) = parameters.take(params, "extrinsic")
        return self._ledger.submit(parameters.hex_bytes("extrinsic", extrinsic))

    def _submit_and_watch(self, session: Session, params: list[Any]) -> str:
        return self._subscriptions.watch_transaction(session, self._submit(params).hash)

    # blocks by hash

    def _find_block(self, block_hash: Any) -> Block | None:
        if block_hash is None:
            return self._ledger.head
        number = self._ledger.number_of(parameters.hex_bytes("hash", block_hash, 32))
        return None if number is None else self._ledger.block(number)

    def _state(self, block_hash: Any) -> State:
        if block_hash is None:
            return self._ledger.head_state
        number = self._ledger.number_of(parameters.hex_bytes("at", block_hash, 32))
        if number is None:
            raise RpcError(
                CLIENT_ERROR, f"Client error: UnknownBlock: Header was not found in the database: {block_hash}"
            )
        state = self._ledger.state(number)
        if state is None:
            raise RpcError(
                CLIENT_ERROR,
                f"Client error: Api called for an unknown Block: State already discarded for {block_hash}",
            )
        return state


def header_of(block: Block) -> dict[str, Any]:
    """A block's header as clients read it."""
    return {
        "parentHash": _hex(block.parent_hash),
        "number": hex(block.number),
        "stateRoot": _hex(block.state_root),
        "extrinsicsRoot": _hex(block.extrinsics_root),
        "digest": {"logs": []},
    }


def _awaitable(method: Callable[[list[Any]], Any]) -> Method:
    async def call(params: list[Any]) -> Any:
        return method(params)

    return call


def _hex(data: bytes) -> str:
    return "0x" + data.hex()

"""A client of the methods that only the localnet has."""

from __future__ import annotations

import json
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from compute.base.errors import ChainError, ChainUnreachable

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class LocalnetClient:
    """Calls a localnet node; each call has a connection of its own, so a node may restart in between. Blocking.

    Every method raises ChainUnreachable where no node answers, and ChainError where it refuses.
    """

    def __init__(self, endpoint: str, *, timeout_seconds: float = 30.0) -> None:
        self.endpoint = endpoint
        self._timeout_seconds = timeout_seconds

    def faucet(self, coldkey: str, rao: int) -> str:
        """Add free balance to an account; returns the hash of the block that did it."""
        return str(self.call("localnet_faucet", coldkey, rao))

    def stake(self, netuid: int, hotkey: str, rao: int) -> str:
        """Stake new money to a registered hotkey, and give validator permits by it at once."""
        return str(self.call("localnet_stake", netuid, hotkey, rao))

    def set_hyperparameter(self, netuid: int, name: str, value: int | bool) -> str:
        """Change a field of ``compute.localnet.pallet.state.Hyperparameters``."""
        return str(self.call("localnet_setHyperparameter", netuid, name, value))

    def advance(self, blocks: int) -> int:
        """Make blocks at once; returns the number of the newest."""
        return int(self.call("localnet_advance", blocks))

    def sign_round(self, reveal_round: int, signature: str) -> None:
        """Tell the node drand's signature of a round, see ``own_methods.py``."""
        self.call("localnet_signRound", reveal_round, signature)

    def snapshot(self, netuid: int | None = None) -> dict[str, Any]:
        """The chain as plain JSON, see ``own_methods.py``; with a netuid, that subnet only."""
        snapshot = self.call("localnet_snapshot", *([] if netuid is None else [netuid]))
        assert isinstance(snapshot, dict)
        return snapshot

    def call(self, method: str, *params: Any) -> Any:
        """The result of any JSON-RPC method of the node."""
        request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        try:
            with connect(
                self.endpoint,
                max_size=_MAX_MESSAGE_BYTES,
                open_timeout=self._timeout_seconds,
                close_timeout=1.0,
                proxy=None,
            ) as socket:
                socket.send(request)
                reply = json.loads(socket.recv(self._timeout_seconds))
        except (OSError, WebSocketException) as error:
            raise ChainUnreachable(
                f"no localnet answers at {self.endpoint}: {error or type(error).__name__}"
            ) from error
        if "error" in reply:
            details = ": ".join(str(reply["error"][key]) for key in ("message", "data") if key in reply["error"])
            raise ChainError(f"{method}: {details}")
        return reply["result"]

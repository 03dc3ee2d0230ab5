"""The calls that a signed extrinsic can make, and what the pool checks of each before dispatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compute.localnet.pallet import registration, serving, weights
from compute.localnet.pallet.errors import DispatchError, PoolError, ensure
from compute.localnet.pallet.state import State

Handler = Callable[..., State]

_HANDLERS: Mapping[str, Handler] = {
    "set_weights": weights.set_weights,
    "set_mechanism_weights": weights.set_weights,
    "commit_timelocked_mechanism_weights": weights.commit_timelocked,
    "serve_axon": serving.serve_axon,
    "serve_prometheus": serving.serve_prometheus,
    "burned_register": registration.burned_register,
    "add_stake": registration.add_stake,
}
_TOO_FAST: Mapping[str, str] = {
    "set_weights": "SettingWeightsTooFast",
    "set_mechanism_weights": "SettingWeightsTooFast",
    "commit_timelocked_mechanism_weights": "CommittingWeightsTooFast",
}
_SERVING = ("serve_axon", "serve_prometheus")


def dispatch(state: State, signer: str, call: str, arguments: Mapping[str, Any]) -> State:
    """The state after a call.

    Raises:
        DispatchError: the call breaks a rule; the state stays as it was.
    """
    return _HANDLERS[call](state, signer, **arguments)


def guard(state: State, signer: str, call: str, arguments: Mapping[str, Any]) -> None:
    """What the real pool checks of a call before it accepts it (guards/*.rs).

    Raises:
        PoolError: the call would be refused.
    """
    try:
        if call in _TOO_FAST:
            weights.guard_weights(state, signer, arguments["netuid"], too_fast=_TOO_FAST[call])
        elif call in _SERVING:
            # The pool does not look whether the subnet exists: on one that does not, nobody is registered.
            ensure(arguments["netuid"] in state.subnets, "HotKeyNotRegisteredInNetwork")
            _HANDLERS[call](state, signer, **arguments)
    except DispatchError as error:
        raise PoolError.from_guard(error) from error

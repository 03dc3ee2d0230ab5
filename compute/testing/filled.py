"""A chain file with everybody on it: what takes a transaction and a block for each neuron is one block here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compute.base.clock import SystemClock
from compute.localnet.pallet.epoch import grant_permits
from compute.localnet.pallet.ledger import Ledger
from compute.localnet.pallet.state import Hyperparameters, Neuron, State
from compute.localnet.pallet.store import Store
from compute.localnet.substrate.codec import Codec
from compute.localnet.substrate.runtime import RUNTIME


def fill_chain(
    path: Path,
    netuid: int,
    neurons: Sequence[Neuron],
    stakes: Mapping[str, int],
    settings: Hyperparameters | None = None,
) -> None:
    """Make a new chain at ``path`` whose subnet has ``neurons``, in the order of their uids; a node goes on with it.

    ``stakes`` are in rao, by hotkey; those with the most of it get validator permits, as at the end of an epoch.
    ``settings`` are those of a new chain where there are none.

    Raises:
        StoreError: the file cannot be written, or a node has it open.
    """
    store = Store(path)
    try:
        ledger = Ledger(store, Codec(RUNTIME), SystemClock(), netuid=netuid, settings=settings or Hyperparameters())

        def fill(state: State) -> State:
            subnet = replace(state.subnets[netuid], neurons=tuple(neurons))
            for neuron in neurons:
                state = state.with_owner(neuron.hotkey, neuron.coldkey)
                if neuron.hotkey in stakes:
                    subnet = subnet.with_stake(neuron.hotkey, neuron.coldkey, stakes[neuron.hotkey])
            return state.with_subnet(netuid, grant_permits(subnet))

        ledger.seal(fill)
    finally:
        store.close()

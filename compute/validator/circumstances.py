"""What stood around a miner's score and is nowhere else on record: it is kept with the score, for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compute.chain import Metagraph, Neuron


def circumstances(
    metagraph: Metagraph,
    keepers: Mapping[str, Neuron],
    shared: Mapping[str, str],
    proven: Sequence[tuple[Neuron, Sequence[str]]],
) -> dict[str, dict[str, Any]]:
    """By hotkey: its row of the metagraph, and who keeps its IP address or its GPU, where somebody else does.

    ``keepers`` are those of ``standing.ip_keepers``, ``shared`` is the result of ``shared_devices``; ``proven`` has the
    neurons in the order of their registration, with the uuids that each has proven.
    """
    owners: dict[str, Neuron] = {}
    for neuron, uuids in proven:
        for uuid in uuids:
            owners.setdefault(uuid, neuron)
    return {
        neuron.hotkey: {
            "neuron": {
                "registered_at": neuron.registered_at,
                "coldkey": neuron.coldkey,
                "ip": neuron.ip,
                "port": neuron.port,
                "version": neuron.version,
            },
            "ip_kept_by": _other(keepers.get(neuron.ip), neuron),
            "device_kept_by": _other(owners.get(shared.get(neuron.hotkey, "")), neuron),
            "device": shared.get(neuron.hotkey),
        }
        for neuron in metagraph.neurons
    }


def _other(keeper: Neuron | None, neuron: Neuron) -> dict[str, Any] | None:
    if keeper is None or keeper.hotkey == neuron.hotkey:
        return None
    return {"uid": keeper.uid, "hotkey": keeper.hotkey, "registered_at": keeper.registered_at}

"""The wire protocol. Class names are URL paths; field names, types and defaults are what peers already speak.

Adding an optional field is fine; removing, renaming or re-typing one breaks the network.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import bittensor
from pydantic import Field

_DEFAULT_DOCKER_REQUIREMENT = {
    "base_image": "ubuntu",
    "ssh_key": "",
    "ssh_port": 4444,
    "volume_path": "/tmp",  # noqa: S108 - the wire's own default, never a path that this code opens
    "dockerfile": "",
}
_EMPTY_BODY_HASH = hashlib.sha3_256(b"").hexdigest()


class Synapse(bittensor.Synapse):
    """What our three synapses share: the SDK's synapse without its cost.

    The SDK rebuilds a JSON schema on every call to find the required fields, 88 % of a client's time: every field
    here has a default, so none is required. Of the rest a fifth went into weighing the synapse, bytes of memory for a
    header that nobody reads. And peers on the network hash no field of the body into the request signature, so the
    hash is a constant.
    """

    required_hash_fields: ClassVar[tuple[str, ...]] = ()

    def get_required_fields(self) -> list[str]:
        return []

    def get_total_size(self) -> int:
        self.total_size = 0
        return 0

    @property
    def body_hash(self) -> str:
        return _EMPTY_BODY_HASH


class Specs(Synapse):
    """ "What is your hardware?" The answer, ``specs_output``, is JSON text (see ``compute.wire.specs``)."""

    specs_input: str = ""
    specs_output: str = ""

    def deserialize(self) -> str:
        return self.specs_output


class Allocate(Synapse):
    """Everything about a lease.

    ============  =================  ============  =====================================================
    ``checking``  ``docker_change``  ``timeline``  meaning
    ============  =================  ============  =====================================================
    true          any                > 0           could you take this requirement now?
    true          any                0             does ``public_key`` own the live lease?
    false         true               any           ``docker_action.action``: exchange_key, restart, pause,
                                                   unpause or resume, by the owner only
    false         false              > 0           lease for ``timeline`` days
    false         false              0             end the lease, by the owner only
    ============  =================  ============  =====================================================

    ``output`` carries ``status: bool``, ``port: int``, on success ``info`` (base64 of RSA-OAEP-SHA256 under
    ``public_key``), and on refusal ``reason`` (``compute.base.reasons.Refusal``) with a ``message``.
    ``body_signature`` is this project's own, optional: see ``compute.wire.signing``.
    """

    timeline: int = 0
    device_requirement: dict[str, Any] = Field(default_factory=dict)
    checking: bool = True
    output: dict[str, Any] = Field(default_factory=dict)
    public_key: str = ""
    docker_requirement: dict[str, Any] = Field(default_factory=lambda: dict(_DEFAULT_DOCKER_REQUIREMENT))
    docker_change: bool = False
    docker_action: dict[str, Any] = Field(default_factory=lambda: {"action": "", "ssh_key": "", "key_type": ""})
    body_signature: str = ""

    def deserialize(self) -> dict[str, Any]:
        return self.output


class Challenge(Synapse):
    """The hashcat challenge, retired on the network since 1.6.0. Miners still answer it, saying so."""

    challenge_hash: str = ""
    challenge_salt: str = ""
    challenge_mode: str = ""
    challenge_chars: str = ""
    challenge_mask: str = ""
    challenge_difficulty: int = 7
    output: dict[str, Any] = Field(default_factory=dict)

    def deserialize(self) -> dict[str, Any]:
        return self.output

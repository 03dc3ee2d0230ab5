"""A subnet and its machines in memory, for tests of what stands above them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from compute.base.errors import CallUnreachable, HostKeyMismatch, SshError
from compute.base.reasons import Refusal
from compute.base.ssh import CommandResult
from compute.chain.subtensor import Metagraph, Neuron
from compute.protocol import Allocate, Specs
from compute.rental.records import Allocation
from compute.wire.keys import LoginInfo, SessionKey
from compute.wire.peer import Peer, S
from compute.wire.receipts import Receipt
from compute.wire.requirements import DeviceRequirement, shortfall
from compute.wire.specs import MachineSpecs

SSH_PORT = 4444


class FakeMiner:
    """A miner that behaves. ``scripts`` replaces its answer to one kind of request (as :func:`kind_of` names it) by an
    output or an exception; ``requests`` are the kinds asked, in order."""

    def __init__(self, hotkey: str, specs: MachineSpecs, *, ip: str = "127.0.0.1", pinned: bool = True) -> None:
        self.peer = Peer(hotkey, ip, 8091)
        self.specs = specs
        self.pinned = pinned
        self.host_key = SessionKey.generate()
        self.owner: str | None = None
        self.user_key = ""
        self.terminal_key = ""
        self.dockerfile = ""
        self.paused = False
        self.receipt: Receipt | None = None
        self.scripts: dict[str, Any] = {}
        self.requests: list[str] = []

    def answer(self, synapse: Any) -> Any:
        """The output for a request; may raise CallError."""
        kind = kind_of(synapse)
        self.requests.append(kind)
        if kind in self.scripts:
            scripted = self.scripts[kind]
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        if isinstance(synapse, Specs):
            return self.specs.to_json()
        return self._allocate(kind, synapse)

    def _allocate(self, kind: str, synapse: Allocate) -> dict[str, object]:
        mine = self.owner == synapse.public_key
        if kind in ("check", "allocate"):
            missing = shortfall(DeviceRequirement.from_wire(synapse.device_requirement), self.specs)
            if missing is not None:
                return _no(missing.reason, missing.text)
            if self.owner is not None and not mine:
                return _no(Refusal.BUSY, "somebody has it")
            return self._grant(synapse) if kind == "allocate" else {"status": True, "port": SSH_PORT}
        if not mine:
            return _no(Refusal.NO_LEASE if self.owner is None else Refusal.NOT_OWNER, "not yours")
        if kind == "deallocate":
            self.owner = None
        elif kind == "exchange_key":
            line = synapse.docker_action["key_type"]
            setattr(self, f"{line}_key", synapse.docker_action["ssh_key"])
        elif kind == "receipt":
            self.receipt = Receipt.from_wire(synapse.docker_action["receipt"])
        elif kind != "owns":
            self.paused = kind == "pause"
        return {"status": True, "port": SSH_PORT}

    def _grant(self, synapse: Allocate) -> dict[str, object]:
        self.owner = synapse.public_key
        self.user_key = synapse.docker_requirement["ssh_key"]
        self.dockerfile = synapse.docker_requirement["dockerfile"]
        host_key = self.host_key.fingerprint if self.pinned else ""
        info = LoginInfo(username="root", port=SSH_PORT, host_key=host_key)
        return {"status": True, "port": SSH_PORT, "info": info.encrypt(synapse.public_key)}


class FakeSubnet:
    """A ``Caller`` and a metagraph over some miners."""

    def __init__(self, *miners: FakeMiner) -> None:
        self.miners = {miner.peer.hotkey: miner for miner in miners}

    async def metagraph(self) -> Metagraph:
        """The miners in order, uids from 0."""
        return Metagraph(
            netuid=27, block=100, neurons=tuple(_neuron(uid, miner) for uid, miner in enumerate(self.miners.values()))
        )

    async def call(self, peer: Peer, synapse: S, *, timeout_seconds: float) -> S:
        """Ask the miner of that hotkey."""
        await asyncio.sleep(0)
        miner = self.miners[peer.hotkey]
        if peer != miner.peer:
            raise CallUnreachable(f"nobody at {peer}")
        field = "specs_output" if isinstance(synapse, Specs) else "output"
        # As the SDK does: what the peer sent goes into the field unchecked.
        answer: S = synapse.model_copy()
        answer.__dict__[field] = miner.answer(synapse)
        return answer


class FakeRemote:
    """A ``Remote`` over the miners' own records. ``down`` counts the log-ins that fail before one succeeds."""

    def __init__(self, subnet: FakeSubnet) -> None:
        self._subnet = subnet
        self.down = 0
        self.commands: list[tuple[str, ...]] = []
        self.result: Callable[[Sequence[str]], CommandResult] = lambda argv: CommandResult(0, b"", b"")

    async def host_key_line(self, host: str, port: int, *, timeout_seconds: float) -> str:
        """The host key of the miner at that address."""
        self._log_in()
        return next(miner.host_key.public_line for miner in self._subnet.miners.values() if miner.peer.ip == host)

    async def run(self, allocation: Allocation, argv: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        """``result`` of the command, if the keys are the right ones."""
        self._log_in()
        miner = self._subnet.miners[allocation.hotkey]
        if allocation.host_key != miner.host_key.fingerprint:
            raise HostKeyMismatch("somebody else answered")
        if allocation.keys.session.public_line not in (miner.user_key, miner.terminal_key):
            raise SshError("login refused")
        self.commands.append(tuple(argv))
        return self.result(argv)

    def _log_in(self) -> None:
        if self.down > 0:
            self.down -= 1
            raise SshError("nobody listens yet")


def kind_of(synapse: Any) -> str:
    """``specs``, ``check``, ``owns``, ``allocate``, ``deallocate``, or the action of a change."""
    if isinstance(synapse, Specs):
        return "specs"
    if synapse.checking:
        return "check" if synapse.timeline else "owns"
    if synapse.docker_change:
        return str(synapse.docker_action["action"])
    return "allocate" if synapse.timeline else "deallocate"


def _no(reason: Refusal, message: str) -> dict[str, object]:
    return {"status": False, "port": SSH_PORT, "reason": reason.value, "message": message}


def _neuron(uid: int, miner: FakeMiner) -> Neuron:
    return Neuron(
        uid=uid,
        hotkey=miner.peer.hotkey,
        coldkey="",
        ip=miner.peer.ip,
        port=miner.peer.port,
        version=200,
        stake=0.0,
        validator_permit=False,
        last_update=0,
        registered_at=0,
        incentive=0.1,
        dividends=0.0,
    )

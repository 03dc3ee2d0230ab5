"""A full subnet's miners for one machine: most answer for their specs, a tenth is dead, a tenth is hostile.

``python -m compute.testing.crowd FIRST LAST`` serves the uids from FIRST to before LAST, each at an address of its
own, and says on the first line of stdout at which ports, as JSON. The honest ones are real axons. They end with stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any

import bittensor

from compute import __version_as_int__
from compute.base.process import child_environment
from compute.localnet.pallet.state import Axon, Neuron
from compute.protocol import Specs
from compute.wire.server import AxonServer, RequestContext
from compute.wire.specs import Gpu, MachineSpecs

_MIB = 1 << 20
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"bt_header_axon_status_code: 200\r\nbt_header_axon_status_message: Success\r\n"
)
_GPUS = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 3090")
_DEAD, _HOSTILE = 1, 2
"""The places among each ten uids of the one that is dead and of the one that is hostile."""

Attack = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Kind(str, Enum):
    """What becomes of a request to a neuron of the crowd."""

    HONEST = "honest"
    DEAD = "dead"
    HOSTILE = "hostile"


def kind_of(uid: int) -> Kind:
    """Of each ten uids one is dead and one hostile. Uid 0 belongs to the validator."""
    return {_DEAD: Kind.DEAD, _HOSTILE: Kind.HOSTILE}.get(uid % 10, Kind.HONEST)


def address_of(uid: int) -> str:
    """A loopback address for each uid; 127.0.0.1 is not among them."""
    return str(ipaddress.IPv4Address("127.0.1.0") + uid)


@dataclass(frozen=True)
class Wallet:
    """The keys of a neuron of the crowd, derived from its uid: what an axon and the SDK read of a wallet."""

    hotkey: Any
    coldkeypub: Any


def wallet_of(uid: int) -> Wallet:
    """The wallet of ``uid``."""
    make = bittensor.Keypair.create_from_uri
    return Wallet(make(f"//crowd//{uid}"), make(f"//crowd//{uid}/cold"))


def machine_of(uid: int) -> MachineSpecs:
    """What the machine of ``uid`` says that it is."""
    name = _GPUS[uid % len(_GPUS)]
    gpus = tuple(
        Gpu(
            name,
            81_559,
            uuid=f"GPU-{uid:08x}-0000-0000-0000-{number:012x}",
            driver="550.54.15",
            pci=f"0000:0{number}:0",
        )
        for number in range(1 + uid % 8)
    )
    ram, disk = 512 * 1024 * _MIB, 4096 * 1024 * _MIB
    return MachineSpecs(
        cpu_count=64,
        cpu_frequency_mhz=2400.0,
        ram_total=ram,
        ram_available=ram // 2,
        ram_used=ram // 2,
        ram_free=ram // 4,
        disk_total=disk,
        disk_used=disk // 4,
        disk_free=disk // 4 * 3,
        gpus=gpus,
        has_docker=True,
        version=__version_as_int__,
    )


def neuron_of(uid: int, wallet: Any, port: int) -> Neuron:
    """``uid`` as the chain holds it, serving at ``port``; port 0 for one that serves nothing."""
    ip = int(ipaddress.IPv4Address(address_of(uid)))
    axon = Axon(block=1, version=__version_as_int__, ip=ip, port=port, ip_type=4, protocol=4) if port else Axon()
    hotkey, coldkey = str(wallet.hotkey.ss58_address), str(wallet.coldkeypub.ss58_address)
    return Neuron(hotkey, coldkey, registered_at=1, last_update=1, axon=axon)


class Crowd:
    """The uids from 1 to before ``size`` in ``processes`` child processes. A context manager; ``ports`` by uid."""

    def __init__(self, size: int, processes: int = 3) -> None:
        self.ports: dict[int, int] = {}
        self._bounds = [1 + (size - 1) * number // processes for number in range(processes + 1)]
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Crowd:
        for first, last in zip(self._bounds, self._bounds[1:], strict=False):
            self._children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "compute.testing.crowd", str(first), str(last)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=child_environment(),
                )
            )
        try:
            for child in self._children:
                assert child.stdout is not None
                self.ports |= {int(uid): port for uid, port in json.loads(child.stdout.readline()).items()}
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for child in self._children:
            with child:
                child.kill()


class OpenGate:
    """Lets everybody in."""

    def refusal(self, hotkey: str, synapse_name: str) -> str | None:
        return None

    def overuse(self, hotkey: str) -> str | None:
        return None

    def priority(self, hotkey: str, synapse_name: str) -> float:
        return 1.0


async def _serve_honest(uid: int) -> int:
    text = machine_of(uid).to_json()

    async def answer(synapse: Specs, context: RequestContext) -> Specs:
        synapse.specs_output = text
        return synapse

    address = address_of(uid)
    server = AxonServer(wallet_of(uid), OpenGate(), ip=address, port=0, external_ip=address, max_workers=1)
    server.attach(Specs, answer)
    await server.start()
    return server.port


def _open_grave(uid: int, held: list[socket.socket]) -> int:
    """A port at which nobody is: half of the dead refuse, the others never answer the attempt to connect."""
    listener = socket.socket()
    listener.bind((address_of(uid), 0))
    port = int(listener.getsockname()[1])
    held.append(listener)
    if uid % 20 == _DEAD:
        return port  # bound, so that nobody else gets it, and not listening
    # A full queue of connections that nobody accepts: the kernel drops whatever comes then, as a dead address does.
    listener.listen(0)
    for _ in range(2):
        caller = socket.socket()
        caller.setblocking(False)
        caller.connect_ex(listener.getsockname())
        held.append(caller)
    return port


def _json_answer(body: bytes) -> bytes:
    return _HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _says(answer: bytes) -> Attack:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return say


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b'\r\n{"specs_output": "')
    while True:
        writer.write(b"a" * 65_536)
        await writer.drain()


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b"Content-Length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.25)


async def _silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def _specs(output: Any, **others: Any) -> bytes:
    return _json_answer(json.dumps({"specs_output": output, **others}).encode())


_HEADERS_THAT_LIE = (
    b"bt_header_axon_status_code: many\r\nbt_header_dendrite_nonce: -1e9\r\ncomputed_body_hash: "
    + b"f" * 4000
    + b"\r\n"
)

ATTACKS: Sequence[Attack] = (
    _says(b"\x00\xffSSH-2.0-garbage\r\n" * 50),
    _endless,
    _drip,
    _silence,
    _says(_specs("[" * 60_000)),
    _says(_json_answer(b"[" * 125_000)),
    _says(_json_answer(b'{"a":' * 20_000 + b"1" + b"}" * 20_000)),
    _says(_specs(12345, timeout="soon", name=[], dendrite=7, axon={"ip": {}})),
    _says(_specs('{"cpu":{"count":1e999},"gpu":{"count":-1,"details":[]},"hard_disk":{},"ram":{}}')),
    _says(_specs('{"cpu":{"count":' + "9" * 4000 + '},"gpu":{},"hard_disk":{},"ram":{}}')),
    _says(_json_answer(b"[" + b"0," * 60_000 + b"0]")),
    _says(_json_answer(b'{"specs_output":' + b'"' + b"\\u0000" * 20_000 + b'"}')),
    _says(_HEAD + _HEADERS_THAT_LIE + b"Content-Length: 2\r\n\r\n{}"),
    _says(_HEAD + b"x: y\r\n" * 20_000),
)
"""What the hostile do with a request, one after the other in the order of their uids: bodies as long as are read."""


async def _serve_hostile(uid: int) -> int:
    attack = ATTACKS[uid // 10 % len(ATTACKS)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            await attack(writer)
        writer.close()

    server = await asyncio.start_server(answer, address_of(uid), 0)
    return int(server.sockets[0].getsockname()[1])


async def serve(uids: Sequence[int]) -> None:
    """Serve ``uids``, say where, and go on until stdin ends."""
    held: list[socket.socket] = []
    ports: dict[int, int] = {}
    for uid in uids:
        kind = kind_of(uid)
        if kind is Kind.DEAD:
            ports[uid] = _open_grave(uid, held)
        else:
            ports[uid] = await (_serve_honest(uid) if kind is Kind.HONEST else _serve_hostile(uid))
    print(json.dumps(ports), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(range(int(sys.argv[1]), int(sys.argv[2]))))
    os._exit(0)

"""Somebody who rents from a miner's service and uses the machine, for the tests of every runtime."""

from __future__ import annotations

import base64
import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from compute.base import ssh
from compute.base.ssh import SshSession
from compute.miner.allocate_handler import AllocateService
from compute.protocol import Allocate
from compute.wire.keys import RenterKey, SessionKey
from compute.wire.specs import MachineSpecs

SPECS = MachineSpecs(
    cpu_count=4,
    cpu_frequency_mhz=1.0,
    ram_total=1 << 40,
    ram_available=1 << 40,
    ram_used=0,
    ram_free=1 << 40,
    disk_total=1 << 40,
    disk_used=0,
    disk_free=1 << 40,
)


@dataclass
class Renter:
    """One caller with its keys, and the way it would talk to a miner."""

    service: AllocateService
    hotkey: str
    owner: RenterKey = field(default_factory=RenterKey.generate)
    session: SessionKey = field(default_factory=SessionKey.generate)
    info: dict[str, Any] = field(default_factory=dict)

    async def ask(self, **fields: Any) -> dict[str, Any]:
        return await self.service.answer(self.hotkey, Allocate(public_key=self.owner.public_pem, **fields))

    async def allocate(self, *, testing: bool = False, dockerfile: str = "") -> dict[str, Any]:
        output = await self.ask(
            checking=False,
            timeline=1,
            device_requirement={"cpu": {"count": 1}, "ram": {"capacity": 1 << 30}, "testing": testing},
            docker_requirement={
                "ssh_key": self.session.public_line,
                "base_image": "ubuntu",
                "dockerfile": dockerfile,
            },
        )
        if output["status"]:
            self.info = json.loads(self.owner.decrypt(base64.b64decode(output["info"])))
        return output

    async def deallocate(self) -> dict[str, Any]:
        return await self.ask(checking=False)

    async def change(self, action: str, *, timeline: int = 0, **more: str) -> dict[str, Any]:
        wish = {"action": action, **more}
        return await self.ask(checking=False, docker_change=True, docker_action=wish, timeline=timeline)

    def login(
        self, *, key: SessionKey | None = None, password: str | None = None
    ) -> AbstractAsyncContextManager[SshSession]:
        return ssh.connect(
            "127.0.0.1",
            self.info["port"],
            username=self.info["username"],
            pinned=self.info["host_key"],
            private_key=None if password is not None else (key or self.session).private_openssh,
            password=password,
        )

    async def says(self, text: str = "hello") -> str:
        async with self.login() as session:
            return (await session.run(["echo", text])).stdout.decode().strip()

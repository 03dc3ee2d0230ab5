"""The miner: an axon in front of one machine and its lease."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from compute import __version_as_int__
from compute.base.clock import Clock
from compute.base.errors import ExtrinsicRefused, NotRegistered, StoreError
from compute.base.reasons import Refusal
from compute.base.tasks import repeat
from compute.chain.subtensor import Chain
from compute.miner.allocate_handler import AllocateService
from compute.miner.gate import MinerGate
from compute.miner.hardware import Hardware
from compute.protocol import Allocate, Challenge, Specs
from compute.wire import signing
from compute.wire.server import AxonServer, RequestContext
from compute.wire.signing import Signer, SignerMemory, verify_signature
from compute.wire.specs import MachineSpecs, hardware_changes

logger = logging.getLogger(__name__)

SYNC_BLOCKS = 25
_HARDWARE_SECONDS = 60.0
_CHALLENGE_RETIRED = {
    "status": False,
    "message": "hashcat challenges are retired since version 1.6.0; GPUs are proven through Allocate",
}


class MinerService:
    """Answers ``Specs``, ``Allocate`` and ``Challenge`` until cancelled; keeps the chain's record of the axon true."""

    def __init__(
        self,
        *,
        hotkey: Signer,
        own_hotkey: str,
        chain: Chain,
        server: AxonServer,
        gate: MinerGate,
        allocation: AllocateService,
        hardware: Hardware,
        signers: SignerMemory,
        clock: Clock,
        require_signed: bool = False,
        poll_seconds: float = 6.0,
    ) -> None:
        self._hotkey = hotkey
        self._own_hotkey = own_hotkey
        self._chain = chain
        self._server = server
        self._gate = gate
        self._allocation = allocation
        self._hardware = hardware
        self._signers = signers
        self._clock = clock
        self._require_signed = require_signed
        self._poll_seconds = poll_seconds
        self._machine: MachineSpecs | None = None
        self._synced_block: int | None = None
        self._registered = True
        self.up = asyncio.Event()
        """Set once the axon answers, the chain knows it, and the duties run."""

    async def run(self) -> None:
        """Serve until cancelled, then stop answering; leases stay.

        Raises:
            ChainError: at the start: no chain, this hotkey is not registered, or the chain refuses the axon.
            ConfigError: the axon cannot be served.
        """
        await self.sync()
        if not self._registered:
            raise NotRegistered(
                f"hotkey {self._own_hotkey} is not registered on this subnet; register it with: btcli subnets register"
            )
        await self.refresh_hardware()
        self._server.attach(Specs, self.answer_specs)
        self._server.attach(Allocate, self.answer_allocate)
        self._server.attach(Challenge, self.answer_challenge)
        await self._server.start()
        duties = [
            asyncio.create_task(repeat(name, work, clock=self._clock, pause_seconds=pause))
            for name, work, pause in (
                ("sync", self.sync_if_due, self._poll_seconds),
                ("hardware", self.refresh_hardware, _HARDWARE_SECONDS),
            )
        ]
        try:
            await self._announce()
            self.up.set()
            await asyncio.gather(*duties)
        finally:
            for duty in duties:
                duty.cancel()
            await asyncio.gather(*duties, return_exceptions=True)
            await self._server.stop()

    # --- the chain ----------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Read the subnet: who may call, and whether we are still on it.

        Raises:
            ChainError: no answer; the last snapshot stays in force.
        """
        metagraph = await self._chain.metagraph()
        self._gate.update(metagraph)
        self._synced_block = metagraph.block
        registered = self._own_hotkey in metagraph.by_hotkey
        if self._registered and not registered:
            logger.error(
                "this hotkey has been deregistered: no validator will ask any more. Register it again with: "
                "btcli subnets register",
                extra={"hotkey": self._own_hotkey, "block": metagraph.block},
            )
        elif registered and not self._registered:
            logger.warning("this hotkey is registered again", extra={"uid": metagraph.by_hotkey[self._own_hotkey].uid})
        self._registered = registered

    async def sync_if_due(self) -> None:
        """Sync where the last one is ``SYNC_BLOCKS`` old, and announce the axon again where the chain holds another."""
        block = await self._chain.block()
        if self._synced_block is None or block - self._synced_block >= SYNC_BLOCKS:
            await self.sync()
            await self._server.refresh_address()
            if self._registered:
                await self._announce()

    async def _announce(self) -> None:
        axon = self._server.axon
        try:
            if await self._chain.serve(axon.external_ip, axon.external_port, __version_as_int__):
                details = {"ip": axon.external_ip, "port": axon.external_port}
                logger.info("axon announced on the chain", extra=details)
        except ExtrinsicRefused as error:
            if error.name != "ServingRateLimitExceeded":
                raise
            # A restart within the chain's serving interval; the next sync tries again.
            logger.warning("the chain takes the axon's new address later: %s", error)

    # --- the machine --------------------------------------------------------------------------------------------

    async def refresh_hardware(self) -> None:
        """Look at the machine again; a GPU that has gone, or come, is logged."""
        loop = asyncio.get_running_loop()
        machine = await loop.run_in_executor(None, self._hardware.specs)
        before, self._machine = self._machine, machine
        changes = hardware_changes(before, machine) if before is not None else None
        if changes is not None:
            logger.warning(
                "the hardware has changed: a machine that stays so loses its lease", extra={"changes": changes}
            )

    # --- answers ------------------------------------------------------------------------------------------------

    async def answer_specs(self, synapse: Specs, context: RequestContext) -> Specs:
        """The machine as last seen, as JSON, with the receipt of whoever rents it."""
        assert self._machine is not None, "run() looks at the machine before it serves"
        synapse.specs_output = replace(self._machine, receipt=await self._allocation.receipt()).to_json()
        return synapse

    async def answer_allocate(self, synapse: Allocate, context: RequestContext) -> Allocate:
        """Leases; see ``Allocate``. A body that must be signed and is not is refused before anything is done."""
        problem = self._unsigned(synapse, context)
        if problem is not None:
            synapse.output = {"status": False, "reason": Refusal.BAD_SIGNATURE.value, "message": problem}
            return synapse
        output = await self._allocation.answer(context.hotkey, synapse)
        info = output.get("info")
        if isinstance(info, str):
            message = signing.answer_message(context.nonce, context.hotkey, info)
            output = {**output, "info_signature": signing.encode(self._hotkey.sign(message))}
        synapse.output = output
        return synapse

    async def answer_challenge(self, synapse: Challenge, context: RequestContext) -> Challenge:
        """Retired, politely."""
        synapse.output = dict(_CHALLENGE_RETIRED)
        return synapse

    def _unsigned(self, synapse: Allocate, context: RequestContext) -> str | None:
        signature = signing.decode(synapse.body_signature)
        if signature is None:
            if synapse.body_signature:
                return "body_signature is not 0x and 128 hex digits"
            if self._require_signed:
                return "this miner takes signed bodies only; update, and sign body_signature"
            if self._signers.knows(context.hotkey):
                return "this hotkey has signed before, so its unsigned bodies are refused"
            return None
        fields: dict[str, Any] = synapse.model_dump()
        message = signing.request_message(type(synapse).__name__, context.nonce, fields)
        if not verify_signature(context.hotkey, message, signature):
            return "body_signature is not this hotkey's over this body and nonce"
        try:
            self._signers.remember([context.hotkey], self._clock.now())
        except StoreError as error:
            logger.error("cannot write down that a hotkey signs: %s", error)
        return None

"""What happens in the demo, in order, and whether it came out as it should."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from compute.base.clock import SystemClock
from compute.base.errors import ComputeError
from compute.base.reasons import ProofReason
from compute.base.store import Database
from compute.chain.subtensor import SubtensorChain
from compute.demo.cast import Actor, Kind
from compute.demo.stage import NETUID, VALIDATOR, Stage
from compute.incentive.config import Config, load_config
from compute.incentive.weights import matches, to_chain
from compute.localnet.settings import config_text
from compute.proof.calibrate import calibrate_cpu
from compute.rental.records import RenterStore
from compute.rental.remote import SshRemote
from compute.rental.service import RenterService
from compute.validator.show import MinerRow, miner_rows
from compute.validator.store import FactStore
from compute.wire.answers import SignedAnswers
from compute.wire.client import DendriteCaller
from compute.wire.keys import SecretBox
from compute.wire.lease_terms import GIB
from compute.wire.requirements import DeviceRequirement
from compute.wire.signing import SignerMemory, verify_signature

COMMAND = ("uname", "-sm")
_POLL_SECONDS = 0.4
_VERDICTS_SECONDS = 180.0
_SETTLE_SECONDS = 90.0
_SERVING_SECONDS = 60.0

T = TypeVar("T")
Show = Callable[[Sequence["Scene"], str], None]


class TooLate(ComputeError):
    """What the demo waits for has not come in its time: something is broken, or other programs use this machine."""


@dataclass(frozen=True)
class Scene:
    """One miner as the table shows it: what the validator's database says, and the share that the chain holds."""

    actor: Actor
    row: MinerRow | None
    weight: float


@dataclass
class Ending:
    """How it came out. ``problems`` is empty if everything is as it should be."""

    scenes: list[Scene] = field(default_factory=list)
    rental: dict[str, Any] = field(default_factory=dict)
    weights_match: bool = False
    epoch: int = 0
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The demo's ``--json``."""
        rows = [scene.row.to_json() | {"weight": scene.weight} for scene in self.scenes if scene.row is not None]
        keys = ("uid", "hotkey", "claim", "verdict", "score", "weight")
        return {
            "miners": [{key: row[key] for key in keys} for row in rows],
            "rental": self.rental,
            "chain": {"weights_match": self.weights_match, "epoch": self.epoch},
        }


class Story:
    """Plays on a stage; ``show`` is told what there is to see, several times a second."""

    def __init__(self, stage: Stage, show: Show) -> None:
        self._stage = stage
        self._show = show
        self._caption = ""
        self._scenes: list[Scene] = [Scene(actor, None, 0.0) for actor in stage.actors]

    async def play(self) -> Ending:
        """Everything from the first block to the last look at the chain.

        Raises:
            ComputeError: something that the demo needs did not work; the message says what.
        """
        if self._stage.docker:
            self._say("looking for a Docker engine and the image")
            await self._in_thread(self._stage.check_docker)
        self._say("measuring a core of this machine with the proof itself")
        calibration = await calibrate_cpu()
        self._stage.config_path.write_text(config_text(calibration), encoding="utf-8")
        config = load_config(self._stage.config_path)
        await self._raise_the_curtain()
        wallet = self._stage.wallets[VALIDATOR]
        chain = SubtensorChain(self._stage.node.endpoint, NETUID, wallet)
        database = Database(self._stage.database_path(VALIDATOR))
        facts = FactStore(database)
        try:
            await self._start_neurons(chain)
            self._say("the validator asks for specs and proves every machine, one after the other")
            await self._until(
                lambda: self._all_proven(facts, chain),
                _VERDICTS_SECONDS,
                "fitting verdicts on all miners",
                self._lacking,
            )
            self._say("the verdicts are in; waiting until the chain holds the weights")
            await self._until(lambda: self._settled(facts, chain, config), _SETTLE_SECONDS, "weights on the chain")
            rental = await self._rent(chain, database, config)
            self._say("waiting for the weights after the rental, and for an epoch that uses them")
            await self._until(lambda: self._settled(facts, chain, config), _SETTLE_SECONDS, "weights on the chain")
            epoch = await self._next_epoch(facts, chain, config)
            return await self._judge(facts, chain, config, rental, epoch)
        finally:
            await chain.close()
            database.close()

    # --- scenes -------------------------------------------------------------------------------------------------

    async def _raise_the_curtain(self) -> None:
        self._say("starting a chain")
        await self._in_thread(self._stage.start_chain)
        for name in (VALIDATOR, *(actor.name for actor in self._stage.actors)):
            self._say(f"registering {name} on netuid {NETUID}")
            await self._in_thread(self._stage.register, name)

    async def _start_neurons(self, chain: SubtensorChain) -> None:
        machines = "; the honest ones rent out containers" if self._stage.docker else ""
        self._say(f"starting {len(self._stage.actors)} miners{machines}")
        for actor in self._stage.actors:
            self._stage.start_miner(actor)
        await self._until(lambda: self._all_serving(chain), _SERVING_SECONDS, "every miner's axon on the chain")
        self._stage.start_validator()

    async def _rent(self, chain: SubtensorChain, database: Database, config: Config) -> dict[str, Any]:
        best = max((scene.row for scene in self._scenes if scene.row is not None), key=lambda row: row.score)
        clock = SystemClock()
        async with DendriteCaller(self._stage.wallets[VALIDATOR].hotkey, external_ip="127.0.0.1") as caller:
            renter = RenterService(
                metagraph=chain.metagraph,
                caller=caller,
                store=RenterStore(database, SecretBox.from_key_file(self._stage.folder / "renter.key")),
                remote=SshRemote(),
                clock=clock,
                gpu_scores=config.scores,
                signatures=SignedAnswers(verify_signature, SignerMemory(database), clock),
            )
            self._say(f"renting the best machine, uid {best.uid}")
            requirement = DeviceRequirement(cpu_count=1, gpu_count=best.count, ram_bytes=GIB)
            grant = await renter.allocate(requirement, hotkey=best.hotkey, days=1)
            try:
                self._say(f"running {' '.join(COMMAND)} on uid {best.uid} over SSH")
                result = await renter.execute(grant.name, COMMAND)
            finally:
                self._say(f"giving uid {best.uid} back")
                await renter.deallocate(grant.name)
        output = (result.stdout + result.stderr).decode(errors="replace").strip()
        return {"uid": best.uid, "command": " ".join(COMMAND), "output": output, "exit_code": result.exit_code}

    async def _next_epoch(self, facts: FactStore, chain: SubtensorChain, config: Config) -> int:
        """Wait until an epoch has used the weights that the chain holds now; returns its index."""
        begun = await self._epoch()
        await self._until(lambda: self._epoch_after(begun), _SETTLE_SECONDS, "the next epoch")
        return await self._epoch()

    async def _judge(
        self, facts: FactStore, chain: SubtensorChain, config: Config, rental: dict[str, Any], epoch: int
    ) -> Ending:
        # A routine proof may be changing scores at this very moment; then the next look decides.
        await self._until(lambda: self._settled(facts, chain, config), _SETTLE_SECONDS, "weights on the chain")
        problems = [problem for scene in self._scenes for problem in _problems(scene)]
        problems += _unequal_pay(self._scenes)
        if rental["exit_code"] != 0 or not rental["output"]:
            problems.append(f"the rented machine answered {rental['output']!r} with exit code {rental['exit_code']}")
        return Ending(self._scenes, rental, weights_match=True, epoch=epoch, problems=problems)

    # --- conditions ---------------------------------------------------------------------------------------------

    async def _all_serving(self, chain: SubtensorChain) -> bool:
        metagraph = await chain.metagraph()
        hotkeys = [self._stage.hotkey(actor.name) for actor in self._stage.actors]
        return all(hotkey in metagraph.by_hotkey and metagraph.by_hotkey[hotkey].is_serving for hotkey in hotkeys)

    async def _all_proven(self, facts: FactStore, chain: SubtensorChain) -> bool:
        await self._look(facts, chain)
        return not lacking(self._scenes)

    def _lacking(self) -> str:
        return f": {'; '.join(lacking(self._scenes))}"

    async def _settled(self, facts: FactStore, chain: SubtensorChain, config: Config) -> bool:
        """Whether the chain holds exactly what the scores say, and every honest miner's verdict is ok."""
        await self._look(facts, chain)
        rules = await chain.rules()
        metagraph = await chain.metagraph()
        scores = {fact.uid: fact.total for fact in facts.scores()}
        expected = to_chain(scores, rules.weights, len(metagraph.neurons))
        held = await chain.held_weights(metagraph.by_hotkey[self._stage.hotkey(VALIDATOR)].uid)
        honest = [scene.row for scene in self._scenes if scene.actor.kind is Kind.HONEST]
        free = all(row is not None and row.reason is ProofReason.OK and not row.allocated for row in honest)
        return bool(expected) and matches(expected, held) and free

    async def _epoch(self) -> int:
        snapshot = await self._in_thread(self._stage.node.client.snapshot, NETUID)
        return int(snapshot["subnets"][str(NETUID)]["epoch_index"])

    async def _epoch_after(self, begun: int) -> bool:
        return await self._epoch() > begun

    # --- tools --------------------------------------------------------------------------------------------------

    async def _look(self, facts: FactStore, chain: SubtensorChain) -> None:
        rows = {row.hotkey: row for row in miner_rows(facts)}
        metagraph = await chain.metagraph()
        held = await chain.held_weights(metagraph.by_hotkey[self._stage.hotkey(VALIDATOR)].uid)
        total = sum(held.values())

        def scene(actor: Actor) -> Scene:
            row = rows.get(self._stage.hotkey(actor.name))
            weight = held.get(row.uid, 0) / total if row is not None and total else 0.0
            return Scene(actor, row, weight)

        self._scenes = [scene(actor) for actor in self._stage.actors]
        self._show(self._scenes, self._caption)

    async def _until(
        self, condition: Callable[[], Any], seconds: float, what: str, why: Callable[[], str] = lambda: ""
    ) -> None:
        clock = SystemClock()
        end = clock.monotonic() + seconds
        while not await condition():
            fallen = self._stage.fallen()
            if fallen is not None:
                raise ComputeError(f"{fallen} has ended, and should not have:\n{self._stage.log_tail(fallen)}")
            if clock.monotonic() > end:
                raise TooLate(f"no {what} within {seconds:.0f} s{why()}")
            await clock.sleep(_POLL_SECONDS)

    def _say(self, caption: str) -> None:
        self._caption = caption
        self._show(self._scenes, caption)

    @staticmethod
    async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


def lacking(scenes: Sequence[Scene]) -> list[str]:
    """Who has no verdict yet, or is honest and has a bad one, and what is known of it.

    An honest machine may measure badly once, on a busy computer; the validator proves it again.
    """
    problems = []
    for scene in scenes:
        name, row = scene.actor.name, scene.row
        if row is None or row.proven_at is None:
            problems.append(f"{name} has no verdict")
        elif scene.actor.kind is Kind.HONEST and row.reason is not ProofReason.OK:
            problems.append(f"{name} is honest and got {row.reason.value} ({row.detail})")
    return problems


def _problems(scene: Scene) -> list[str]:
    actor, row = scene.actor, scene.row
    if row is None:
        return [f"{actor.name} has no verdict"]
    if actor.kind is Kind.HONEST:
        if row.reason is not ProofReason.OK or row.count != actor.devices or scene.weight <= 0:
            return [f"{actor.name} is honest and got {row.reason} for {row.count} devices, weight {scene.weight:.1%}"]
    elif row.reason is ProofReason.OK or row.score > 0 or scene.weight > 0:
        return [f"{actor.name} cheats and got {row.reason}, score {row.score:.2f}, weight {scene.weight:.1%}"]
    return []


def _unequal_pay(scenes: Sequence[Scene]) -> list[str]:
    """Every honest device must be paid the same, as the chain holds it (to one part in 1000)."""
    per_device: Mapping[str, float] = {
        scene.actor.name: scene.weight / scene.actor.devices for scene in scenes if scene.actor.kind is Kind.HONEST
    }
    first = next(iter(per_device.values()), 0.0)
    return [
        f"{name} is paid {pay:.4f} per device, the first honest miner {first:.4f}"
        for name, pay in per_device.items()
        if not math.isclose(pay, first, rel_tol=1e-3)
    ]

"""A neuron's own part in its updates: it looks, lets a commit be checked, waits for a safe moment, and starts anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from compute.base import tasks
from compute.base.clock import Clock
from compute.base.errors import UpdateError
from compute.base.options.shared import NeuronOptions
from compute.base.process import EXIT_RESTART, StartAnew
from compute.base.reasons import UpdateReason
from compute.update import clone, guard
from compute.update import trial as trials
from compute.update.check import Release, check, install
from compute.update.trial import Trial

logger = logging.getLogger(__name__)

_QUIET = (UpdateReason.UP_TO_DATE, UpdateReason.AHEAD)


@dataclass(frozen=True)
class Pace:
    """Seconds: between two looks at the remote; until a new commit must be up; and of calm before it counts as that."""

    look: float = 1800.0
    up: float = 600.0
    calm: float = 120.0


LOCAL = Pace(up=120.0, calm=5.0)
"""On a localnet, where a block takes a quarter of a second."""


class SelfUpdate:
    """Keeps one neuron up to date. ``beside`` its service, and ``finish`` after it."""

    def __init__(self, role: str, options: NeuronOptions, clock: Clock, *, pace: Pace | None = None) -> None:
        """``role`` names the program in ``neurons/``."""
        self._role = role
        self._options = options
        self._clock = clock
        self._pace = pace or (LOCAL if options.subtensor.is_local else Pace())
        # A thread of its own, which nobody waits for at the end: git and pip may be slow.
        self._executor = ThreadPoolExecutor(1, "update")
        self._running = self._commit() if options.auto_update else ""
        self._release: Release | None = None
        self._said = ""
        self._turn = contextlib.ExitStack()

    @staticmethod
    def _commit() -> str:
        """What this process runs: another neuron of the clone may move it before the first look."""
        with contextlib.suppress(trials.Failed):
            return trials.place()[0] if trials.state_folder() is not None else ""
        return ""

    async def beside(
        self, service: Coroutine[Any, Any, None], *, up: asyncio.Event, safe: Callable[[], Awaitable[object]]
    ) -> None:
        """Run ``service``, and end it where a new commit is to be run.

        Args:
            up: set once the service is in touch with the chain and its duties have begun.
            safe: returns at a moment when a restart disturbs nothing; holds it until cancelled.

        Raises:
            StartAnew: the service has ended for that; anything that ``service`` itself raises.
        """
        serving = asyncio.create_task(service)
        updating = asyncio.create_task(self._keep_up(up, safe))
        try:
            await asyncio.wait({serving, updating}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and (error := updating.exception()) is not None:
                logger.error("auto-update has failed, and the neuron goes on without it", exc_info=error)
                await asyncio.wait({serving})
            if serving.done():
                return serving.result()
        finally:
            for task in (serving, updating):
                task.cancel()
            trials.end_all()
            await asyncio.gather(serving, updating, return_exceptions=True)
        raise StartAnew

    def finish(self, code: int) -> int:
        """What the process ends with: ``code``, unless the service has ended for an update. Then it does not return."""
        if code != EXIT_RESTART or self._release is None:
            self._turn.close()
            return code
        logger.info("switching to a new commit", extra={"commit": self._release.commit[:12]})
        try:
            switch(self._release, self._pace.up)
        except (UpdateError, OSError) as error:
            logger.error("the switch failed, and the neuron goes on with what it was: %s", error)
        return guard.restart()

    async def _keep_up(self, up: asyncio.Event, safe: Callable[[], Awaitable[object]]) -> None:
        """Returns when a release has been found and the moment is safe."""
        await up.wait()
        await self._confirm()
        if not self._options.auto_update:
            logger.info("auto-update is off")
        elif await self._in_thread(self._open):
            found = asyncio.Event()
            looking = asyncio.create_task(self._look_again_and_again(found))
            try:
                await found.wait()
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
            assert self._release is not None
            logger.info("a new commit passed its check", extra={"commit": self._release.commit[:12]})
            await safe()
            return
        await asyncio.Event().wait()

    async def _confirm(self) -> None:
        """A commit on trial stays once no duty has met a bug for a while; the guard goes back if that never comes."""
        calm = False
        while guard.is_on_trial() and not calm:
            before = tasks.unexpected.total()
            await self._clock.sleep(self._pace.calm)
            calm = tasks.unexpected.total() == before
        if calm:
            guard.confirm()
            logger.info("the new commit is up and stays")

    async def _look_again_and_again(self, found: asyncio.Event) -> None:
        # Not all neurons of the network at once, and not those that only run for a moment.
        await self._clock.sleep(random.uniform(self._pace.look / 6, self._pace.look / 3))  # noqa: S311

        async def look() -> None:
            if self._release is None and await self._in_thread(self._look):
                found.set()

        await tasks.repeat("update", look, clock=self._clock, pause_seconds=self._pace.look)

    async def _in_thread(self, work: Callable[[], bool]) -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    # --- in the thread --------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Whether there is a clone to update."""
        try:
            clone.require()
            self._running = self._running or clone.place()[0]
        except UpdateError as error:
            self._say(error.reason, str(error))
            return False
        return True

    def _look(self) -> bool:
        """Whether there is a release to switch to."""
        try:
            return self._find()
        except OSError as error:
            self._say(UpdateReason.GIT_FAILED, f"{error}. This user must be able to write in the clone's git folder")
            return False

    def _find(self) -> bool:
        with contextlib.ExitStack() as turn:
            if not turn.enter_context(trials.lock(wait=False)) or trials.is_taken():
                return False
            try:
                commit = clone.look(self._running)
            except UpdateError as error:
                self._say(error.reason, str(error))
                return False
            logger.info("there is a new commit: checking it", extra={"commit": commit[:12]})
            try:
                self._release = check(self._running, commit, self._role, sys.argv[1:])
            except UpdateError as error:
                trials.remember(commit, str(error), for_good=error.reason is UpdateReason.CHECK_FAILED)
                self._say(error.reason, f"the commit {commit[:12]} is not taken: {error}")
                return False
            # Until this process ends, or is another one: what this neuron cannot run, the others need not try.
            self._turn = turn.pop_all()
            return True

    def _say(self, reason: UpdateReason, message: str) -> None:
        """Log it, unless it was the last thing that was said."""
        if message != self._said:
            self._said = message
            level = logging.INFO if reason in _QUIET else logging.WARNING
            logger.log(level, "update: %s", message, extra={"reason": reason})


def switch(release: Release, up_seconds: float) -> None:
    """Move packages and clone to a release that has passed its check; the service has ended, and the caller restarts.

    It may be broken off anywhere: the trial is written first and the branch is moved last. So a start that finds the
    branch still at the old commit goes back, and one that finds it at the new commit knows that all before was done.
    Only under ``trial.lock``. Blocks.

    Raises:
        UpdateError: the clone is not as it was when the release was checked, and nothing was done; or a step failed,
            and the restart goes back.
    """
    head, ref = clone.place()
    if head not in (release.old, release.commit) or ref == "HEAD":
        raise UpdateError(UpdateReason.MOVED_BY_HAND, "the clone has changed since the check: looking again later")
    clone.refuse_changes(head, release.commit)
    packages = list(release.old_packages)
    trials.save(Trial(old=release.old, new=release.commit, ref=ref, packages=packages, up_seconds=up_seconds))
    if release.packages:
        install(sys.executable, ["--no-deps", *release.packages], trials.PIP_SECONDS)
    # Another neuron of this clone may have moved it already.
    if head != release.commit:
        clone.advance(release.commit)

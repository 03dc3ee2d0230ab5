"""A container on its way up: how long it may take, whether waiting still makes sense, and why it failed."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from docker.models.containers import Container

from compute.allocation.docker_engine import DiskFull, DockerEngine
from compute.allocation.docker_files import UNPACK_FAILED
from compute.allocation.dockerfile import failed_step
from compute.allocation.runtime import LeaseOrder
from compute.errors import RuntimeFailure

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.02
_SCRIPT_PAUSE_SECONDS = 0.5
_SIZE_SECONDS = 5.0
_LOG_LINES = 20


class Arrival:
    """Watches over one start. ``patience_seconds`` and ``pause_seconds`` are for whoever waits for its sshd."""

    def __init__(
        self,
        engine: DockerEngine,
        container: Container,
        order: LeaseOrder,
        *,
        start_seconds: float,
        script_seconds: float,
        script_bytes: int,
        wanted: Callable[[], bool],
    ) -> None:
        """``script_bytes`` is what the order's script may write, where no disk was asked for."""
        self.patience_seconds = start_seconds + (script_seconds if order.script else 0)
        self.pause_seconds = _SCRIPT_PAUSE_SECONDS if order.script else _PAUSE_SECONDS
        self._engine = engine
        self._container = container
        self._has_script = bool(order.script)
        self._bytes = order.limits.disk_bytes or script_bytes
        self._wanted = wanted
        self._begun = self._measured = time.monotonic()

    def goes_on(self) -> bool:
        """Whether it may still come up.

        Raises:
            RuntimeFailure: it must not.
        """
        if not self._wanted():
            raise RuntimeFailure("the lease ended while its machine came up")
        if self._has_script and time.monotonic() - self._measured > _SIZE_SECONDS:
            self._measure()
        with self._engine.calling("describe the container"):
            self._container.reload()
        return bool(self._container.status == "running")

    def failure(self, error: RuntimeFailure) -> RuntimeFailure:
        """What to tell the renter where waiting ended with ``error``; never raises."""
        if not self._has_script:
            # What a script has said is its renter's alone.
            with contextlib.suppress(RuntimeFailure), self._engine.calling("show the container's log"):
                said = self._container.logs(tail=_LOG_LINES).decode(errors="backslashreplace").strip()
                logger.warning("the container did not come up; it said: %s", said or "nothing")
        with contextlib.suppress(RuntimeFailure), self._engine.calling("describe the container"):
            self._container.reload()
            state = self._container.attrs["State"]
            if state["Status"] != "running" and int(state["ExitCode"]) == UNPACK_FAILED:
                return DiskFull("the machine's files could not be written: the miner's disk is full")
            if self._has_script:
                return RuntimeFailure(self._script_failure(state) or str(error))
        return error

    def _script_failure(self, state: Mapping[str, Any]) -> str | None:
        if state["Status"] == "running":
            late = time.monotonic() - self._begun >= self.patience_seconds
            return f"the dockerfile took longer than {self.patience_seconds:g} s" if late else None
        if step := failed_step(int(state["ExitCode"])):
            return f"step {step} of the dockerfile failed"
        if state.get("OOMKilled"):
            return "the dockerfile needs more memory than the lease has"
        return None

    def _measure(self) -> None:
        with self._engine.calling("measure the container") as client:
            found = client.api.containers(all=True, size=True, filters={"id": self._container.id})
            written = sum(int(each.get("SizeRw", 0)) for each in found)
        if written > self._bytes:
            raise RuntimeFailure(f"the dockerfile wrote {written >> 20} MiB, and may write {self._bytes >> 20} MiB")
        self._measured = time.monotonic()

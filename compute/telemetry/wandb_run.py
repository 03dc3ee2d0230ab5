"""Publishes to Weights & Biases from a thread of its own: whatever happens there, the neuron does not wait for it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from compute.base.clock import Clock
from compute.base.options.shared import NeuronOptions
from compute.base.tasks import repeat
from compute.wire.signing import Signer, Verifier

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "WANDB_API_KEY"
MODE_VARIABLE = "WANDB_MODE"
INTERVAL_SECONDS = 600.0
_INIT_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 3600.0
_CLOSE_SECONDS = 1.0


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether there is a key, or the run is kept on this machine; says so in one line where it is off."""
    mode = environ.get(MODE_VARIABLE, "").strip().lower()
    if mode == "disabled":
        logger.info("wandb is off: %s is %s", MODE_VARIABLE, mode)
        return False
    if environ.get(API_KEY_VARIABLE, "").strip() or mode == "offline":
        return True
    logger.info("wandb is off: there is no %s, in the environment or in .env", API_KEY_VARIABLE)
    return False


async def publishing(
    run: WandbRun,
    content: Callable[[], Awaitable[Mapping[str, Any]]],
    clock: Clock,
    *,
    interval_seconds: float = INTERVAL_SECONDS,
) -> None:
    """A duty: leave ``content`` with ``run`` every ``interval_seconds``, until cancelled; then the run is ended."""

    async def publish() -> None:
        run.publish(await content())

    try:
        await repeat("wandb", publish, clock=clock, pause_seconds=interval_seconds)
    finally:
        if not await asyncio.to_thread(run.close, _CLOSE_SECONDS):
            logger.warning("wandb did not end in %.0f s, and is left behind", _CLOSE_SECONDS)


class WandbRun:
    """One neuron's run. ``publish`` only leaves its content for the thread, which takes the latest; it never raises."""

    def __init__(
        self, role: str, own_hotkey: str, hotkey: Signer, folder: Path, *, init_seconds: float = _INIT_SECONDS
    ) -> None:
        """``folder`` is where the package keeps its files, in ``wandb/``."""
        self._name = run_name(role, own_hotkey)
        self._hotkey = hotkey
        self._folder = folder
        self._init_seconds = init_seconds
        self._run: Any = None
        self._content: Mapping[str, Any] | None = None
        self._changed = threading.Condition()
        self._ending = False
        self.published = 0
        """How often content has been handed to the package."""
        self.failures = 0
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def publish(self, content: Mapping[str, Any]) -> None:
        """Publish ``content``, plain data, when the thread comes to it; what waited before it is dropped."""
        with self._changed:
            self._content = content
            self._changed.notify()

    def close(self, timeout_seconds: float) -> bool:
        """End the run; returns whether it ended in time. What has not been sent by then is lost."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while (content := self._next()) is not None:
            try:
                self._hand_over(content)
            except Exception as error:  # the package raises what its parts raise, and none of it matters to a neuron
                logger.warning("wandb: %s; next try in %.0f s", str(error)[:200] or type(error).__name__, pause)
                self.failures += 1
                self._finish()
                with self._changed:
                    # Newer content wins over that which could not be published.
                    self._content = self._content or content
                    self._changed.wait_for(lambda: self._ending, pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS
        self._finish()

    def _next(self) -> Mapping[str, Any] | None:
        """The latest content, when there is some; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ending or self._content is not None)
            content, self._content = self._content, None
            return None if self._ending else content

    def _hand_over(self, content: Mapping[str, Any]) -> None:
        if self._run is None:
            self._run = self._begin()
        # As a reader will get it: a signature over tuples would not be one over the lists that they become.
        plain = json.loads(json.dumps(content))
        self._run.config.update(signed(plain, self._run.id, self._hotkey), allow_val_change=True)
        self._run.log({"published": self.published + 1})
        self.published += 1

    def _begin(self) -> Any:
        import wandb  # half a second, and only where there is a key

        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return wandb.init(
            entity=ENTITY,
            project=PROJECT,
            name=self._name,
            # The same neuron goes on with the same run after a restart.
            id=hashlib.sha256(self._name.encode()).hexdigest()[:16],
            resume="allow",
            dir=str(self._folder),
            settings=wandb.Settings(
                console="off",
                host="-",  # an empty one would be the name of this machine
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
                init_timeout=self._init_seconds,
            ),
        )

    def _finish(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish()
            except Exception as error:  # as above
                logger.debug("wandb: the run did not end well: %s", error)


ENTITY = "neuralinternet"
PROJECT = "opencompute"
_CONTENT_TAG = b"compute-subnet published content v1\n"
_SIGNATURES = ("signature", "content_signature")
_INTERNAL = "_wandb"


def signed(content: Mapping[str, Any], run_id: str, hotkey: Signer) -> dict[str, Any]:
    """``content`` with the signatures of ``hotkey``.

    ``signature`` is the network's: over sha256 of the run's id, so that it says whose run this is and nothing of what
    is in it. ``content_signature`` covers the run's id and all the rest.
    """
    signature = hotkey.sign(hashlib.sha256(run_id.encode()).digest()).hex()
    return {
        **content,
        "signature": signature,
        "content_signature": hotkey.sign(_content_bytes(content, run_id)).hex(),
    }


def is_genuine(config: Mapping[str, Any], run_id: str, verify: Verifier) -> bool:
    """Whether the hotkey named in a run's ``config`` has signed all of it, for this very run."""
    hotkey = config.get("hotkey")
    content = {key: value for key, value in config.items() if key not in (*_SIGNATURES, _INTERNAL)}
    try:
        signature, content_signature = (bytes.fromhex(str(config.get(name, ""))) for name in _SIGNATURES)
        return (
            isinstance(hotkey, str)
            and verify(hotkey, hashlib.sha256(run_id.encode()).digest(), signature)
            and verify(hotkey, _content_bytes(content, run_id), content_signature)
        )
    except (ValueError, TypeError, RecursionError):
        return False


def run_name(role: str, hotkey: str) -> str:
    return f"{role}-{hotkey}"


def _content_bytes(content: Mapping[str, Any], run_id: str) -> bytes:
    text = json.dumps([run_id, content], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _CONTENT_TAG + text.encode()


def public_config(options: NeuronOptions) -> Mapping[str, Any]:
    """What a neuron publishes of its command line: no address and no path, which may hold a token or a name."""
    return {"netuid": options.netuid, "auto_update": options.auto_update}

"""What both neurons do around their service: keys, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from compute.base.errors import ChainError, ComputeError, ConfigError
from compute.base.options.shared import WalletOptions

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_CRASH = 1
EXIT_CONFIG = 2
EXIT_CHAIN = 3
EXIT_RESTART = -1
"""Never leaves the process: it starts anew instead."""
_SWITCH_SECONDS = 0.0001
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StartAnew(Exception):
    """The neuron has come to its end so that the process can start again, with another commit."""


def load_environment() -> None:
    """Read ``.env`` of the working directory, or of the repository, into the environment; what is set there wins.

    Ends the process with ``EXIT_CONFIG`` where the file is there and cannot be read.
    """
    from dotenv import load_dotenv

    here, repository = Path.cwd() / ".env", Path(__file__).resolve().parents[2] / ".env"
    file = here if here.exists() else repository
    try:
        load_dotenv(file)
    except (OSError, UnicodeDecodeError) as error:
        print(f"{file} cannot be read: {error}. It must be text that this user may read.", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from None


def load_wallet(options: WalletOptions) -> Any:
    """Open a wallet whose hotkey and public coldkey are readable without a password.

    Raises:
        ConfigError: a key file is missing, unreadable or encrypted.
    """
    import bittensor

    wallet = bittensor.Wallet(name=options.name, hotkey=options.hotkey, path=options.path)
    try:
        _ = wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address
    except Exception as error:  # the wallet library raises types of its own, which it does not export
        raise ConfigError(
            f"wallet {options.name!r} with hotkey {options.hotkey!r} in {options.path}: {error}. Create it with: "
            f"btcli wallet create --wallet.name {options.name} --wallet.hotkey {options.hotkey}"
        ) from error
    return wallet


def run_neuron(main: Callable[[], Awaitable[None]]) -> int:
    """Run ``main`` until it ends or SIGINT or SIGTERM cancels it; returns the process's exit code.

    0 after a clean end, 2 for a configuration that a restart does not mend, 3 for the chain, 1 for anything else;
    EXIT_RESTART where ``main`` asks for it and no signal came.
    """
    _settle()
    # The event loop gives the interpreter away whenever it touches a socket. While another thread computes (in a miner
    # it decodes the subnet, a quarter of a second of 256 neurons) it would get it back 5 ms later each time, and have
    # stood still after twenty sockets. Asked for so early it gets it back after 0.4 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        asyncio.run(_until_signalled(main))
    except StartAnew:
        return EXIT_RESTART
    except ConfigError as error:
        logger.error("%s", error)
        return EXIT_CONFIG
    except ChainError as error:
        logger.error("%s", error)
        return EXIT_CHAIN
    except ComputeError as error:
        logger.error("%s", error)
        return EXIT_CRASH
    except Exception:
        # The end of the process: into the log, not to stderr alone.
        logger.exception("the neuron failed")
        return EXIT_CRASH
    return EXIT_OK


async def settled(up: asyncio.Event) -> None:
    """Once the neuron is ``up``, spare collections what was built since the start: the SDK's types of the chain."""
    await up.wait()
    _settle()


def _settle() -> None:
    """What lives now, lives as long as the process: a collection need not look at it again, 60 ms each time."""
    gc.collect()
    gc.freeze()


async def _until_signalled(main: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(main())
    loop = asyncio.get_running_loop()
    signalled = False

    def stop(name: str) -> None:
        nonlocal signalled
        if signalled:
            logger.warning("%s again: ending at once", name)
            # Whatever the stop hangs on, the operator has waited long enough.
            sys.stderr.flush()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        signalled = True
        logger.info("stopping", extra={"signal": name})
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, signal.Signals(number).name)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    except StartAnew:
        if not signalled:
            raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


_ROOT = Path(__file__).resolve().parents[2]


def child_environment() -> dict[str, str]:
    """This process's own, in which ``python -m compute.…`` runs this very code, whatever the current folder is."""
    search_path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": search_path}

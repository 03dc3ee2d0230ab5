"""Whether the sshd that should answer on a port does: the one with the host key that was made for it."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

import paramiko

from compute.errors import RuntimeFailure

_TRY_SECONDS = 5.0
_LOG = "compute.ssh.transport"


def wait_for_sshd(
    host: str,
    port: int,
    fingerprint: str,
    *,
    within_seconds: float,
    still_alive: Callable[[], bool],
    pause_seconds: float = 0.02,
) -> None:
    """Return as soon as an sshd with the host key ``fingerprint`` (``"SHA256:…"``) answers on ``host:port``.

    Nothing is logged in. ``still_alive`` is asked after each vain try, and says whether waiting makes sense; then there
    is a pause.

    Raises:
        RuntimeFailure: it is not alive, another host key answers, or time is over.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RuntimeFailure(f"the machine's sshd did not answer within {within_seconds:g} s")
        seen = _host_key(host, port, min(left, _TRY_SECONDS))
        if seen == fingerprint:
            return
        if seen is not None:
            raise RuntimeFailure("another sshd answers on the machine's SSH port")
        if not still_alive():
            raise RuntimeFailure("the machine's sshd ended while it came up")
        time.sleep(pause_seconds)


def _host_key(host: str, port: int, timeout_seconds: float) -> str | None:
    """The fingerprint of the host key that a server proves to have, or None where none answers (yet)."""
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            connection.settimeout(timeout_seconds)
            # The engine's proxy accepts before there is an sshd behind it: a byte of its banner is the sign.
            if not connection.recv(1, socket.MSG_PEEK):
                return None
            transport = paramiko.Transport(connection)
            transport.set_log_channel(_LOG)
            try:
                transport.start_client(timeout=timeout_seconds)
                return str(transport.get_remote_server_key().fingerprint)
            finally:
                transport.close()
    except (OSError, EOFError, paramiko.SSHException):
        return None


# Whatever a server that is not up yet makes paramiko say is no news.
logging.getLogger(_LOG).setLevel(logging.CRITICAL + 1)

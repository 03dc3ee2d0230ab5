"""The system's own ssh client for a lease: its arguments, and the temporary files that pin the host key."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SshTarget:
    """Where ssh goes. ``host_key_line`` is the public host key as ``TYPE BASE64``, already checked against its pin."""

    host: str
    port: int
    username: str
    host_key_line: str


def known_hosts_text(target: SshTarget) -> str:
    """The one line of ``known_hosts`` that lets ssh accept exactly this machine."""
    return f"[{target.host}]:{target.port} {target.host_key_line}\n"


def ssh_argv(target: SshTarget, *, key_file: Path, known_hosts: Path, command: Sequence[str] = ()) -> list[str]:
    """The arguments of ssh: this key and no other, this host key and no other, no file of the user's own.

    ``command`` is quoted for the remote shell, so that its arguments arrive as they are; empty opens a login shell.
    """
    options = {
        "IdentityFile": f'"{key_file}"',
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "HostKeyAlgorithms": target.host_key_line.split(" ", 1)[0],
        "PasswordAuthentication": "no",
        "ServerAliveInterval": "30",
    }
    argv = ["ssh", "-F", "/dev/null", "-p", str(target.port), "-l", target.username]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    argv += ["--", target.host]
    if command:
        argv.append(shlex.join(command))
    return argv


@contextmanager
def ssh_invocation(target: SshTarget, private_key: str, command: Sequence[str] = ()) -> Iterator[list[str]]:
    """:func:`ssh_argv` over a 0600 key file and a ``known_hosts`` in a 0700 folder, both gone when the block ends.

    Args:
        private_key: in OpenSSH's own format.
    """
    with tempfile.TemporaryDirectory(prefix="compute-ssh-") as folder:
        key_file, known_hosts = Path(folder, "key"), Path(folder, "known_hosts")
        _write_private(key_file, private_key)
        _write_private(known_hosts, known_hosts_text(target))
        yield ssh_argv(target, key_file=key_file, known_hosts=known_hosts, command=command)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)

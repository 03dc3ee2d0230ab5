"""The files that the miner puts into a lease's container: sshd's configuration, its host key, and who may log in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import bcrypt

from compute.allocation.runtime import USERNAME, LeaseOrder

SHADOW = "/etc/shadow"
MAX_SHADOW_BYTES = 1 << 16

_CONFIG = "etc/ssh/compute_sshd_config"
_HOST_KEY = "etc/ssh/compute_host_key"
_SSH_FOLDER = f"{USERNAME}/.ssh"

_STEPS = "etc/ssh/compute_steps"
_START = "etc/ssh/compute_start"

SSHD_COMMAND = ("/usr/sbin/sshd", "-D", "-e", "-f", f"/{_CONFIG}")
"""In the foreground, with its log on stderr."""

STEPS_COMMAND = ("/bin/sh", f"/{_START}")
"""First the order's script, unless it has been through already, then ``SSHD_COMMAND``."""

_START_SCRIPT = f"""\
if ! [ -e /{_STEPS}.done ]; then
    cd / && /bin/sh /{_STEPS} </dev/null || exit
    : >/{_STEPS}.done
fi
exec {" ".join(SSHD_COMMAND)}
"""

_SSHD_CONFIG = f"""\
Port 22
HostKey /{_HOST_KEY}
PermitRootLogin {{root}}
PasswordAuthentication {{password}}
KbdInteractiveAuthentication no
PubkeyAuthentication yes
AuthorizedKeysFile .ssh/authorized_keys
UsePAM no
UseDNS no
X11Forwarding no
PrintMotd no
LoginGraceTime 30
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""


def machine_archive(order: LeaseOrder, shadow: str) -> bytes:
    """Everything that a new container needs before it starts, as a tar file for ``/``. ``shadow`` is the image's."""
    return _archive(
        [*_sshd_files(order), *_key_files(order.authorized_keys), (SHADOW[1:], _shadow_for(order, shadow), 0o640)]
    )


def restart_archive(order: LeaseOrder) -> bytes:
    """What a container needs to come up again as it was ordered, as a tar file for ``/``; a password stays as it is."""
    return _archive([*_sshd_files(order), *_key_files(order.authorized_keys)])


def keys_archive(authorized_keys: Sequence[str]) -> bytes:
    """The whole of ``authorized_keys``, as a tar file for ``/``.

    The engine unlinks a file before it writes the new one: a login meanwhile finds no key, or a new one.
    """
    return _archive(_key_files(authorized_keys))


def read_archive(archive: bytes) -> str:
    """The text of the one file in a tar file.

    Raises:
        ValueError: it holds no such file.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            member = tar.next()
            file = None if member is None else tar.extractfile(member)
            if file is None:
                raise ValueError("the archive holds no file")
            return file.read().decode()
    except (tarfile.TarError, KeyError) as error:
        raise ValueError(f"the archive cannot be read: {error}") from error


_Entry = tuple[str, str | None, int]
"""A path, the file's text (None: a folder), and its mode."""


def _sshd_files(order: LeaseOrder) -> list[_Entry]:
    by_password = order.password is not None
    config = _SSHD_CONFIG.format(
        root="yes" if by_password else "prohibit-password", password="yes" if by_password else "no"
    )
    # sshd wants the folder for its unprivileged half, and images that never booted lack it.
    entries: list[_Entry] = [("run/sshd", None, 0o755), (_CONFIG, config, 0o600), (_HOST_KEY, order.host_key, 0o600)]
    if order.script:
        entries += [(_START, _START_SCRIPT, 0o600), (_STEPS, order.script, 0o600)]
    return entries


def _key_files(authorized_keys: Sequence[str]) -> list[_Entry]:
    lines = "".join(f"{key}\n" for key in authorized_keys)
    return [(_SSH_FOLDER, None, 0o700), (f"{_SSH_FOLDER}/authorized_keys", lines, 0o600)]


def _shadow_for(order: LeaseOrder, shadow: str) -> str:
    # A new password has 144 bits: there is nothing to stretch. "*" is no password; "!" would be a locked account,
    # which sshd does not let in by key either.
    secret = "*" if order.password is None else bcrypt.hashpw(order.password.encode(), bcrypt.gensalt(4)).decode()
    others = [line for line in shadow.splitlines() if not line.startswith(f"{USERNAME}:")]
    return "".join(f"{line}\n" for line in [f"{USERNAME}:{secret}:::::::", *others])


def _archive(entries: Sequence[_Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, text, mode in entries:
            # Owner and group are root's: the default of a TarInfo.
            info = tarfile.TarInfo(path)
            info.mode = mode
            if text is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                content = text.encode()
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()

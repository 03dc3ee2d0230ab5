"""A lease's container from the inside: the program that it runs, and the files that it is given.

The program waits for the files on its standard input, so that a container can be up before anybody knows whose it will
be: nothing listens in it until then.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import bcrypt

from compute.miner.runtimes.base import USERNAME, ContainerSpec

UNPACK_FAILED = 59
"""The program's exit code where it could not write its files. ``dockerfile.failed_step`` has those above it."""

_CONFIG = "etc/ssh/compute_sshd_config"
_HOST_KEY = "etc/ssh/compute_host_key"
_SSH_FOLDER = f"{USERNAME}/.ssh"

_LOGIN = "etc/ssh/compute_login"
"""The login's line of ``/etc/shadow``, until it is there."""
_STEPS = "etc/ssh/compute_steps"
_UNPACKED = "etc/ssh/compute_unpacked"

_PROGRAM = f"""\
cd /
if ! [ -e /{_UNPACKED} ]; then
    tar -xf - || exit {UNPACK_FAILED}
    umask 027
    {{ cat /{_LOGIN}; grep -v '^{USERNAME}:' /etc/shadow; }} >/etc/shadow.new
    mv /etc/shadow.new /etc/shadow && rm /{_LOGIN} && : >/{_UNPACKED} || exit {UNPACK_FAILED}
    umask 022
fi
if [ -e /{_STEPS} ] && ! [ -e /{_STEPS}.done ]; then
    /bin/sh /{_STEPS} </dev/null || exit
    : >/{_STEPS}.done
fi
exec /usr/sbin/sshd -D -e -f /{_CONFIG} </dev/null
"""

COMMAND = ("/bin/sh", "-c", _PROGRAM)
"""Takes its files, unless it has them; runs the spec's script, unless it has been through; then is sshd, in the
foreground and with its log on stderr."""

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


def machine_archive(spec: ContainerSpec) -> bytes:
    """What the program of a new container waits for, as a tar file for ``/``."""
    return _archive([*_sshd_files(spec), *_key_files(spec.authorized_keys), (_LOGIN, _login_line(spec), 0o600)])


def restart_archive(spec: ContainerSpec) -> bytes:
    """What a container needs to come up again as it was ordered, as a tar file for ``/``; a password stays as it is."""
    return _archive([*_sshd_files(spec), *_key_files(spec.authorized_keys), (_UNPACKED, "", 0o600)])


def keys_archive(authorized_keys: Sequence[str]) -> bytes:
    """The whole of ``authorized_keys``, as a tar file for ``/``.

    The engine unlinks a file before it writes the new one: a login meanwhile finds no key, or a new one.
    """
    return _archive(_key_files(authorized_keys))


_Entry = tuple[str, str | None, int]
"""A path, the file's text (None: a folder), and its mode."""


def _sshd_files(spec: ContainerSpec) -> list[_Entry]:
    by_password = spec.password is not None
    config = _SSHD_CONFIG.format(
        root="yes" if by_password else "prohibit-password", password="yes" if by_password else "no"
    )
    # sshd wants the folder for its unprivileged half, and images that never booted lack it.
    entries: list[_Entry] = [("run/sshd", None, 0o755), (_CONFIG, config, 0o600), (_HOST_KEY, spec.host_key, 0o600)]
    if spec.script:
        entries.append((_STEPS, spec.script, 0o600))
    return entries


def _key_files(authorized_keys: Sequence[str]) -> list[_Entry]:
    lines = "".join(f"{key}\n" for key in authorized_keys)
    return [(_SSH_FOLDER, None, 0o700), (f"{_SSH_FOLDER}/authorized_keys", lines, 0o600)]


def _login_line(spec: ContainerSpec) -> str:
    # A new password has 144 bits: there is nothing to stretch. "*" is no password; "!" would be a locked account,
    # which sshd does not let in by key either.
    secret = "*" if spec.password is None else bcrypt.hashpw(spec.password.encode(), bcrypt.gensalt(4)).decode()
    return f"{USERNAME}:{secret}:::::::\n"


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

"""The system's ssh: arguments and files."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from compute.rental.ssh_command import SshTarget, known_hosts_text, ssh_argv, ssh_invocation
from compute.wire.keys import SessionKey
from tests.waiting import DEADLINE_SECONDS

KEY = SessionKey.generate()
TARGET = SshTarget("127.0.0.2", 4444, "root", KEY.public_line)


def test_the_arguments_trust_one_key_and_read_no_file_of_the_users() -> None:
    assert ssh_argv(TARGET, key_file=Path("/t/key"), known_hosts=Path("/t/known_hosts")) == [
        "ssh",
        "-F",
        "/dev/null",
        "-p",
        "4444",
        "-l",
        "root",
        "-o",
        'IdentityFile="/t/key"',
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        'UserKnownHostsFile="/t/known_hosts"',
        "-o",
        "GlobalKnownHostsFile=/dev/null",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        "HostKeyAlgorithms=ssh-ed25519",
        "-o",
        "PasswordAuthentication=no",
        "-o",
        "ServerAliveInterval=30",
        "--",
        "127.0.0.2",
    ]


def test_a_command_arrives_argument_by_argument() -> None:
    argv = ssh_argv(TARGET, key_file=Path("k"), known_hosts=Path("h"), command=["echo", "a b", "$(reboot)"])
    assert argv[-2:] == ["127.0.0.2", "echo 'a b' '$(reboot)'"]


def test_known_hosts_pins_host_and_port() -> None:
    assert known_hosts_text(TARGET) == f"[127.0.0.2]:4444 {KEY.public_line}\n"


def test_the_files_are_private_and_go_away() -> None:
    with ssh_invocation(TARGET, KEY.private_openssh, ["true"]) as argv:
        key_file = Path(next(word for word in argv if word.startswith("IdentityFile")).split('"')[1])
        assert key_file.read_text() == KEY.private_openssh
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(key_file.parent.stat().st_mode) == 0o700
        assert (key_file.parent / "known_hosts").read_text() == known_hosts_text(TARGET)
    assert not key_file.parent.exists()


def test_the_files_go_away_after_an_error() -> None:
    folders = []
    with pytest.raises(RuntimeError), ssh_invocation(TARGET, KEY.private_openssh) as argv:
        folders += [Path(word.split('"')[1]).parent for word in argv if word.startswith("IdentityFile")]
        raise RuntimeError
    assert not folders[0].exists()


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client on this machine")
def test_ssh_itself_understands_the_arguments() -> None:
    with ssh_invocation(TARGET, KEY.private_openssh, ["true"]) as argv:
        shown = subprocess.run(
            ["ssh", "-G", *argv[1:]], capture_output=True, text=True, check=True, timeout=DEADLINE_SECONDS
        ).stdout
    lines = set(shown.splitlines())
    assert {"hostname 127.0.0.2", "port 4444", "user root", "identitiesonly yes"} <= lines
    assert any(line in lines for line in ("stricthostkeychecking true", "stricthostkeychecking yes"))

"""What a container is made of: arguments and files, as data."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from typing import Any

import bcrypt
from hypothesis import given
from hypothesis import strategies as st

from compute.miner.runtimes import docker_files as files
from compute.miner.runtimes.base import ContainerSpec, Limits
from compute.miner.runtimes.docker_options import DockerSettings, Host, container_options, own_network
from compute.wire.keys import SessionKey, new_password
from compute.wire.lease_terms import LeaseKind

HOST_KEY = SessionKey.generate()
GIB = 1 << 30
HOST = Host(cpu_count=16, memory_bytes=64 * GIB)
SETTINGS = DockerSettings(miner="5Miner", image="compute-machine")
SPEC = ContainerSpec(
    lease_id="ab" * 16,
    kind=LeaseKind.CUSTOMER,
    ends_at=1_700_000_000.4,
    limits=Limits(cpu_count=4, ram_bytes=8 * GIB, disk_bytes=10 * GIB, gpu_uuids=("GPU-1", "GPU-2")),
    ssh_port=4444,
    authorized_keys=("ssh-ed25519 USER", "ssh-ed25519 TERMINAL"),
    host_key=HOST_KEY.private_openssh,
)


def options_of(spec: ContainerSpec = SPEC, *, quota: bool = True, host: Host = HOST) -> dict[str, Any]:
    return container_options(spec, SETTINGS, host, port=4444, quota=quota)


def with_limits(**limits: Any) -> ContainerSpec:
    return replace(SPEC, limits=Limits(**limits))


def contents(archive: bytes) -> dict[str, tuple[int, int, int, str | None]]:
    """path -> (uid, gid, mode, text; None for a folder)"""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            found[member.name] = (member.uid, member.gid, member.mode, None if file is None else file.read().decode())
    return found


def test_a_container_is_hardened() -> None:
    options = options_of()
    assert options["cap_drop"] == ["ALL"]
    assert set(options["cap_add"]) == {
        *("AUDIT_WRITE", "CHOWN", "SETGID", "SETUID", "SYS_CHROOT", "DAC_OVERRIDE", "FOWNER")
    }
    # Without a word about seccomp, the engine's default profile holds.
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert options["privileged"] is False
    assert options["init"] is True
    assert options["pids_limit"] == 16_384
    assert options["network"] == own_network("5Miner")
    assert options["ipc_mode"] == options["cgroupns"] == "private"
    assert options["log_config"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}
    assert options["use_config_proxy"] is False
    for opening in ("volumes", "mounts", "tmpfs", "devices", "network_mode", "pid_mode", "volumes_from", "sysctls"):
        assert opening not in options


def test_nothing_of_what_an_image_says_of_itself_holds() -> None:
    options = options_of()
    assert options["entrypoint"] == list(files.COMMAND)
    assert options["command"] == []
    assert options["user"] == "0:0"
    assert options["healthcheck"] == {"test": ["NONE"]}


def test_the_limits_of_the_order_are_the_containers() -> None:
    options = options_of()
    assert options["nano_cpus"] == 4 * 10**9
    assert options["mem_limit"] == options["memswap_limit"] == 8 * GIB
    assert options["shm_size"] == 4 * GIB
    assert options["storage_opt"] == {"size": str(10 * GIB)}
    assert options["ports"] == {"22/tcp": ("0.0.0.0", 4444)}


def test_without_limits_the_host_keeps_what_it_needs() -> None:
    options = options_of(with_limits())
    assert "nano_cpus" not in options
    assert "storage_opt" not in options
    assert options["mem_limit"] == 64 * GIB - 64 * GIB // 20
    assert options_of(with_limits(), host=Host(1, 3 * GIB))["mem_limit"] == 2 * GIB
    assert options_of(with_limits(), host=Host(1, GIB))["mem_limit"] == GIB // 2


def test_absurd_limits_are_ones_that_the_engine_takes() -> None:
    options = options_of(with_limits(cpu_count=1000, ram_bytes=1))
    assert options["nano_cpus"] == 16 * 10**9
    assert options["mem_limit"] == 256 << 20


def test_a_driver_without_quotas_is_not_asked_for_one() -> None:
    assert "storage_opt" not in options_of(quota=False)


def test_gpus_by_uuid_and_only_the_leased_ones() -> None:
    options = options_of()
    (request,) = options["device_requests"]
    assert request["DeviceIDs"] == ["GPU-1", "GPU-2"]
    assert request["Capabilities"] == [["gpu", "compute", "utility"]]
    assert not request["Count"]
    assert options["environment"] == {"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}


def test_a_lease_without_gpus_gets_none_whatever_the_image_says() -> None:
    # Images made for CUDA say NVIDIA_VISIBLE_DEVICES=all, and nvidia may be the engine's default runtime.
    options = options_of(with_limits(cpu_count=1))
    assert "device_requests" not in options
    assert options["environment"] == {"NVIDIA_VISIBLE_DEVICES": "void"}


def test_labels_tell_which_lease_a_container_is_for() -> None:
    assert options_of()["labels"] == {
        "compute.miner": "5Miner",
        "compute.lease": "ab" * 16,
        "compute.host_key": HOST_KEY.fingerprint,
    }


def test_no_secret_can_be_read_back_from_the_engine() -> None:
    password = new_password()
    shown = repr(options_of(replace(SPEC, password=password)))
    assert password not in shown
    assert HOST_KEY.private_openssh.splitlines()[1] not in shown


@given(st.text(), st.text(), st.text())
def test_what_a_renter_says_chooses_nothing(key: str, script: str, password: str) -> None:
    hostile = replace(SPEC, authorized_keys=(key,), script=script, password=password)
    assert options_of(hostile) == options_of()


def test_the_files_of_a_new_machine() -> None:
    found = contents(files.machine_archive(SPEC))
    assert found["run/sshd"] == (0, 0, 0o755, None)
    assert found["root/.ssh"] == (0, 0, 0o700, None)
    lines = "ssh-ed25519 USER\nssh-ed25519 TERMINAL\n"
    assert found["root/.ssh/authorized_keys"] == (0, 0, 0o600, lines)
    assert found["etc/ssh/compute_host_key"] == (0, 0, 0o600, HOST_KEY.private_openssh)
    # "!" would lock the account for logins by key as well.
    assert found["etc/ssh/compute_login"] == (0, 0, 0o600, "root:*:::::::\n")
    uid, gid, mode, config = found["etc/ssh/compute_sshd_config"]
    assert (uid, gid, mode) == (0, 0, 0o600)
    assert config is not None
    settings = dict(line.split(" ", 1) for line in config.splitlines())
    assert settings["PasswordAuthentication"] == settings["KbdInteractiveAuthentication"] == "no"
    assert settings["PermitRootLogin"] == "prohibit-password"
    assert settings["HostKey"] == "/etc/ssh/compute_host_key"
    assert "exec /usr/sbin/sshd -D -e -f /etc/ssh/compute_sshd_config " in files.COMMAND[-1]


def test_a_password_is_taken_only_where_there_is_one_and_is_never_in_clear() -> None:
    password = new_password()
    found = contents(files.machine_archive(replace(SPEC, password=password)))
    config, line = found["etc/ssh/compute_sshd_config"][3], found["etc/ssh/compute_login"][3]
    assert config is not None
    assert line is not None
    assert "PasswordAuthentication yes\n" in config
    assert "PermitRootLogin yes\n" in config
    secret = line.split(":")[1]
    assert bcrypt.checkpw(password.encode(), secret.encode())
    assert all(password not in (text or "") for _, _, _, text in found.values())


def test_a_restart_changes_neither_the_password_nor_the_host_key() -> None:
    found = contents(files.restart_archive(replace(SPEC, password=new_password())))
    assert "etc/ssh/compute_login" not in found
    assert found["etc/ssh/compute_host_key"][3] == HOST_KEY.private_openssh


def test_an_exchange_replaces_the_keys_and_nothing_else() -> None:
    # Line 1 is the user's key; an empty one keeps the terminal's in line 2.
    found = contents(files.keys_archive(("", "ssh-ed25519 TERMINAL")))
    assert found == {
        "root/.ssh": (0, 0, 0o700, None),
        "root/.ssh/authorized_keys": (0, 0, 0o600, "\nssh-ed25519 TERMINAL\n"),
    }


def test_a_script_is_among_the_files_and_not_in_what_the_engine_shows() -> None:
    spec = replace(SPEC, script="echo hello\n")
    assert "hello" not in repr(options_of(spec))
    for archive in (files.machine_archive, files.restart_archive):
        assert contents(archive(spec))["etc/ssh/compute_steps"] == (0, 0, 0o600, "echo hello\n")
        assert "etc/ssh/compute_steps" not in contents(archive(SPEC))

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.wire.keys import (
    MAX_INFO_BYTES,
    LoginInfo,
    RenterKey,
    SecretBox,
    SessionKey,
    canonical_rsa,
    check_public_line,
    fingerprint,
    new_password,
)

# Constant: parallel test runs must see the same parameters.
LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
KIND, BLOB = LINE.split(" ")


def public_line(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    text = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return text.decode()


def refused(line: object) -> str:
    with pytest.raises(LeaseError) as error:
        check_public_line(line)
    assert error.value.reason is Refusal.BAD_KEY
    return str(error.value)


def test_a_session_key_survives_its_text_form_and_hides_its_private_half() -> None:
    key = SessionKey.generate()
    assert SessionKey.from_private_openssh(key.private_openssh) == key
    assert key.private_openssh.splitlines()[1] not in repr(key)
    assert SessionKey.generate() != key


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
)
def test_a_damaged_session_key_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        SessionKey.from_private_openssh(text)


def test_the_fingerprint_is_that_of_ssh_keygen() -> None:
    assert fingerprint(LINE) == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


def test_good_keys_lose_their_comment_only() -> None:
    assert check_public_line(LINE) == LINE
    assert check_public_line(f"{LINE} me@home and more\n") == LINE
    for line in (
        public_line(ec.generate_private_key(ec.SECP256R1())),
        public_line(rsa.generate_private_key(65537, 2048)),
    ):
        assert check_public_line(line) == line


@pytest.mark.parametrize(
    "line",
    [
        None,
        5,
        "",
        KIND,
        f"{LINE}\n{LINE}",
        f"{LINE}\r{LINE}",
        f"{KIND} {BLOB}\n\n# x",
        f'command="rm -rf /" {LINE}',
        f"no-pty {LINE}",
        f"ssh-dss {BLOB}",
        f"ssh-rsa {BLOB}",
        f"{KIND} {BLOB[:-4]}",
        f"{KIND} {BLOB}AAAA",
        f"{KIND} !!!!",
        f"{KIND} {BLOB[:-1]}\0",
        f"{KIND}\u2028{BLOB} x\u2028y",
        "ssh-rsa " + "A" * 5000,
    ],
)
def test_bad_keys_are_refused(line: object) -> None:
    refused(line)


def test_a_short_rsa_key_is_refused() -> None:
    assert "1024 bits" in refused(public_line(rsa.generate_private_key(65537, 1024)))


@settings(max_examples=150)
@given(
    st.text(max_size=60)
    | st.builds(
        "{} {} {}".format, st.sampled_from([KIND, "ssh-rsa"]), st.text("ABCabc+/=\n ", max_size=80), st.text(max_size=5)
    )
)
def test_whatever_passes_is_one_clean_line(line: str) -> None:
    try:
        clean = check_public_line(line)
    except LeaseError as error:
        reason, clean = error.reason, LINE
    else:
        reason = Refusal.BAD_KEY
    assert reason is Refusal.BAD_KEY
    assert clean.isprintable()
    assert len(clean.split(" ")) == 2


def test_the_longest_info_fits_and_opens(renter_keys: list[RenterKey]) -> None:
    info = LoginInfo("root", 65_535, SessionKey.generate().fingerprint, new_password())
    sealed = base64.b64decode(info.encrypt(renter_keys[0].public_pem, version=9_999), validate=True)
    text = renter_keys[0].decrypt(sealed)
    assert len(text) <= MAX_INFO_BYTES
    assert json.loads(text) == {
        "username": "root",
        "password": info.password,
        "port": 65_535,
        "version": 9_999,
        "host_key": info.host_key,
    }
    assert LoginInfo.decrypt(base64.b64encode(sealed).decode(), renter_keys[0]) == info
    assert info.password not in repr(info)
    with pytest.raises(ValueError):
        renter_keys[1].decrypt(sealed)


def test_a_renter_key_survives_its_text_form(renter_keys: list[RenterKey]) -> None:
    key = renter_keys[0]
    assert RenterKey.from_private_pem(key.private_pem).public_pem == key.public_pem
    assert "PRIVATE" not in repr(key)


def test_one_owner_whatever_the_whitespace(renter_keys: list[RenterKey]) -> None:
    pem = renter_keys[0].public_pem
    assert canonical_rsa(pem.strip()) == canonical_rsa("\n" + pem.replace("\n", "\r\n") + "\n") == pem


@pytest.mark.parametrize(
    "pem", [None, b"x", "", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "\ud800", "x" * 5000]
)
def test_what_is_no_rsa_key_is_refused(pem: object) -> None:
    with pytest.raises(LeaseError) as error:
        canonical_rsa(pem)
    assert error.value.reason is Refusal.BAD_KEY


def test_other_keys_than_rsa_2048_are_refused() -> None:
    for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 1024)):
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(LeaseError, match="2048"):
            canonical_rsa(pem.decode())


def test_passwords_are_long_and_differ() -> None:
    passwords = {new_password() for _ in range(50)}
    assert len(passwords) == 50
    assert min(map(len, passwords)) >= 20


@given(st.binary(max_size=200))
def test_a_box_opens_what_it_sealed(content: bytes) -> None:
    box = SecretBox(bytes(32))
    sealed = box.seal(content)
    assert box.open(sealed) == content
    assert box.seal(content) != sealed


@given(st.binary(max_size=60))
def test_a_box_opens_nothing_else(content: bytes) -> None:
    with pytest.raises(ValueError):
        SecretBox(bytes(32)).open(content)


def test_one_bit_or_another_key_and_the_box_stays_shut() -> None:
    sealed = bytearray(SecretBox(bytes(32)).seal(b"secret"))
    with pytest.raises(ValueError):
        SecretBox(b"x" * 32).open(bytes(sealed))
    sealed[-1] ^= 1
    with pytest.raises(ValueError):
        SecretBox(bytes(32)).open(bytes(sealed))


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        SecretBox(b"short")


def test_a_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "lease.key"
    sealed = SecretBox.from_key_file(path).seal(b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SecretBox.from_key_file(path).open(sealed) == b"secret"


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lease.key"
    SecretBox.from_key_file(path)
    path.chmod(0o640)
    with pytest.raises(StoreError, match="chmod 600"):
        SecretBox.from_key_file(path)


def test_an_empty_or_unreachable_key_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lease.key"
    path.touch(0o600)
    with pytest.raises(StoreError, match="32 at least"):
        SecretBox.from_key_file(path)
    with pytest.raises(StoreError, match="cannot be used"):
        SecretBox.from_key_file(tmp_path / "missing" / "lease.key")

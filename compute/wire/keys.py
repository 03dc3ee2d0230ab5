"""Keys and secrets of a lease: all made in memory, none of them ever in a ``repr``, a log line or a file in clear."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from compute import __version_as_int__
from compute.base.errors import LeaseError, StoreError
from compute.base.reasons import Refusal
from compute.wire.lease_terms import HOST_KEY

RSA_BITS = 2048
MAX_INFO_BYTES = 190
"""What RSA-OAEP-SHA256 under 2048 bits can carry: 256 - 2 * 32 - 2."""

_MAX_PEM_CHARACTERS = 4096
_MAX_LINE_CHARACTERS = 2048
_PASSWORD_BYTES = 18
_USERNAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_KEY_TYPES = {
    "ssh-ed25519": 51,
    "ssh-rsa": 0,
    "ecdsa-sha2-nistp256": 104,
    "ecdsa-sha2-nistp384": 136,
    "ecdsa-sha2-nistp521": 172,
}
"""Allowed types and the exact length of their blob (0: varies)."""
_NONCE_BYTES = 12
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


@dataclass(frozen=True)
class SessionKey:
    """An Ed25519 key pair for SSH: of a login, or of a host.

    ``public_line`` is ``"ssh-ed25519 BASE64"``; ``private_openssh`` is OpenSSH's own text form.
    """

    public_line: str
    private_openssh: str = field(repr=False)

    @classmethod
    def generate(cls) -> SessionKey:
        """A fresh pair."""
        return cls._from_key(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_private_openssh(cls, text: str) -> SessionKey:
        """Load what ``private_openssh`` gave.

        Raises:
            ValueError: it is no Ed25519 key in OpenSSH form.
        """
        try:
            key = serialization.load_ssh_private_key(text.encode(), password=None)
        except UnsupportedAlgorithm:
            raise ValueError("not an Ed25519 key in OpenSSH form") from None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ValueError("not an Ed25519 key in OpenSSH form")
        # The text form carries random check numbers: writing it anew would give another text for the same key.
        return replace(cls._from_key(key), private_openssh=text)

    @classmethod
    def _from_key(cls, key: ed25519.Ed25519PrivateKey) -> SessionKey:
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        return cls(public_line=public.decode(), private_openssh=private.decode())

    @property
    def fingerprint(self) -> str:
        """``"SHA256:…"`` as OpenSSH prints it."""
        return fingerprint(self.public_line)


@dataclass(frozen=True)
class RenterKey:
    """The RSA-2048 pair that owns a lease on the wire and opens its ``info``."""

    public_pem: str
    private_pem: str = field(repr=False)

    @classmethod
    def generate(cls) -> RenterKey:
        """A fresh pair; takes about 100 ms."""
        return cls._from_key(rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS))

    @classmethod
    def from_private_pem(cls, text: str) -> RenterKey:
        """Load what ``private_pem`` gave.

        Raises:
            ValueError: it is no RSA key in PEM form.
        """
        key = serialization.load_pem_private_key(text.encode(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError("not an RSA key in PEM form")
        return cls._from_key(key)

    @classmethod
    def _from_key(cls, key: rsa.RSAPrivateKey) -> RenterKey:
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(public_pem=_rsa_pem(key.public_key()), private_pem=private.decode())

    def decrypt(self, sealed: bytes) -> bytes:
        """Open the bytes of an ``info``.

        Raises:
            ValueError: they are not for this key.
        """
        key = serialization.load_pem_private_key(self.private_pem.encode(), password=None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key.decrypt(sealed, _OAEP)


@dataclass(frozen=True)
class LoginInfo:
    """How to log in to a lease: what ``info`` carries.

    ``host_key`` is ``SHA256:…``, or None from an older miner that names none; ``password`` is None where only keys are
    accepted.
    """

    username: str
    port: int
    host_key: str | None
    password: str | None = field(repr=False, default=None)

    def encrypt(self, public_pem: str, *, version: int = __version_as_int__) -> str:
        """Base64 of RSA-OAEP-SHA256 of the JSON, for the owner of ``public_pem`` (see ``canonical_rsa``).

        ``version`` is the miner's, for peers who want to know.

        Raises:
            LeaseError: ``bad_key``.
        """
        content = {
            "username": self.username,
            "password": self.password or "",
            "port": self.port,
            "version": version,
            "host_key": self.host_key or "",
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        assert len(text) <= MAX_INFO_BYTES, f"info of {len(text)} bytes does not fit RSA-OAEP"
        return base64.b64encode(_load_rsa(public_pem).encrypt(text, _OAEP)).decode()

    @classmethod
    def decrypt(cls, info: str, owner: RenterKey) -> LoginInfo:
        """What ``encrypt`` gave, or any other miner; ``info`` is hostile.

        Raises:
            ValueError: what is wrong with it. The text never quotes the content.
        """
        try:
            fields = json.loads(owner.decrypt(base64.b64decode(info, validate=True)).decode("utf-8"))
        except (ValueError, RecursionError):
            raise ValueError("info does not decrypt to JSON under the key that was sent") from None
        if not isinstance(fields, dict):
            raise ValueError("info is not a JSON object")
        username, password, port = fields.get("username"), fields.get("password"), fields.get("port")
        host_key = fields.get("host_key") or None
        if not isinstance(username, str) or not _USERNAME.match(username):
            raise ValueError("info has no usable username")
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535:
            raise ValueError("info has no port from 1 to 65535")
        if password is not None and not (isinstance(password, str) and password.isprintable()):
            raise ValueError("info has a password that is no printable text")
        if host_key is not None and not (isinstance(host_key, str) and HOST_KEY.match(host_key)):
            raise ValueError("info has a host_key that is no SHA256 fingerprint")
        return cls(username=username, port=port, host_key=host_key, password=password or None)


def canonical_rsa(public_pem: object) -> str:
    """The one PEM form of a caller's RSA public key, so that whitespace does not make another owner.

    Raises:
        LeaseError: ``bad_key``: it is no 2048-bit RSA public key in PEM form.
    """
    return _rsa_pem(_load_rsa(public_pem))


def new_password() -> str:
    """24 characters, 144 bits."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def fingerprint(public_line: str) -> str:
    """``"SHA256:…"`` of a public key given as ``"TYPE BASE64"``."""
    digest = hashlib.sha256(base64.b64decode(public_line.split(" ")[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def check_public_line(line: object) -> str:
    """A caller's SSH public key as ``"TYPE BASE64"``, its comment dropped: fit for a line of ``authorized_keys``.

    Raises:
        LeaseError: ``bad_key``: options in front, several lines, a type that is not allowed, or no such key inside.
    """
    if not isinstance(line, str) or len(line) > _MAX_LINE_CHARACTERS:
        raise _bad_key(f"the SSH key is not text of at most {_MAX_LINE_CHARACTERS} characters")
    # Exactly one newline at the very end is what reading a .pub file gives.
    if not line.rstrip("\r\n").isprintable():
        raise _bad_key("the SSH key must be one line of printable characters")
    parts = line.split()
    if len(parts) < 2 or parts[0] not in _KEY_TYPES:
        raise _bad_key(f"the SSH key must begin with its type, one of {', '.join(_KEY_TYPES)}, and have no options")
    kind, encoded = parts[0], parts[1]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise _bad_key("the SSH key is not base64") from None
    name = kind.encode()
    wanted = _KEY_TYPES[kind]
    if not blob.startswith(len(name).to_bytes(4, "big") + name) or (wanted and len(blob) != wanted):
        raise _bad_key(f"the SSH key holds no {kind} key")
    try:
        key = serialization.load_ssh_public_key(f"{kind} {encoded}".encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _bad_key(f"the SSH key holds no {kind} key") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS:
        raise _bad_key(f"the SSH key has {key.key_size} bits; at least {RSA_BITS}")
    return f"{kind} {encoded}"


class SecretBox:
    """Authenticated encryption (AES-256-GCM) of what the store keeps: connection data and private keys."""

    def __init__(self, secret: bytes) -> None:
        """Derive the key from ``secret`` (at least 32 bytes of a wallet's private key, or of a key file).

        Raises:
            ValueError: ``secret`` is too short.
        """
        if len(secret) < 32:
            raise ValueError(f"a secret of {len(secret)} bytes is too short: 32 at least")
        key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"compute lease store").derive(secret)
        self._cipher = AESGCM(key)

    @classmethod
    def from_key_file(cls, path: str | Path) -> SecretBox:
        """Use the key file at ``path``, made with mode 0600 where it is missing.

        Raises:
            StoreError: it cannot be read or made, others can read it, or it is too short.
        """
        path = Path(path)
        try:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                pass
            else:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(32))
                    file.flush()
                    os.fsync(file.fileno())
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise StoreError(
                    f"key file {str(path)!r} has mode {mode:04o}: others can read it. Run: chmod 600 {path}"
                )
            return cls(path.read_bytes())
        except OSError as error:
            raise StoreError(f"key file {str(path)!r} cannot be used: {error}") from error
        except ValueError as error:
            raise StoreError(f"key file {str(path)!r}: {error}. Delete it to have a new one made") from error

    def seal(self, content: bytes) -> bytes:
        """Encrypt ``content``; every call gives other bytes."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, None)

    def open(self, sealed: bytes) -> bytes:
        """The content of ``sealed``.

        Raises:
            ValueError: it was sealed with another key, or changed since.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise ValueError("sealed with another key, or damaged") from None


def _load_rsa(public_pem: object) -> rsa.RSAPublicKey:
    if not isinstance(public_pem, str) or len(public_pem) > _MAX_PEM_CHARACTERS:
        raise _bad_key(f"public_key is not PEM text of at most {_MAX_PEM_CHARACTERS} characters")
    try:
        key = serialization.load_pem_public_key(public_pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _bad_key("public_key is not a public key in PEM form") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != RSA_BITS:
        raise _bad_key(f"public_key is not an RSA key of {RSA_BITS} bits")
    return key


def _rsa_pem(key: rsa.RSAPublicKey) -> str:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def _bad_key(text: str) -> LeaseError:
    return LeaseError(Refusal.BAD_KEY, text)

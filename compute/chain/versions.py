"""The oldest versions that the network still wants: this release's own, and those of a version file elsewhere.

A version file holds the literal lines of ``compute/__init__.py``. What it says can only ask for more than this release
does, and only a quorum enforces it (``access.enforced_version``): a file that is away, old, broken or hostile drops
nobody.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from compute import __minimal_miner_version__, __minimal_validator_version__, version_as_int
from compute.base.clock import Clock, within
from compute.base.errors import ComputeError
from compute.base.store import Database

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 600.0
TIMEOUT_SECONDS = 10.0
MAX_BYTES = 64 * 1024

_LINE = r"""^{name}\s*=\s*["'](\d{{1,3}}\.\d\.\d)["']\s*(?:#.*)?$"""
_SCHEMA = (
    """
    CREATE TABLE version_file (
        source TEXT PRIMARY KEY, at REAL NOT NULL, miner INTEGER NOT NULL, validator INTEGER NOT NULL
    )
    """,
)


class VersionFileError(ComputeError):
    """A version file cannot be read, or is none: the message says why."""


@dataclass(frozen=True)
class MinimalVersions:
    """The oldest version of each role, in the integer form."""

    miner: int
    validator: int


OWN = MinimalVersions(version_as_int(__minimal_miner_version__), version_as_int(__minimal_validator_version__))


def parse_version_file(text: str) -> MinimalVersions:
    """The minimal versions from the literal lines of a version file. Nothing else in it matters, or is run.

    Raises:
        VersionFileError: a line is missing, is there twice, or the file asks for more than its own version is.
    """
    version, miner, validator = (
        _literal(text, name) for name in ("__version__", "__minimal_miner_version__", "__minimal_validator_version__")
    )
    if max(miner, validator) > version:
        raise VersionFileError("it asks for newer versions than its own")
    return MinimalVersions(miner, validator)


def _literal(text: str, name: str) -> int:
    found = re.findall(_LINE.format(name=name), text, flags=re.MULTILINE | re.ASCII)
    if len(found) != 1:
        raise VersionFileError(f'it has {len(found)} lines {name} = "major.minor.patch", not one')
    return version_as_int(found[0])


async def read_version_file(
    source: str, *, trust: ssl.SSLContext | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> MinimalVersions:
    """Read a version file at a path or an http(s) URL. Certificates are verified, redirects are not followed.

    Args:
        trust: whose certificates count; by default the system's authorities.

    Raises:
        VersionFileError: it does not come whole within ``timeout_seconds``, is larger than 64 KiB, or makes no sense.
    """
    try:
        content = await within(timeout_seconds, _fetch(source, trust) if is_url(source) else _load(source))
    except (asyncio.TimeoutError, TimeoutError):
        raise VersionFileError(f"it did not come within {timeout_seconds:.0f} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise VersionFileError(f"{type(error).__name__}: {error}"[:300]) from error
    if len(content) > MAX_BYTES:
        raise VersionFileError(f"it is larger than {MAX_BYTES} bytes")
    return parse_version_file(content.decode(errors="replace"))


def is_url(source: str) -> bool:
    """Whether a version file is fetched, rather than a path."""
    return source.startswith(("http://", "https://"))


async def _fetch(url: str, trust: ssl.SSLContext | None) -> bytes:
    # Unpacking would make a few bytes many.
    async with (
        aiohttp.ClientSession(auto_decompress=False, headers={"Accept-Encoding": "identity"}) as session,
        session.get(url, allow_redirects=False, ssl=trust or ssl.create_default_context()) as answer,
    ):
        if answer.status != 200:
            raise VersionFileError(f"status {answer.status}, not 200")
        content = b""
        async for chunk in answer.content.iter_any():
            content += chunk
            if len(content) > MAX_BYTES:
                break
        return content


async def _load(path: str) -> bytes:
    def load() -> bytes:
        file = Path(path).expanduser()
        # Opening a pipe would wait for whoever writes to it.
        if not file.is_file():
            raise VersionFileError("there is no such file")
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)

    return await asyncio.to_thread(load)


class VersionFile:
    """The minimal versions in force: of this release, and of the version file as last read (also by an earlier run).

    ``refresh`` is a duty's work. The rest is memory, and may be asked at any time from any thread.
    """

    def __init__(
        self,
        source: str | None,
        database: Database,
        clock: Clock,
        *,
        trust: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """``source`` is a path or URL; None: this release's own versions, for ever.

        Raises:
            StoreError: the database cannot be read or written.
        """
        database.migrate("versions", _SCHEMA)
        self._source = source
        self._database = database
        self._clock = clock
        self._trust = trust
        self._timeout_seconds = timeout_seconds
        self._is_away = False
        rows = database.query("SELECT * FROM version_file WHERE source = ?", (source or "",))
        self._read = MinimalVersions(rows[0]["miner"], rows[0]["validator"]) if rows else None

    def of_miners(self) -> tuple[int, ...]:
        """The minimal versions of miners, any of which a quorum may enforce."""
        read = self._read
        return (OWN.miner, read.miner) if read is not None and read.miner > OWN.miner else (OWN.miner,)

    def of_validators(self) -> tuple[int, ...]:
        """The minimal versions of validators, likewise."""
        read = self._read
        return (
            (OWN.validator, read.validator) if read is not None and read.validator > OWN.validator else (OWN.validator,)
        )

    async def refresh(self) -> None:
        """Read the version file again; what was read last stays in force where that fails, and the log says so once.

        Raises:
            StoreError: what was read holds, but cannot be kept for the next start.
        """
        if self._source is None:
            return
        details: dict[str, object] = {"source": _shown(self._source)}
        try:
            read = await read_version_file(self._source, trust=self._trust, timeout_seconds=self._timeout_seconds)
        except VersionFileError as error:
            if not self._is_away:
                logger.warning(
                    "the version file cannot be read, and what was known before holds: %s", error, extra=details
                )
            self._is_away = True
            return
        if self._is_away or read != self._read:
            extra = {**details, "minimal_miner": read.miner, "minimal_validator": read.validator}
            logger.info("version file read", extra=extra)
        self._is_away = False
        self._read = read
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM version_file")
            connection.execute(
                "INSERT INTO version_file VALUES (?, ?, ?, ?)",
                (self._source, self._clock.now(), read.miner, read.validator),
            )


def _shown(source: str) -> str:
    """A source for the log: what a URL has before its host or behind its path may be a secret."""
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.hostname}{parts.path}" if is_url(source) else source

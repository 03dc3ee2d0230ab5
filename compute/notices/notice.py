"""A notice and its JSON form. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from urllib.parse import urlsplit

from compute.base.errors import ConfigError

DEALLOCATION_VARIABLE = "DEALLOCATION_NOTIFY_URL"
STATUS_VARIABLE = "STATUS_NOTIFY_URL"


class Topic(str, Enum):
    """What a notice is about: each topic has a URL of its own.

    The values are the database form; the URLs never are, as they may hold secrets.
    """

    DEALLOCATION = "deallocation"
    STATUS = "status"


class NoticeKind(str, Enum):
    """What happened. The values are what receivers see, the same as the network's older tools send."""

    DEALLOCATION = "DEALLOCATION"
    OFFLINE = "OFFLINE"
    ONLINE = "ONLINE"

    @property
    def topic(self) -> Topic:
        return Topic.DEALLOCATION if self is NoticeKind.DEALLOCATION else Topic.STATUS


@dataclass(frozen=True)
class Notice:
    """Something that happened at ``at`` (Unix seconds) to the machine of ``hotkey``.

    ``rental`` names the rental, ``notice_id`` the notice: it is the same at every try, so that a receiver can tell a
    repetition.
    """

    notice_id: str
    kind: NoticeKind
    hotkey: str
    at: float
    rental: str
    details: str = ""

    @classmethod
    def new(cls, kind: NoticeKind, hotkey: str, rental: str, at: float, details: str) -> Notice:
        """A notice with an id of its own."""
        return cls(uuid.uuid4().hex, kind, hotkey, at, rental, details)

    def body(self, now: float) -> bytes:
        """The JSON that is sent at ``now`` (Unix seconds)."""
        changed = "deallocated_at" if self.kind is NoticeKind.DEALLOCATION else "status_change_at"
        fields = {
            "id": self.notice_id,
            "time": _utc(now),
            "hotkey": self.hotkey,
            "status": self.kind.value,
            "uuid": self.rental,
            changed: _utc(self.at),
            "details": self.details,
        }
        return json.dumps(fields).encode()


def urls_from(environ: Mapping[str, str]) -> dict[Topic, str]:
    """The topics that the operator has given a URL.

    Raises:
        ConfigError: what is given is no ``http`` or ``https`` URL. The message quotes no more of it than its scheme.
    """
    urls = {}
    for topic, variable in ((Topic.DEALLOCATION, DEALLOCATION_VARIABLE), (Topic.STATUS, STATUS_VARIABLE)):
        url = environ.get(variable, "").strip()
        if not url:
            continue
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_url = False
        if not is_url:
            raise ConfigError(
                f"{variable} is no URL that begins with http:// or https://; correct it, or leave it empty"
            )
        urls[topic] = url
    return urls


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

from __future__ import annotations

import json

import pytest

from compute.base.errors import ConfigError
from compute.notices.notice import Notice, NoticeKind, Topic, urls_from


def test_the_body_has_the_names_of_the_network_s_older_tools() -> None:
    body = json.loads(Notice("id1", NoticeKind.OFFLINE, "5Hot", 1_700_000_000.5, "r1", "why").body(1_700_000_060.0))
    assert body == {
        "id": "id1",
        "time": "2023-11-14T22:14:20.000000Z",
        "hotkey": "5Hot",
        "status": "OFFLINE",
        "uuid": "r1",
        "status_change_at": "2023-11-14T22:13:20.500000Z",
        "details": "why",
    }


def test_the_end_of_a_rental_names_its_time_otherwise() -> None:
    body = json.loads(Notice("id1", NoticeKind.DEALLOCATION, "5Hot", 0.0, "r1").body(1.0))
    assert body["deallocated_at"] == "1970-01-01T00:00:00.000000Z"
    assert "status_change_at" not in body


def test_each_variable_is_a_topic() -> None:
    environ = {"DEALLOCATION_NOTIFY_URL": "https://a.example/x", "STATUS_NOTIFY_URL": " http://127.0.0.1:80/y "}
    assert urls_from(environ) == {Topic.DEALLOCATION: "https://a.example/x", Topic.STATUS: "http://127.0.0.1:80/y"}
    assert urls_from({"STATUS_NOTIFY_URL": ""}) == {}


@pytest.mark.parametrize("url", ["ftp://x/secret", "secret", "https://", "http://[secret", "http://x:0/secret"])
def test_what_is_no_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match="STATUS_NOTIFY_URL") as caught:
        urls_from({"STATUS_NOTIFY_URL": url})
    assert "secret" not in str(caught.value)

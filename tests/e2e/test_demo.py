"""The demo as its users run it: one command, one JSON object, an exit status that tells the truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .demos import demo

pytestmark = pytest.mark.e2e

_SECONDS = 600


def test_the_demo_pays_the_honest_and_nobody_else(tmp_path: Path) -> None:
    with demo(tmp_path, "--json") as process:
        output, errors = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, errors
    result = json.loads(output)

    one, two, liar, dying = result["miners"]
    assert one["verdict"]["reason"] == two["verdict"]["reason"] == "ok"
    assert (one["verdict"]["count"], two["verdict"]["count"]) == (1, 2)
    assert two["weight"] == pytest.approx(2 * one["weight"], rel=1e-3)
    assert two["score"] == pytest.approx(2 * one["score"])
    assert liar["claim"] == {"gpu": "NVIDIA H100 80GB HBM3", "count": 1}
    for cheat in (liar, dying):
        assert cheat["verdict"]["reason"] != "ok"
        assert cheat["score"] == cheat["weight"] == 0.0
    assert result["rental"]["uid"] == two["uid"]
    assert result["rental"]["output"].startswith("Linux")
    assert result["chain"]["weights_match"] is True
    assert result["chain"]["epoch"] >= 1

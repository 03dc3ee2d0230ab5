from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compute.base.console import Output
from compute.base.store import Database
from compute.miner import show
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Lease, LeaseSecrets, LeaseStore, Owner
from compute.miner.options import parse_miner
from compute.miner.runtimes.base import Limits
from compute.wire.keys import SecretBox
from compute.wire.lease_terms import LeaseKind
from tests.waiting import DEADLINE_SECONDS

KEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A probe that ended with a reason, and a customer's lease that lasts."""
    database = Database(tmp_path / "miner.db")
    store = LeaseStore(database, SecretBox(b"k" * 32))
    for number, kind in enumerate((LeaseKind.PROBE, LeaseKind.CUSTOMER)):
        lease = Lease(
            lease_id=str(number),
            state=LeaseState.RESERVED,
            kind=kind,
            owner=Owner(KEY, f"pem {number}"),
            request="r",
            image="ubuntu",
            limits=Limits(1, 2, 3, ()),
            created_at=1_700_000_000.0 + number,
            ends_at=time.time() + 30 * 86_400,
        )
        store.reserve(lease, LeaseSecrets(host_key="secret"), now=1_700_000_000.0 + number)
    store.move("0", LeaseState.FREE)
    database.close()
    return tmp_path / "miner.db"


def shown(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    options = parse_miner(["--status", *argv], {"DOCKER_HOST": "unix:///none"})
    code = show.status(options, Output(out, err, as_json=options.json, width=80))
    return code, out.getvalue(), err.getvalue()


def test_one_line_per_lease_with_its_reason(database: Path) -> None:
    code, out, err = shown("--database", str(database))
    assert (code, err) == (0, "no room for: renter. Widen the terminal, or use --json.\n")
    assert max(map(len, out.splitlines())) <= 80
    customer, probe = out.splitlines()[-2:]
    assert customer.split()[:2] == ["reserved", "customer"]
    assert probe.split()[:2] == ["ended", "probe"]
    assert "a customer asked for the machine" in probe
    assert not database.with_suffix(".data").exists(), "a question makes no key file"


def test_json(database: Path) -> None:
    code, out, _ = shown("--database", str(database), "--json")
    state = json.loads(out)
    assert code == 0
    assert state["lease"]["state"] == "reserved"
    assert [lease["reason"] for lease in state["leases"]] == ["", "a customer asked for the machine"]
    assert "secret" not in out


def test_without_a_database_the_machine_is_shown_and_no_file_is_made(tmp_path: Path) -> None:
    code, out, _ = shown("--database", str(tmp_path / "none.db"))
    assert code == 0
    assert "lease      none" in out
    assert list(tmp_path.iterdir()) == []


def test_the_status_does_without_the_sdk(tmp_path: Path) -> None:
    code = "import sys; from neurons.miner import main; main(['--status']); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True, cwd=tmp_path
    )
    assert "'bittensor'" not in done.stdout
    assert "'compute.miner.show'" in done.stdout

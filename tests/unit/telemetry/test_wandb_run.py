from __future__ import annotations

import json
from typing import Any

import pytest
from bittensor_wallet import Keypair

from compute.base.store import Database
from compute.miner.options import RuntimeKind, parse_miner
from compute.miner.telemetry import miner_content
from compute.telemetry.wandb_run import is_genuine, run_name, signed
from compute.validator.options import parse_validator
from compute.validator.show import miner_rows
from compute.validator.store import FactStore
from compute.validator.telemetry import validator_content
from compute.wire.signing import verify_signature
from compute.wire.specs import Gpu, MachineSpecs

KEY = Keypair.create_from_uri("//miner")
OTHER = Keypair.create_from_uri("//other")
CONTENT = {
    "hotkey": KEY.ss58_address,
    "role": "miner",
    "specs": {"gpu": {"count": 2, "speed": 1.5}},
    "allocated": False,
}
MACHINE = MachineSpecs(8, 3000.0, 64, 64, 0, 64, 100, 0, 100, (Gpu("NVIDIA L4", 23_034, uuid="GPU-1", pci="0:1"),))


def genuine(config: dict[str, Any], run_id: str = "run") -> bool:
    return is_genuine(config, run_id, verify_signature)


def test_what_a_hotkey_signed_for_a_run_is_genuine_there() -> None:
    config = json.loads(json.dumps(signed(CONTENT, "run", KEY)))
    assert genuine(config)
    assert genuine({**config, "_wandb": {"cli_version": "0.31"}}), "the package adds a key of its own"
    assert not genuine(config, "another run")


def test_the_network_s_signature_is_over_the_hash_of_the_run_s_id() -> None:
    import hashlib

    signature = bytes.fromhex(signed(CONTENT, "run", KEY)["signature"])
    assert verify_signature(KEY.ss58_address, hashlib.sha256(b"run").digest(), signature)


@pytest.mark.parametrize(
    "change",
    [
        {"allocated": True},
        {"specs": {"gpu": {"count": 8, "speed": 1.5}}},
        {"hotkey": OTHER.ss58_address},
        {"hotkey": None},
        {"hotkey": ["a"]},
        {"more": 1},
        {"content_signature": ""},
        {"content_signature": "zz"},
        {"signature": 7},
        {"signature": "00" * 64},
        {"specs": float("nan")},
        {"specs": {1: {"a", "b"}}},
    ],
)
def test_what_was_changed_after_signing_is_not(change: dict[str, Any]) -> None:
    assert not genuine({**signed(CONTENT, "run", KEY), **change})


def test_what_another_key_signed_is_not() -> None:
    assert not genuine({**signed(CONTENT, "run", OTHER)})
    assert not genuine({})


def test_a_miner_publishes_its_machine_without_what_names_the_cards() -> None:
    options = parse_miner(
        ["--miner.runtime", "local", "--subtensor.chain_endpoint", "ws://secret-token@127.0.0.1:9"], {}
    )
    assert options.runtime is RuntimeKind.LOCAL
    content = miner_content(KEY.ss58_address, options, MACHINE, allocated=True)
    assert content["allocated"] is True
    assert content["specs"]["gpu"]["details"] == [{"name": "NVIDIA L4", "capacity": 23_034}]
    text = json.dumps(content)
    assert "GPU-1" not in text
    assert "secret-token" not in text


def test_a_validator_publishes_every_miner_by_uid() -> None:
    content = validator_content("v", parse_validator([], {}), miner_rows(FactStore(Database(":memory:"))), {"b", "a"})
    assert content["penalized_hotkeys"] == ["a", "b"]
    assert content["stats"] == {}
    json.dumps(content)


def test_runs_are_named_as_the_network_s_tools_expect() -> None:
    assert run_name("miner", "5F") == "miner-5F"

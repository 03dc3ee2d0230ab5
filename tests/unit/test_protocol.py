import json

from compute.protocol import Allocate, Challenge, Specs

# compatibility.md, literally: what peers already speak.
FIELDS = {
    Specs: {"specs_input": "", "specs_output": ""},
    Allocate: {
        "timeline": 0,
        "device_requirement": {},
        "checking": True,
        "output": {},
        "public_key": "",
        "docker_requirement": {
            "base_image": "ubuntu",
            "ssh_key": "",
            "ssh_port": 4444,
            "volume_path": "/tmp",
            "dockerfile": "",
        },
        "docker_change": False,
        "docker_action": {"action": "", "ssh_key": "", "key_type": ""},
    },
    Challenge: {
        "challenge_hash": "",
        "challenge_salt": "",
        "challenge_mode": "",
        "challenge_chars": "",
        "challenge_mask": "",
        "challenge_difficulty": 7,
        "output": {},
    },
}


def test_names_types_and_defaults_are_the_wires() -> None:
    for synapse, fields in FIELDS.items():
        body = synapse().model_dump()
        for name, default in fields.items():
            assert body[name] == default, (synapse, name)
            assert type(body[name]) is type(default), (synapse, name)


def test_deserialize_returns_the_output() -> None:
    assert Specs(specs_output="x").deserialize() == "x"
    assert Allocate(output={"status": True}).deserialize() == {"status": True}
    assert Challenge(output={"a": 1}).deserialize() == {"a": 1}


def test_defaults_are_not_shared() -> None:
    Allocate().docker_requirement["ssh_key"] = "mine"
    assert Allocate().docker_requirement["ssh_key"] == ""


def test_a_peer_with_unknown_fields_is_understood() -> None:
    assert Specs.model_validate(json.loads('{"specs_input": "a", "novelty": 1}')).specs_input == "a"


def test_headers_need_no_schema() -> None:
    headers = Allocate(public_key="key").to_headers()
    assert not [name for name in headers if "input_obj" in name]
    assert headers["computed_body_hash"] == Allocate().body_hash == Specs().body_hash

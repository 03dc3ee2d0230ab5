"""What clients may throw at the node: it answers with errors, and goes on making blocks."""

from __future__ import annotations

import json
import socket
import struct

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from compute.base.errors import ChainError
from compute.localnet.process import NodeProcess
from tests.waiting import DEADLINE_SECONDS, until


@pytest.fixture(autouse=True)
def _still_alive(node: NodeProcess):
    """After every test the node is the same process, and still makes blocks."""
    pid = node.pid
    yield
    height = node.client.snapshot()["block"]
    until(lambda: node.client.snapshot()["block"] > height, "the next block")
    assert node.pid == pid
    assert "Traceback" not in node.log()


def _address(node: NodeProcess) -> tuple[str, int]:
    host, port = node.endpoint.removeprefix("ws://").split(":")
    return host, int(port)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", -32700),
        ("{{{", -32700),
        (b"\x00\xff\xfe", -32700),
        ("[" * 50_000, -32700),
        ("[]", -32600),
        ("5", -32600),
        ('{"id": 1, "method": "localnet_format_disk"}', -32601),
        ('{"id": 1, "method": "state_call", "params": {"x": 1}}', -32602),
        ('{"id": 1, "method": "author_submitExtrinsic", "params": ["0x0g"]}', -32602),
        ('{"id": 1, "method": "author_submitExtrinsic", "params": ["0x00"]}', 1001),
        ('{"id": 1, "method": "author_submitExtrinsic", "params": ["0xfeffffff"]}', 1001),
        ('{"id": 1, "method": "state_getStorage", "params": ["0x", "0x00"]}', -32602),
        (json.dumps([{"id": 1, "method": "system_chain"}] * 5000), -32010),
    ],
)
def test_garbage_gets_an_error(node: NodeProcess, message: str | bytes, code: int) -> None:
    with connect(node.endpoint) as client:
        client.send(message)
        assert json.loads(client.recv(DEADLINE_SECONDS))["error"]["code"] == code
        client.send('{"id": 2, "method": "system_chain"}')
        assert json.loads(client.recv(DEADLINE_SECONDS))["id"] == 2


def test_a_batch_of_a_thousand_is_answered(node: NodeProcess) -> None:
    requests = [{"id": number, "method": "chain_getHead"} for number in range(1000)]
    with connect(node.endpoint) as client:
        client.send(json.dumps(requests))
        replies = json.loads(client.recv(DEADLINE_SECONDS))
    assert [reply["id"] for reply in replies] == list(range(1000))


def test_a_message_that_is_too_large_ends_its_connection(node: NodeProcess) -> None:
    with connect(node.endpoint) as client, pytest.raises(ConnectionClosed):
        client.send("x" * (16 * 1024 * 1024))
        client.recv(DEADLINE_SECONDS)


def test_an_extrinsic_that_is_too_large_is_refused(node: NodeProcess) -> None:
    with pytest.raises(ChainError, match="would exhaust the block limits"):
        node.client.call("author_submitExtrinsic", "0x" + "00" * 4_000_000)


@pytest.mark.parametrize("noise", [b"", b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"A" * 100_000])
def test_what_is_no_websocket_is_turned_away(node: NodeProcess, noise: bytes) -> None:
    with socket.create_connection(_address(node), timeout=DEADLINE_SECONDS) as raw:
        raw.sendall(noise)


def test_clients_that_vanish_while_they_watch_stop_no_block(node: NodeProcess) -> None:
    for _ in range(5):
        client = connect(node.endpoint).__enter__()
        client.send('{"id": 1, "method": "chain_subscribeNewHeads", "params": []}')
        client.recv(DEADLINE_SECONDS)
        # A reset instead of a goodbye.
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
    height = node.client.snapshot()["block"]
    until(lambda: node.client.snapshot()["block"] >= height + 3, "three more blocks")


def test_a_client_that_watches_and_never_reads_stops_no_block(node: NodeProcess) -> None:
    with socket.create_connection(_address(node), timeout=DEADLINE_SECONDS) as raw:
        raw.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        request = b'{"id": 1, "method": "chain_subscribeNewHeads", "params": []}'
        for _ in range(200):
            raw.sendall(bytes([0x81, 0x80 | len(request), 0, 0, 0, 0]) + request)
        assert node.client.advance(300) > 300


def test_the_node_listens_on_loopback_only(node: NodeProcess) -> None:
    _, port = _address(node)
    for other in ("127.0.0.2", "::1"):
        with pytest.raises(OSError, match=r"refused|not available|unreachable"):
            socket.create_connection((other, port), timeout=DEADLINE_SECONDS)

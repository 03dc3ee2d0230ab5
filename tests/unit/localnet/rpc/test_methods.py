"""The node's methods over a chain in memory, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compute.localnet.pallet.ledger import Amendment, Sealed
from compute.localnet.rpc.json_rpc import answer
from compute.localnet.rpc.methods import NodeMethods, header_of
from compute.localnet.rpc.own_methods import OwnMethods
from compute.localnet.rpc.storage import twox_128
from compute.localnet.rpc.subscriptions import Subscriptions

TAO = 10**9


class FakeSession:
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.after_reply: list[dict[str, Any]] = []

    def send(self, message: str) -> None:
        self.sent.append(json.loads(message))

    def send_after_reply(self, message: str) -> None:
        self.after_reply.append(json.loads(message))


class Node:
    """All methods of one chain, as one client calls them."""

    def __init__(self, chain) -> None:
        self.chain = chain
        self.session = FakeSession()
        self.subscriptions = Subscriptions()
        methods = NodeMethods(chain.ledger, chain.codec, self.subscriptions)
        own = OwnMethods(chain.ledger, self.seal)
        self.methods = {**methods.table(self.session), **own.table()}

    def seal(self, amendment: Amendment | None = None) -> Sealed:
        sealed = self.chain.ledger.seal(amendment)
        self.subscriptions.publish(sealed, header_of(sealed.block))
        return sealed

    async def reply(self, method: str, *params: Any) -> dict[str, Any]:
        request = json.dumps({"id": 1, "method": method, "params": params})
        return json.loads(await answer(request, self.methods))

    async def call(self, method: str, *params: Any) -> Any:
        return (await self.reply(method, *params))["result"]

    async def error(self, method: str, *params: Any) -> str:
        error = (await self.reply(method, *params))["error"]
        return f"{error['code']} {error['message']}"


@pytest.fixture
def node(chain) -> Node:
    return Node(chain)


# the chain's methods


async def test_blocks_by_number_and_by_hash(node: Node) -> None:
    sealed = node.seal()
    head = "0x" + sealed.block.hash.hex()
    assert await node.call("chain_getHead") == await node.call("chain_getFinalizedHead") == head
    assert await node.call("chain_getBlockHash") == await node.call("chain_getBlockHash", 1) == head
    assert await node.call("chain_getBlockHash", "0x1") == head
    assert await node.call("chain_getBlockHash", 2) is None
    header = await node.call("chain_getHeader", head)
    assert header["number"] == "0x1"
    assert header["parentHash"] == await node.call("chain_getBlockHash", 0)
    block = await node.call("chain_getBlock")
    assert block["block"]["header"] == header
    assert len(block["block"]["extrinsics"]) == 1
    assert await node.call("chain_getHeader", "0x" + "00" * 32) is None
    assert await node.call("chain_getBlock", "0x" + "00" * 32) is None


async def test_states_by_the_hash_of_their_block(node: Node) -> None:
    number = "0x" + (twox_128(b"System") + twox_128(b"Number")).hex()
    first = "0x" + node.seal().block.hash.hex()
    node.seal()
    assert await node.call("state_getStorage", number) == "0x02000000"
    assert await node.call("state_getStorageAt", number, first) == "0x01000000"
    assert await node.call("state_queryStorageAt", [number, "0x00"], first) == [
        {"block": first, "changes": [[number, "0x01000000"], ["0x00", None]]}
    ]
    unknown = "0x" + "ab" * 32
    assert "4003 Client error: UnknownBlock" in await node.error("state_getStorage", number, unknown)
    node.chain.ledger._states.pop(1)
    discarded = await node.error("state_getStorage", number, first)
    assert discarded.startswith("4003 Client error: Api called for an unknown Block: State already discarded")


async def test_metadata_is_there_in_version_15_only(node: Node) -> None:
    whole = await node.call("state_call", "Metadata_metadata_at_version", "0x0f000000")
    assert whole.startswith("0x01")
    assert "6d6574610f" in whole[:30]
    assert await node.call("state_call", "Metadata_metadata_at_version", "0x0e000000") == "0x00"
    assert await node.call("state_call", "Metadata_metadata_versions", "0x") == "0x040f000000"


async def test_runtime_apis_answer_by_name(node: Node) -> None:
    price = await node.call("state_call", "SwapRuntimeApi_current_alpha_price", "1b00")
    assert int.from_bytes(bytes.fromhex(price[2:]), "little") == TAO
    assert "Exported method Nothing_at_all is not found" in await node.error("state_call", "Nothing_at_all", "0x")
    assert "Exported method 5 is not found" in await node.error("state_call", 5, "0x")
    assert "bad arguments" in await node.error("state_call", "SwapRuntimeApi_current_alpha_price", "0x1b")
    absent = await node.call("state_call", "SubnetInfoRuntimeApi_get_subnet_state", "0x1c00")
    assert absent == "0x00"


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("chain_getBlockHash", [-1], "number must be an integer from 0 to 4294967295, not -1"),
        ("chain_getBlockHash", [True], "number must be an integer"),
        ("chain_getHeader", [5], "hash must be a hexadecimal string, not 5"),
        ("chain_getHeader", ["0xzz"], "hash '0xzz' is not hexadecimal"),
        ("chain_getHeader", ["0x00"], "hash has 1 bytes, expected 32"),
        ("chain_getHeader", [None, None], r"expected \[hash\?\], got 2 parameters"),
        ("state_getStorage", [], r"expected \[key, at\?\], got 0 parameters"),
        ("state_getKeysPaged", ["0x", 1001], "count must be an integer from 0 to 1000, not 1001"),
        ("state_queryStorageAt", ["0x"], "keys must be an array"),
        ("account_nextIndex", ["5Grw"], "account '5Grw' is not an ss58 address"),
        ("author_submitExtrinsic", ["hello"], "extrinsic 'hello' is not hexadecimal"),
    ],
)
async def test_bad_parameters_are_named(node: Node, method: str, params: list[Any], message: str) -> None:
    import re

    assert re.search(message, await node.error(method, *params))


async def test_submitting_and_watching(node: Node) -> None:
    chain = node.chain
    chain.fund(chain.alice)
    call = chain.call("burned_register", netuid=chain.netuid, hotkey=chain.alice.ss58_address)
    raw = chain.sign(chain.alice, call).hex()
    assert await node.call("account_nextIndex", chain.alice.ss58_address) == 0
    subscription = await node.call("author_submitAndWatchExtrinsic", "0x" + raw)
    assert await node.call("account_nextIndex", chain.alice.ss58_address) == 1
    assert (await node.reply("author_submitExtrinsic", raw))["error"]["code"] == 1013
    block_hash = "0x" + node.seal().block.hash.hex()
    assert [notice["params"] for notice in node.session.sent] == [
        {"subscription": subscription, "result": {"inBlock": block_hash}},
        {"subscription": subscription, "result": {"finalized": block_hash}},
    ]
    node.seal()
    assert len(node.session.sent) == 2


async def test_a_watched_transaction_that_is_dropped_is_invalid(node: Node) -> None:
    chain = node.chain
    chain.register(chain.alice, chain.bob)
    chain.stake(chain.alice)
    chain.seal(4)
    for nonce in (1, 2):
        call = chain.call("set_weights", netuid=chain.netuid, dests=[1], weights=[nonce], version_key=0)
        await node.call("author_submitAndWatchExtrinsic", chain.sign(chain.alice, call, nonce=nonce).hex())
    node.seal()
    results = [notice["params"]["result"] for notice in node.session.sent]
    assert [*map(list, results[:2]), results[2]] == [["inBlock"], ["finalized"], "invalid"]


@pytest.mark.parametrize("kind", ["New", "Finalized", "All"])
async def test_watching_heads(node: Node, kind: str) -> None:
    subscription = await node.call(f"chain_subscribe{kind}Heads")
    (now,) = node.session.after_reply
    assert now["params"]["result"]["number"] == "0x0"
    node.seal()
    (notice,) = node.session.sent
    assert notice["params"]["subscription"] == subscription
    assert notice["params"]["result"]["number"] == "0x1"
    assert await node.call(f"chain_unsubscribe{kind}Heads", subscription) is True
    assert await node.call(f"chain_unsubscribe{kind}Heads", subscription) is False
    assert await node.call(f"chain_unsubscribe{kind}Heads", {}) is False
    node.seal()
    assert len(node.session.sent) == 1


async def test_a_session_that_ends_takes_its_subscriptions_along(node: Node) -> None:
    await node.call("chain_subscribeNewHeads")
    node.subscriptions.drop(node.session)
    node.seal()
    assert node.session.sent == []


# the own methods


async def test_the_faucet_gives(node: Node) -> None:
    address = node.chain.alice.ss58_address
    block_hash = await node.call("localnet_faucet", address, 5 * TAO)
    await node.call("localnet_faucet", address, 1)
    assert node.chain.ledger.head_state.account(address).free == 5 * TAO + 1
    assert node.chain.ledger.number_of(bytes.fromhex(block_hash[2:])) == 1


async def test_nobody_gets_more_than_there_is(node: Node) -> None:
    address = node.chain.alice.ss58_address
    await node.call("localnet_faucet", address, 21_000_000 * TAO - 5)
    assert "rao must be an integer from 1 to 5, not 6" in await node.error("localnet_faucet", address, 6)
    await node.call("localnet_faucet", address, 5)


async def test_staking_gives_permits_at_once(node: Node) -> None:
    chain = node.chain
    chain.register(chain.alice, chain.bob)
    await node.call("localnet_stake", chain.netuid, chain.alice.ss58_address, 999 * TAO)
    assert not chain.subnet.neurons[0].validator_permit
    await node.call("localnet_stake", chain.netuid, chain.alice.ss58_address, TAO)
    assert [neuron.validator_permit for neuron in chain.subnet.neurons] == [True, False]
    assert chain.subnet.stakes == {chain.alice.ss58_address: {chain.alice.ss58_address: 1000 * TAO}}


async def test_hyperparameters_change(node: Node) -> None:
    await node.call("localnet_setHyperparameter", node.chain.netuid, "tempo", 77)
    await node.call("localnet_setHyperparameter", node.chain.netuid, "commit_reveal_weights_enabled", True)
    assert node.chain.subnet.hyperparameters.tempo == 77
    assert node.chain.subnet.hyperparameters.commit_reveal_weights_enabled is True


async def test_advancing_makes_blocks_at_once(node: Node) -> None:
    assert await node.call("localnet_advance", 45) == 45
    assert node.chain.ledger.head.number == 45


async def test_a_snapshot_is_plain_json(node: Node) -> None:
    chain = node.chain
    chain.register(chain.alice, chain.bob)
    chain.stake(chain.alice)
    chain.seal(4)
    assert chain.run(chain.alice, "set_weights", netuid=27, dests=[1], weights=[5], version_key=0) is None
    snapshot = await node.call("localnet_snapshot")
    assert snapshot["block"] == chain.ledger.head.number
    assert snapshot["genesis"] == "0x" + chain.ledger.genesis.hash.hex()
    neuron = snapshot["subnets"]["27"]["neurons"][0]
    assert neuron["uid"] == 0
    assert neuron["hotkey"] == chain.alice.ss58_address
    assert neuron["stake"] == 2000 * TAO
    assert neuron["weights"] == {"1": 65535}
    assert neuron["axon"]["port"] == 0
    assert snapshot["subnets"]["27"]["hyperparameters"]["tempo"] == 10
    assert snapshot["accounts"][chain.alice.ss58_address]["nonce"] == 2
    assert list((await node.call("localnet_snapshot", 27))["subnets"]) == ["27"]


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("localnet_faucet", [], r"expected \[coldkey, rao\], got 0 parameters"),
        ("localnet_faucet", ["nobody", 1], "coldkey 'nobody' is not an ss58 address"),
        ("localnet_faucet", ["ALICE", 0], "rao must be an integer from 1 to 21000000000000000, not 0"),
        ("localnet_faucet", ["ALICE", 1.5], "rao must be an integer"),
        ("localnet_stake", [28, "ALICE", 1], "there is no subnet 28 here, only 27"),
        ("localnet_stake", ["27", "ALICE", 1], "netuid must be an integer"),
        ("localnet_stake", [27, "ALICE", 1], "is not registered on subnet 27"),
        ("localnet_setHyperparameter", [27, "temp", 1], "unknown hyperparameter 'temp': the names are"),
        ("localnet_setHyperparameter", [27, "tempo", 0], "tempo is an integer from 1 to 65535, not 0"),
        ("localnet_setHyperparameter", [27, "tempo", True], "tempo is an integer"),
        ("localnet_setHyperparameter", [27, "registration_allowed", 1], "is true or false, not 1"),
        ("localnet_advance", [0], "blocks must be an integer from 1 to 10000, not 0"),
        ("localnet_advance", [10_001], "blocks must be an integer"),
        ("localnet_snapshot", [28], "there is no subnet 28"),
    ],
)
async def test_bad_parameters_of_the_own_methods_are_named(
    node: Node, method: str, params: list[Any], message: str
) -> None:
    import re

    given_params = [node.chain.alice.ss58_address if value == "ALICE" else value for value in params]
    error = await node.error(method, *given_params)
    assert error.startswith("-32602 Invalid params: ")
    assert re.search(message, error)
    assert node.chain.ledger.head.number == 0


# anything


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
async def test_no_parameters_make_a_method_fail_inside(chain, data) -> None:
    node = Node(chain)
    method = data.draw(st.sampled_from(sorted(set(node.methods) - {"localnet_advance"})))
    value = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.text(max_size=20)
        | st.binary(max_size=80).map(bytes.hex)
        | st.just(chain.alice.ss58_address)
        | st.lists(st.text(max_size=5), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.none(), max_size=1)
        | st.sampled_from(["Metadata_metadata_versions", "SubnetInfoRuntimeApi_get_selective_mechagraph"])
    )
    reply = await node.reply(method, *data.draw(st.lists(value, max_size=4)))
    assert reply.get("error", {}).get("code") != -32603

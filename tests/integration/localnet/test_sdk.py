"""An unmodified bittensor SDK talks to the node: registering, serving, setting weights, and reading all of it back."""

from __future__ import annotations

import asyncio
import time

import bittensor
import pytest

from compute.localnet.process import NodeProcess

TAO = 10**9
NETUID = 27


def test_registering_costs_the_burn(node: NodeProcess, subtensor, make_wallet) -> None:
    wallet = make_wallet("miner")
    hotkey = wallet.hotkey.ss58_address
    assert subtensor.subnet_exists(NETUID)
    assert not subtensor.subnet_exists(28)
    assert not subtensor.is_hotkey_registered(hotkey, netuid=NETUID)
    node.client.faucet(wallet.coldkeypub.ss58_address, 10 * TAO)
    assert subtensor.get_balance(wallet.coldkeypub.ss58_address).rao == 10 * TAO

    response = subtensor.burned_register(wallet, netuid=NETUID)

    assert response.success, response.message
    assert subtensor.is_hotkey_registered(hotkey, netuid=NETUID)
    assert subtensor.get_hotkey_owner(hotkey) == wallet.coldkeypub.ss58_address
    uid = subtensor.get_uid_for_hotkey_on_subnet(hotkey, NETUID)
    neuron = subtensor.neuron_for_uid(uid, NETUID)
    assert (neuron.hotkey, neuron.coldkey) == (hotkey, wallet.coldkeypub.ss58_address)
    assert not neuron.axon_info.is_serving
    spent = 10 * TAO - subtensor.get_balance(wallet.coldkeypub.ss58_address).rao
    assert 500_000 <= spent < TAO


def test_serving_an_axon(node: NodeProcess, subtensor, make_registered) -> None:
    wallet = make_registered("miner")
    axon = bittensor.Axon(wallet=wallet, ip="127.0.0.2", port=18091, external_ip="127.0.0.2", external_port=18091)
    axon.serve(netuid=NETUID, subtensor=subtensor)
    uid = subtensor.get_uid_for_hotkey_on_subnet(wallet.hotkey.ss58_address, NETUID)
    served = subtensor.metagraph(NETUID).axons[uid]
    assert (served.ip, served.port, served.is_serving) == ("127.0.0.2", 18091, True)
    assert served.hotkey == wallet.hotkey.ss58_address


def test_serving_prometheus(node: NodeProcess, subtensor, make_registered) -> None:
    wallet = make_registered("miner")
    call = subtensor.compose_call(
        "SubtensorModule",
        "serve_prometheus",
        {"netuid": NETUID, "version": 200, "ip": 2130706434, "port": 9100, "ip_type": 4},
    )
    response = subtensor.sign_and_send_extrinsic(call=call, wallet=wallet, sign_with="hotkey")
    assert response.success, response.message
    served = subtensor.neuron_for_uid(_uid(subtensor, wallet), NETUID).prometheus_info
    assert (served.version, served.ip, served.port) == (200, "127.0.0.2", 9100)


def test_weights_are_set_and_read_back(node: NodeProcess, subtensor, make_registered) -> None:
    validator, miner = make_registered("validator", stake_rao=5000 * TAO), make_registered("miner")
    uids = [subtensor.get_uid_for_hotkey_on_subnet(w.hotkey.ss58_address, NETUID) for w in (validator, miner)]
    node.client.advance(3)
    before = subtensor.block

    response = subtensor.set_weights(wallet=validator, netuid=NETUID, uids=uids, weights=[0.25, 1.0])

    assert response.success, response.message
    metagraph = subtensor.metagraph(NETUID, lite=False)
    row = metagraph.W[uids[0]]
    assert row[uids[1]] == pytest.approx(0.8, abs=1e-4)
    assert row[uids[0]] == pytest.approx(0.2, abs=1e-4)
    assert metagraph.validator_permit[uids[0]]
    assert metagraph.S[uids[0]] == pytest.approx(5000)
    stored = dict(subtensor.weights(NETUID))
    assert dict(stored[uids[0]]) == {uids[0]: 16384, uids[1]: 65535}
    assert metagraph.last_update[uids[0]] > before
    assert subtensor.blocks_since_last_update(NETUID, uids[0]) < subtensor.block - before


def test_an_epoch_pays_by_weights(node: NodeProcess, subtensor, make_registered) -> None:
    validator, miner = make_registered("validator", stake_rao=10**6 * TAO), make_registered("miner")
    uids = [subtensor.get_uid_for_hotkey_on_subnet(w.hotkey.ss58_address, NETUID) for w in (validator, miner)]
    node.client.advance(3)
    assert subtensor.set_weights(wallet=validator, netuid=NETUID, uids=[uids[1]], weights=[1.0]).success
    node.client.advance(subtensor.get_next_epoch_start_block(NETUID) - subtensor.block)
    metagraph = subtensor.metagraph(NETUID)
    assert metagraph.I[uids[1]] == pytest.approx(1, abs=1e-3)
    assert metagraph.D[uids[0]] == pytest.approx(1, abs=1e-3)
    assert metagraph.Tv[uids[0]] == pytest.approx(1, abs=1e-3)
    assert metagraph.E[uids[1]] > 0


def test_storage_maps_are_read(node: NodeProcess, subtensor, make_registered) -> None:
    wallet = make_registered("miner")
    uid = subtensor.get_uid_for_hotkey_on_subnet(wallet.hotkey.ss58_address, NETUID)
    keys = dict(subtensor.query_map("SubtensorModule", "Keys", params=[NETUID]))
    assert keys[uid] == wallet.hotkey.ss58_address
    assert sorted(keys) == list(range(len(keys)))
    assert subtensor.get_netuids_for_hotkey(wallet.hotkey.ss58_address) == [NETUID]
    assert subtensor.get_all_subnets_netuid() == [NETUID]


def test_hyperparameters_are_read(node: NodeProcess, subtensor) -> None:
    assert subtensor.tempo(NETUID) == 1000
    assert subtensor.weights_rate_limit(NETUID) == 2
    assert subtensor.commit_reveal_enabled(NETUID) is False
    parameters = subtensor.get_subnet_hyperparameters(NETUID)
    assert (parameters.tempo, parameters.max_validators, parameters.commit_reveal_period) == (1000, 64, 1)
    assert subtensor.get_subnet_hyperparameters(28) is None
    info = subtensor.get_metagraph_info(NETUID)
    assert (info.netuid, info.tempo, info.max_uids, info.name) == (NETUID, 1000, 256, "localnet")


def test_a_state_is_read_at_its_block(node: NodeProcess, subtensor, make_wallet) -> None:
    address = make_wallet("miner").coldkeypub.ss58_address
    before = subtensor.block
    node.client.faucet(address, 7)
    assert subtensor.get_balance(address).rao == 7
    assert subtensor.get_balance(address, block=before).rao == 0


def test_blocks_are_waited_for_and_read(node: NodeProcess, subtensor) -> None:
    start = subtensor.block
    assert subtensor.wait_for_block(start + 2)
    assert subtensor.block >= start + 2
    assert abs(subtensor.get_timestamp().timestamp() - time.time()) < 60
    block = subtensor.substrate.get_block(block_number=start)
    assert block["header"]["number"] == start
    assert block["extrinsics"][0].value["call"]["call_function"] == "set"


def test_stake_is_bought_and_read(node: NodeProcess, subtensor, make_registered) -> None:
    wallet = make_registered("staker")
    hotkey, coldkey = wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address
    response = subtensor.add_stake(
        wallet=wallet, netuid=NETUID, hotkey_ss58=hotkey, amount=bittensor.Balance.from_tao(5)
    )
    assert response.success, response.message
    assert subtensor.get_stake(coldkey_ss58=coldkey, hotkey_ss58=hotkey, netuid=NETUID).rao == 5 * TAO
    (info,) = subtensor.get_stake_info_for_coldkey(coldkey)
    assert (info.hotkey_ss58, info.netuid, info.stake.rao, info.is_registered) == (hotkey, NETUID, 5 * TAO, True)


def test_what_wallet_and_subnet_tools_show_is_there(node: NodeProcess, subtensor, make_registered) -> None:
    coldkey = make_registered("miner").coldkeypub.ss58_address
    assert subtensor.get_balances(coldkey)[coldkey].rao > 0
    assert subtensor.get_stake_info_for_coldkeys([coldkey]) == {coldkey: []}
    subnet = subtensor.subnet(NETUID)
    assert (subnet.netuid, subnet.subnet_name, subnet.tempo, subnet.price.tao) == (NETUID, "localnet", 1000, 1.0)
    assert [each.netuid for each in subtensor.all_subnets()] == [NETUID]
    assert subtensor.get_subnet_prices()[NETUID].tao == 1.0


# what the SDK says when the chain says no


def _uid(subtensor, wallet) -> int:
    return subtensor.get_uid_for_hotkey_on_subnet(wallet.hotkey.ss58_address, NETUID)


def test_an_empty_purse_cannot_register(node: NodeProcess, subtensor, make_wallet) -> None:
    response = subtensor.burned_register(make_wallet("poor"), netuid=NETUID)
    assert not response.success
    assert "NotEnoughBalanceToStake" in response.message


def test_localhost_cannot_be_served(node: NodeProcess, subtensor, make_registered) -> None:
    wallet = make_registered("miner")
    axon = bittensor.Axon(wallet=wallet, ip="127.0.0.1", port=18091, external_ip="127.0.0.1", external_port=18091)
    response = subtensor.serve_axon(netuid=NETUID, axon=axon)
    assert not response.success
    assert "Custom error: 11" in response.message
    assert not subtensor.neuron_for_uid(_uid(subtensor, wallet), NETUID).axon_info.is_serving


def test_serving_twice_in_a_row_is_too_fast(node: NodeProcess, subtensor, make_registered) -> None:
    wallet = make_registered("miner")
    node.client.set_hyperparameter(NETUID, "serving_rate_limit", 1000)
    responses = []
    for port in (18091, 18092):
        axon = bittensor.Axon(wallet=wallet, ip="127.0.0.2", port=port, external_ip="127.0.0.2", external_port=port)
        responses.append(subtensor.serve_axon(netuid=NETUID, axon=axon))
    node.client.set_hyperparameter(NETUID, "serving_rate_limit", 0)
    assert responses[0].success
    assert not responses[1].success
    assert "Custom error: 12" in responses[1].message


def test_weights_without_stake_or_permit_are_refused(node: NodeProcess, subtensor, make_registered) -> None:
    other, miner = make_registered("other"), make_registered("miner")
    node.client.advance(3)
    target = _uid(subtensor, other)
    weights = {"wallet": miner, "netuid": NETUID, "uids": [target], "weights": [1.0], "max_attempts": 1}
    response = subtensor.set_weights(**weights)
    assert not response.success
    assert "Custom error: 1 " in response.message
    node.client.set_hyperparameter(NETUID, "stake_threshold", 0)
    response = subtensor.set_weights(**weights)
    node.client.set_hyperparameter(NETUID, "stake_threshold", 1000 * TAO)
    assert not response.success
    assert "NeuronNoValidatorPermit" in response.message


def test_an_outdated_version_key_is_refused(node: NodeProcess, subtensor, make_registered) -> None:
    validator = make_registered("validator", stake_rao=5000 * TAO)
    node.client.set_hyperparameter(NETUID, "weights_version", 200)
    node.client.advance(3)
    weights = {"wallet": validator, "netuid": NETUID, "uids": [0], "weights": [1.0], "max_attempts": 1}
    refused = subtensor.set_weights(**weights, version_key=199)
    accepted = subtensor.set_weights(**weights, version_key=200)
    node.client.set_hyperparameter(NETUID, "weights_version", 0)
    assert "IncorrectWeightVersionKey" in refused.message
    assert accepted.success


def test_weights_that_come_too_soon_are_not_even_sent(node: NodeProcess, subtensor, make_registered) -> None:
    validator = make_registered("validator", stake_rao=5000 * TAO)
    node.client.advance(3)
    weights = {"wallet": validator, "netuid": NETUID, "uids": [0], "weights": [1.0]}
    assert subtensor.set_weights(**weights).success
    node.client.set_hyperparameter(NETUID, "weights_rate_limit", 1000)
    response = subtensor.set_weights(**weights)
    node.client.set_hyperparameter(NETUID, "weights_rate_limit", 2)
    assert (response.success, response.message) == (False, None)


def test_commit_reveal_commits(node: NodeProcess, subtensor, make_registered) -> None:
    validator = make_registered("validator", stake_rao=5000 * TAO)
    node.client.set_hyperparameter(NETUID, "commit_reveal_weights_enabled", True)
    node.client.advance(3)
    response = subtensor.set_weights(
        wallet=validator, netuid=NETUID, uids=[0], weights=[1.0], block_time=0.25, version_key=1
    )
    commits = node.client.snapshot(NETUID)["subnets"]["27"]["commits"]
    committed = list(subtensor.get_timelocked_weight_commits(NETUID))
    node.client.set_hyperparameter(NETUID, "commit_reveal_weights_enabled", False)
    assert response.success, response.message
    hotkey = validator.hotkey.ss58_address
    (commit,) = [each for each in commits if each["hotkey"] == hotkey]
    assert bytes.fromhex(commit["ciphertext"]) == bytes(response.data["commit_for_reveal"])
    assert commit["reveal_round"] == response.data["reveal_round"]
    assert hotkey in {entry[0] for entry in committed}


def test_the_async_client_works_too(node: NodeProcess) -> None:
    async def ask() -> tuple[int, bool]:
        async with bittensor.AsyncSubtensor(network=node.endpoint) as client:
            return await client.get_current_block(), await client.subnet_exists(NETUID)

    block, exists = asyncio.run(ask())
    assert block > 0
    assert exists

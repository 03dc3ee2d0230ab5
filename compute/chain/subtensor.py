"""The few chain operations that the neurons need, over ``bittensor.Subtensor``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from compute.base.clock import within
from compute.base.errors import ChainError, ChainUnreachable, ExtrinsicRefused, NotRegistered
from compute.incentive.weights import U16_MAX, WeightRules

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READ_SECONDS = 60.0
_SUBMIT_SECONDS = 180.0
_CONNECT_SECONDS = 60.0
# CustomTransactionError of the chain (common/src/transaction_error.rs), by the pallet error that each stands for.
_POOL_REFUSALS = {
    1: "NotEnoughStakeToSetWeights",
    6: "SettingWeightsTooFast",
    10: "HotKeyNotRegisteredInNetwork",
    11: "InvalidIpAddress",
    12: "ServingRateLimitExceeded",
    13: "InvalidPort",
    19: "HotKeyNotRegisteredInSubNet",
}
# The SDK's own version is in the millions; this subnet's (100·major + 10·minor + patch) is far below.
_MAX_SUBNET_VERSION = 100_000


@dataclass(frozen=True)
class Neuron:
    """One uid of the subnet at one block. Stake in alpha; ``version`` is 0 where the peer announces none of ours."""

    uid: int
    hotkey: str
    coldkey: str
    ip: str
    port: int
    version: int
    stake: float
    validator_permit: bool
    last_update: int
    registered_at: int
    incentive: float
    dividends: float

    @property
    def is_serving(self) -> bool:
        """Whether it has announced an axon."""
        return self.ip not in ("0.0.0.0", "") and self.port > 0  # noqa: S104


@dataclass(frozen=True)
class Metagraph:
    """The subnet at one block; ``neurons[i].uid == i``."""

    netuid: int
    block: int
    neurons: tuple[Neuron, ...]
    by_hotkey: Mapping[str, Neuron] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_hotkey", {neuron.hotkey: neuron for neuron in self.neurons})


@dataclass(frozen=True)
class ChainRules:
    """The subnet's hyperparameters that bind a validator; all counts in blocks."""

    weights_rate_limit: int
    commit_reveal: bool
    weights: WeightRules


class Chain(Protocol):
    """What the neurons ask of a chain. Every method may raise ChainError, and only that."""

    async def block(self) -> int:
        """The current block number."""

    async def metagraph(self) -> Metagraph:
        """The whole subnet, at the current block."""

    async def rules(self) -> ChainRules:
        """The subnet's hyperparameters, at the current block."""

    async def held_weights(self, uid: int) -> dict[int, int]:
        """The u16 weights by uid that the chain holds for the validator at ``uid``; empty for none."""

    async def open_commits(self) -> tuple[int, ...]:
        """The blocks in which we committed weights that the chain has neither revealed nor given up; oldest first."""

    async def set_weights(self, weights: Mapping[int, int]) -> None:
        """Submit u16 weights by uid and wait until they are in a block; not idempotent, rate-limited by the chain.

        Where the subnet has commit-reveal, this commits them, and the chain reveals them some epochs later.

        Raises:
            ExtrinsicRefused: the chain said no, with its error name.
            NotRegistered: this hotkey has no uid.
            ChainUnreachable: nobody knows whether the chain has taken them.
        """

    async def serve(self, ip: str, port: int, version: int) -> bool:
        """Announce our axon. Idempotent: returns False, and submits nothing, where the chain holds it already."""

    async def announce_version(self, version: int, ip: str, port: int, *, force: bool = False) -> bool:
        """Announce our version in the prometheus record, where peers read it; idempotent likewise, unless ``force``."""

    async def close(self) -> None:
        """Close the connection. Idempotent."""


class MetagraphReader(Protocol):
    """Reads the subnet elsewhere than in this process; ``subnet_reader.SubnetReader`` is the real one."""

    async def metagraph(self) -> Metagraph:
        """As ``Chain.metagraph``."""

    async def close(self) -> None:
        """End what it has started. Idempotent."""


class SubtensorChain:
    """A ``Chain`` over the SDK, whose connection is synchronous and of one thread: so is the executor here.

    A call that overruns its deadline abandons the connection (the thread may hang in it for ever) and the next call
    opens a new one. Connecting happens at the first call.
    """

    def __init__(
        self,
        endpoint: str,
        netuid: int,
        wallet: Any,
        *,
        block_seconds: float = 12.0,
        reader: MetagraphReader | None = None,
    ) -> None:
        """``endpoint`` is a network name of the SDK (finney, test, local) or a ``ws://`` address.

        ``block_seconds`` is the chain's block time, which commit-reveal needs to know. ``reader`` reads the whole
        subnet instead of the thread here; it is closed with this.
        """
        self.endpoint = endpoint
        self.netuid = netuid
        self._wallet = wallet
        self._block_seconds = block_seconds
        self._reader = reader
        self._connection = _Connection(endpoint)

    @property
    def hotkey(self) -> str:
        """Our hotkey's ss58 address."""
        return str(self._wallet.hotkey.ss58_address)

    async def block(self) -> int:
        return int(await self._call(lambda chain: chain.get_current_block(), _READ_SECONDS))

    async def metagraph(self) -> Metagraph:
        if self._reader is not None:
            return await self._reader.metagraph()

        def read(chain: Any) -> Metagraph:
            try:
                return _snapshot(chain.metagraph(self.netuid, lite=True))
            except AttributeError:
                # So ends the SDK's metagraph of a subnet that does not exist.
                if chain.subnet_exists(self.netuid):
                    raise
            raise ChainError(f"no subnet has netuid {self.netuid} on the chain at {self.endpoint}")

        return await self._call(read, _READ_SECONDS)

    async def rules(self) -> ChainRules:
        def read(chain: Any) -> ChainRules:
            limit = chain.get_hyperparameter("MaxWeightsLimit", self.netuid)
            return ChainRules(
                weights_rate_limit=int(chain.weights_rate_limit(self.netuid)),
                commit_reveal=bool(chain.commit_reveal_enabled(self.netuid)),
                weights=WeightRules(
                    min_allowed_weights=int(chain.min_allowed_weights(self.netuid) or 1),
                    max_weight_share=int(limit) / U16_MAX if limit else 1.0,
                ),
            )

        return await self._call(read, _READ_SECONDS)

    async def held_weights(self, uid: int) -> dict[int, int]:
        def read(chain: Any) -> dict[int, int]:
            # One row: the SDK's own weights() reads those of all validators.
            row = chain.substrate.query("SubtensorModule", "Weights", [self.netuid, uid])
            return {int(target): int(weight) for target, weight in row or []}

        return await self._call(read, _READ_SECONDS)

    async def open_commits(self) -> tuple[int, ...]:
        def read(chain: Any) -> tuple[int, ...]:
            from bittensor.core.chain_data import WeightCommitInfo

            # One entry for each epoch: the SDK's own get_timelocked_weight_commits() reads the first of them only.
            epochs = chain.substrate.query_map("SubtensorModule", "TimelockedWeightCommits", [self.netuid])
            commits = [WeightCommitInfo.from_vec_u8_v2(commit) for _, row in epochs for commit in row or []]
            return tuple(sorted(int(block) for author, block, *_ in commits if author == self.hotkey))

        return await self._call(read, _READ_SECONDS)

    async def set_weights(self, weights: Mapping[int, int]) -> None:
        from compute import __version_as_int__

        def submit(chain: Any) -> None:
            response = chain.set_weights(
                wallet=self._wallet,
                netuid=self.netuid,
                uids=list(weights),
                weights=[float(weight) for weight in weights.values()],
                version_key=__version_as_int__,
                block_time=self._block_seconds,
                wait_for_inclusion=True,
                wait_for_finalization=False,
                max_attempts=1,
            )
            # The SDK submits nothing, and says nothing, while the rate limit holds.
            _raise_unless_success(response, "SettingWeightsTooFast")

        await self._call(submit, _SUBMIT_SECONDS)

    async def serve(self, ip: str, port: int, version: int) -> bool:
        def submit(chain: Any) -> bool:
            neuron = self._own_neuron(chain)
            axon = neuron.axon_info
            if (axon.ip, axon.port, axon.version) == (ip, port, version):
                return False
            parameters = _address(ip, port, version) | {"protocol": 4, "placeholder1": 0, "placeholder2": 0}
            self._submit(chain, "serve_axon", parameters)
            return True

        return await self._call(submit, _SUBMIT_SECONDS)

    async def announce_version(self, version: int, ip: str, port: int, *, force: bool = False) -> bool:
        def submit(chain: Any) -> bool:
            neuron = self._own_neuron(chain)
            known = neuron.prometheus_info
            if not force and known is not None and (known.version, known.ip, known.port) == (version, ip, port):
                return False
            self._submit(chain, "serve_prometheus", _address(ip, port, version))
            return True

        return await self._call(submit, _SUBMIT_SECONDS)

    async def close(self) -> None:
        self._connection.abandon()
        if self._reader is not None:
            await self._reader.close()

    def _own_neuron(self, chain: Any) -> Any:
        neuron = chain.get_neuron_for_pubkey_and_subnet(self.hotkey, netuid=self.netuid)
        if neuron is None or neuron.is_null:
            raise NotRegistered(
                f"hotkey {self.hotkey} has no uid on netuid {self.netuid} of {self.endpoint}. Register it: "
                f"btcli subnets register --netuid {self.netuid} --network {self.endpoint}"
            )
        return neuron

    def _submit(self, chain: Any, function: str, parameters: dict[str, Any]) -> None:
        call = chain.substrate.compose_call(
            call_module="SubtensorModule",
            call_function=function,
            call_params={"netuid": self.netuid, **parameters},
        )
        response = chain.sign_and_send_extrinsic(
            call=call, wallet=self._wallet, sign_with="hotkey", wait_for_inclusion=True, wait_for_finalization=False
        )
        _raise_unless_success(response, "Unknown")

    async def _call(self, operation: Callable[[Any], T], deadline_seconds: float) -> T:
        connection = self._connection
        try:
            return await within(_CONNECT_SECONDS + deadline_seconds, connection.call(operation))
        except ChainUnreachable:
            self._abandon(connection)
            raise
        except ChainError:
            raise
        except (asyncio.TimeoutError, TimeoutError):
            self._abandon(connection)
            raise ChainUnreachable(f"{self.endpoint} did not answer within {deadline_seconds:.0f} s") from None
        except Exception as error:  # the SDK, websockets and the codec each raise their own; after one, start afresh
            self._abandon(connection)
            raise ChainUnreachable(f"{self.endpoint}: {type(error).__name__}: {error}") from error

    def _abandon(self, connection: _Connection) -> None:
        connection.abandon()
        if connection is self._connection:
            self._connection = _Connection(self.endpoint)


class _Connection:
    """One connection of the SDK and the one thread that may use it. Opens at the first call."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._executor = ThreadPoolExecutor(1, "chain")
        self._subtensor: Any = None

    async def call(self, operation: Callable[[Any], T]) -> T:
        """Run ``operation`` with the ``Subtensor``, in its thread, after those before it."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, operation)

    def _run(self, operation: Callable[[Any], T]) -> T:
        if self._subtensor is None:
            self._subtensor = _connect(self._endpoint)
        return operation(self._subtensor)

    def abandon(self) -> None:
        """Close the connection once its thread is done with whatever it hangs in. Returns at once; idempotent."""
        with contextlib.suppress(RuntimeError):  # abandoned before
            self._executor.submit(self._close)
        self._executor.shutdown(wait=False)

    def _close(self) -> None:
        if self._subtensor is not None:
            _close_quietly(self._subtensor)


def _connect(endpoint: str) -> Any:
    import bittensor

    try:
        return bittensor.Subtensor(network=endpoint)
    except Exception as error:  # name resolution, TCP, TLS, websocket and metadata errors alike
        raise ChainUnreachable(
            f"no chain at {endpoint}: {type(error).__name__}: {error}. Check --subtensor.network or "
            "--subtensor.chain_endpoint; for a chain of your own: python -m compute.localnet node"
        ) from error


def _close_quietly(subtensor: Any) -> None:
    try:
        subtensor.close()
    except Exception as error:  # closing a broken connection: nothing is left to lose, and anything may be raised
        logger.debug("closing the chain connection: %s", error)


def _address(ip: str, port: int, version: int) -> dict[str, Any]:
    import ipaddress

    address = ipaddress.ip_address(ip)
    return {"version": version, "ip": int(address), "port": port, "ip_type": address.version}


def _raise_unless_success(response: Any, silent_name: str) -> None:
    from async_substrate_interface.errors import MaxRetriesExceeded, SubstrateRequestException

    if response.success:
        return
    error = response.error
    if isinstance(error, MaxRetriesExceeded) or (
        isinstance(error, Exception) and not isinstance(error, SubstrateRequestException)
    ):
        # The SDK makes a failed answer of whatever went wrong on the way, after the submission too.
        raise ChainUnreachable(f"the submission broke off: {type(error).__name__}: {error}")
    if not response.message:
        raise ExtrinsicRefused(silent_name, "the SDK submitted nothing: the chain's rate limit holds")
    message = str(response.message)
    if re.search(r"Hotkey \w+ not registered in subnet", message):
        raise NotRegistered(message)
    # The SDK folds the pallet's error name into its text; what the pool refused before dispatch has a number only.
    custom = re.search(r"Custom error: (\d+)", message)
    named = re.search(r"returned `(\w+)\(", message)
    name = named[1] if named else "Unknown"
    if custom:
        name = _POOL_REFUSALS.get(int(custom[1]), f"CustomError{custom[1]}")
    if name in ("HotKeyNotRegisteredInSubNet", "HotKeyNotRegisteredInNetwork"):
        raise NotRegistered(message)
    raise ExtrinsicRefused(name, message)


def _snapshot(metagraph: Any) -> Metagraph:
    registered = list(metagraph.block_at_registration or [])
    neurons = []
    for uid in range(int(metagraph.n)):
        axon = metagraph.axons[uid]
        lite = metagraph.neurons[uid]
        stake = float(metagraph.S[uid])
        neurons.append(
            Neuron(
                uid=uid,
                hotkey=str(metagraph.hotkeys[uid]),
                coldkey=str(metagraph.coldkeys[uid]),
                ip=str(axon.ip),
                port=int(axon.port),
                version=_subnet_version(lite, axon),
                stake=stake if math.isfinite(stake) else 0.0,
                validator_permit=bool(metagraph.validator_permit[uid]),
                last_update=int(metagraph.last_update[uid]),
                registered_at=int(registered[uid]) if uid < len(registered) else 0,
                incentive=float(metagraph.I[uid]),
                dividends=float(metagraph.D[uid]),
            )
        )
    return Metagraph(netuid=int(metagraph.netuid), block=int(metagraph.block), neurons=tuple(neurons))


def _subnet_version(lite: Any, axon: Any) -> int:
    prometheus = getattr(lite, "prometheus_info", None)
    announced = (getattr(prometheus, "version", 0) or 0, axon.version or 0)
    return max((int(version) for version in announced if 0 < int(version) < _MAX_SUBNET_VERSION), default=0)

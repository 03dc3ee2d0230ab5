"""kill -9 at every step: each write to the store and each call of the runtime is once the last thing that happens."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from compute.base.errors import LeaseError
from compute.miner.leases.states import LeaseState
from compute.miner.leases.store import Owner
from compute.miner.runtimes.base import ContainerState
from compute.testing.clock import ManualClock
from compute.wire.keys import SecretBox
from compute.wire.lease_terms import KeyLine, LeaseKind
from tests.waiting import until_async

DAY = 86_400.0
_STEPS = {"reserve", "move", "set_end", "set_secrets"} | {
    "start",
    "stop",
    "pause",
    "unpause",
    "restart",
    "set_keys",
    "set_end",
}


class Crash(Exception):
    """The process is gone."""


class Fuse:
    """Lets ``steps`` steps happen; the next is the last one (``after``), or does not happen any more."""

    def __init__(self, steps: int, *, after: bool) -> None:
        self.left = steps
        self.after = after
        self.blown = False

    def guard(self, target: object) -> Any:
        fuse = self

        class Guarded:
            # It can what its target can.
            __class__ = property(lambda self: type(target))  # type: ignore[assignment]

            def __getattr__(self, name: str) -> Any:
                method = getattr(target, name)
                return fuse._step(method) if name in _STEPS else fuse._alive(method)

        return Guarded()

    def _alive(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.blown:
                raise Crash
            return method(*args, **kwargs)

        return call

    def _step(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.blown:
                raise Crash
            self.left -= 1
            self.blown = self.left < 0
            if self.blown and not self.after:
                raise Crash
            result = method(*args, **kwargs)
            if self.blown:
                raise Crash
            return result

        return call


Story = Callable[[Any, Owner, Any], Awaitable[None]]


async def allocated(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(alice))


async def refused(miner: Any, alice: Owner, request_of: Any) -> None:
    miner.runtime.fail = {"start"}
    with contextlib.suppress(LeaseError):
        await miner.manager.allocate(request_of(alice))


async def deallocated(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.deallocate(alice)


async def paused(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.pause(alice)


async def paused_and_resumed(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.pause(alice)
    await miner.manager.unpause(alice)


async def restarted(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.restart(alice)


async def restarted_while_paused(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.pause(alice)
    await miner.manager.restart(alice)


async def rekeyed(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.exchange_key(alice, KeyLine.USER, "ssh-ed25519 NEW")


async def extended(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.extend(alice, 50 * DAY)


async def expired(miner: Any, alice: Owner, request_of: Any) -> None:
    miner.clock.advance(2 * DAY)
    await until_async(lambda: miner.fuse.blown or not miner.store.live(), "it is over, or dead", passing=miner.clock)


async def outranked(miner: Any, alice: Owner, request_of: Any) -> None:
    await miner.manager.allocate(request_of(Owner("5Bob", alice.public_pem)))


async def lives(
    miner_type: Any,
    folder: Path,
    steps: int,
    after: bool,
    kind: LeaseKind | None,
    story: Story,
    alice: Owner,
    request_of: Any,
) -> tuple[Any, bool, str]:
    """The life that is cut short, then the next one; whether there was a cut; and which lease had a new key by then."""
    clock, machines, fuse = ManualClock(), {}, Fuse(steps, after=after)
    first = miner_type(folder, clock, SecretBox(bytes(32)), machines)
    await first.manager.start()
    if kind is not None:
        await first.manager.allocate(request_of(alice, kind=kind))
    # The scheduler and the requests of one life share the fuse.
    first.fuse = fuse
    store, runtime = fuse.guard(first.store), fuse.guard(first.runtime)
    first.manager._store = first.manager._steps._store = store
    first.manager._runtime = first.manager._steps._runtime = runtime
    try:
        await story(first, alice, request_of)
    except (Crash, LeaseError):
        assert fuse.blown
    blown, fuse.blown = fuse.blown, True
    await first.close()
    in_force = [key for key, machine in first.machines.items() if "ssh-ed25519 NEW" in machine.spec.authorized_keys]
    return await first.again(), blown, "".join(in_force)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("story", "kind", "survives"),
    [
        (allocated, None, False),
        (refused, None, False),
        (deallocated, LeaseKind.CUSTOMER, False),
        (paused, LeaseKind.CUSTOMER, True),
        (paused_and_resumed, LeaseKind.CUSTOMER, True),
        (restarted, LeaseKind.CUSTOMER, True),
        (restarted_while_paused, LeaseKind.CUSTOMER, True),
        (rekeyed, LeaseKind.CUSTOMER, True),
        (extended, LeaseKind.CUSTOMER, True),
        (expired, LeaseKind.CUSTOMER, False),
        (outranked, LeaseKind.PROBE, False),
    ],
)
async def test_the_next_life_puts_everything_right(
    tmp_path: Path,
    miner_type: Any,
    alice: Owner,
    request_of: Any,
    story: Story,
    kind: LeaseKind | None,
    survives: bool,
    after: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("CRITICAL")
    cuts = 0
    while True:
        folder = tmp_path / str(cuts)
        folder.mkdir()
        miner, blown, in_force = await lives(miner_type, folder, cuts, after, kind, story, alice, request_of)
        try:
            live = {lease.lease_id: lease for lease in miner.store.live()}
            assert live.keys() == miner.runtime.containers.keys()
            assert len(live) <= 1
            for lease_id, machine in miner.runtime.containers.items():
                lease = live[lease_id]
                expected = {LeaseState.ACTIVE: ContainerState.RUNNING, LeaseState.PAUSED: ContainerState.PAUSED}
                assert machine.state is expected[lease.state]
                assert machine.spec.ends_at == lease.ends_at > miner.clock.now()
                assert machine.spec.authorized_keys == miner.store.secrets(lease_id).authorized_keys
                assert machine.endpoint.port == lease.port
            if in_force:
                # Nobody was told that the exchange went wrong: the key before it does not come back.
                assert miner.runtime.containers[in_force].spec.authorized_keys == ("ssh-ed25519 NEW",)
            if survives:
                assert [lease.owner for lease in live.values()] == [alice]
            for lease in live.values():
                await miner.manager.deallocate(lease.owner)
            await miner.manager.allocate(request_of(Owner("5Carol", alice.public_pem)))
            assert len(miner.runtime.containers) == 1
        finally:
            await miner.close()
        if not blown:
            break
        cuts += 1
    assert cuts >= 2


async def test_a_lease_whose_machine_died_comes_up_with_the_same_keys_and_port(
    miner: Any, alice: Owner, request_of: Any
) -> None:
    for state in (ContainerState.DEAD, ContainerState.ABSENT):
        granted = await miner.manager.allocate(request_of(alice))
        lease_id = granted.lease.lease_id
        if state is ContainerState.DEAD:
            miner.runtime.containers[lease_id].state = ContainerState.DEAD
        else:
            del miner.runtime.containers[lease_id]
        miner = await miner.again()
        machine = miner.runtime.containers[lease_id]
        assert machine.state is ContainerState.RUNNING
        assert (await miner.manager.allocate(request_of(alice))).info == granted.info
    await miner.close()


async def test_a_lease_whose_machine_does_not_come_up_again_fails_with_a_reason(
    miner: Any, alice: Owner, request_of: Any, tmp_path: Path, miner_type: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    await miner.close()
    next_life = miner_type(tmp_path, miner.clock, miner.box, {})
    next_life.runtime.fail = {"restart"}
    await next_life.manager.start()
    assert next_life.store.live() == []
    assert next_life.store.history()[-1].reason == "told to fail: restart"
    await next_life.close()


async def test_a_lease_that_ended_while_the_miner_was_down_is_taken_down(
    miner: Any, alice: Owner, request_of: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    await miner.manager.close()
    miner.clock.advance(2 * DAY)
    miner = await miner.again()
    assert (miner.store.live(), miner.runtime.containers) == ([], {})
    assert miner.store.history()[-1].reason == "its time was over"
    await miner.close()


async def test_a_machine_without_a_lease_is_removed(
    miner: Any, alice: Owner, request_of: Any, tmp_path: Path, miner_type: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    (tmp_path / "other").mkdir()
    stranger = miner_type(tmp_path / "other", miner.clock, miner.box, miner.runtime.containers)
    await stranger.manager.start()
    assert miner.runtime.containers == {}
    await stranger.close()


async def test_a_runtime_that_does_not_answer_yet_delays_new_leases_only(
    miner: Any, alice: Owner, request_of: Any, tmp_path: Path, miner_type: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    await miner.close()
    life = miner_type(tmp_path, miner.clock, miner.box, miner.runtime.containers)
    life.runtime.fail = {"list"}
    await life.manager.start()
    assert await life.manager.owns(alice.public_pem)
    with pytest.raises(LeaseError, match="in order"):
        await life.manager.allocate(request_of(Owner("5Bob", alice.public_pem)))
    life.runtime.fail = set()
    life.clock.advance(10)
    await until_async(lambda: life.manager._reconciled, passing=life.clock)
    await life.manager.deallocate(alice)
    await life.close()


async def test_a_lost_key_file_ends_the_lease_and_not_the_miner(
    miner: Any, alice: Owner, request_of: Any, tmp_path: Path, miner_type: Any
) -> None:
    await miner.manager.allocate(request_of(alice))
    await miner.close()
    life = miner_type(tmp_path, miner.clock, SecretBox(b"another secret of enough length!"), miner.runtime.containers)
    await life.manager.start()
    assert (life.store.live(), life.runtime.containers) == ([], {})
    assert "key file" in life.store.history()[-1].reason
    await life.close()

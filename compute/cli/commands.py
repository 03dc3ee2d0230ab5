"""The commands of ``register.py``: from parsed arguments to the service, and from its answers to the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compute.base.clock import Clock
from compute.base.console import Output
from compute.base.errors import ComputeError, LeaseError, UsageError
from compute.cli import views
from compute.cli.exit_codes import Exit, report
from compute.cli.parser import EXAMPLE_REQUIREMENT
from compute.cli.requirement_text import parse_requirement
from compute.cli.terminal import Runner, Terminal
from compute.rental.market import Offer
from compute.rental.records import Allocation
from compute.rental.service import RenterService
from compute.wire.dockerfile import script_of
from compute.wire.lease_terms import GIB, MIB_PER_GIB
from compute.wire.requirements import DeviceRequirement

#: What an offer is asked about: whether the machine could take anybody at all.
_ANYTHING = DeviceRequirement(cpu_count=1)


@dataclass(frozen=True)
class Context:
    """What every command works with. ``repeat`` makes the line to run again without questions, for refusals."""

    service: RenterService
    output: Output
    runner: Runner
    terminal: Terminal
    clock: Clock
    arguments: Mapping[str, Any]
    remote: tuple[str, ...] = ()
    repeat: str = ""


def offers(context: Context) -> int:
    """List what miners offer."""
    wanted = _filtered(_ANYTHING, context.arguments)
    with context.output.progress("asking the miners"):
        found = context.runner.run(context.service.offers(wanted))
    shown = found if context.arguments["all"] else [offer for offer in found if offer.problem is None]
    shown = sorted(shown, key=_ORDERS[context.arguments["sort"]])
    if context.output.as_json:
        context.output.data([views.offer_json(offer) for offer in shown])
        return Exit.OK
    context.output.table(views.OFFER_COLUMNS, views.offer_rows(shown))
    hidden = len(found) - len(shown)
    context.output.note(f"{len(shown)} of {len(found)} miners" + (f"; the other {hidden}: --all" if hidden else ""))
    return Exit.OK


def allocate(context: Context) -> int:
    """Rent the machine that fits best."""
    requirement = requirement_from(context.arguments)
    if context.arguments["explain"]:
        return _explain(context, requirement)
    return _allocate(context, requirement, hotkey=None)


def allocate_hotkey(context: Context) -> int:
    """Rent the machine of one miner."""
    return _allocate(context, requirement_from(context.arguments), hotkey=context.arguments["hotkey"])


def list_allocations(context: Context) -> int:
    """List the allocations."""
    allocations, now = context.service.allocations(), context.clock.now()
    if context.output.as_json:
        context.output.data([views.allocation_json(allocation, now) for allocation in allocations])
    elif allocations:
        context.output.table(views.ALLOCATION_COLUMNS, views.allocation_rows(allocations, now))
    else:
        context.output.note("no allocations yet; rent one with: register.py allocate --gpu L4")
    return Exit.OK


def show(context: Context) -> int:
    """Show one allocation and whether it lives."""
    name = context.arguments["name"]
    allocation, now = context.service.get(name), context.clock.now()
    with context.output.progress("asking the miner"):
        liveness = context.runner.run(context.service.liveness(name))
    if context.output.as_json:
        shown = views.allocation_json(allocation, now)
        context.output.data({**shown, "live": liveness.live, "detail": liveness.detail})
    else:
        context.output.pairs({**views.allocation_pairs(allocation, now), "live": liveness.detail})
    return Exit.OK


def ssh(context: Context) -> int:
    """Log in with the system's ssh."""
    name = context.arguments["name"]
    if context.output.as_json:
        raise UsageError("ssh takes over the terminal and has no JSON; use: exec NAME -- COMMAND")
    invocation = context.runner.run(context.service.ssh(name, context.remote))
    with invocation as argv:
        try:
            return context.terminal.call(argv)
        except OSError as error:
            raise UsageError(f"cannot start ssh: {error}. Install OpenSSH's client, or use exec") from error


def execute(context: Context) -> int:
    """Run a command and return its exit code."""
    name = context.arguments["name"]
    result = context.runner.run(
        context.service.execute(name, context.remote, timeout_seconds=context.arguments["timeout"])
    )
    stdout, stderr = result.stdout.decode("utf-8", "replace"), result.stderr.decode("utf-8", "replace")
    if context.output.as_json:
        context.output.data({"exit_code": result.exit_code, "stdout": stdout, "stderr": stderr})
    else:
        context.output.raw(stdout, stderr)
    return result.exit_code if result.exit_code >= 0 else Exit.NETWORK


def deallocate(context: Context) -> int:
    """Give machines back: some or all. One that fails does not keep the others; its exit code is the command's."""
    names, everything = list(context.arguments["names"]), context.arguments["all"]
    if bool(names) == everything:
        raise UsageError("deallocate takes either names or --all", next_step="See what there is: register.py list")
    allocations = context.service.allocations() if everything else [context.service.get(name) for name in names]
    if not allocations:
        context.output.note("no allocations")
        return _done(context, [], "")
    verb = "forget" if context.arguments["forget"] else "give back"
    _confirm(context, f"{verb} {', '.join(each.name for each in allocations)}? What is stored there is lost.")
    failed: int = Exit.OK
    gone: list[str] = []
    for allocation in {each.name: each for each in allocations}.values():
        code = _give_back(context, allocation)
        if code == Exit.OK:
            gone.append(allocation.name)
        failed = failed or code
    _done(context, gone, "forgotten" if context.arguments["forget"] else "given back")
    return failed


def pause(context: Context) -> int:
    """Freeze a machine."""
    return _change(context, context.service.pause, "paused")


def resume(context: Context) -> int:
    """Thaw a machine."""
    return _change(context, context.service.resume, "running again")


def restart(context: Context) -> int:
    """Restart a machine."""
    allocation = context.service.get(context.arguments["name"])
    _confirm(context, f"restart {allocation.name}? What runs on it ends.")
    return _change(context, context.service.restart, "restarted")


def extend(context: Context) -> int:
    """Let a lease last longer."""
    allocation = context.service.get(context.arguments["name"])
    with context.output.progress(f"asking the miner of {allocation.name}"):
        allocation = context.runner.run(context.service.extend(allocation.name, days=context.arguments["days"]))
    now = context.clock.now()
    if context.output.as_json:
        context.output.data(views.allocation_json(allocation, now))
    else:
        context.output.pairs(views.allocation_pairs(allocation, now))
    return Exit.OK


def exchange_key(context: Context) -> int:
    """Exchange the key that logs in, or add the user's own."""
    path: Path | None = context.arguments["terminal"]
    if path is None:
        return _change(context, context.service.exchange_key, "logs in with a fresh key")
    try:
        line = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the public key {path}: {error}") from error
    service = context.service
    return _change(context, lambda name: service.install_terminal_key(name, line), "lets your key log in too")


def penalize(context: Context) -> int:
    """Penalize a miner."""
    context.service.penalize(context.arguments["hotkey"], context.arguments["note"])
    return _done(context, [context.arguments["hotkey"]], "penalized")


def unpenalize(context: Context) -> int:
    """Lift a penalty."""
    context.service.unpenalize(context.arguments["hotkey"])
    return _done(context, [context.arguments["hotkey"]], "no longer penalized")


def penalized(context: Context) -> int:
    """List the penalties."""
    penalties = context.service.penalized()
    if context.output.as_json:
        context.output.data([views.penalty_json(penalty) for penalty in penalties])
    elif penalties:
        context.output.table(views.PENALTY_COLUMNS, views.penalty_rows(penalties))
    else:
        context.output.note("nobody is penalized")
    return Exit.OK


COMMANDS: Mapping[str, Callable[[Context], int]] = {
    "offers": offers,
    "allocate": allocate,
    "allocate-hotkey": allocate_hotkey,
    "list": list_allocations,
    "show": show,
    "ssh": ssh,
    "exec": execute,
    "deallocate": deallocate,
    "pause": pause,
    "resume": resume,
    "restart": restart,
    "extend": extend,
    "exchange-key": exchange_key,
    "penalize": penalize,
    "unpenalize": unpenalize,
    "penalized": penalized,
}


def requirement_from(arguments: Mapping[str, Any]) -> DeviceRequirement:
    """The requirement of a command line: the dictionary or the documented example, changed by the options.

    Raises:
        UsageError: the dictionary is wrong.
    """
    typed = arguments["requirement"]
    requirement = parse_requirement(typed or EXAMPLE_REQUIREMENT)
    if arguments["cpus"] is not None:
        requirement = replace(requirement, cpu_count=arguments["cpus"])
    if arguments["min_disk"] is not None:
        requirement = replace(requirement, disk_bytes=arguments["min_disk"] * GIB)
    return _filtered(requirement, arguments)


def _steps(path: Path | None) -> str:
    """The steps in a file of the user's, as the miner will read them."""
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="utf-8")
        script_of(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the steps in {path}: {error}") from error
    except LeaseError as error:
        raise UsageError(f"no miner takes {path}: {error}") from error
    return text


def _filtered(requirement: DeviceRequirement, arguments: Mapping[str, Any]) -> DeviceRequirement:
    if arguments["gpu"] is not None:
        requirement = replace(requirement, gpu_type=arguments["gpu"], gpu_count=max(requirement.gpu_count, 1))
    if arguments["count"] is not None:
        requirement = replace(requirement, gpu_count=arguments["count"])
    if arguments["min_vram"] is not None:
        requirement = replace(requirement, gpu_capacity_mib=arguments["min_vram"] * MIB_PER_GIB)
    if arguments["min_ram"] is not None:
        requirement = replace(requirement, ram_bytes=arguments["min_ram"] * GIB)
    return requirement


def _explain(context: Context, requirement: DeviceRequirement) -> int:
    with context.output.progress("asking the miners"):
        ranking = context.runner.run(context.service.choose(requirement))
    if context.output.as_json:
        context.output.data([views.explanation_json(entry) for entry in ranking])
    else:
        context.output.table(views.RANKING_COLUMNS, views.explanation_rows(ranking))
    return Exit.OK


def _allocate(context: Context, requirement: DeviceRequirement, *, hotkey: str | None) -> int:
    arguments = context.arguments
    with context.output.progress("allocating") as on_progress:
        allocation = context.runner.run(
            context.service.allocate(
                requirement,
                days=arguments["days"],
                hotkey=hotkey,
                name=arguments["name"],
                allow_unpinned=arguments["trust_first_use"],
                dockerfile=_steps(arguments["dockerfile"]),
                on_progress=on_progress,
            )
        )
    now = context.clock.now()
    if context.output.as_json:
        context.output.data(views.allocation_json(allocation, now))
        return Exit.OK
    context.output.pairs(views.allocation_pairs(allocation, now))
    if allocation.trusted_on_first_use:
        pinned = allocation.host_key
        context.output.note(
            f"warning: this older miner named no host key; {pinned} answered first and is trusted from now on"
        )
    context.output.note(f"log in with: register.py ssh {allocation.name}")
    return Exit.OK


def _give_back(context: Context, allocation: Allocation) -> int:
    try:
        if context.arguments["forget"]:
            context.service.forget(allocation.name)
        else:
            with context.output.progress(f"giving back {allocation.name}"):
                context.runner.run(context.service.deallocate(allocation.name))
    except ComputeError as error:
        return report(error, context.output, subject=allocation.name)
    return Exit.OK


def _change(context: Context, change: Callable[[str], Any], done: str) -> int:
    allocation = context.service.get(context.arguments["name"])
    with context.output.progress(f"asking the miner of {allocation.name}"):
        context.runner.run(change(allocation.name))
    return _done(context, [allocation.name], done)


def _done(context: Context, what: Sequence[str], done: str) -> int:
    if context.output.as_json:
        context.output.data({"done": list(what)})
    else:
        for name in what:
            context.output.line(f"{name}: {done}")
    return Exit.OK


def _confirm(context: Context, question: str) -> None:
    """Ask before something destructive.

    Raises:
        UsageError: the answer was no, or there is nobody to ask; then it says what to run instead.
    """
    if context.arguments["yes"]:
        return
    if not context.terminal.is_interactive:
        raise UsageError(
            f"{question} Nobody is at a terminal to confirm it.", next_step=f"To do it, run: {context.repeat}"
        )
    try:
        answer = context.terminal.ask(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("not confirmed, nothing was done", next_step="To do it without being asked, add --yes.")


def _gpu_memory(offer: Offer) -> int:
    return 0 if offer.specs is None else max((gpu.capacity_mib for gpu in offer.specs.gpus), default=0)


def _gpu_name(offer: Offer) -> str:
    return offer.specs.gpus[0].name if offer.specs is not None and offer.specs.gpus else "~"


_ORDERS: Mapping[str, Callable[[Offer], Any]] = {
    "uid": lambda offer: offer.uid,
    "gpu": lambda offer: (_gpu_name(offer), offer.uid),
    "vram": lambda offer: (-_gpu_memory(offer), offer.uid),
    "ram": lambda offer: (-(offer.specs.ram_available if offer.specs else 0), offer.uid),
    "cpus": lambda offer: (-(offer.specs.cpu_count if offer.specs else 0), offer.uid),
}

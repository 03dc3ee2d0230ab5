"""The interactive shell, with the words that renters of this subnet know."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compute.base.errors import ComputeError, UsageError
from compute.cli import commands
from compute.cli.commands import Context
from compute.cli.exit_codes import Exit, report
from compute.cli.parser import EXAMPLE_REQUIREMENT
from compute.cli.requirement_text import parse_requirement
from compute.rental.service import DEFAULT_DAYS, DEFAULT_HOTKEY_DAYS

_PROMPT = "register> "
_NO_REQUIREMENT: Mapping[str, Any] = {
    "requirement": None,
    "gpu": None,
    "count": None,
    "min_vram": None,
    "min_ram": None,
    "min_disk": None,
    "cpus": None,
    "name": None,
    "explain": False,
    "dockerfile": None,
    "trust_first_use": False,
}


@dataclass(frozen=True)
class Word:
    """One word of the shell: what to call with the rest of the line, and its help."""

    action: Callable[[str], int]
    usage: str
    summary: str


class Shell:
    """Reads a line, runs it, says what went wrong, and goes on until ``exit`` or the end of input."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._words = {
            "a": Word(self._allocate, "a [REQUIREMENT]", f"allocate by requirement ({DEFAULT_DAYS} days by default)"),
            "a_hotkey": Word(
                self._allocate_hotkey,
                "a_hotkey [HOTKEY]",
                f"allocate the machine of one miner ({DEFAULT_HOTKEY_DAYS} days by default)",
            ),
            "d": Word(self._deallocate, "d [NAME or HOTKEY]", "give a machine back"),
            "list_a": Word(self._list_allocations, "list_a", "list your allocations"),
            "list_ah": Word(self._list_hotkeys, "list_ah", "list the hotkeys of the miners you rent from"),
            "list_r": Word(self._list_resources, "list_r", "list what all miners offer"),
            "p_hotkey": Word(self._penalize, "p_hotkey [HOTKEY]", "penalize a miner: rent no more from it"),
            "dp_hotkey": Word(self._unpenalize, "dp_hotkey [HOTKEY]", "lift a penalty"),
            "list_p": Word(self._list_penalized, "list_p", "list the penalized miners"),
            "help": Word(self._help, "help", "this list"),
            "exit": Word(lambda rest: Exit.OK, "exit", "leave; allocations stay"),
        }

    def run(self) -> int:
        """Returns 0 at ``exit`` or the end of input; Ctrl-C ends what runs, or the shell at its prompt."""
        if self._context.terminal.is_interactive:
            self._context.output.note("Renting machines. Type help for the words, exit to leave.")
        while True:
            try:
                line = self._context.terminal.ask(_PROMPT).strip()
            except EOFError:
                return Exit.OK
            if line == "exit":
                return Exit.OK
            if line:
                self.line(line)

    def line(self, line: str) -> int:
        """Run one line; returns the exit code that it would have as a command."""
        name, _, rest = line.partition(" ")
        try:
            word = self._words.get(name)
            if word is None:
                raise UsageError(f"unknown word {name!r}")
            return word.action(rest.strip())
        except ComputeError as error:
            return report(error, self._context.output, usage="Type help for the words.")
        except KeyboardInterrupt:
            self._context.output.note("interrupted")
            return Exit.INTERRUPTED
        except EOFError:
            self._context.output.note("no more input")
            return Exit.USAGE

    def _allocate(self, rest: str) -> int:
        typed = rest or self._ask("requirement, empty for one GPU of any kind")
        parse_requirement(typed or EXAMPLE_REQUIREMENT)
        days = self._days(DEFAULT_DAYS)
        return self._command(commands.allocate, {**_NO_REQUIREMENT, "requirement": typed or None, "days": days})

    def _allocate_hotkey(self, rest: str) -> int:
        hotkey = rest or self._ask("hotkey of the miner")
        days = self._days(DEFAULT_HOTKEY_DAYS)
        return self._command(commands.allocate_hotkey, {**_NO_REQUIREMENT, "hotkey": hotkey, "days": days})

    def _deallocate(self, rest: str) -> int:
        names = _split(rest)
        if not names:
            self._list_allocations("")
            names = _split(self._ask("name or hotkey"))
        if not names:
            raise UsageError("nothing named, nothing was done")
        arguments = {"names": names, "all": False, "forget": False, "yes": False}
        repeat = f"register.py deallocate {shlex.join(names)} --yes"
        return self._command(commands.deallocate, arguments, repeat=repeat)

    def _list_allocations(self, rest: str) -> int:
        return self._command(commands.list_grants, {})

    def _list_hotkeys(self, rest: str) -> int:
        hotkeys = [record.hotkey for record in self._context.service.grants()]
        if self._context.output.as_json:
            self._context.output.data(hotkeys)
        for hotkey in [] if self._context.output.as_json else hotkeys:
            self._context.output.line(hotkey)
        return Exit.OK

    def _list_resources(self, rest: str) -> int:
        return self._command(commands.offers, {**_NO_REQUIREMENT, "all": True, "sort": "uid"})

    def _penalize(self, rest: str) -> int:
        hotkey = rest or self._ask("hotkey to penalize")
        return self._command(commands.penalize, {"hotkey": hotkey, "note": ""})

    def _unpenalize(self, rest: str) -> int:
        hotkey = rest or self._ask("hotkey to forgive")
        return self._command(commands.unpenalize, {"hotkey": hotkey})

    def _list_penalized(self, rest: str) -> int:
        return self._command(commands.penalized, {})

    def _help(self, rest: str) -> int:
        width = max(len(word.usage) for word in self._words.values())
        for word in self._words.values():
            self._context.output.line(f"{word.usage:<{width}}  {word.summary}")
        return Exit.OK

    def _command(self, command: Callable[[Context], int], arguments: Mapping[str, Any], *, repeat: str = "") -> int:
        return command(replace(self._context, arguments=arguments, repeat=repeat))

    def _ask(self, question: str) -> str:
        return self._context.terminal.ask(f"{question}: ").strip()

    def _days(self, default: int) -> int:
        typed = self._ask(f"days [{default}]")
        if not typed:
            return default
        if not typed.isascii() or not typed.isdigit() or len(typed) > 4:
            raise UsageError(f"{typed!r} is not a number of days, such as {default}")
        return int(typed)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from None

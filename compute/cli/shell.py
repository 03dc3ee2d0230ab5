"""The interactive shell, with the words that renters of this subnet know."""

from __future__ import annotations

import cmd
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from compute.base.errors import ComputeError, UsageError
from compute.cli import commands
from compute.cli.commands import Context
from compute.cli.exit_codes import Exit, report
from compute.cli.parser import EXAMPLE_REQUIREMENT
from compute.cli.requirement_text import parse_requirement
from compute.cli.terminal import Terminal
from compute.wire.lease_terms import DEFAULT_DAYS, DEFAULT_HOTKEY_DAYS

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
_WORDS = (
    ("a [REQUIREMENT]", f"allocate by requirement ({DEFAULT_DAYS} days by default)"),
    ("a_hotkey [HOTKEY]", f"allocate the machine of one miner ({DEFAULT_HOTKEY_DAYS} days by default)"),
    ("d [NAME or HOTKEY]", "give a machine back"),
    ("list_a", "list your allocations"),
    ("list_ah", "list the hotkeys of the miners you rent from"),
    ("list_r", "list what all miners offer"),
    ("p_hotkey [HOTKEY]", "penalize a miner: rent no more from it"),
    ("dp_hotkey [HOTKEY]", "lift a penalty"),
    ("list_p", "list the penalized miners"),
    ("help", "this list"),
    ("exit", "leave; allocations stay"),
)


class _Lines:
    """The lines that ``cmd.Cmd`` reads: asked of the terminal, so that the prompt is not part of the output."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def readline(self) -> str:
        try:
            return f"{self._terminal.ask(_PROMPT)}\n"
        except EOFError:
            return ""


class Shell(cmd.Cmd):
    """Reads a line, runs it, says what went wrong, and goes on until ``exit`` or the end of input."""

    use_rawinput = False
    prompt = ""

    def __init__(self, context: Context) -> None:
        lines: Any = _Lines(context.terminal)
        super().__init__(stdin=lines)
        self._context = context

    def run(self) -> int:
        """Returns 0 at ``exit`` or the end of input; Ctrl-C ends what runs, or the shell at its prompt."""
        if self._context.terminal.is_interactive:
            self._context.output.note("Renting machines. Type help for the words, exit to leave.")
        self.cmdloop()
        return Exit.OK

    def parseline(self, line: str) -> tuple[str, str, str]:
        """The first word and the rest, without the abbreviations that ``cmd.Cmd`` knows, such as ``?``."""
        word, _, rest = line.strip().partition(" ")
        return word, rest.strip(), line.strip()

    def onecmd(self, line: str) -> bool:
        """Run one line; true if it was the last one."""
        try:
            return super().onecmd(line)
        except ComputeError as error:
            report(error, self._context.output, usage="Type help for the words.")
        except KeyboardInterrupt:
            self._context.output.note("interrupted")
        except EOFError:
            self._context.output.note("no more input")
        return False

    def emptyline(self) -> bool:
        """Nothing, where ``cmd.Cmd`` would rent the same again."""
        return False

    def default(self, line: str) -> None:
        """An unknown word."""
        raise UsageError(f"unknown word {line.partition(' ')[0]!r}")

    def do_a(self, rest: str) -> None:
        typed = rest or self._ask("requirement, empty for one GPU of any kind")
        parse_requirement(typed or EXAMPLE_REQUIREMENT)
        days = self._days(DEFAULT_DAYS)
        self._command(commands.allocate, {**_NO_REQUIREMENT, "requirement": typed or None, "days": days})

    def do_a_hotkey(self, rest: str) -> None:
        hotkey = rest or self._ask("hotkey of the miner")
        days = self._days(DEFAULT_HOTKEY_DAYS)
        self._command(commands.allocate_hotkey, {**_NO_REQUIREMENT, "hotkey": hotkey, "days": days})

    def do_d(self, rest: str) -> None:
        names = _split(rest)
        if not names:
            self.do_list_a("")
            names = _split(self._ask("name or hotkey"))
        if not names:
            raise UsageError("nothing named, nothing was done")
        arguments = {"names": names, "all": False, "forget": False, "yes": False}
        self._command(commands.deallocate, arguments, repeat=f"register.py deallocate {shlex.join(names)} --yes")

    def do_list_a(self, rest: str) -> None:
        self._command(commands.list_allocations, {})

    def do_list_ah(self, rest: str) -> None:
        hotkeys = [record.hotkey for record in self._context.service.allocations()]
        if self._context.output.as_json:
            self._context.output.data(hotkeys)
            return
        for hotkey in hotkeys:
            self._context.output.line(hotkey)

    def do_list_r(self, rest: str) -> None:
        self._command(commands.offers, {**_NO_REQUIREMENT, "all": True, "sort": "uid"})

    def do_p_hotkey(self, rest: str) -> None:
        hotkey = rest or self._ask("hotkey to penalize")
        self._command(commands.penalize, {"hotkey": hotkey, "note": ""})

    def do_dp_hotkey(self, rest: str) -> None:
        hotkey = rest or self._ask("hotkey to forgive")
        self._command(commands.unpenalize, {"hotkey": hotkey})

    def do_list_p(self, rest: str) -> None:
        self._command(commands.penalized, {})

    def do_help(self, rest: str) -> None:
        width = max(len(usage) for usage, _ in _WORDS)
        for usage, summary in _WORDS:
            self._context.output.line(f"{usage:<{width}}  {summary}")

    def do_exit(self, rest: str) -> bool:
        return True

    # The word that ``cmd.Cmd`` makes of the end of input.
    do_EOF = do_exit  # noqa: N815

    def _command(self, command: Callable[[Context], int], arguments: Mapping[str, Any], *, repeat: str = "") -> None:
        command(replace(self._context, arguments=arguments, repeat=repeat))

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

"""Completion of ``register.py``'s command line by the shell: commands, options, their choices, names of allocations."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import shtab

_NAMES = "_register_names"
# The table of allocations as a pipe sees it: a title, a line, and rows that begin with the name.
_LIST = "register.py list 2>/dev/null | awk 'NR > 2 { print $1 }'"
_PREAMBLE: Any = {
    "bash": f'{_NAMES}() {{\n  compgen -W "$({_LIST})" -- "$1"\n}}\n',
    "zsh": f'{_NAMES}() {{\n  local -a names\n  names=(${{(f)"$({_LIST})"}})\n  compadd -a names\n}}\n',
}
_BY_METAVAR: Mapping[str, Mapping[str, Any]] = {
    "NAME": dict.fromkeys(_PREAMBLE, _NAMES),
    "FILE": shtab.FILE,
    "PATH": shtab.FILE,
}


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that ``shell`` (bash or zsh) has to read."""
    for action in _actions(parser):
        # A wallet has a name too, and an allocation that is to be made has none yet.
        wanted = _BY_METAVAR.get(action.metavar) if isinstance(action.metavar, str) else None
        if wanted is not None and (wanted is not _BY_METAVAR["NAME"] or not action.option_strings):
            vars(action)["complete"] = wanted
    return str(shtab.complete(parser, shell, preamble=_PREAMBLE))


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)

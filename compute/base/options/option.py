"""Options as data: one declaration makes the parser, the help, the default and the typed value.

argparse stays at the edge: names with dots are its ``dest``, and nothing behind this module sees a namespace.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, NoReturn, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True)
class Option(Generic[T]):
    """One option. ``parse`` raises ``ValueError``; ``variable`` is an environment variable that moves the default."""

    name: str
    parse: Callable[[str], T]
    default: T
    help: str
    metavar: str = "TEXT"
    variable: str | None = None
    default_text: str | None = None

    @property
    def is_flag(self) -> bool:
        """Flags may stand alone, which means true, or take a value."""
        return isinstance(self.default, bool)

    @property
    def negation(self) -> str | None:
        """The ``--no-…`` form, for what is on unless switched off."""
        return f"no-{self.name}" if self.default is True else None

    def describe_default(self) -> str:
        """The default as a person would type it."""
        if self.default_text is not None:
            return self.default_text
        if self.default is None or self.default == ():
            return "none"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return str(self.default.value if isinstance(self.default, Enum) else self.default) or '""'


@dataclass(frozen=True)
class Group:
    """Options that belong together in the help."""

    title: str
    options: tuple[Option[Any], ...]
    description: str | None = None


class Values:
    """Typed values of a set of options: the command line first, then the variable, then the default."""

    def __init__(self, given: Mapping[str, object], others: Mapping[str, object]) -> None:
        self._given = given
        self._others = others

    def __getitem__(self, option: Option[T]) -> T:
        values = self._given if option.name in self._given else self._others
        return cast("T", values[option.name])

    def is_given(self, option: Option[Any]) -> bool:
        """Whether the command line itself said so."""
        return option.name in self._given


class OptionParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and end with exit code 2."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation would break the day a longer option arrives, and --config would mean --config.file.
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nAll options: {self.prog} --help\n")


def add_groups(parser: argparse.ArgumentParser, groups: Sequence[Group]) -> None:
    """Declare ``groups`` on ``parser``. Defaults are not stored there: ``resolve`` knows them."""
    for group in groups:
        section = parser.add_argument_group(group.title, group.description)
        for option in group.options:
            settings: dict[str, Any] = {"nargs": "?", "const": "true"} if option.is_flag else {}
            section.add_argument(
                f"--{option.name}",
                dest=option.name,
                type=_for_argparse(option.parse),
                default=argparse.SUPPRESS,
                metavar="BOOL" if option.is_flag else option.metavar,
                help=_help(option),
                **settings,
            )
            if option.negation is not None:
                section.add_argument(
                    f"--{option.negation}",
                    dest=option.name,
                    action="store_const",
                    const=False,
                    default=argparse.SUPPRESS,
                    help=f"same as --{option.name} false",
                )


def resolve(
    parser: argparse.ArgumentParser,
    groups: Sequence[Group],
    namespace: argparse.Namespace,
    environ: Mapping[str, str],
) -> Values:
    """Typed values from a parsed namespace. A bad variable is a usage error of ``parser``, which exits with 2.

    Variables that are set but empty count as not set, as ``.env`` files leave them.
    """
    others: dict[str, object] = {}
    for option in (option for group in groups for option in group.options):
        others[option.name] = option.default
        if option.variable is not None and environ.get(option.variable):
            try:
                others[option.name] = option.parse(environ[option.variable])
            except ValueError as error:
                parser.error(f"environment variable {option.variable}: {error}")
    return Values(vars(namespace), others)


def read(
    parser: argparse.ArgumentParser, groups: Sequence[Group], argv: Sequence[str], environ: Mapping[str, str]
) -> Values:
    """Add ``groups`` to ``parser`` and read ``argv`` (without the program's name); exits with 2 on a usage error."""
    add_groups(parser, groups)
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        known = [f"--{option.name}" for group in groups for option in group.options]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        parser.error(f"unknown argument {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return resolve(parser, groups, namespace, environ)


def _for_argparse(parse: Callable[[str], T]) -> Callable[[str], T]:
    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            # argparse shows the text of this one only.
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _help(option: Option[Any]) -> str:
    default = option.describe_default()
    if option.variable:
        default = f"${option.variable}, else {default}"
    return f"{option.help} [default: {default}]".replace("%", "%%")

"""One field of a dataclass is an option: its parser, variable, default, help, documentation row and typed value.

argparse stays at the edge: names with dots are its ``dest``, and nothing behind this module sees a namespace.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

_OPTION = "option"


@dataclass(frozen=True)
class Option:
    """One option. ``parse`` raises ``ValueError``; ``variable`` is an environment variable that moves the default."""

    name: str
    parse: Callable[[str], object]
    default: object
    help: str
    metavar: str
    variable: str | None
    default_text: str | None

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


def option(
    name: str,
    parse: Callable[[str], T],
    default: T,
    help: str,
    *,
    metavar: str = "TEXT",
    variable: str | None = None,
    default_text: str | None = None,
) -> T:
    """Declare a field of an ``OptionGroup`` as the option ``--name``; see ``Option``."""
    declared = Option(name, parse, default, help, metavar, variable, default_text)
    return dataclasses.field(default=default, metadata={_OPTION: declared})


def again(group: type[OptionGroup], field: str, **changes: str) -> Any:
    """Declare a field as the option that ``field`` of ``group`` is, with ``changes`` to its help or default text."""
    known = next(each for each in dataclasses.fields(group) if each.name == field)
    declared = dataclasses.replace(known.metadata[_OPTION], **changes)
    return dataclasses.field(default=known.default, metadata={_OPTION: declared})


@dataclass(frozen=True)
class OptionGroup:
    """Base of the frozen dataclasses of options, whose ``title`` heads them in the help.

    Its fields are made by ``option``, or are groups themselves: ``wallet: WalletOptions = field(default_factory=…)``.
    """

    title: ClassVar[str] = ""

    def __init_subclass__(cls, *, title: str = "") -> None:
        cls.title = title

    @classmethod
    def of(cls, values: Values) -> Self:
        """The object that a command line makes of this group."""
        return cls(**{field.name: _value_of(field, values) for field in dataclasses.fields(cls)})


def options_of(group: type[OptionGroup]) -> tuple[Option, ...]:
    """The options that ``group`` itself has, in the order of its fields; not those of the groups in it."""
    return tuple(field.metadata[_OPTION] for field in dataclasses.fields(group) if _OPTION in field.metadata)


def _value_of(field: dataclasses.Field[Any], values: Values) -> object:
    if _OPTION in field.metadata:
        return values[field.metadata[_OPTION].name]
    assert isinstance(field.default_factory, type)
    assert issubclass(field.default_factory, OptionGroup), f"{field.name} is neither an option nor a group"
    return field.default_factory.of(values)


class Values:
    """Values by the options' names: the command line first, then the variable, then the default."""

    def __init__(self, given: dict[str, object], variables: dict[str, object], defaults: dict[str, object]) -> None:
        self._given = given
        self._variables = variables
        self._values = ChainMap(given, variables, defaults)

    def __getitem__(self, name: str) -> object:
        return self._values[name]

    def is_given(self, name: str) -> bool:
        """Whether the command line itself said so."""
        assert name in self._values, f"there is no option {name}"
        return name in self._given

    def is_variable(self, name: str) -> bool:
        """Whether the environment has a value for it."""
        return name in self._variables


class OptionParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and end with exit code 2."""

    def __init__(self, **settings: Any) -> None:
        # An abbreviation would break the day a longer option arrives, and --config would mean --config.file.
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nAll options: {self.prog} --help\n")


def add_groups(parser: argparse.ArgumentParser, groups: Sequence[type[OptionGroup]]) -> None:
    """Declare ``groups`` on ``parser``. Defaults are not stored there: ``resolve`` knows them."""
    for group in groups:
        section = parser.add_argument_group(group.title)
        for declared in options_of(group):
            settings: dict[str, Any] = {"nargs": "?", "const": "true"} if declared.is_flag else {}
            section.add_argument(
                f"--{declared.name}",
                dest=declared.name,
                type=_for_argparse(declared.parse),
                default=argparse.SUPPRESS,
                metavar="BOOL" if declared.is_flag else declared.metavar,
                help=_help(declared),
                **settings,
            )
            if declared.negation is not None:
                section.add_argument(
                    f"--{declared.negation}",
                    dest=declared.name,
                    action="store_const",
                    const=False,
                    default=argparse.SUPPRESS,
                    help=f"same as --{declared.name} false",
                )


def resolve(
    parser: argparse.ArgumentParser,
    groups: Sequence[type[OptionGroup]],
    namespace: argparse.Namespace,
    environ: Mapping[str, str],
) -> Values:
    """Typed values from a parsed namespace. A bad variable is a usage error of ``parser``, which exits with 2.

    Variables that are set but empty count as not set, as ``.env`` files leave them.
    """
    variables: dict[str, object] = {}
    for declared in _all(groups):
        if declared.variable is not None and environ.get(declared.variable):
            try:
                variables[declared.name] = declared.parse(environ[declared.variable])
            except ValueError as error:
                parser.error(f"environment variable {declared.variable}: {error}")
    return Values(vars(namespace), variables, {declared.name: declared.default for declared in _all(groups)})


def read(
    parser: argparse.ArgumentParser,
    groups: Sequence[type[OptionGroup]],
    argv: Sequence[str],
    environ: Mapping[str, str],
) -> Values:
    """Add ``groups`` to ``parser`` and read ``argv`` (without the program's name); exits with 2 on a usage error."""
    add_groups(parser, groups)
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        known = [f"--{declared.name}" for declared in _all(groups)]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        parser.error(f"unknown argument {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return resolve(parser, groups, namespace, environ)


def _all(groups: Sequence[type[OptionGroup]]) -> list[Option]:
    return [declared for group in groups for declared in options_of(group)]


def _for_argparse(parse: Callable[[str], T]) -> Callable[[str], T]:
    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            # argparse shows the text of this one only.
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _help(declared: Option) -> str:
    default = declared.describe_default()
    if declared.variable:
        default = f"${declared.variable}, else {default}"
    return f"{declared.help} [default: {default}]".replace("%", "%%")

"""Everything that the programs print. stdout is data, stderr is everything else; rich is used here only."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

#: In a pipe nothing is cut, so that grep and awk see whole values.
_UNLIMITED_WIDTH = 10_000
#: What is left at least for a column that may wrap.
_WRAPPED_WIDTH = 40
#: Spaces between two columns: rich's padding and its invisible line.
_GAP = 2

#: Told what an operation is doing now, in a few words.
OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Column:
    """One column of a table. Those with the highest ``drop_order`` go first on a narrow terminal; 0 never goes.

    One that may ``wrap`` is broken into lines before others have to go.
    """

    title: str
    drop_order: int = 0
    right: bool = False
    wrap: bool = False


class Output:
    """Where the words go, for one invocation.

    Args:
        width: columns of the terminal; by default what stdout says, unlimited where it is no terminal.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, *, as_json: bool = False, width: int | None = None) -> None:
        if width is None and not stdout.isatty():
            width = _UNLIMITED_WIDTH
        self._stdout = stdout
        self._stderr = stderr
        self.as_json = as_json
        self._out = Console(file=stdout, width=width, highlight=False, markup=False, emoji=False)
        self._err = Console(file=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def data(self, value: object) -> None:
        """One JSON document on stdout."""
        self._stdout.write(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        self._stdout.flush()

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout, and a note on stderr naming the columns that the terminal had no room for."""
        kept = _fitting(columns, rows, self._out.width)
        self._out.print(self._drawn(columns, rows, self._out.width))
        dropped = [column.title for index, column in enumerate(columns) if index not in kept]
        if dropped:
            self.note(f"no room for: {', '.join(dropped)}. Widen the terminal, or use --json.")

    def picture(self, columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str, caption: str) -> str:
        """A table as an SVG document, as wide as it needs to be; it loads nothing from elsewhere."""
        width = 2 + sum(
            2 + max([len(column.title), *(Text(row[index]).cell_len for row in rows)])
            for index, column in enumerate(columns)
        )
        console = Console(file=io.StringIO(), record=True, width=width, highlight=False, markup=False, emoji=False)
        console.print(self._drawn(columns, rows, width, caption))
        return re.sub(r"@font-face \{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)

    @contextmanager
    def live_table(self, columns: Sequence[Column]) -> Iterator[Callable[[Sequence[Sequence[str]], str], None]]:
        """A table on stderr that is drawn anew at each call with rows and a caption, and gone at the end.

        Where stderr is no terminal, the caption alone is printed, once each time that it changes.
        """
        if self.as_json or not self._err.is_terminal:
            said = ""

            def say(rows: Sequence[Sequence[str]], caption: str) -> None:
                nonlocal said
                if caption != said:
                    said = caption
                    self.note(caption)

            yield say
            return
        with Live(console=self._err, refresh_per_second=8, transient=True) as live:
            yield lambda rows, caption: live.update(self._drawn(columns, rows, self._err.width, caption))

    def pairs(self, pairs: Mapping[str, str]) -> None:
        """Labelled values on stdout, one a line."""
        width = max(map(len, pairs))
        for label, value in pairs.items():
            self._out.print(_text(f"{label:<{width}}  {value}"), soft_wrap=True)

    def line(self, text: str) -> None:
        """One line of data on stdout."""
        self._out.print(_text(text), soft_wrap=True)

    def raw(self, stdout: str, stderr: str) -> None:
        """What a remote command printed, unchanged."""
        self._stdout.write(stdout)
        self._stdout.flush()
        self._stderr.write(stderr)
        self._stderr.flush()

    def note(self, text: str) -> None:
        """A remark on stderr."""
        self._err.print(_text(text))

    def error(self, text: str, *, reason: str | None, advice: str) -> None:
        """A failure and the next thing to do, on stderr; one JSON line under ``--json``."""
        if self.as_json:
            self._stderr.write(json.dumps({"error": text, "reason": reason, "next": advice}, ensure_ascii=False) + "\n")
            self._stderr.flush()
            return
        # The advice may be a line to copy, which must not be broken; words of the error may go to the next line.
        self._err.print(Text.assemble(("error: ", "bold red"), _text(text)), soft_wrap=not self._err.is_terminal)
        self._err.print(_text(advice))

    @contextmanager
    def progress(self, title: str) -> Iterator[OnProgress]:
        """A spinner on stderr that shows the step; plain lines where stderr is no terminal, silence under JSON."""
        if self.as_json:
            yield lambda step: None
        elif self._err.is_terminal:
            with self._err.status(Text(title)) as status:
                yield lambda step: status.update(_text(f"{title}: {step}"))
        else:
            yield lambda step: self.note(f"{title}: {step}")

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """A progress bar on stderr that each call moves on by one of ``total`` steps.

        Plain lines where stderr is no terminal, silence under JSON.
        """
        if self.as_json:
            yield lambda: None
        elif self._err.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, TimeElapsedColumn(), console=self._err, transient=True) as progress:
                task = progress.add_task(title, total=total)
                yield lambda: progress.advance(task)
        else:
            steps = itertools.count(1)
            yield lambda: self.note(f"{title}: {next(steps)} of {total}")

    def _drawn(self, columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, caption: str = "") -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
            caption=_text(caption),
            caption_justify="left",
        )
        kept = _fitting(columns, rows, width)
        for index in kept:
            column = columns[index]
            table.add_column(column.title, justify="right" if column.right else "left", no_wrap=not column.wrap)
        for row in rows:
            table.add_row(*(_text(row[index]) for index in kept))
        return table


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    widths = [
        min(
            max([len(column.title), *(Text(row[index]).cell_len for row in rows)]),
            _WRAPPED_WIDTH if column.wrap else _UNLIMITED_WIDTH,
        )
        for index, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    while sum(widths[index] for index in kept) + _GAP * (len(kept) - 1) > width:
        droppable = [index for index in kept if columns[index].drop_order]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda index: columns[index].drop_order))
    return kept


def _text(words: str) -> Text:
    """Words as they are, never markup. What a peer said may be among them, so nothing in them steers the terminal."""
    return Text("".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in words))

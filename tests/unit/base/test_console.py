"""The output layer: what goes where, on a terminal and off it."""

from __future__ import annotations

import io
import json

import pytest

from compute.base.console import Column, Output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_lines_off_a_terminal_and_silence_under_json() -> None:
    out, err = io.StringIO(), io.StringIO()
    with Output(out, err).progress("allocating") as phase:
        phase("starting")
    assert (out.getvalue(), err.getvalue()) == ("", "allocating: starting\n")
    with Output(out, err, as_json=True).progress("allocating") as phase:
        phase("again")
    assert "again" not in err.getvalue()


def test_progress_is_a_spinner_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out, err = io.StringIO(), Terminal()
    with Output(out, err).progress("allocating") as phase:
        phase("[bold]starting[/bold]")
    assert out.getvalue() == ""
    assert "[bold]starting[/bold]" in err.getvalue()  # what a miner says is text, never markup


def test_errors_end_with_advice_and_are_one_object_under_json() -> None:
    out, err = io.StringIO(), io.StringIO()
    Output(out, err).error("it broke", reason=None, advice="mend it")
    assert err.getvalue() == "error: it broke\nmend it\n"
    err = io.StringIO()
    Output(out, err, as_json=True).error("it broke", reason="busy", advice="mend it")
    assert json.loads(err.getvalue()) == {"error": "it broke", "reason": "busy", "next": "mend it"}
    assert out.getvalue() == ""


def test_columns_are_dropped_in_their_order() -> None:
    columns = [Column("KEEP"), Column("FIRST", 9), Column("SECOND", 5)]
    rows = [["k" * 10, "f" * 10, "s" * 10]]
    for width, dropped in ((34, ""), (33, "FIRST"), (22, "FIRST"), (21, "FIRST, SECOND"), (5, "FIRST, SECOND")):
        out, err = io.StringIO(), io.StringIO()
        Output(out, err, width=width).table(columns, rows)
        assert err.getvalue() == (f"no room for: {dropped}. Widen the terminal, or use --json.\n" if dropped else "")
        if width > 10:
            assert "k" * 10 in out.getvalue()


def test_control_characters_and_markup_of_a_peer_stay_text() -> None:
    out = io.StringIO()
    err = io.StringIO()
    output = Output(out, err)
    output.pairs({"machine": "[red]x[/red]"})
    output.table([Column("A")], [["\x1b[2J\x07evil"]])
    output.note("\x1b]0;title\x07")
    output.error("\x1b[31m", reason=None, advice="\x9b")
    assert out.getvalue().startswith("machine  [red]x[/red]\n")
    assert "�[2J�evil" in out.getvalue()
    assert not {"\x1b", "\x07", "\x9b"} & set(out.getvalue() + err.getvalue())


def test_a_picture_is_whole_and_loads_nothing() -> None:
    output = Output(io.StringIO(), io.StringIO())
    columns = (Column("uid", right=True), Column("claims", drop_order=1))
    svg = output.picture(columns, [["1", "8 × NVIDIA H200 " + "x" * 150]], "make demo", "the caption")
    assert "x" * 150 in svg
    assert "caption" in svg
    assert "url(http" not in svg
    assert "@font-face" not in svg


def test_a_live_table_without_a_terminal_says_each_caption_once() -> None:
    stderr = io.StringIO()
    with Output(io.StringIO(), stderr).live_table((Column("uid"),)) as draw:
        for caption in ("one", "one", "two"):
            draw([["1"]], caption)
    assert stderr.getvalue() == "one\ntwo\n"


def test_a_bar_is_lines_off_a_terminal_and_silence_under_json() -> None:
    out, err = io.StringIO(), io.StringIO()
    with Output(out, err).bar("proofs", 2) as step:
        step()
        step()
    assert (out.getvalue(), err.getvalue()) == ("", "proofs: 1 of 2\nproofs: 2 of 2\n")
    silent = io.StringIO()
    with Output(out, silent, as_json=True).bar("proofs", 2) as step:
        step()
    assert (out.getvalue(), silent.getvalue()) == ("", "")


def test_a_bar_moves_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out, err = io.StringIO(), Terminal()
    with Output(out, err).bar("[bold]proofs[/bold]", 3) as step:
        step()
        step()
    assert out.getvalue() == ""
    assert "[bold]proofs[/bold]" in err.getvalue()
    assert "2/3" in err.getvalue()

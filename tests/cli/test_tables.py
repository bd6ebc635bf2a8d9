"""Tables are aligned, one line a row, and cut on terminals only."""

from __future__ import annotations

import sys

import pytest

from perdure.cli.tables import moment, print_facts, print_table, printable


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("ID", "NAME"), ("1", "a"), ("200", "b")])

    assert capsys.readouterr().out == "ID   NAME\n1    a\n200  b\n"


def test_a_long_row_is_whole_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("ID", "DETAIL"), ("1", "x" * 1000)])

    heading, row = capsys.readouterr().out.splitlines()
    assert heading == "ID  DETAIL"
    assert row == "1   " + "x" * 1000


def test_a_long_row_is_cut_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")

    print_table([("ID", "DETAIL"), ("1", "x" * 1000)])

    assert capsys.readouterr().out.splitlines()[1] == "1   " + "x" * 15 + "…"


def test_text_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[31mb\x9bc") == "a\ufffd[31mb\ufffdc"


def test_text_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("error", "first\nsecond"), ("output", "")])

    assert capsys.readouterr().out == "error       first second\n"


def test_no_moment_is_no_text() -> None:
    assert moment(None) == ""
    assert moment(1_500).endswith(":01.500")

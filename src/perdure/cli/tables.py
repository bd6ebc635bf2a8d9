"""Plain aligned columns: cut to the width of a terminal, uncut anywhere else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

SCHEMA = "perdure/v1"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of as many cells each, the first as a heading on terminals and elsewhere alike."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        # The last column is not padded: one long payload would make every line as long.
        padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        click.echo(_cut("  ".join([*padded, row[-1]]).rstrip()))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print pairs of a label and a text, without those whose text is empty."""
    for label, text in facts:
        if text:
            click.echo(f"{label:10}  {printable(text)}")


def print_json(document: dict[str, Any]) -> None:
    """Print a document of the schema that all commands share."""
    click.echo(msgspec.json.encode({"schema": SCHEMA, **document}))


def printable(text: str) -> str:
    """The text on one line, with what could control a terminal replaced."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)


def moment(ms: int | None) -> str:
    """Milliseconds since the epoch as local time, "" for None."""
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms / 1000).isoformat(" ", "milliseconds")


def _cut(line: str) -> str:
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"

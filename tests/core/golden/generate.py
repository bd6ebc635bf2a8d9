"""Writes the golden histories: one file of JSON lines per construct, as this engine makes it.

Run it after adding a construct: `cd tests/core; python -m golden.generate`. Files that exist are
left alone, since a history that has changed is one that old instances no longer replay. A history
that another Python minor makes differently goes into a folder named after that minor.
"""

from __future__ import annotations

from pathlib import Path

from constructs import EXPECTED
from driver import lines, play

from perdure.core.journal import python_minor

FOLDER = Path(__file__).parent


def golden(name: str) -> Path:
    """The file of a construct for this minor, or where it would be."""
    own = FOLDER / python_minor() / f"{name}.jsonl"
    return own if own.exists() else FOLDER / f"{name}.jsonl"


def made(name: str) -> str:
    """The history that the engine makes now, without the minor that made it."""
    construct = next(found for found in EXPECTED if found.name == name)
    text = "\n".join(lines(play(construct).history)) + "\n"
    return text.replace(f'"python":"{python_minor()}"', '"python":"3.11"')


if __name__ == "__main__":
    for construct in EXPECTED:
        common, own = FOLDER / f"{construct.name}.jsonl", golden(construct.name)
        text = made(construct.name)
        if not common.exists():
            common.write_text(text)
        elif own == common and common.read_text() != text:
            own = FOLDER / python_minor() / common.name
            own.parent.mkdir(exist_ok=True)
            own.write_text(text)

"""Every example runs, and running it again gives the same answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TIMEOUT_S = 60

ARGUMENTS = {
    "index_folder.py": ["folder"],
    "eternal_monitor.py": ["folder", "--every", "0.05", "--rounds", "6"],
}
"""What each example is called with, in a folder that has a `folder` with two files."""


def run(name: str, place: Path) -> str:
    """What the example prints on stdout."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *ARGUMENTS[name]],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    ).stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_text("1\n")
    (tmp_path / "folder" / "two.txt").write_text("1\n2\n")
    return tmp_path


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_run_again_gives_the_same_answer(name: str, place: Path) -> None:
    assert run(name, place) == run(name, place)


@pytest.mark.slow
def test_the_indexed_folder_is_in_the_manifest(place: Path) -> None:
    printed = run("index_folder.py", place)

    entries = json.loads((place / "manifest.json").read_text())
    assert printed == f"2 files, 3 lines, 6 bytes: {place / 'manifest.json'}\n"
    assert [(entry["path"], entry["lines"]) for entry in entries] == [
        ("one.txt", 1),
        ("two.txt", 2),
    ]


@pytest.mark.slow
def test_the_monitor_is_upgraded_while_it_runs_and_pruned_by_its_policy(place: Path) -> None:
    printed = run("eternal_monitor.py", place)

    assert "2 files, 6 bytes, the largest is two.txt; 0 changes" in printed
    assert "of versions 1 and 2; executions " in printed
    first, last = [int(word) for word in printed.split() if word.isdigit()][-2:]
    assert last - first == 2

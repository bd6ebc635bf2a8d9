"""Every example runs, and running it again gives the same answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres_server import new_schema, with_schema

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


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files that anybody may enter. A server that is left there ends."""
    folder = Path(tempfile.mkdtemp(prefix="perdure-example-"))
    folder.chmod(0o755)
    yield folder
    for file in folder.glob("*/data/postmaster.pid"):
        os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)
    shutil.rmtree(folder, ignore_errors=True)


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*ARGUMENTS, "distributed.py"}


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


@pytest.mark.slow
def test_the_work_of_a_killed_node_goes_on_and_nothing_is_left_behind(temporary: Path) -> None:
    given = os.environ.get("PERDURE_TEST_POSTGRES")
    store = ["--store", with_schema(given, new_schema())] if given else []
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / "distributed.py"), *store],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, notes = process.communicate(timeout=2 * TIMEOUT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise

    assert process.returncode == 0, notes
    assert "all 90 orders have ended right" in printed
    assert re.search(r"orders of the dead node went on [0-9.]+ to [0-9.]+ s after", printed)
    table = re.findall(r"^ *(\d+) +([\d,]+) +([\d,]+) +([\d,]+)(.*)$", printed, re.MULTILINE)
    counts = [int(count.replace(",", "")) for row in table for count in row[1:3]]
    assert (len(table), sum(counts)) == (3, sum(5 + order % 30 for order in range(90)))
    (killed,) = [row for row in table if "killed" in row[4]]
    assert killed[2:4] == ("0", "0")
    codes = printed.splitlines()[-1].split(":")[1].split()
    assert sorted(codes) == ["-9", "0", "0"]
    assert (notes.count(" is ready\n"), notes.count(" has stopped\n")) == (3, 2)
    assert list(temporary.iterdir()) == []

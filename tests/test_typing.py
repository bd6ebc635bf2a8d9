"""The public API means the same to type checkers as at run time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from test_docs import programs

ROOT = Path(__file__).parents[1]
ACCEPTED = ROOT / "tests" / "typing" / "accepted.py"
REJECTED = ROOT / "tests" / "typing" / "rejected.py"
MYPY_ERROR = re.compile(r"^(.+?):(\d+): error: (.*)$", re.MULTILINE)


def mypy(files: Sequence[Path], cache: Path) -> list[tuple[str, int, str]]:
    """File name, line and text of each error that mypy finds under --strict."""
    options = ["--strict", "--no-error-summary", "--hide-error-context", f"--cache-dir={cache}"]
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", *options, *map(str, files)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return [(Path(m[1]).name, int(m[2]), m[3]) for m in MYPY_ERROR.finditer(ended.stdout)]


def pyright(files: Sequence[Path]) -> list[tuple[str, int, str]]:
    """File name, line and text of each error that pyright finds."""
    ended = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", *map(str, files)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return [
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1, found["message"])
        for found in json.loads(ended.stdout)["generalDiagnostics"]
        if found["severity"] == "error"
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The accepted and the rejected file, and the programs of the README."""
    folder = tmp_path_factory.mktemp("programs")
    written = [ACCEPTED, REJECTED]
    for number, program in enumerate(programs((ROOT / "README.md").read_text(), "README.md")):
        written.append(folder / f"readme_{number}.py")
        written[-1].write_text(program.code)
    return written


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def errors(
    request: pytest.FixtureRequest, files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, int, str]]:
    if request.param == "mypy":
        return mypy(files, tmp_path_factory.mktemp("cache"))
    return pyright(files)


@pytest.mark.slow
def test_correct_programs_pass(errors: list[tuple[str, int, str]]) -> None:
    assert [error for error in errors if error[0] != REJECTED.name] == []


@pytest.mark.slow
def test_each_wrong_line_and_no_other_is_an_error(errors: list[tuple[str, int, str]]) -> None:
    lines = REJECTED.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}

    assert {line for name, line, _ in errors if name == REJECTED.name} == wrong

"""Every Python program in the documentation runs and prints what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")
TIMEOUT_S = 60


@dataclass(frozen=True)
class Program:
    """A Python block. printed: the text block that comes next, if that is what comes next."""

    place: str
    code: str
    printed: str | None


def programs(markdown: str, name: str) -> list[Program]:
    """The Python blocks of a page, in order."""
    fences = list(FENCE.finditer(markdown))
    found = []
    for index, fence in enumerate(fences):
        if fence[1] == "python":
            following = fences[index + 1] if index + 1 < len(fences) else None
            printed = following[2] if following and following[1] == "text" else None
            line = markdown.count("\n", 0, fence.start()) + 1
            found.append(Program(f"{name}:{line}", fence[2], printed))
    return found


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def all_programs() -> list[Program]:
    return [p for page in pages() for p in programs(page.read_text(), page.name)]


def outcome(program: Program, folder: Path) -> str:
    """What the program prints in an empty folder; its stderr if it fails, warnings included."""
    file = folder / "program.py"
    file.write_text(program.code)
    ended = subprocess.run(
        [sys.executable, "-W", "error", file.name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return ended.stdout if ended.returncode == 0 else ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.place)
def test_a_documented_program_prints_what_the_page_says(program: Program, tmp_path: Path) -> None:
    printed = outcome(program, tmp_path)

    assert "Traceback" not in printed
    if program.printed is not None:
        assert printed == program.printed


@pytest.mark.slow
def test_a_finished_program_run_again_prints_the_same(tmp_path: Path) -> None:
    first = programs((ROOT / "README.md").read_text(), "README.md")[0]

    assert outcome(first, tmp_path) == outcome(first, tmp_path) == first.printed


def test_the_readme_has_a_first_program_and_one_for_each_thing_that_it_shows() -> None:
    first, service, long_life, paying = programs((ROOT / "README.md").read_text(), "README.md")

    assert "perdure.run(" in first.code
    assert len([line for line in first.code.splitlines() if line]) <= 10
    assert "async with Runtime(" in service.code
    assert first.printed
    assert service.printed
    assert "enqueue_event(" in long_life.code
    assert long_life.printed
    assert "transactional=True" in paying.code
    assert paying.printed


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_links_only_to_what_is_there(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_python_blocks_are_found_with_what_they_print() -> None:
    first = "# A\n\n```python\nprint(1)\n```\nGives\n```text\n1\n```\n"
    page = first + "```sh\nls\n```\n```python\nx\n```\n"

    assert programs(page, "a.md") == [
        Program("a.md:3", "print(1)\n", "1\n"),
        Program("a.md:13", "x\n", None),
    ]


@pytest.mark.parametrize("code", ["1/0", "import warnings\nwarnings.warn('old')"])
def test_a_program_that_fails_or_warns_is_found_out(code: str, tmp_path: Path) -> None:
    assert "Traceback" in outcome(Program("a.md:1", code, None), tmp_path)

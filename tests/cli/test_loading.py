"""`module:function` and `file.py:function` name an orchestration; errors say what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.cli.loading import load_modules, load_orchestration
from perdure.cli.outcome import Refusal

CODE = """
import perdure

@perdure.activity
async def charge() -> None: ...

@perdure.orchestration
async def checkout() -> None: ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("target", ["bookshop:checkout", "bookshop.py:checkout"])
def test_a_function_of_the_current_folder_is_found(folder: Path, target: str) -> None:
    (folder / "bookshop.py").write_text(CODE)

    assert load_orchestration(target).name == "checkout"


def test_a_file_elsewhere_may_import_its_neighbours(folder: Path) -> None:
    (folder / "app").mkdir()
    (folder / "app" / "bookshop_parts.py").write_text(CODE)
    (folder / "app" / "book-shop.py").write_text("from bookshop_parts import checkout")

    assert load_orchestration("app/book-shop.py:checkout").name == "checkout"


def test_a_module_of_a_package_is_found(folder: Path) -> None:
    (folder / "bookshops").mkdir()
    (folder / "bookshops" / "main.py").write_text(CODE)

    assert load_orchestration("bookshops.main:checkout").name == "checkout"


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("bookshop", "not module:function"),
        (":checkout", "not module:function"),
        ("bookshop:", "not module:function"),
        ("nowhere:checkout", "no module nowhere"),
        ("bookshop.parts:checkout", "no module bookshop.parts"),
        ("nowhere.py:checkout", "no file nowhere.py"),
        ("bookshop:refund", "refund in bookshop does not exist"),
        ("bookshop:charge", "charge in bookshop is no orchestration"),
    ],
)
def test_a_target_that_is_not_there_is_a_usage_error(
    folder: Path, target: str, complaint: str
) -> None:
    (folder / "bookshop.py").write_text(CODE)

    with pytest.raises(Refusal, match=complaint) as refused:
        load_orchestration(target)
    assert refused.value.code == 2


def test_the_error_names_what_the_module_has(folder: Path) -> None:
    (folder / "bookshop.py").write_text(CODE)

    with pytest.raises(Refusal) as refused:
        load_orchestration("bookshop:refund")
    assert refused.value.hint == "it has checkout"


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("x = 1\n1 / 0\n", r"ZeroDivisionError: division by zero, at .*bookshop\.py:2"),
        ("import nowhere_either\n", r"No module named 'nowhere_either'"),
        ("def (:\n", "SyntaxError"),
    ],
)
def test_a_module_that_fails_says_where(folder: Path, code: str, complaint: str) -> None:
    (folder / "bookshop.py").write_text(code)

    with pytest.raises(Refusal, match=complaint) as refused:
        load_orchestration("bookshop:checkout")
    assert refused.value.code == 1


def test_a_file_that_another_has_imported_is_not_imported_again(folder: Path) -> None:
    (folder / "bookshop_parts.py").write_text(CODE)
    (folder / "bookshop.py").write_text("from bookshop_parts import checkout")

    modules = load_modules(["bookshop.py", "bookshop_parts.py", "bookshop_parts"])

    assert [module.__name__ for module in modules] == [
        *("bookshop", "bookshop_parts", "bookshop_parts")
    ]
    assert modules[1] is modules[2]


def test_a_module_without_anything_to_run_is_a_usage_error(folder: Path) -> None:
    (folder / "bookshop.py").write_text(CODE)
    (folder / "bookkeeping.py").write_text("import bookshop")

    with pytest.raises(Refusal, match=r"nothing to run in bookkeeping\.py") as refused:
        load_modules(["bookshop.py", "bookkeeping.py"])
    assert refused.value.code == 2


def test_a_file_must_not_hide_a_module(folder: Path) -> None:
    (folder / "json.py").write_text(CODE)

    with pytest.raises(Refusal, match="the name of the module json"):
        load_orchestration("json.py:checkout")

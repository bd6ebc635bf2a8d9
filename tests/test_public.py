"""The public names: what `import perdure` offers, and what it costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import perdure
from perdure import errors


@pytest.mark.parametrize("name", perdure.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(perdure, name) is not None
    assert name in dir(perdure)


def test_type_checkers_and_programs_see_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(perdure))
    seen = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == set(perdure.__all__)


def test_every_error_class_is_public() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert classes <= set(perdure.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'workflow'"):
        _ = perdure.workflow  # type: ignore[attr-defined]


def test_importing_says_nothing_and_loads_nothing_that_is_not_used() -> None:
    heavy = "{'apsw', 'asyncio', 'click', 'rich'}"
    code = f"import perdure, sys; print(sorted({heavy} & {{*sys.modules}}))"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("[]\n", "")

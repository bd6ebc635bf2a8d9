"""Imports point down, the core does no I/O, and only the runtime and the providers read clocks.

The layers themselves are listed once, in pyproject.toml for import-linter; this test reads them
there, so that `make test` alone finds an upward import, and adds what layers cannot say.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "perdure"

ON_TOP = {"__init__", "__main__"}
PROGRAMS = {"cli", "demo"}
"""Programs on top of the public API: they may import it, and import where they need it."""
PROVIDERS_MAY_IMPORT = {"errors", "limits", "names"}
CORE_BANS = {"os", "secrets", "select", "signal", "socket", "subprocess", "threading", "time"}
CORE_CLASSES = {"random": {"Random"}, "uuid": {"UUID"}}
"""Modules of which the core may use these classes only."""
CLOCK_OWNERS = {"runtime", "providers"} | PROGRAMS
CLOCKS = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}


def ranks() -> dict[str, int]:
    """The rank of each part of the package; 0 is the bottom."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = next(c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return {
        part.strip(): rank
        for rank, layer in enumerate(reversed(contract["layers"]))
        for part in layer.split("|")
    }


RANK = ranks()


def faults(module: str, source: str) -> list[str]:
    """What `source` does that its place forbids. module: its path below the package, dotted."""
    tree = ast.parse(source)
    part = module.split(".")[0]
    found = [*_import_faults(part, tree), *_clock_faults(part, tree)]
    if part == "core":
        found += _impurities(tree)
    return found


def _import_faults(part: str, tree: ast.Module) -> Iterator[str]:
    if part not in PROGRAMS:
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        yield f"line {node.lineno}: import inside {function.name}"
    for line, name in _imported(tree):
        if name.split(".")[0] == "perdure":
            yield from _direction_faults(part, line, name)


def _direction_faults(part: str, line: int, name: str) -> Iterator[str]:
    target = [*name.split("."), ""][1]
    if part in ON_TOP or part == target:
        return
    if target not in RANK:
        if part not in PROGRAMS:
            yield f"line {line}: {name} is the top of the package, above {part}"
    elif RANK[target] >= RANK[part]:
        yield f"line {line}: {part} imports {name}, which is not below it"
    elif part == "providers" and target not in PROVIDERS_MAY_IMPORT:
        yield f"line {line}: providers import {name}; they know rows only"


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import. `from perdure import x` counts as perdure.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "perdure." * bool(node.level) + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _clock_faults(part: str, tree: ast.Module) -> Iterator[str]:
    if part in CLOCK_OWNERS:
        return
    for line, owner, name in _used(tree):
        if name in CLOCKS.get(owner, ()):
            yield f"line {line}: {owner}.{name} reads a clock"


def _impurities(tree: ast.Module) -> Iterator[str]:
    for line, name in _imported(tree):
        if name.split(".")[0] in CORE_BANS:
            yield f"line {line}: the core imports {name}"
    for line, owner, name in _used(tree):
        if owner in CORE_CLASSES and name not in CORE_CLASSES[owner]:
            yield f"line {line}: the core uses {owner}.{name}"


def _used(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, owner and name of every `owner.name` and of every `from owner import name`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                yield node.lineno, owner, name
            case ast.Attribute(value=ast.Attribute(attr=owner), attr=name):
                yield node.lineno, owner, name
            case ast.ImportFrom(module=str(module), names=aliases):
                yield from ((node.lineno, module, alias.name) for alias in aliases)


def modules() -> list[str]:
    return sorted(
        ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.rglob("*.py")
    )


@pytest.mark.parametrize("module", modules())
def test_a_module_keeps_to_its_layer(module: str) -> None:
    path = SOURCE / (module.replace(".", "/") + ".py")

    assert faults(module, path.read_text()) == []


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {module.split(".")[0] for module in modules()} - ON_TOP

    assert parts == set(RANK)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("core.loop", "from perdure.runtime.host import Runtime", "not below"),
        ("core.loop", "from perdure.providers import contract", "not below"),
        ("core.loop", "from ..providers import contract", "not below"),
        ("providers.memory", "from perdure.core import events", "not below"),
        ("providers.memory", "import perdure.codec", "rows only"),
        ("errors", "from perdure.limits import NESTING_MAX", "not below"),
        ("client.handles", "from perdure import runtime", "not below"),
        ("client.handles", "import perdure", "top of the package"),
        ("client.handles", "from perdure import Runtime", "top of the package"),
        ("runtime.host", "def f():\n    import json", "inside f"),
        ("core.loop", "import time", "core imports time"),
        ("core.loop", "from os import path", "core imports os"),
        ("core.loop", "import threading", "core imports threading"),
        ("core.loop", "import random\nrandom.random()", "random.random"),
        ("core.loop", "from random import choice", "random.choice"),
        ("core.loop", "import uuid\nuuid.uuid4()", "uuid.uuid4"),
        ("core.loop", "from datetime import datetime\ndatetime.now()", "reads a clock"),
        ("core.loop", "import datetime\ndatetime.datetime.now()", "reads a clock"),
        ("client.handles", "import time\ntime.monotonic()", "reads a clock"),
        ("codec", "from time import time_ns", "reads a clock"),
    ],
)
def test_a_planted_fault_is_found(module: str, source: str, complaint: str) -> None:
    assert complaint in "\n".join(faults(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.loop", "from random import Random\nimport uuid\nuuid.UUID(int=0)"),
        ("core.loop", "from perdure.core.journal import Journal"),
        ("core.loop", "from datetime import datetime\ndatetime.fromtimestamp(0)"),
        ("runtime.host", "import time\nfrom perdure.client import Client\ntime.monotonic()"),
        ("providers.memory", "from perdure.errors import StoreClosed\nimport time\ntime.time()"),
        ("cli", "def f():\n    import perdure"),
        ("__init__", "from perdure.runtime import Runtime"),
    ],
)
def test_what_a_layer_may_do_is_no_fault(module: str, source: str) -> None:
    assert faults(module, source) == []

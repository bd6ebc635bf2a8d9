"""From `module` or `file.py` to the module, and from `module:function` to the orchestration."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from perdure.cli.outcome import UNEXPECTED, USAGE, Refusal
from perdure.marks import Orchestration
from perdure.registry import marked_in


def load_orchestration(target: str) -> Orchestration[..., Any]:
    """Import the module as if started in the current folder (a file: in its own) and return the
    marked function. Raises Refusal if there is none."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise Refusal(USAGE, f"{target!r} is not module:function", "for example shop.py:checkout")
    module = load_module(place)
    found = getattr(module, name, None)
    if isinstance(found, Orchestration):
        return found
    there = [m.function.__name__ for m in marked_in(module) if isinstance(m, Orchestration)]
    what = "is no orchestration" if found is not None else "does not exist"
    raise Refusal(
        USAGE,
        f"{name} in {place} {what}",
        f"it has {', '.join(there)}" if there else "mark one with @perdure.orchestration",
    )


def load_modules(places: Sequence[str]) -> list[ModuleType]:
    """Import modules of which each has something to host. Raises Refusal."""
    modules = [load_module(place) for place in places]
    for place, module in zip(places, modules, strict=True):
        if not marked_in(module):
            what = "mark functions with @perdure.orchestration and @perdure.activity"
            raise Refusal(USAGE, f"there is nothing to run in {place}", what)
    return modules


def load_module(place: str) -> ModuleType:
    """Import a module as if started in the current folder (a file: in its own). Raises Refusal."""
    return _import_file(Path(place)) if place.endswith(".py") else _import(place, "")


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Refusal(USAGE, f"there is no file {path}")
    known = sys.modules.get(path.stem)
    if known is not None:
        # One that was listed before may have imported it.
        file = getattr(known, "__file__", None)
        if file is not None and Path(file).resolve() == path.resolve():
            return known
        raise Refusal(USAGE, f"{path} has the name of the module {path.stem}", "rename the file")
    return _import(path.stem, str(path.parent.resolve()))


def _import(name: str, folder: str) -> ModuleType:
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        raise Refusal(USAGE, f"there is no module {name}", "a file is named by its path") from error
    except Exception as error:
        raise _broken(name, error) from error


def _broken(place: str, error: Exception) -> Refusal:
    line = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error}, at {line.filename}:{line.lineno}"
    return Refusal(
        UNEXPECTED,
        f"importing {place} failed: {what}",
        "`perdure --debug …` shows the traceback",
    )

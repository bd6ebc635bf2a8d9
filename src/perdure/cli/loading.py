"""From `module:function` or `file.py:function` to the orchestration."""

from __future__ import annotations

import importlib
import sys
import traceback
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
    module = _import_file(Path(place)) if place.endswith(".py") else _import(place, "")
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


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Refusal(USAGE, f"there is no file {path}")
    if path.stem in sys.modules:
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

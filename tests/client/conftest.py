"""The client's tests use the same kit as the runtime's."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from fixtures import memory, pytest_pyfunc_call, sqlite, world

__all__ = ["memory", "pytest_pyfunc_call", "sqlite", "world"]

"""The fixtures of this folder."""

from __future__ import annotations

from fixtures import memory, pytest_pyfunc_call, sqlite, world

__all__ = ["memory", "pytest_pyfunc_call", "sqlite", "world"]

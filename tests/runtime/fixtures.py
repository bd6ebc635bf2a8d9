"""Tests that take a world run on every store; those that are coroutines on a loop of their own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from kit import World, run_quietly


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(request.param, tmp_path)


@pytest.fixture
def sqlite(tmp_path: Path) -> World:
    """SQLite only, in real time."""
    return World("sqlite", tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> World:
    """Memory only, in virtual time."""
    return World("memory", tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    worlds = [value for value in arguments.values() if isinstance(value, World)]
    run = worlds[0].run if worlds else run_quietly
    run(lambda: pyfuncitem.obj(**arguments))
    return True

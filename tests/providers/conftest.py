"""Provider tests run on every provider; those that are coroutines on a loop of their own."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest
from provider_world import World


@pytest.fixture(params=["memory", "sqlite", "filesystem", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    # The server is started for the first test that needs it.
    needs_server = request.param == "postgres"
    url = request.getfixturevalue("postgres_store") if needs_server else ""
    return World(request.param, tmp_path, url)


@pytest.fixture
def store(tmp_path: Path) -> World:
    """SQLite only."""
    return World("sqlite", tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    asyncio.run(_run(pyfuncitem.obj, arguments))
    return True


async def _run(test: Any, arguments: dict[str, Any]) -> None:
    try:
        await test(**arguments)
    finally:
        for argument in arguments.values():
            if isinstance(argument, World):
                await argument.close()

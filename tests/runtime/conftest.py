"""The fixtures of this folder. Tests that are about what the store keeps run on PostgreSQL too."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures import memory, pytest_pyfunc_call, sqlite
from kit import World

__all__ = ["memory", "pytest_pyfunc_call", "sqlite"]

ON_POSTGRES = frozenset(
    f"test_host_{subject}"
    for subject in (
        *("blocked", "cancelling", "children", "deleting", "events", "generations", "messages"),
        *("ownership", "poison", "pruning", "queues", "retries", "starts", "stopping"),
    )
)
NOT_ON_POSTGRES = frozenset(
    (
        # A second each until they are tried again, in which the store has no part.
        "test_changed_code_blocks_the_instance_and_the_right_code_heals_it",
        "test_whatever_an_orchestration_raises_fails_it_and_no_other",
        "test_a_fault_of_the_engine_itself_blocks_one_instance_and_no_other",
    )
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "world" in metafunc.fixturenames:
        kinds = ["memory", "sqlite"]
        if metafunc.module.__name__ in ON_POSTGRES and (
            metafunc.function.__name__ not in NOT_ON_POSTGRES
        ):
            kinds.append("postgres")
        metafunc.parametrize("world", kinds, indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return _world(request, tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """In real time only."""
    return _world(request, tmp_path)


def _world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    # The server is started for the first test that needs it.
    needs_server = request.param == "postgres"
    url = request.getfixturevalue("postgres_store") if needs_server else ""
    return World(request.param, tmp_path, url)

"""After a restart, a promotion or an outage nobody counts as dead who could not show life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from provider_world import Clock

from perdure.providers.postgres import PostgresProvider
from perdure.providers.postgres.connections import Database
from perdure.providers.postgres.nodes import GAP_S, LOOKS_APART_MS, Watcher

LEASE_MS = 60_000
ANOTHER_SERVER = "update perdure_schema set server = 'another', server_since = null"
LONG_AGO = "update perdure_schema set server_since = server_since - interval '61 s'"
TAKEN_HERE = "update nodes set server = pg_postmaster_start_time()::text"


class Store:
    """A store with a node n-1 that gives no sign of life, and who looks after it as n-2."""

    def __init__(self, admin: Any, provider: PostgresProvider, clock: Clock) -> None:
        self.admin = admin
        self.provider = provider
        self.clock = clock

    async def dead(self, after_ms: int = 0) -> list[str]:
        self.clock.advance(after_ms)
        return await self.provider.reap_nodes("n-2")


@pytest.fixture
def url(postgres_store: str) -> str:
    return postgres_store


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    clock = Clock()
    provider = PostgresProvider(url, now_ms=clock)
    await provider.open()
    admin = await Database(url).connect()
    try:
        await provider.register_node("n-1", LEASE_MS)
        yield Store(admin, provider, clock)
    finally:
        # For whoever uses the store after this test.
        await admin.execute(f"{ANOTHER_SERVER}; {TAKEN_HERE}")
        await admin.execute("update perdure_schema set server = pg_postmaster_start_time()::text")
        await admin.close()
        await provider.close()


async def test_no_lease_is_over_for_the_length_of_a_lease_after_another_server_was_found(
    url: str,
) -> None:
    async with opened(url) as store:
        await store.admin.execute(ANOTHER_SERVER)
        assert await store.dead(after_ms=LEASE_MS + 1) == []
        assert await store.dead() == []

        await store.admin.execute(LONG_AGO)

        assert await store.dead() == ["n-1"]


async def test_a_node_that_has_said_good_bye_is_not_waited_for_on_another_server(url: str) -> None:
    async with opened(url) as store:
        await store.admin.execute(ANOTHER_SERVER)
        assert await store.dead() == []
        await store.admin.execute("update nodes set lease_until_ms = 0")

        assert await store.dead() == ["n-1"]


async def test_no_lock_counts_for_the_length_of_a_lease_after_a_promotion(url: str) -> None:
    """Also of a node that had taken its lock there already, and lost its session again."""
    async with opened(url) as store:
        await store.admin.execute(ANOTHER_SERVER)
        assert await store.dead() == []
        await store.admin.execute(TAKEN_HERE)
        await store.provider._session.unlock("n-1")
        for _ in range(3):
            assert await store.dead(after_ms=LOOKS_APART_MS) == []

        await store.admin.execute(LONG_AGO)

        assert await store.dead() == []
        assert await store.dead(after_ms=LOOKS_APART_MS) == ["n-1"]


async def test_a_lock_that_was_taken_on_another_server_says_nothing(url: str) -> None:
    async with opened(url) as store:
        await store.admin.execute("update nodes set server = 'another'")
        await store.provider._session.unlock("n-1")

        for _ in range(3):
            assert await store.dead(after_ms=LOOKS_APART_MS) == []


async def test_who_has_not_looked_for_a_while_gives_the_others_time_to_come_back(url: str) -> None:
    """An outage between all nodes and the server is not seen by the server."""
    async with opened(url) as store:
        now_s = 1_000.0
        watcher = Watcher(lambda: now_s)
        assert await watcher.reap(store.admin, "n-2", store.clock()) == []
        store.clock.advance(LEASE_MS + 1)
        now_s += LEASE_MS / 1000
        for _ in range(21):
            assert await watcher.reap(store.admin, "n-2", store.clock()) == []
            now_s += GAP_S
        assert await watcher.reap(store.admin, "n-2", store.clock()) == ["n-1"]

"""What tests of several folders share: a PostgreSQL server, started when the first needs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import asyncpg
import pytest

from postgres_server import Server, emptied, new_schema, with_schema


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server; PERDURE_TEST_POSTGRES if that is set."""
    given = os.environ.get("PERDURE_TEST_POSTGRES")
    if given:
        yield given
        return
    server = Server()
    try:
        yield server.url
    finally:
        server.close()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of a store that does not exist yet."""
    return with_schema(postgres_server, new_schema())


@pytest.fixture(scope="session")
def emptied_postgres_urls() -> list[str]:
    """Stores that tests are done with, empty again."""
    return []


@pytest.fixture
def postgres_store(postgres_server: str, emptied_postgres_urls: list[str]) -> Iterator[str]:
    """The URL of an empty store. To make one costs more than most tests: it may have been used."""
    urls = emptied_postgres_urls
    url = urls.pop() if urls else with_schema(postgres_server, new_schema())
    yield url
    try:
        asyncio.run(emptied(url))
    except asyncpg.PostgresError:
        # The test left something open there.
        return
    urls.append(url)

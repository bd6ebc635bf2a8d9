"""The PostgreSQL store keeps the whole provider contract, on a real server."""

from __future__ import annotations

import pytest

from perdure.providers.postgres import PostgresProvider
from perdure.testing.conformance import Clock, Conformance, Harness


class TestPostgres(Conformance):
    @pytest.fixture
    def store(self, postgres_store: str) -> Harness:
        clock = Clock()
        return Harness(lambda: PostgresProvider(postgres_store, now_ms=clock), clock)

"""The SQLite store keeps the whole provider contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.providers.sqlite import SqliteProvider
from perdure.testing.conformance import Clock, Conformance, Harness


class TestSqlite(Conformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Harness:
        clock = Clock()
        path = tmp_path / "store.db"
        return Harness(lambda: SqliteProvider(path, now_ms=clock, lock_wait_ms=5_000), clock)

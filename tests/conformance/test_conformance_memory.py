"""The store in memory keeps the whole provider contract."""

from __future__ import annotations

import pytest

from perdure.providers.memory import MemoryProvider, MemoryStore
from perdure.testing.conformance import Clock, Conformance, Harness


class TestMemory(Conformance, durable=False):
    @pytest.fixture
    def store(self) -> Harness:
        clock = Clock()
        memory = MemoryStore(clock)
        return Harness(lambda: MemoryProvider(memory), clock)

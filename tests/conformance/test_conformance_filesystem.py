"""The filesystem store keeps the whole provider contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.providers.filesystem import FilesystemProvider
from perdure.testing.conformance import Clock, Conformance, Harness


class TestFilesystem(Conformance, multi_process=False):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Harness:
        clock = Clock()
        path = tmp_path / "store"
        return Harness(lambda: FilesystemProvider(path, now_ms=clock), clock)

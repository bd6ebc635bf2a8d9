"""What a test of the core leaves open is thrown away when it ends, not when it is collected."""

from __future__ import annotations

from collections.abc import Iterator

import driver
import pytest


@pytest.fixture(autouse=True)
def _worlds_are_closed() -> Iterator[None]:
    yield
    while driver.WORLDS:
        driver.WORLDS.pop().close()

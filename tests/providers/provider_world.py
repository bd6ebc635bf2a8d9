"""What the provider tests share: stores with a clock in hand, and short forms of operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perdure.providers.contract import Acquired, Provider
from perdure.providers.filesystem import FilesystemProvider, FilesystemStore
from perdure.providers.memory import MemoryProvider, MemoryStore
from perdure.providers.postgres import PostgresProvider
from perdure.providers.sqlite import SqliteProvider
from perdure.testing.conformance.kit import (
    CAPS,
    LEASE_MS,
    bodies,
    claim,
    claim_work,
    is_a,
    new,
    note,
    one,
    queued,
    row,
    running,
    start,
    turn,
)

__all__ = [
    "CAPS",
    "LEASE_MS",
    "Clock",
    "World",
    "acquire",
    "bodies",
    "claim",
    "claim_work",
    "is_a",
    "new",
    "note",
    "one",
    "queued",
    "row",
    "running",
    "start",
    "turn",
]


class Clock:
    """The store's clock; it stands still unless told."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> int:
        self.now += ms
        return self.now


class World:
    """One store; each `open` is another process's view of it. url: for PostgreSQL only."""

    def __init__(self, kind: str, folder: Path, url: str = "") -> None:
        self.clock = Clock()
        self.kind = kind
        self.url = url
        self.path = folder / f"{kind}.db"
        self.memory = MemoryStore(self.clock)
        self.folder: FilesystemStore | None = None
        self._opened: list[Provider] = []

    async def open(self) -> Provider:
        provider: Provider
        if self.kind == "memory":
            provider = MemoryProvider(self.memory)
        elif self.kind == "filesystem":
            # One process at a time: the views share what that process has opened.
            if self.folder is None or self.folder.is_closed:
                self.folder = FilesystemStore(self.path, self.clock)
            provider = FilesystemProvider(self.folder)
        elif self.kind == "postgres":
            provider = PostgresProvider(self.url, now_ms=self.clock)
        else:
            provider = SqliteProvider(self.path, now_ms=self.clock, lock_wait_ms=5_000)
        await provider.open()
        self._opened.append(provider)
        return provider

    async def close(self) -> None:
        for provider in self._opened:
            await provider.close()


async def acquire(provider: Provider, instance_id: str = "i-1", **fields: Any) -> Acquired:
    """Start an instance and claim it."""
    await start(provider, instance_id, **fields)
    (acquired,) = await claim(provider)
    return acquired

"""What the provider tests share: stores with a clock in hand, and short forms of operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from perdure.providers.contract import (
    Acquired,
    Capabilities,
    ClaimActivities,
    Claimed,
    ClaimedActivities,
    ClaimInstances,
    CommitTurn,
    InstanceRow,
    NewActivity,
    Operation,
    Outcome,
    Provider,
    SendMessage,
    Started,
    StartInstance,
)
from perdure.providers.filesystem import FilesystemProvider, FilesystemStore
from perdure.providers.memory import MemoryProvider, MemoryStore
from perdure.providers.postgres import PostgresProvider
from perdure.providers.sqlite import SqliteProvider

T = TypeVar("T")

CAPS: Capabilities = frozenset({("order", "1"), ("order", "2"), ("refund", "1")})
LEASE_MS = 10_000


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


def is_a(kind: type[T], outcome: object) -> T:
    assert isinstance(outcome, kind), outcome
    return outcome


async def one(provider: Provider, operation: Operation) -> Outcome:
    """The outcome of a batch of one."""
    (outcome,) = await provider.commit([operation])
    return outcome


def new(instance_id: str = "i-1", **fields: Any) -> StartInstance:
    given: dict[str, Any] = {
        "incarnation": f"inc of {instance_id}",
        "name": "order",
        "version": "1",
        "input": b"[1]",
    }
    return StartInstance(instance_id, **{**given, **fields})


async def start(provider: Provider, instance_id: str = "i-1", **fields: Any) -> int:
    """Start an instance; returns its key."""
    return is_a(Started, await one(provider, new(instance_id, **fields))).key


async def claim(
    provider: Provider, node_id: str = "n-1", limit: int = 100, **fields: Any
) -> tuple[Acquired, ...]:
    given = {"capabilities": CAPS, **fields}
    return is_a(
        Claimed, await one(provider, ClaimInstances(node_id, limit=limit, **given))
    ).instances


async def acquire(provider: Provider, instance_id: str = "i-1", **fields: Any) -> Acquired:
    """Start an instance and claim it."""
    await start(provider, instance_id, **fields)
    (acquired,) = await claim(provider)
    return acquired


async def claim_work(
    provider: Provider, *names: str, node_id: str = "n-1", limit: int = 100, alone: bool = False
) -> ClaimedActivities:
    wanted = frozenset(names or ("pay",))
    return is_a(
        ClaimedActivities, await one(provider, ClaimActivities(node_id, wanted, limit, alone))
    )


def turn(of: Acquired, *events: bytes, first: int = 1, **fields: Any) -> CommitTurn:
    """A turn of an acquired instance that has seen what the acquisition brought."""
    given: dict[str, Any] = {
        "key": of.key,
        "token": of.token,
        "node_id": "n-1",
        "execution_id": of.execution_id,
        "first_event_id": first,
        "mail_seen": of.mail,
    }
    return CommitTurn(events=events, **{**given, **fields})


def queued(event_id: int = 1, name: str = "pay", input: bytes = b"7") -> NewActivity:
    return NewActivity(event_id, name, input, claimed=False)


def running(event_id: int = 1, name: str = "pay", input: bytes = b"7") -> NewActivity:
    return NewActivity(event_id, name, input, claimed=True)


def note(instance_id: str = "i-1", body: bytes = b"hello", **fields: Any) -> SendMessage:
    return SendMessage(instance_id, body, **fields)


async def row(provider: Provider, instance_id: str = "i-1") -> InstanceRow:
    return (await provider.get_instances([instance_id]))[instance_id]


async def bodies(provider: Provider, node_id: str = "n-1") -> list[bytes]:
    """The messages that a survey shows to a node."""
    survey = await provider.survey(node_id, CAPS, frozenset())
    return [message.body for mail in survey.mail for message in mail.messages]

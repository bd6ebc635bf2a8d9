"""What the cases are written with: `@case`, short forms of operations, and a dump of a store."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, TypeVar

from perdure.providers.contract import (
    Acquired,
    Capabilities,
    ClaimActivities,
    Claimed,
    ClaimedActivities,
    ClaimInstances,
    CommitTurn,
    CompleteActivity,
    Ending,
    InstanceRow,
    NewActivity,
    NextExecution,
    Operation,
    Outcome,
    Provider,
    Refused,
    ReleaseInstance,
    RetryActivity,
    RowFilter,
    SendMessage,
    Started,
    StartInstance,
)
from perdure.testing.conformance.harness import Harness

T = TypeVar("T")

Need = Literal["durable", "multi_process"]
DURABLE: Need = "durable"
MULTI_PROCESS: Need = "multi_process"

CAPS: Capabilities = frozenset({("order", "1"), ("order", "2"), ("refund", "1")})
NAMES = frozenset({"pay", "ship"})
LEASE_MS = 10_000
PATIENCE_S = 120.0
"""After which a case fails that waits for something that does not come."""

NOTHING = ClaimedActivities((), more=False)
FENCED = Refused("fenced")
BEHIND = Refused("behind")
STALE = Refused("stale")

NO_TEXT = "\ud800"
"""Half of a character: no store can keep it as text."""
NO_NUMBER = 1 << 70
"""More than 64 bits."""
UNSTORABLE: tuple[tuple[str, Any], ...] = (("name", NO_TEXT), ("nesting", NO_NUMBER))
"""Fields of a start with values that no store can take."""


# Cases.


class Case(NamedTuple):
    """What `@case` knows of a test: the numbers that it shows, what it needs of the store."""

    numbers: tuple[str, ...]
    needs: frozenset[Need]


def case(
    *numbers: str, needs: Need | tuple[Need, ...] = ()
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make an `async def test_…(self, store: Harness)` a test that any pytest runs.

    It runs on a loop of its own, and the harness is closed afterwards. needs: what the store has
    to be, DURABLE or MULTI_PROCESS or both; for other stores the test does not exist.
    """
    needed = frozenset((needs,) if isinstance(needs, str) else needs)

    def mark(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(self: object, store: Harness, **more: Any) -> None:
            asyncio.run(_run(test(self, store, **more), store))

        run.__dict__["case"] = Case(numbers, needed)
        return run

    return mark


async def _run(test: Coroutine[Any, Any, None], store: Harness) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await test
    finally:
        await store.close()


def case_of(test: object) -> Case | None:
    """What `@case` knows of an attribute of a test class; None if it is no case."""
    found = getattr(test, "case", None)
    return found if isinstance(found, Case) else None


# Operations in short.


def is_a(kind: type[T], outcome: object) -> T:
    """The outcome, which has to be of this kind."""
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
    """Claim what is due for a node."""
    given = {"capabilities": CAPS, **fields}
    return is_a(
        Claimed, await one(provider, ClaimInstances(node_id, limit=limit, **given))
    ).instances


async def acquire(provider: Provider, instance_id: str = "i-1", **fields: Any) -> Acquired:
    """Start an instance and claim it for n-1, with whatever else is due."""
    key = await start(provider, instance_id, **fields)
    (acquired,) = [each for each in await claim(provider) if each.key == key]
    return acquired


async def claim_work(
    provider: Provider, *names: str, node_id: str = "n-1", limit: int = 100, alone: bool = False
) -> ClaimedActivities:
    """Claim activities of these names, "pay" if none is given."""
    wanted = frozenset(names or ("pay",))
    return is_a(
        ClaimedActivities, await one(provider, ClaimActivities(node_id, wanted, limit, alone))
    )


def turn(of: Acquired, *events: bytes, first: int = 1, **fields: Any) -> CommitTurn:
    """A turn of n-1 of an acquired instance that has seen what the acquisition brought.
    first: the event id of the first event."""
    given: dict[str, Any] = {
        "key": of.key,
        "token": of.token,
        "node_id": "n-1",
        "execution_id": of.execution_id,
        "first_event_id": first,
        "mail_seen": of.mail,
    }
    return CommitTurn(events=events, **{**given, **fields})


def ending(of: Acquired, *events: bytes, first: int = 1, **fields: Any) -> CommitTurn:
    """A turn that completes the instance with the output b"done"."""
    return turn(of, *events, first=first, **{"ending": Ending("completed", b"done"), **fields})


def continuing(of: Acquired, *events: bytes, first: int = 1, **fields: Any) -> CommitTurn:
    """A turn that ends the acquired execution and creates the next one."""
    following = NextExecution(of.execution_id + 1, "1", b"[2]", b"started")
    given = {"ending": Ending("continued_as_new"), "next": following}
    return turn(of, *events, first=first, **{**given, **fields})


def queued(
    event_id: int = 1, name: str = "pay", input: bytes = b"7", options: bytes | None = None
) -> NewActivity:
    """An activity that waits in the queue."""
    return NewActivity(event_id, name, input, claimed=False, options=options)


def running(
    event_id: int = 1, name: str = "pay", input: bytes = b"7", options: bytes | None = None
) -> NewActivity:
    """An activity that the committing node claims with the commit."""
    return NewActivity(event_id, name, input, claimed=True, options=options)


async def waiting_for(provider: Provider, store: Harness, *activities: NewActivity) -> Acquired:
    """An instance that n-1 holds and that waits for these activities alone, for a while now."""
    of = await acquire(provider)
    await one(provider, turn(of, b"1", activities=activities, settle=True, set_due=True))
    store.clock.advance(10)
    return of


def complete(of: Acquired, event_id: int = 1, **fields: Any) -> CompleteActivity:
    """The completion of the first attempt of an activity, by n-1."""
    given: dict[str, Any] = {
        "execution_id": of.execution_id,
        "node_id": "n-1",
        "attempt": 1,
        "body": b"done",
    }
    return CompleteActivity(of.key, event_id=event_id, **{**given, **fields})


def retry(of: Acquired, due_ms: int, event_id: int = 1, **fields: Any) -> RetryActivity:
    """The failure of the first attempt of an activity of n-1, the next being due at due_ms."""
    given: dict[str, Any] = {
        "execution_id": 1,
        "node_id": "n-1",
        "attempt": 1,
        "error": b"no luck",
    }
    return RetryActivity(of.key, event_id=event_id, due_ms=due_ms, **{**given, **fields})


def note(instance_id: str = "i-1", body: bytes = b"hello", **fields: Any) -> SendMessage:
    return SendMessage(instance_id, body, **fields)


def give_back(of: Acquired, due_ms: int | None = None, **fields: Any) -> ReleaseInstance:
    """Giving an instance back, uncharged, by a node that has seen what the acquisition brought."""
    return ReleaseInstance(of.key, of.token, **{"mail_seen": of.mail, "due_ms": due_ms, **fields})


async def row(provider: Provider, instance_id: str = "i-1") -> InstanceRow:
    return (await provider.get_instances([instance_id]))[instance_id]


async def bodies(provider: Provider, node_id: str = "n-1") -> list[bytes]:
    """The messages that a survey shows to a node."""
    survey = await provider.survey(node_id, CAPS, frozenset())
    return [message.body for mail in survey.mail for message in mail.messages]


# A store as a whole.


async def everything(provider: Provider) -> dict[str, Any]:
    """All that can be read of a store, to compare it before and after."""
    instances = await provider.list_instances(RowFilter(), limit=1_000_000)
    ids = [each.instance_id for each in instances]
    executions = {each: await provider.list_executions(each) for each in ids}
    wanted = [(i.key, e.execution_id) for i in instances for e in executions[i.instance_id]]
    return {
        "instances": instances,
        "executions": executions,
        "histories": dict(zip(wanted, await provider.histories(wanted), strict=True)),
        "activities": {each.key: await provider.list_activities(each.key) for each in instances},
        "snapshots": {each: await provider.snapshots(each) for each in ids},
        "surveys": [await provider.survey(node, CAPS, NAMES) for node in ("n-1", "n-2")],
        "depths": await provider.depths(),
        "counts": await provider.count_instances(),
        "blocked": await provider.count_blocked(),
        "nodes": await provider.nodes(),
    }

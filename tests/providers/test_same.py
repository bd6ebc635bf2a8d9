"""The providers do not differ: random batches have the same outcomes and leave the same rows."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from provider_world import World

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Acquired,
    ActivityClaim,
    ClaimActivities,
    Claimed,
    ClaimedActivities,
    ClaimInstances,
    Committed,
    CommitTurn,
    CompleteActivity,
    Ending,
    InstanceFilter,
    NewActivity,
    NewTimer,
    NextExecution,
    NoteBlocked,
    Operation,
    Outcome,
    ParentLink,
    Provider,
    PruneExecutions,
    ReleaseActivity,
    ReleaseInstance,
    Retention,
    SendMessage,
    Started,
    StartInstance,
)
from perdure.providers.sqlite.writer import KEYS

IDS = st.sampled_from(["a", "b", "c", "d", "a::sub::1"])
NODES = st.sampled_from(["n-1", "n-2"])
_PAIRS = [("x", "1"), ("x", "2"), ("y", "1")]
PAIRS = st.just(frozenset(_PAIRS)) | st.frozensets(st.sampled_from(_PAIRS))
WORK = st.sampled_from([frozenset({"pay", "ship"}), frozenset({"pay"}), frozenset({"no"})])
SMALL = st.integers(0, 3)
BODIES = st.binary(max_size=3)
FLAGS = st.booleans()
FEW = st.sampled_from([0] * 9 + [1])
WHEN = st.none() | st.integers(-20, 40)
"""A time, relative to the clock."""

Made = Callable[["Side"], Operation]
"""An operation for either side, whose tokens differ."""

sends = st.builds(
    SendMessage,
    IDS,
    BODIES,
    incarnation=st.sampled_from([None, None, "1", "2"]),
    external=FLAGS,
)


@st.composite
def starts(draw: st.DrawFn) -> StartInstance:
    owner = draw(st.none() | NODES)
    return StartInstance(
        draw(IDS),
        incarnation=draw(st.sampled_from(["1", "2"])),
        name=draw(st.sampled_from(["x", "y"])),
        version=draw(st.sampled_from([None, "1", "2"])),
        input=draw(BODIES),
        parent=draw(st.none() | st.builds(ParentLink, IDS, st.just("1"), SMALL, SMALL)),
        nesting=draw(SMALL),
        owner=owner,
        token=None if owner is None else f"given {draw(SMALL)}",
        if_taken=draw(st.none() | sends),
    )


@st.composite
def first_turns(draw: st.DrawFn) -> Made:
    """A start with a reserved key, and perhaps the instance's first turn in it."""
    start = draw(starts().filter(lambda start: start.owner is not None))
    events = tuple(draw(st.lists(BODIES, max_size=3)))
    fields: dict[str, Any] = {
        "mail_seen": draw(SMALL),
        "activities": draw(st.sampled_from([(), (NewActivity(2, "pay", b"in", True),)])),
        "timers": draw(st.sampled_from([(), (NewTimer(3, 7),)])),
        "starts": tuple(draw(st.lists(starts(), max_size=2))),
        "sends": tuple(draw(st.lists(sends, max_size=2))),
        "version": draw(st.sampled_from([None, "1"])),
        "settle": draw(FLAGS),
        "set_due": draw(FLAGS),
        "ending": draw(st.sampled_from([None] * 5 + [Ending("completed", b"out")])),
        "release": draw(st.sampled_from([False] * 3 + [True])),
    }
    carries = draw(st.sampled_from([True, True, False]))

    def make(side: Side) -> StartInstance:
        key, owner, token = side.reserve_key(), start.owner, start.token
        assert owner is not None
        assert token is not None
        turn = CommitTurn(key, token, owner, 1, 1, events, **fields) if carries else None
        return msgspec.structs.replace(start, key=key, turn=turn)

    return make


class Side:
    """One provider, and what it handed out so far; the same places on both sides are the same."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.world = World(kind, folder)
        self.acquired: list[tuple[int, str, int]] = []
        self.claims: list[tuple[str, ActivityClaim]] = []
        self.provider: Provider
        self._reserved = 0

    def live(self) -> list[int]:
        """The places of acquisitions whose tokens are good; in memory only."""
        instances = self.world.memory.instances
        return [
            place
            for place, (key, token, execution_id) in enumerate(self.acquired)
            if (instances[key].token, instances[key].execution_id) == (token, execution_id)
        ]

    def reserve_key(self) -> int:
        # In memory the first keys were taken out for this, see `compare`.
        self._reserved += 1
        return self._reserved if self.world.kind == "memory" else self.provider.reserve_key()

    def note(self, batch: list[Operation], outcomes: list[Outcome]) -> None:
        for operation, outcome in zip(batch, outcomes, strict=True):
            match operation, outcome:
                case _, Claimed(instances):
                    self.acquired += [(of.key, of.token, of.execution_id) for of in instances]
                case ClaimActivities(node_id), ClaimedActivities(activities, _):
                    self.claims += [(node_id, claim) for claim in activities]
                case StartInstance(token=str(token)), Started(key):
                    self.acquired.append((key, token, 1))
                case CommitTurn(key=key, token=token, next=NextExecution(number)), Committed():
                    self.acquired.append((key, token, number))
                case _:
                    pass


def one_of(places: list[int], known: int) -> st.SearchStrategy[int]:
    """One of these places of a list, or now and then any other."""
    anywhere = st.integers(0, known - 1)
    return st.one_of([st.sampled_from(places)] * 4 + [anywhere]) if places else anywhere


@st.composite
def turns(draw: st.DrawFn, of: Side, first: Any, now: int) -> Made:
    place = draw(one_of(of.live(), len(of.acquired)))
    execution = draw(FEW)
    events = tuple(draw(st.lists(BODIES, max_size=4)))
    fields: dict[str, Any] = {
        "node_id": draw(NODES),
        "events": events,
        "mail_seen": draw(SMALL),
        "external_seen": draw(st.sampled_from([None, None, None, 0, 1, 2])),
        "consumed": tuple(draw(st.lists(st.integers(1, 9), max_size=2))),
        "activities_gone": tuple(draw(st.lists(st.integers(1, 9), max_size=3))),
        "timers_gone": tuple(draw(st.lists(st.integers(1, 9), max_size=2))),
        "starts": tuple(draw(st.lists(starts(), max_size=1))),
        "sends": tuple(draw(st.lists(sends, max_size=2))),
        "version": draw(st.sampled_from([None, None, "1", "2"])),
        "settle": draw(FLAGS),
        "set_due": draw(FLAGS),
        "due_ms": _at(draw(WHEN), now),
        "release": draw(st.sampled_from([False] * 6 + [True])),
        "retention": draw(st.none() | retentions(now)),
    }
    names = draw(st.lists(st.tuples(st.sampled_from(["pay", "ship"]), FLAGS), max_size=3))
    timers = draw(st.lists(st.integers(0, 99), max_size=2))
    ends: Any = draw(
        st.sampled_from([None] * 12 + ["completed", "failed", "cancelled"] + ["next"] * 4)
    )
    output, error, version = draw(st.none() | BODIES), draw(st.none() | BODIES), draw(FLAGS)
    extra = draw(st.sampled_from([0, 0, 0, 0, 0, -1]))

    def make(side: Side) -> CommitTurn:
        key, token, current = side.acquired[place]
        current += execution
        at = first(key, current) + extra
        ending = following = None
        if ends == "next":
            ending = Ending("continued_as_new", output, error)
            following = NextExecution(current + 1, "2" if version else "1", b"in", b"started")
        elif ends is not None:
            ending = Ending(ends, output, error)
        return CommitTurn(
            key,
            token,
            execution_id=current,
            first_event_id=at,
            activities=tuple(
                NewActivity(at + n, name, b"in", claimed) for n, (name, claimed) in enumerate(names)
            ),
            timers=tuple(NewTimer(at + n, fire_at_ms) for n, fire_at_ms in enumerate(timers)),
            ending=ending,
            next=following,
            **fields,
        )

    return make


@st.composite
def releases(draw: st.DrawFn, of: Side, now: int) -> Made:
    place = draw(one_of(of.live(), len(of.acquired)))
    blocked = draw(st.none() | st.just("poison"))
    values: tuple[Any, ...] = (
        draw(SMALL),
        _at(draw(WHEN), now),
        draw(FLAGS),
        blocked,
        "detail",
        _at(draw(WHEN), now),
    )
    return lambda side: ReleaseInstance(*side.acquired[place][:2], *values)


@st.composite
def activity_ends(draw: st.DrawFn, known: int) -> Made:
    place, body, give_back = draw(st.integers(0, known - 1)), draw(BODIES), draw(FLAGS)
    other, more = draw(st.sampled_from([None] * 5 + ["n-1", "n-2"])), draw(FEW)

    def make(side: Side) -> Operation:
        node, of = side.claims[place]
        claim = of.key, of.execution_id, of.event_id, other or node, of.attempt + more
        return ReleaseActivity(*claim) if give_back else CompleteActivity(*claim, body)

    return make


def _at(relative: int | None, now: int) -> int | None:
    return None if relative is None else now + relative


def retentions(now: int) -> st.SearchStrategy[Retention]:
    times = st.none() | st.integers(now - 30, now)
    return st.builds(Retention, st.integers(1, 3), times)


def operations(side: Side, first: Any) -> st.SearchStrategy[Made]:
    now = side.world.clock.now
    keys = st.lists(st.sampled_from([1, 2, 2 * KEYS + 1, 2 * KEYS + 2]), max_size=3).map(tuple)
    plain: list[st.SearchStrategy[Any]] = [
        starts(),
        sends,
        st.builds(PruneExecutions, IDS, retentions(now)),
        st.builds(NoteBlocked, keys, st.just("waiting"), st.just("detail")),
        st.builds(ClaimInstances, NODES, PAIRS, SMALL, FLAGS),
        st.builds(ClaimInstances, NODES, PAIRS, st.just(9)),
        st.builds(ClaimActivities, NODES, WORK, SMALL, FLAGS),
    ]
    kinds = [each.map(lambda operation: lambda _: operation) for each in plain]
    kinds.append(first_turns())
    if side.acquired:
        kinds += [turns(side, first, now)] * 3
        kinds.append(releases(side, now))
    if side.claims:
        kinds += [activity_ends(len(side.claims))] * 2
    return st.one_of(kinds)


def shown(outcome: Outcome) -> Outcome:
    """The outcome without what is random in it."""
    if isinstance(outcome, Claimed):
        return Claimed(tuple(_without_token(of) for of in outcome.instances))
    return outcome


def _without_token(of: Acquired) -> Acquired:
    assert of.token
    return msgspec.structs.replace(of, token="")


async def committed(side: Side, batch: list[Operation]) -> Any:
    try:
        outcomes = await side.provider.commit(batch)
    except ProviderError:
        return "not acceptable"
    side.note(batch, outcomes)
    return [shown(outcome) for outcome in outcomes]


async def visible(provider: Provider) -> Any:
    """Everything that the reads show."""
    instances = await provider.list_instances(InstanceFilter())
    executions = {i.instance_id: await provider.list_executions(i.instance_id) for i in instances}
    wanted = [(i.key, e.execution_id) for i in instances for e in executions[i.instance_id]]
    all_work = frozenset({"pay", "ship"})
    pairs = frozenset({("x", "1"), ("y", "1")})
    items = [(i.key, i.execution_id, n) for i in instances for n in range(1, 9)]
    return (
        instances,
        executions,
        await provider.histories(wanted),
        [await provider.survey(node, pairs, all_work) for node in ("n-1", "n-2")],
        [await provider.lost_activities(node, items) for node in ("n-1", "n-2")],
        await provider.unrunnable(pairs, 9),
        await provider.list_children("a", "1"),
        await provider.count_instances(),
    )


def opening(instance_id: str) -> Made:
    """An instance that n-1 holds and that waits for an activity of each kind."""

    def make(side: Side) -> StartInstance:
        key, token = side.reserve_key(), f"token of {instance_id}"
        items = NewActivity(1, "pay", b"in", claimed=True), NewActivity(2, "ship", b"in", False)
        turn = CommitTurn(key, token, "n-1", 1, 1, (b"1", b"2"), 0, activities=items, set_due=True)
        return StartInstance(
            instance_id, "1", "x", "1", b"in", owner="n-1", token=token, key=key, turn=turn
        )

    return make


async def compare(data: st.DataObject, folder: Path) -> None:
    sides = [Side(kind, folder) for kind in ("memory", "sqlite")]
    memory, sqlite = sides
    for side in sides:
        side.provider = await side.world.open()
        for node in ("n-1", "n-2"):
            await side.provider.register_node(node, 10**9)
    # The nodes of SQLite have taken the first keys out; from here on both number alike.
    for _ in range(2 * KEYS):
        memory.provider.reserve_key()
    makers: list[Made] = [opening(instance_id) for instance_id in ("a", "b", "c")]
    try:
        for _ in range(data.draw(st.integers(2, 12))):
            batches = [[make(side) for make in makers] for side in sides]
            outcomes = [await committed(*each) for each in zip(sides, batches, strict=True)]
            assert outcomes[0] == outcomes[1], batches[0]
            freed = data.draw(st.sampled_from([None] * 9 + ["n-1"]))
            advance = data.draw(st.integers(0, 15))
            for side in sides:
                if freed is not None:
                    await side.provider.release_node(freed)
                side.world.clock.advance(advance)
            assert await visible(memory.provider) == await visible(sqlite.provider), batches[0]
            first = await next_event_ids(memory.provider)
            makers = data.draw(st.lists(operations(memory, first), min_size=1, max_size=6))
    finally:
        for side in sides:
            await side.world.close()


async def next_event_ids(provider: Provider) -> Callable[[int, int], int]:
    instances = await provider.list_instances(InstanceFilter())
    wanted = [(i.key, n) for i in instances for n in range(1, i.execution_id + 1)]
    lengths = [len(history) for history in await provider.histories(wanted)]
    known = dict(zip(wanted, lengths, strict=True))
    return lambda key, execution_id: known.get((key, execution_id), 0) + 1


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_random_batches_have_the_same_outcomes_and_leave_the_same_rows(
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(data, Path(folder)))

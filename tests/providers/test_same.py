"""The providers do not differ: random batches have the same outcomes and leave the same rows."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
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
    DeleteInstance,
    Ending,
    ImportInstances,
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
    RetryActivity,
    RowFilter,
    SendMessage,
    Snapshot,
    Started,
    StartInstance,
)
from perdure.providers.sqlite.writer import KEYS

_IDS = ["a", "b", "c", "d", "a::sub::1"]
IDS = st.sampled_from(_IDS)
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
    queue=st.sampled_from([None, None, None, "q", "q", "r"]),
    event_id=st.sampled_from([None, None, None, "e-1", "e-2", "e-3"]),
)


def sends_to(instance_id: str) -> st.SearchStrategy[SendMessage]:
    return sends.map(
        lambda send: msgspec.structs.replace(send, instance_id=instance_id, incarnation=None)
    )


options = st.sampled_from([None, None, b"", b"options"])


def parents_of(instance_id: str) -> st.SearchStrategy[ParentLink | None]:
    """A link to an id before this one in the list: nobody is its own ancestor."""
    above = _IDS[: _IDS.index(instance_id)]
    if not above:
        return st.none()
    links = st.builds(ParentLink, st.sampled_from(above), st.just("1"), SMALL, SMALL)
    return st.none() | links


@st.composite
def starts(draw: st.DrawFn) -> StartInstance:
    owner = draw(st.none() | NODES)
    instance_id = draw(IDS)
    return StartInstance(
        instance_id,
        incarnation=draw(st.sampled_from(["1", "2"])),
        name=draw(st.sampled_from(["x", "y"])),
        version=draw(st.sampled_from([None, "1", "2"])),
        input=draw(BODIES),
        parent=draw(parents_of(instance_id)),
        nesting=draw(SMALL),
        owner=owner,
        token=None if owner is None else f"given {draw(SMALL)}",
        if_taken=draw(st.none() | sends),
        sends=tuple(draw(st.lists(sends_to(instance_id), max_size=2))),
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
    if fields["ending"] is not None:
        # What is sent to an instance that its first turn has ended is not counted alike.
        start = msgspec.structs.replace(start, sends=())

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
        self.taken_out = False
        self._reserved = 0

    def live(self) -> list[int]:
        """The places of acquisitions whose tokens are good; in memory only."""
        instances = self.world.memory.instances
        return [
            place
            for place, (key, token, execution_id) in enumerate(self.acquired)
            if key in instances
            and (instances[key].token, instances[key].execution_id) == (token, execution_id)
        ]

    def take_keys_out(self) -> None:
        """Reserve keys as SQLite does for its two nodes, so that from here on both number alike."""
        for _ in range(2 * KEYS):
            self.provider.reserve_key()
        self.taken_out = True

    def reserve_key(self) -> int:
        if not self.taken_out:
            return self.provider.reserve_key()
        self._reserved += 1
        return self._reserved

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
    names = draw(st.lists(st.tuples(st.sampled_from(["pay", "ship"]), FLAGS, options), max_size=3))
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
                NewActivity(at + n, name, b"in", *rest) for n, (name, *rest) in enumerate(names)
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
def activity_ends(draw: st.DrawFn, known: int, now: int) -> Made:
    place, body = draw(st.integers(0, known - 1)), draw(BODIES)
    kind = draw(st.sampled_from([CompleteActivity, ReleaseActivity, RetryActivity, RetryActivity]))
    other, more = draw(st.sampled_from([None] * 5 + ["n-1", "n-2"])), draw(FEW)
    due_ms = now + draw(st.integers(-5, 25))

    def make(side: Side) -> Operation:
        node, of = side.claims[place]
        claim = of.key, of.execution_id, of.event_id, other or node, of.attempt + more
        if kind is RetryActivity:
            return RetryActivity(*claim, due_ms, body)
        return (
            ReleaseActivity(*claim) if kind is ReleaseActivity else CompleteActivity(*claim, body)
        )

    return make


@st.composite
def imports(draw: st.DrawFn, known: Sequence[Snapshot]) -> ImportInstances:
    """Instances that exist or existed, under their own ids or under others."""
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
    renamed = []
    for one in chosen:
        ids = _IDS if one.parent is None else _IDS[_IDS.index(one.parent.instance_id) + 1 :]
        new_id = draw(st.sampled_from([*ids, "f", "g"]))
        renamed.append(msgspec.structs.replace(one, instance_id=new_id))
    return ImportInstances(tuple(renamed))


def _at(relative: int | None, now: int) -> int | None:
    return None if relative is None else now + relative


def retentions(now: int) -> st.SearchStrategy[Retention]:
    times = st.none() | st.integers(now - 30, now)
    return st.builds(Retention, st.integers(1, 3), times)


def filters(now: int) -> st.SearchStrategy[RowFilter]:
    times = st.sampled_from([None] * 6 + [now - 30, now - 10, now - 1, now, now + 1])
    return st.builds(
        RowFilter,
        status=st.sampled_from([None, None, None, "pending", "running", "completed"]),
        name=st.sampled_from([None, None, "x", "y"]),
        version=st.sampled_from([None, None, None, "1", "2"]),
        id_prefix=st.sampled_from([None, None, "", "a", "a:", "b"]),
        parent=st.none() | IDS,
        blocked=st.sampled_from([None, None, True, False]),
        created_after_ms=times,
        created_before_ms=times,
        finished_after_ms=times,
        finished_before_ms=times,
    )


def operations(side: Side, first: Any, known: Sequence[Snapshot]) -> st.SearchStrategy[Made]:
    now = side.world.clock.now
    keys = st.lists(st.sampled_from([1, 2, 2 * KEYS + 1, 2 * KEYS + 2]), max_size=3).map(tuple)
    plain: list[st.SearchStrategy[Any]] = [
        starts(),
        sends,
        st.builds(PruneExecutions, IDS, retentions(now)),
        st.builds(DeleteInstance, IDS, st.sampled_from([False, False, True])),
        st.builds(NoteBlocked, keys, st.just("waiting"), st.just("detail")),
        st.builds(ClaimInstances, NODES, PAIRS, SMALL, FLAGS),
        st.builds(ClaimInstances, NODES, PAIRS, st.just(9)),
        st.builds(ClaimActivities, NODES, WORK, SMALL, FLAGS),
    ]
    if known:
        plain.append(imports(known))
    kinds = [each.map(lambda operation: lambda _: operation) for each in plain]
    kinds.append(first_turns())
    if side.acquired:
        kinds += [turns(side, first, now)] * 3
        kinds.append(releases(side, now))
    if side.claims:
        kinds += [activity_ends(len(side.claims), now)] * 2
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
    last_key = side.world.memory.last_key
    try:
        outcomes = await side.provider.commit(batch)
    except ProviderError:
        # SQLite's own counter goes back with the transaction; nobody has seen these keys.
        if side.taken_out:
            side.world.memory.last_key = last_key
        return "not acceptable"
    side.note(batch, outcomes)
    return [shown(outcome) for outcome in outcomes]


async def visible(provider: Provider, filters: Sequence[RowFilter]) -> dict[str, Any]:
    """Everything that the reads show."""
    instances = await provider.list_instances(RowFilter())
    executions = {i.instance_id: await provider.list_executions(i.instance_id) for i in instances}
    wanted = [(i.key, e.execution_id) for i in instances for e in executions[i.instance_id]]
    all_work = frozenset({"pay", "ship"})
    pairs = frozenset({("x", "1"), ("y", "1")})
    items = [(i.key, i.execution_id, n) for i in instances for n in range(1, 9)]
    return {
        "instances": instances,
        "executions": executions,
        "histories": await provider.histories(wanted),
        "surveys": [await provider.survey(node, pairs, all_work) for node in ("n-1", "n-2")],
        "lost": [await provider.lost_activities(node, items) for node in ("n-1", "n-2")],
        "unrunnable": await provider.unrunnable(pairs, 9),
        "lists": [await provider.list_instances(each) for each in filters],
        "trees": [await provider.list_tree(i.instance_id) for i in instances],
        "snapshots": [await provider.snapshots(i.instance_id) for i in instances],
        "activities": [await provider.list_activities(i.key) for i in instances],
        "queues": [
            await provider.queue_items(i.key, queue, after, 2)
            for i in instances
            for queue in ("q", "r")
            for after in (0, 4)
        ],
        "counts": (await provider.count_instances(), await provider.count_blocked()),
        "depths": await provider.depths(),
    }


def opening(instance_id: str) -> Made:
    """An instance that n-1 holds and that waits for an activity of each kind."""

    def make(side: Side) -> StartInstance:
        key, token = side.reserve_key(), f"token of {instance_id}"
        items = (
            NewActivity(1, "pay", b"in", claimed=True, options=b"options"),
            NewActivity(2, "ship", b"in", claimed=False),
        )
        turn = CommitTurn(key, token, "n-1", 1, 1, (b"1", b"2"), 0, activities=items, set_due=True)
        return StartInstance(
            instance_id, "1", "x", "1", b"in", owner="n-1", token=token, key=key, turn=turn
        )

    return make


async def compare(data: st.DataObject, folder: Path) -> None:
    memory, _ = sides = [Side(kind, folder) for kind in ("memory", "sqlite")]
    for side in sides:
        side.provider = await side.world.open()
        for node in ("n-1", "n-2"):
            await side.provider.register_node(node, 10**9)
    memory.take_keys_out()
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
            rows = data.draw(st.lists(filters(memory.world.clock.now), max_size=3))
            here, there = [await visible(side.provider, rows) for side in sides]
            assert {name: there[name] for name in here if here[name] != there[name]} == {}, (
                here,
                batches[0],
            )
            first, known = await next_event_ids(memory.provider), await snapshots(memory.provider)
            makers = data.draw(st.lists(operations(memory, first, known), min_size=1, max_size=6))
    finally:
        for side in sides:
            await side.world.close()


async def next_event_ids(provider: Provider) -> Callable[[int, int], int]:
    instances = await provider.list_instances(RowFilter())
    wanted = [(i.key, n) for i in instances for n in range(1, i.execution_id + 1)]
    lengths = [len(history) for history in await provider.histories(wanted)]
    known = dict(zip(wanted, lengths, strict=True))
    return lambda key, execution_id: known.get((key, execution_id), 0) + 1


async def snapshots(provider: Provider) -> list[Snapshot]:
    """Of all instances, as each is by itself."""
    found = [await provider.snapshots(instance_id) for instance_id in _IDS]
    return [one for tree in found for one in tree]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_random_batches_have_the_same_outcomes_and_leave_the_same_rows(
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(data, Path(folder)))

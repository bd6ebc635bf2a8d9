"""Turns: all of one is committed, or nothing (C-056 to C-066, C-068).

The fault is a value that no store can take, at every place of a turn that has a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Committed,
    CommitTurn,
    Ending,
    NewActivity,
    NewTimer,
    ParentLink,
    Provider,
    RowFilter,
    Started,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    NO_NUMBER,
    NO_TEXT,
    acquire,
    bodies,
    case,
    claim,
    claim_work,
    continuing,
    ending,
    everything,
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

NOT_APPLICABLE = {
    "C-065": "an engine leaves out of a turn what the same turn also withdraws",
}

FAULTS: dict[str, Any] = {
    "activities": NewActivity(90, NO_TEXT, b"7", claimed=False),
    "timers": NewTimer(NO_NUMBER, 5),
    "starts": new("bad child", name=NO_TEXT),
    "sends": note("i-1", queue=NO_TEXT),
}
"""For each part of a turn that is a list of things, one that cannot be stored."""


def broken(good: CommitTurn) -> Iterator[CommitTurn]:
    """The turn with a fault: in each of its lists at every position, and in each single value."""
    for part, fault in FAULTS.items():
        items = getattr(good, part)
        for place in range(len(items) + 1):
            yield msgspec.structs.replace(good, **{part: (*items[:place], fault, *items[place:])})
    yield msgspec.structs.replace(good, version=NO_TEXT)
    yield msgspec.structs.replace(good, set_due=True, due_ms=NO_NUMBER)
    if good.next is None:
        # Nothing comes after it, so an instance cannot end so.
        yield msgspec.structs.replace(good, ending=Ending("continued_as_new"))
    else:
        following = msgspec.structs.replace(good.next, version=NO_TEXT)
        yield msgspec.structs.replace(good, next=following)


async def committed_whole(provider: Provider, good: CommitTurn) -> Committed:
    """Commit a turn after each broken form of it has failed and changed nothing."""
    before = await everything(provider)
    for bad in broken(good):
        with pytest.raises(ProviderError):
            await one(provider, bad)
        assert await everything(provider) == before
    # Alone and last of a batch: what came before it goes with it.
    with pytest.raises(ProviderError):
        await provider.commit([new("neighbour"), good, new("bad", nesting=NO_NUMBER)])
    assert await everything(provider) == before
    return is_a(Committed, await one(provider, good))


class AtomicCases:
    """See the module."""

    @case("C-056")
    async def test_c056_events(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        assert await committed_whole(provider, turn(of, b"1", b"2", b"3")) == Committed()

        assert await provider.read_history("i-1") == [b"1", b"2", b"3"]

    @case("C-057")
    async def test_c057_events_and_activities(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        activities = (running(1), queued(2, "ship"), queued(3), running(4))

        await committed_whole(provider, turn(of, b"1", activities=activities))

        listed = await provider.list_activities(of.key)
        assert [(each.event_id, each.owner) for each in listed] == [
            (1, "n-1"),
            (2, None),
            (3, None),
            (4, "n-1"),
        ]
        assert len((await claim_work(provider, "pay", "ship")).activities) == 2

    @case("C-058")
    async def test_c058_events_and_timers(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        timers = (NewTimer(1, 100), NewTimer(2, 50), NewTimer(3, 75))

        await committed_whole(provider, turn(of, b"1", timers=timers, release=True))

        (again,) = await claim(provider)
        assert again.timers == timers

    @case("C-059")
    async def test_c059_events_and_the_start_of_children(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        link = ParentLink("i-1", of.incarnation, 1, 1)
        starts = tuple(new(f"child-{n}", parent=link, nesting=1) for n in range(2))

        outcome = await committed_whole(provider, turn(of, b"1", starts=starts))

        children = await provider.list_instances(RowFilter(parent="i-1"))
        assert [child.instance_id for child in children] == ["child-0", "child-1"]
        assert [is_a(Started, each).key for each in outcome.starts] == [
            child.key for child in children
        ]

    @case("C-059")
    async def test_c059_a_child_has_what_was_sent_with_its_start(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        sends = (note("child", b"mail"), note("child", b"item", queue="q"))

        await committed_whole(provider, turn(of, b"1", starts=(new("child", sends=sends),)))

        (child,) = await claim(provider)
        assert [message.body for message in child.messages] == [b"mail"]
        items = await provider.queue_items(child.key, "q", 0, 9)
        assert [item.body for item in items] == [b"item"]

    @case("C-059")
    async def test_c059_a_child_can_come_acquired_by_the_node_of_its_parent(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        child = new("child", owner="n-1", token="t-child")

        await committed_whole(provider, turn(of, b"1", starts=(child,)))

        held = await row(provider, "child")
        assert (held.owner, held.attempt) == ("n-1", 1)
        first = turn(of, b"1", key=held.key, token="t-child", release=True)
        assert await one(provider, first) == Committed()

    @case("C-060")
    async def test_c060_events_and_messages_to_others(self, store: Harness) -> None:
        provider = await store.open()
        of, _ = await acquire(provider), await acquire(provider, "i-2")
        sends = (note("i-2", b"a"), note("i-1", b"b"), note("i-2", b"c", queue="q"))

        await committed_whole(provider, turn(of, b"1", sends=sends))

        assert sorted(await bodies(provider)) == [b"a", b"b"]
        items = await provider.queue_items((await row(provider, "i-2")).key, "q", 0, 9)
        assert [item.body for item in items] == [b"c"]

    @case("C-061")
    async def test_c061_the_end_and_what_is_said_to_the_parent(self, store: Harness) -> None:
        provider = await store.open()
        parent = await acquire(provider, "parent")
        of = await acquire(provider, parent=ParentLink("parent", parent.incarnation, 1, 1))
        told = note("parent", b"child done", incarnation=parent.incarnation)

        await committed_whole(provider, ending(of, b"1", sends=(told,)))

        assert ((await row(provider)).status, (await row(provider)).output) == (
            "completed",
            b"done",
        )
        assert await bodies(provider) == [b"child done"]

    @case("C-062")
    async def test_c062_continue_as_new(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        timers = (NewTimer(1, 9),)
        await one(provider, turn(of, b"1", activities=(running(2), queued(3)), timers=timers))

        await committed_whole(provider, continuing(of, b"2", first=2, sends=(note("i-1"),)))

        assert (await row(provider)).execution_id == 2
        assert await provider.read_history("i-1") == [b"started"]
        assert await provider.read_history("i-1", 1) == [b"1", b"2"]
        assert await provider.list_activities(of.key) == []
        assert (await provider.depths()).timers == 0

    @case("C-063")
    async def test_c063_version_status_and_due_time(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider, version=None)
        due_ms = store.clock.now + 500

        good = turn(of, b"1", version="2", settle=True, set_due=True, due_ms=due_ms, release=True)
        await committed_whole(provider, good)

        after = await row(provider)
        assert (after.version, after.status, after.due_ms) == ("2", "running", due_ms)
        assert (after.attempt, after.owner) == (0, None)

    @case("C-063")
    @pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
    async def test_c063_output_and_error_of_an_ending(self, store: Harness, status: Any) -> None:
        provider = await store.open()
        of = await acquire(provider)
        now = store.clock.advance(7)

        good = turn(of, b"1", ending=Ending(status, b"out", b"err"), set_due=True, due_ms=5)
        await committed_whole(provider, good)

        after = await row(provider)
        assert (after.status, after.output, after.error) == (status, b"out", b"err")
        assert (after.finished_ms, after.due_ms, after.owner) == (now, None, None)
        (execution,) = await provider.list_executions("i-1")
        assert (execution.status, execution.ended_ms) == (status, now)
        assert (execution.output, execution.error) == (b"out", b"err")

    @case("C-064")
    async def test_c064_the_withdrawal_of_activities_and_timers(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        timers = tuple(NewTimer(n, 100) for n in (5, 6))
        work = (running(1), queued(2), running(3), queued(4))
        await one(provider, turn(of, b"1", activities=work, timers=timers))

        gone = turn(of, b"2", first=2, activities_gone=(1, 2, 9), timers_gone=(5, 9), release=True)
        await committed_whole(provider, gone)

        assert [each.event_id for each in await provider.list_activities(of.key)] == [3, 4]
        (again,) = await claim(provider)
        assert again.timers == (NewTimer(6, 100),)

    @case("C-066")
    async def test_c066_consumed_messages_go_and_the_others_stay(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider)
        await provider.commit([note(body=b"%d" % n) for n in range(3)])
        (of,) = await claim(provider)
        consumed = (of.messages[0].seq, of.messages[2].seq)

        await committed_whole(provider, turn(of, b"1", consumed=consumed))

        assert await bodies(provider) == [b"1"]

    @case("C-066")
    async def test_c066_a_turn_consumes_from_its_own_inbox_and_queues_only(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of, other = await acquire(provider), await acquire(provider, "i-2")
        await provider.commit([note("i-2", b"mail"), note("i-2", b"item", queue="q")])
        await provider.commit([note("i-1", b"mine", queue="q")])
        survey = await provider.survey("n-1", frozenset(), frozenset())
        (mail,) = [mail for mail in survey.mail if mail.messages]
        (item,) = await provider.queue_items(other.key, "q", 0, 9)
        (mine,) = await provider.queue_items(of.key, "q", 0, 9)

        consumed = (mail.messages[0].seq, item.seq, mine.seq)
        await one(provider, turn(of, b"1", consumed=consumed))

        assert await bodies(provider) == [b"mail"]
        assert await provider.queue_items(other.key, "q", 0, 9) == [item]
        assert await provider.queue_items(of.key, "q", 0, 9) == []

    @case("C-068")
    async def test_c068_a_turn_without_events_gives_the_instance_back(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        assert await one(provider, turn(of, release=True)) == Committed()

        assert await provider.read_history("i-1") == []
        assert len(await claim(provider, "n-2")) == 1

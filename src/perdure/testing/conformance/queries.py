"""Reads: lists, filters, pages, trees, counts (C-167 to C-176)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.errors import InstanceNotFound
from perdure.providers.contract import (
    ActivityRow,
    Committed,
    Depths,
    Ending,
    NewTimer,
    Operation,
    ParentLink,
    Provider,
    ReleaseInstance,
    RetryActivity,
    RowFilter,
    Survey,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    CAPS,
    MULTI_PROCESS,
    NAMES,
    acquire,
    case,
    claim,
    ending,
    everything,
    new,
    note,
    one,
    queued,
    row,
    running,
    start,
    turn,
)

NOT_APPLICABLE: dict[str, str] = {
    "C-175": "lists have one order, that of the keys; there is no sort field to get wrong",
    "C-176": "a matter of speed; for SQLite tests/providers/test_sqlite.py counts the steps",
}


async def listed(provider: Provider, **wanted: Any) -> list[str]:
    """The ids that a filter finds."""
    return [each.instance_id for each in await provider.list_instances(RowFilter(**wanted))]


async def some_of_everything(store: Harness, provider: Provider) -> list[int]:
    """Instances a, b, c, d, e, each started 10 ms after the one before; returns when. a completed,
    b failed (each 5 ms after its start), c runs, d is pending and blocked, e is a child of d."""
    times = []
    names = {"a": "order", "b": "refund", "c": "order", "d": "order", "e": "refund"}
    for instance_id, name in names.items():
        parent = ParentLink("d", "inc of d", 1, 1) if instance_id == "e" else None
        times.append(store.clock.now)
        of = await acquire(provider, instance_id, name=name, parent=parent)
        store.clock.advance(5)
        operations: dict[str, Operation] = {
            "a": ending(of, version="1"),
            "b": turn(of, version="1", ending=Ending("failed", error=b"x")),
            "c": turn(of, version="2"),
            "d": ReleaseInstance(of.key, of.token, 0, None, blocked="poison", detail="why"),
            "e": ReleaseInstance(of.key, of.token, 0, None),
        }
        await one(provider, operations[instance_id])
        store.clock.advance(5)
    return times


class QueryCases:
    """See the module."""

    @case("C-167")
    async def test_c167_a_list_is_filtered_by_status_name_version_prefix_and_parent(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await some_of_everything(store, provider)

        assert await listed(provider) == ["a", "b", "c", "d", "e"]
        assert await listed(provider, status="completed") == ["a"]
        assert await listed(provider, status="failed") == ["b"]
        assert await listed(provider, status="pending") == ["d", "e"]
        assert await listed(provider, status="cancelled") == []
        assert await listed(provider, name="refund") == ["b", "e"]
        assert await listed(provider, version="2") == ["c"]
        assert await listed(provider, parent="d") == ["e"]
        assert await listed(provider, parent="a") == []
        assert await listed(provider, id_prefix="") == ["a", "b", "c", "d", "e"]
        assert await listed(provider, id_prefix="ab") == []

    @case("C-167")
    async def test_c167_a_list_is_filtered_by_time_and_the_time_itself_is_outside(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        times = await some_of_everything(store, provider)

        assert await listed(provider, created_after_ms=times[1]) == ["c", "d", "e"]
        assert await listed(provider, created_before_ms=times[1]) == ["a"]
        between = {"created_after_ms": times[0], "created_before_ms": times[3]}
        assert await listed(provider, **between) == ["b", "c"]
        assert await listed(provider, finished_after_ms=times[0]) == ["a", "b"]
        assert await listed(provider, finished_after_ms=times[0] + 5) == ["b"]
        assert await listed(provider, finished_before_ms=times[1] + 5) == ["a"]
        assert await listed(provider, finished_before_ms=times[4] + 99) == ["a", "b"]

    @case("C-167")
    async def test_c167_every_field_that_is_given_must_hold(self, store: Harness) -> None:
        provider = await store.open()
        times = await some_of_everything(store, provider)

        assert await listed(provider, blocked=True) == ["d"]
        assert await listed(provider, blocked=False) == ["a", "b", "c", "e"]
        assert await listed(provider, blocked=False, status="pending") == ["e"]
        assert await listed(provider, status="pending", name="refund", parent="d") == ["e"]
        assert await listed(provider, status="pending", name="refund", parent="e") == []
        late = {"created_after_ms": times[2], "blocked": False, "version": "1"}
        assert await listed(provider, **late) == ["e"]

    @case("C-168")
    async def test_c168_filters_are_text_and_no_patterns(self, store: Harness) -> None:
        provider = await store.open()
        ids = ["a%b", "aXb", "a_b", "a\\b", "a'b", 'a"b', "a*b", "a[b", "a?b", "A%B", "a%", "a"]
        await provider.commit([new(each, name=each) for each in ids])

        for each in ids[:10]:
            assert await listed(provider, id_prefix=each) == [each]
            assert await listed(provider, name=each) == [each]
            assert await listed(provider, parent=each) == []
        assert await listed(provider, id_prefix="a%") == ["a%b", "a%"]
        assert await listed(provider, id_prefix="%") == []
        assert await listed(provider, name="a' OR '1'='1") == []

    @case("C-168")
    async def test_c168_prefixes_are_compared_by_bytes(self, store: Harness) -> None:
        provider = await store.open()
        ids = ["\u00e9-1", "e\u0301-1", "E-1", "\u00ff", "z", "\U0001f600-1", "\U0010ffff", "e-1"]
        await provider.commit([new(each) for each in ids])

        assert await listed(provider, id_prefix="\u00e9") == ["\u00e9-1"]
        assert await listed(provider, id_prefix="e") == ["e\u0301-1", "e-1"]
        assert await listed(provider, id_prefix="E") == ["E-1"]
        assert await listed(provider, id_prefix="\U0001f600") == ["\U0001f600-1"]
        assert await listed(provider, id_prefix="\U0010ffff") == ["\U0010ffff"]

    @case("C-169")
    async def test_c169_pages_neither_repeat_nor_skip_what_was_there_all_the_time(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.commit([new(f"i-{n}", name=("order", "refund")[n % 2]) for n in range(30)])

        pages, after, number = [], 0, 0
        while page := await provider.list_instances(RowFilter(name="order"), after, 4):
            pages.append([each.instance_id for each in page])
            after = page[-1].key
            if number < 3:
                await start(provider, f"late-{number}")
                number += 1

        seen = [instance_id for page in pages for instance_id in page]
        assert {len(page) for page in pages[:-1]} == {4}
        assert seen[:15] == [f"i-{n}" for n in range(0, 30, 2)]
        assert seen[15:] == [f"late-{n}" for n in range(3)]

    @case("C-169")
    async def test_c169_a_page_is_as_long_as_asked_and_in_key_order(self, store: Harness) -> None:
        provider = await store.open()
        await provider.commit([new(f"i-{n:03}") for n in range(150)])

        rows = await provider.list_instances(RowFilter())

        assert [each.instance_id for each in rows] == [f"i-{n:03}" for n in range(100)]
        assert [each.key for each in rows] == sorted(each.key for each in rows)
        assert await provider.list_instances(RowFilter(), limit=0) == []
        assert len(await provider.list_instances(RowFilter(), limit=1_000)) == 150

    @case("C-170", needs=MULTI_PROCESS)
    async def test_c170_a_row_is_one_snapshot(self, store: Harness) -> None:
        provider, other = await store.open(), await store.open()
        held = [await acquire(provider, f"i-{n}") for n in range(40)]

        async def look() -> None:
            ended = 0
            while ended < 40:
                rows = await other.list_instances(RowFilter())
                for each in rows:
                    has_ended = each.status == "completed"
                    assert (each.output == b"done") == has_ended
                    assert (each.finished_ms is not None) == has_ended
                    assert (each.owner is None) == has_ended
                now_ended = sum(each.status == "completed" for each in rows)
                assert now_ended >= ended
                ended = now_ended
                # A read that need not wait would not let the commits go on.
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        for of in held:
            assert await one(provider, ending(of, b"1")) == Committed()
        await looking

    @case("C-171")
    async def test_c171_a_tree_is_the_instance_with_all_below_it(self, store: Harness) -> None:
        provider = await store.open()
        parents = {"p": None, "c-1": "p", "x": None, "c-2": "p", "g": "c-2", "y": "x", "gg": "g"}
        for instance_id, parent in parents.items():
            link = None if parent is None else ParentLink(parent, f"inc of {parent}", 1, 1)
            await start(provider, instance_id, parent=link)
        await start(provider, "old", parent=ParentLink("p", "another incarnation", 1, 1))

        async def tree(instance_id: str) -> list[str]:
            return [each.instance_id for each in await provider.list_tree(instance_id)]

        assert await tree("p") == ["p", "c-1", "c-2", "g", "gg"]
        assert await tree("c-2") == ["c-2", "g", "gg"]
        assert await tree("gg") == ["gg"]
        assert await tree("nobody") == []
        assert (await provider.list_tree("g"))[0] == await row(provider, "g")

    @case("C-172")
    async def test_c172_instances_are_counted_by_status_and_by_what_blocks_them(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await some_of_everything(store, provider)
        of = await acquire(provider, "f")
        release = ReleaseInstance(of.key, of.token, 0, None, blocked="poison", detail="other")
        await one(provider, release)

        counts = await provider.count_instances()

        assert counts == {"completed": 1, "failed": 1, "running": 1, "pending": 3}
        assert await provider.count_blocked() == {"poison": 2}

    @case("C-172")
    async def test_c172_depths_tell_what_waits(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider, "held")
        work = (queued(1), queued(2), queued(3, "ship"), running(4), running(5))
        timers = (NewTimer(6, store.clock.now + 9), NewTimer(7, 0))
        await one(provider, turn(of, activities=work, timers=timers))
        retry = RetryActivity(of.key, 1, 5, "n-1", 1, store.clock.now + 50, b"error")
        await one(provider, retry)
        await start(provider, "due")
        later = await acquire(provider, "later")
        await one(provider, ReleaseInstance(later.key, later.token, 0, store.clock.now + 1))
        await start(provider, "due too")
        await provider.commit([note("held"), note("due"), note("due", queue="q")])

        assert await provider.depths() == Depths(
            instances=1,
            messages=2,
            items=1,
            timers=2,
            activities={"pay": (2, 1, 1), "ship": (1, 0, 0)},
        )

    @case("C-172")
    async def test_c172_open_activities_are_listed_with_their_attempts(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        now = store.clock.now
        await one(provider, turn(of, activities=(running(9), queued(3, "ship"), running(1))))
        await one(provider, RetryActivity(of.key, 1, 1, "n-1", 1, now + 70, b"boom"))
        other = await acquire(provider, "other")
        await one(provider, turn(other, activities=(queued(4),)))

        assert await provider.list_activities(of.key) == [
            ActivityRow(1, 1, "pay", None, 1, now + 70, b"boom"),
            ActivityRow(1, 3, "ship", None, 0, now, None),
            ActivityRow(1, 9, "pay", "n-1", 1, now, None),
        ]
        assert await provider.list_activities(of.key + 99) == []

    @case("C-173")
    async def test_c173_an_empty_store_is_empty_in_every_way(self, store: Harness) -> None:
        provider = await store.open()

        assert await provider.list_instances(RowFilter()) == []
        assert await provider.get_instances(["i-1"]) == {}
        assert await provider.get_instances([]) == {}
        assert await provider.list_executions("i-1") == []
        assert await provider.list_tree("i-1") == []
        assert await provider.list_activities(1) == []
        assert await provider.snapshots("i-1") == []
        assert await provider.queue_items(1, "q", 0, 9) == []
        assert await provider.get_execution(1, 1) is None
        assert await provider.histories([]) == []
        assert await provider.histories([(1, 1)]) == [[]]
        assert await provider.nodes() == []
        assert await provider.count_instances() == {}
        assert await provider.count_blocked() == {}
        assert await provider.depths() == Depths(0, 0, 0, 0, {})
        assert await provider.survey("n-1", CAPS, NAMES) == Survey((), None, None)
        assert await provider.unrunnable(CAPS, 9) == []
        assert await provider.lost_activities("n-1", []) == []
        assert await provider.lost_activities("n-1", [(1, 1, 1)]) == [(1, 1, 1)]
        assert await claim(provider) == ()
        assert await provider.commit([]) == []
        with pytest.raises(InstanceNotFound):
            await provider.read_history("i-1")

    @case("C-174")
    async def test_c174_a_cursor_is_any_number(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, b"1", b"2"))
        await one(provider, note(queue="q"))
        before = await everything(provider)

        for low in (-(2**63), -1, 0):
            assert len(await provider.list_instances(RowFilter(), after=low)) == 1
            assert len(await provider.queue_items(of.key, "q", low, 9)) == 1
        for high in (of.key, 2**63 - 1):
            assert await provider.list_instances(RowFilter(), after=high) == []
        assert await provider.queue_items(of.key, "q", 2**63 - 1, 9) == []
        assert await provider.read_history("i-1", after=2) == []
        assert await provider.read_history("i-1", after=2**62) == []
        assert await everything(provider) == before

"""Histories: kept byte for byte, in order, each execution its own (C-015 to C-030)."""

from __future__ import annotations

import asyncio

import pytest

from perdure.errors import InstanceNotFound, ProviderError
from perdure.providers.contract import Acquired, Committed, DeleteInstance, Provider
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    DURABLE,
    FENCED,
    MULTI_PROCESS,
    acquire,
    case,
    continuing,
    ending,
    everything,
    one,
    turn,
)

NOT_APPLICABLE = {
    "C-019": "an engine numbers events from what it has read; the fence keeps out who has not",
    "C-026": "how stored bytes are damaged depends on the store: a test of each store's own",
    "C-027": "how stored bytes are damaged depends on the store: a test of each store's own",
}

ODD = (
    b"",
    b"\x00\xff\n",
    b'{"type":"FromTheFuture","event_id":3,"b":1,"a":2}',
    '{"text":"\u2028\u00e9"}'.encode(),
    b"[1, 2 ,3]\r\n",
    b"not JSON at all",
)
"""Events that a store which interprets or normalises them would change."""


async def pages(provider: Provider, limit: int, execution_id: int | None = None) -> list[bytes]:
    """A history read page by page."""
    found: list[bytes] = []
    while True:
        page = await provider.read_history("i-1", execution_id, after=len(found), limit=limit)
        assert len(page) <= limit
        found += page
        if not page:
            return found


EVENTS = 50
"""How many events a turn of the writers below has."""


async def append(provider: Provider, of: Acquired, number: int) -> None:
    events = [b"event"] * EVENTS
    assert await one(provider, turn(of, *events, first=number * EVENTS + 1)) == Committed()


async def append_all(provider: Provider, of: Acquired, turns: int) -> None:
    for number in range(turns):
        await append(provider, of, number)


async def length(provider: Provider) -> int:
    return len(await provider.read_history("i-1", limit=10_000))


class HistoryCases:
    """See the module."""

    @case("C-015")
    async def test_c015_the_history_of_an_unknown_id_is_an_error_and_not_empty(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        assert await provider.read_history("i-1") == []
        assert await provider.read_history("i-1", execution_id=7) == []

        with pytest.raises(InstanceNotFound):
            await provider.read_history("i-2")
        await one(provider, DeleteInstance("i-1", force=True))
        with pytest.raises(InstanceNotFound):
            await provider.read_history("i-1")
        assert await provider.histories([(of.key, 1), (of.key + 99, 1)]) == [[], []]

    @case("C-016", "C-025")
    async def test_c016_events_are_read_back_byte_for_byte(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        assert await one(provider, turn(of, *ODD)) == Committed()
        assert await one(provider, turn(of, *ODD, first=len(ODD) + 1)) == Committed()

        assert await provider.read_history("i-1") == [*ODD, *ODD]
        assert await provider.histories([(of.key, 1)]) == [[*ODD, *ODD]]
        (snapshot,) = await provider.snapshots("i-1")
        assert snapshot.executions[0].events == (*ODD, *ODD)

    @case("C-016", "C-025", needs=DURABLE)
    async def test_c016_events_are_the_same_bytes_after_everything_was_opened_anew(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, *ODD))

        provider = await store.reopen()

        assert await provider.read_history("i-1") == [*ODD]

    @case("C-017")
    async def test_c017_events_are_ordered_by_number_not_as_text(self, store: Harness) -> None:
        provider = await store.open()
        of = [await acquire(provider, f"i-{n}") for n in range(2)]
        for first in range(1, 250, 3):
            await provider.commit(
                [
                    turn(each, *(b"%d" % n for n in range(first, first + 3)), first=first)
                    for each in of
                ]
            )

        expected = [b"%d" % n for n in range(1, 250)]
        assert await provider.histories([(each.key, 1) for each in of]) == [expected, expected]

    @case("C-017")
    async def test_c017_turns_of_one_batch_are_appended_in_the_order_of_the_list(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)

        await provider.commit([turn(of, b"1", b"2"), turn(of, first=3), turn(of, b"3", first=3)])

        assert await provider.read_history("i-1") == [b"1", b"2", b"3"]

    @case("C-018", "C-047")
    async def test_c018_an_event_number_that_is_taken_is_refused_with_its_whole_batch(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of, other = await acquire(provider), await acquire(provider, "i-2")
        await one(provider, turn(of, b"1", b"2"))
        before = await everything(provider)

        for first in (1, 2):
            with pytest.raises(ProviderError):
                await provider.commit([turn(other, b"1"), turn(of, b"again", first=first)])

        assert await everything(provider) == before
        assert await one(provider, turn(of, b"3", first=3)) == Committed()

    @case("C-020")
    async def test_c020_only_the_current_execution_is_appended_to(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        assert await one(provider, turn(of, b"early", execution_id=2)) == FENCED
        await one(provider, continuing(of, b"1"))
        before = await everything(provider)

        for wrong in (0, 1, 3):
            assert await one(provider, turn(of, b"late", first=2, execution_id=wrong)) == FENCED

        assert await everything(provider) == before
        assert await one(provider, turn(of, b"2", first=2, execution_id=2)) == Committed()

    @case("C-021")
    async def test_c021_an_ended_instance_is_not_appended_to(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, ending(of, b"1"))
        before = await everything(provider)

        assert await one(provider, turn(of, b"2", first=2)) == FENCED
        assert await one(provider, ending(of, b"2", first=2)) == FENCED

        assert await everything(provider) == before

    @case("C-022", "C-023")
    async def test_c022_each_execution_has_a_history_of_its_own(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, continuing(of, b"1-1", b"1-2"))
        await one(provider, turn(of, b"2-2", first=2, execution_id=2))

        assert await provider.read_history("i-1", 1) == [b"1-1", b"1-2"]
        assert await provider.read_history("i-1", 2) == [b"started", b"2-2"]
        assert await provider.read_history("i-1") == [b"started", b"2-2"]
        assert await provider.read_history("i-1", 3) == []

    @case("C-022", "C-023")
    async def test_c023_histories_come_in_the_order_asked_for_and_empty_where_there_is_none(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        first, second = [await acquire(provider, f"i-{n}") for n in range(2)]
        await provider.commit([turn(first, b"a"), turn(second, b"b", b"c")])
        wanted = [(second.key, 1), (first.key, 2), (999_999, 1), (first.key, 1), (second.key, 1)]

        assert await provider.histories(wanted) == [[b"b", b"c"], [], [], [b"a"], [b"b", b"c"]]
        assert await provider.histories([]) == []

    @case("C-024")
    async def test_c024_a_long_history_is_read_by_pages_without_repeating_or_skipping(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        events = [b"%d" % n for n in range(1, 50_001)]
        for first in range(0, 50_000, 10_000):
            await one(provider, turn(of, *events[first : first + 10_000], first=first + 1))

        assert await pages(provider, 9_999) == events
        assert await provider.histories([(of.key, 1)]) == [events]

    @case("C-024")
    async def test_c024_pages_of_every_size_hold_together(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        events = [b"%d" % n for n in range(1, 13)]
        await one(provider, continuing(of, *events))

        for limit in range(1, 14):
            assert await pages(provider, limit, execution_id=1) == events
        assert await provider.read_history("i-1", 1, after=12) == []
        assert await provider.read_history("i-1", 1, after=3, limit=2) == [b"4", b"5"]
        assert await provider.read_history("i-1", 1, limit=0) == []

    @case("C-028", "C-029")
    async def test_c028_events_that_nobody_can_decode_hold_up_neither_neighbours_nor_the_end(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        bad, good = await acquire(provider), await acquire(provider, "i-2")
        await provider.commit([turn(bad, b'{"cut o'), turn(good, b"1")])

        assert await provider.histories([(bad.key, 1), (good.key, 1)]) == [[b'{"cut o'], [b"1"]]
        assert await one(provider, turn(good, b"2", first=2)) == Committed()
        assert await one(provider, ending(bad, b"end", first=2)) == Committed()
        assert await provider.count_instances() == {"pending": 1, "completed": 1}

    @case("C-030")
    async def test_c030_a_reader_sees_a_turn_whole_or_not_at_all(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        writing = [append(provider, of, number) for number in range(20)]
        reading = [length(provider) for _ in range(20)]

        _, lengths = await asyncio.gather(asyncio.gather(*writing), asyncio.gather(*reading))

        assert {each % EVENTS for each in lengths} == {0}
        assert await length(provider) == 20 * EVENTS

    @case("C-030", needs=MULTI_PROCESS)
    async def test_c030_a_reader_in_another_process_sees_a_turn_whole_or_not_at_all(
        self, store: Harness
    ) -> None:
        writer, reader = await store.open(), await store.open()
        of = await acquire(writer)
        writing = asyncio.create_task(append_all(writer, of, 40))
        lengths: list[int] = []

        while not writing.done():
            lengths.append(await length(reader))
            await asyncio.sleep(0)
        await writing

        assert {each % EVENTS for each in lengths} == {0}
        assert lengths == sorted(lengths)
        assert await length(reader) == 40 * EVENTS

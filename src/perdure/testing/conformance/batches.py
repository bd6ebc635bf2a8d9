"""Batches: large ones, faulty ones, several at once (C-067, C-069 to C-075)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Acquired,
    ClaimActivities,
    ClaimInstances,
    Committed,
    CommitTurn,
    DeleteInstance,
    Ended,
    ImportInstances,
    NewTimer,
    NoteBlocked,
    Operation,
    Outcome,
    Provider,
    Pruned,
    PruneExecutions,
    ReleaseActivity,
    Retention,
    RetryActivity,
    Started,
    Taken,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    CAPS,
    FENCED,
    MULTI_PROCESS,
    NAMES,
    NO_NUMBER,
    NO_TEXT,
    acquire,
    bodies,
    case,
    claim,
    complete,
    continuing,
    ending,
    everything,
    give_back,
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

NOT_APPLICABLE: dict[str, str] = {}


async def busy(provider: Provider, store: Harness) -> tuple[Acquired, list[Operation]]:
    """An instance that n-1 holds, and a batch in which every operation has something to do."""
    of, other = await acquire(provider), await acquire(provider, "other")
    work = tuple(running(n) for n in range(1, 4))
    await one(provider, turn(of, b"1", activities=(*work, queued(4)), timers=(NewTimer(5, 9),)))
    await one(provider, continuing(await acquire(provider, "pruned"), b"1"))
    await start(provider, "gone")
    noted = await start(provider, "noted")
    (gone,) = await provider.snapshots("gone")
    return of, [
        DeleteInstance("gone", force=True),
        ImportInstances((msgspec.structs.replace(gone, instance_id="imported"),)),
        turn(of, b"2", first=2, activities=(queued(6),), sends=(note("other"),)),
        new("started"),
        note("i-1"),
        complete(of, 1),
        RetryActivity(of.key, 1, 2, "n-1", 1, store.clock.now + 5, b"error"),
        ReleaseActivity(of.key, 1, 3, "n-1", 1),
        give_back(other, store.clock.now + 9),
        NoteBlocked((noted,), "not_registered", "why"),
        PruneExecutions("pruned", Retention(1)),
        ClaimInstances("n-2", CAPS, 9),
        ClaimActivities("n-2", NAMES, 1),
    ]


async def to_each_other(provider: Provider, ids: Sequence[str]) -> list[Acquired]:
    """Instances, each of which is about to send to all."""
    await provider.commit([new(each) for each in ids])
    return list(await claim(provider))


def cycle(of: Acquired, ids: Sequence[str], number: int) -> CommitTurn:
    sends = tuple(note(each, b"%d" % number) for each in ids)
    return turn(of, b"event", first=number, sends=sends)


class BatchCases:
    """See the module."""

    @case("C-067")
    async def test_c067_ten_thousand_activities_in_one_turn(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        numbers = range(1, 10_001)
        activities = tuple(queued(n) for n in numbers)
        before = await everything(provider)

        with pytest.raises(ProviderError):
            await one(provider, turn(of, b"1", activities=(*activities, queued(90, NO_TEXT))))
        assert await everything(provider) == before
        await one(provider, turn(of, *(b"%d" % n for n in numbers), activities=activities))

        assert (await provider.depths()).activities == {"pay": (10_000, 0, 0)}
        assert [each.event_id for each in await provider.list_activities(of.key)] == list(numbers)

    @case("C-069")
    async def test_c069_a_fault_at_any_place_of_a_batch_undoes_all_of_it(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        _, batch = await busy(provider, store)
        before = await everything(provider)
        fault = new("bad", name=NO_TEXT)

        for place in range(len(batch) + 1):
            with pytest.raises(ProviderError):
                await provider.commit([*batch[:place], fault, *batch[place:]])
            assert await everything(provider) == before

        outcomes = await provider.commit(batch)
        assert [each for each in outcomes if each == FENCED] == []
        assert await everything(provider) != before

    @case("C-069")
    async def test_c069_a_fault_in_any_kind_of_operation_undoes_its_neighbours(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of, batch = await busy(provider, store)
        before = await everything(provider)
        (imported,) = is_a(ImportInstances, batch[1]).instances
        nameless = msgspec.structs.replace(imported, name=NO_TEXT, instance_id="x")
        faults: list[Operation] = [
            ImportInstances((msgspec.structs.replace(imported, instance_id="y"), nameless)),
            turn(of, b"2", first=2, timers=(NewTimer(9, NO_NUMBER),)),
            new("bad", version=NO_TEXT),
            note("i-1", event_id=NO_TEXT),
            RetryActivity(of.key, 1, 1, "n-1", 1, NO_NUMBER, b"error"),
            give_back(of, blocked="poison", detail=NO_TEXT),
            give_back(of, hold_ms=NO_NUMBER),
            NoteBlocked((of.key,), "poison", NO_TEXT),
        ]

        for fault in faults:
            with pytest.raises(ProviderError):
                await provider.commit([new("before"), fault, note("note")])
            assert await everything(provider) == before

    @case("C-069")
    async def test_c069_an_operation_that_is_refused_leaves_its_neighbours_alone(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = [await acquire(provider, f"i-{n}") for n in range(20)]
        batch = [
            turn(each, b"1", token="lost" if n in (3, 11) else each.token)
            for n, each in enumerate(of)
        ]

        outcomes = await provider.commit(batch)

        assert [n for n, outcome in enumerate(outcomes) if outcome == FENCED] == [3, 11]
        histories = await provider.histories([(each.key, 1) for each in of])
        assert [n for n, history in enumerate(histories) if not history] == [3, 11]

    @case("C-070")
    async def test_c070_a_child_whose_id_is_taken_is_a_message_and_no_failed_commit(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await start(provider, "taken", input=b"theirs")
        child = new("taken", input=b"mine", if_taken=note("i-1", b"taken"))

        outcome = await one(provider, turn(of, b"1", starts=(child, new("free"))))

        taken, free = is_a(Committed, outcome).starts
        assert is_a(Taken, taken).instance.input == b"theirs"
        assert is_a(Started, free).key == (await row(provider, "free")).key
        assert await bodies(provider) == [b"taken"]
        assert await provider.read_history("i-1") == [b"1"]

    @case("C-071")
    async def test_c071_a_message_that_reaches_nobody_is_counted_and_no_failed_commit(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, ending(await acquire(provider, "ended"), b"1"))
        sends = (
            note("nobody"),
            note("ended"),
            note("i-1", incarnation="another"),
            note("i-1", incarnation=of.incarnation),
        )
        starts = (new("ended", if_taken=note("nobody")),)

        outcome = await one(provider, turn(of, b"1", sends=sends, starts=starts))

        assert is_a(Committed, outcome).dropped == 4
        assert await provider.read_history("i-1") == [b"1"]
        assert await one(provider, note("ended")) == Ended("completed")

    @case("C-071")
    async def test_c071_what_is_unread_at_the_end_is_dropped_and_counted(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await start(provider)
        await provider.commit([note(), note(), note(queue="q"), note()])
        (of,) = await claim(provider)

        last = ending(of, b"1", consumed=(of.messages[1].seq,), sends=(note("i-1"),))

        assert await one(provider, last) == Committed(dropped=4)
        depths = await provider.depths()
        assert (depths.messages, depths.items) == (0, 0)

    @case("C-072")
    async def test_c072_instances_that_write_to_each_other_do_not_wait_for_each_other(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        ids = ["a", "b", "c"]
        of = await to_each_other(provider, ids)

        turns = [cycle(each, ids, n) for n in range(1, 11) for each in of]
        outcomes = await asyncio.gather(*(one(provider, each) for each in turns))

        assert outcomes == [Committed()] * 30
        assert len(await bodies(provider)) == 90

    @case("C-072", needs=MULTI_PROCESS)
    async def test_c072_nor_do_instances_of_two_processes(self, store: Harness) -> None:
        providers = [await store.open(), await store.open()]
        ids = ["a", "b"]
        of = await to_each_other(providers[0], ids)

        async def write(place: int) -> None:
            for number in range(1, 31):
                outcome = await one(providers[place], cycle(of[place], ids, number))
                assert outcome == Committed()

        await asyncio.gather(write(0), write(1))

        assert len(await bodies(providers[0])) == 120

    @case("C-073")
    async def test_c073_tens_of_thousands_of_rows_are_one_commit(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        events = [b"%d" % n for n in range(40_000)]
        sends = [note(body=event) for event in events[:10_000]]
        before = await everything(provider)

        with pytest.raises(ProviderError):
            await provider.commit([turn(of, *events), *sends, new("bad", name=NO_TEXT)])
        assert await everything(provider) == before
        await provider.commit([turn(of, *events), *sends])

        assert await provider.histories([(of.key, 1)]) == [events]
        assert await bodies(provider) == events[:10_000]

    @case("C-074")
    async def test_c074_turns_go_on_while_the_instance_is_pruned(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        writing: list[Operation] = []
        for number in range(1, 9):
            execution = msgspec.structs.replace(of, execution_id=number)
            first = 1 if number == 1 else 2
            writing += [
                turn(execution, b"1", b"2", first=first),
                continuing(execution, b"3", first=first + 2),
            ]
        prune = PruneExecutions("i-1", Retention(1))

        async def write() -> list[Outcome]:
            return [await one(provider, each) for each in writing]

        async def prune_again() -> int:
            pruned = [is_a(Pruned, await one(provider, prune)) for _ in writing]
            return sum(each.executions for each in pruned)

        written, pruned = await asyncio.gather(write(), prune_again())
        pruned += is_a(Pruned, await one(provider, prune)).executions

        assert written == [Committed()] * 16
        assert pruned == 8
        assert [each.execution_id for each in await provider.list_executions("i-1")] == [9]
        assert await provider.read_history("i-1") == [b"started"]

    @case("C-075")
    async def test_c075_reads_while_turns_commit_show_each_turn_whole(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        async def write() -> None:
            for number in range(1, 21):
                parts = {"activities": (queued(number),), "timers": (NewTimer(number, 9),)}
                await one(provider, turn(of, b"%d" % number, first=number, **parts))

        writing = asyncio.create_task(write())
        seen = []
        while not writing.done():
            (snapshot,) = await provider.snapshots("i-1")
            events = snapshot.executions[0].events
            seen.append((len(events), len(snapshot.activities), len(snapshot.timers)))
            await asyncio.sleep(0)
        await writing

        assert [each for each in seen if len(set(each)) > 1] == []
        assert seen == sorted(seen)

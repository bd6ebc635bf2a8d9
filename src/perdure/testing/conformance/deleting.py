"""Pruning executions and deleting instances (C-153 to C-166)."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from perdure.errors import InstanceNotFound, ProviderError
from perdure.providers.contract import (
    Acquired,
    Committed,
    Deleted,
    DeleteInstance,
    Imported,
    ImportInstances,
    NewTimer,
    NotFound,
    Operation,
    ParentLink,
    Provider,
    Pruned,
    PruneExecutions,
    ReleaseInstance,
    Retention,
    RowFilter,
    Sent,
    Started,
    Taken,
    Undeletable,
)
from perdure.retention import PruneOptions
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    CAPS,
    DURABLE,
    FENCED,
    MULTI_PROCESS,
    NAMES,
    STALE,
    UNSTORABLE,
    acquire,
    bodies,
    case,
    claim,
    claim_work,
    complete,
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

NOT_APPLICABLE: dict[str, str] = {}


async def generations(
    store: Harness, provider: Provider, number: int, instance_id: str = "i-1"
) -> Acquired:
    """An instance in its execution `number`, held by n-1. Each execution ended 10 ms after the one
    before, and has the events started and end; the current one has the first alone."""
    of = await acquire(provider, instance_id)
    await one(provider, turn(of, b"started"))
    for execution_id in range(1, number):
        store.clock.advance(10)
        of = _as_of(of, execution_id)
        assert await one(provider, continuing(of, b"end", first=2)) == Committed()
    return _as_of(of, number)


def _as_of(of: Acquired, execution_id: int) -> Acquired:
    return msgspec.structs.replace(of, execution_id=execution_id)


def link(parent_id: str) -> ParentLink:
    return ParentLink(parent_id, f"inc of {parent_id}", 1, 1)


async def left(provider: Provider, instance_id: str = "i-1") -> list[int]:
    """The numbers of the executions that an instance has."""
    return [each.execution_id for each in await provider.list_executions(instance_id)]


async def finish(provider: Provider, *instance_ids: str) -> None:
    """Let instances that nobody holds end."""
    for of in await claim(provider):
        if of.instance_id in instance_ids:
            assert await one(provider, ending(of, b"end")) == Committed()


class DeletingCases:
    """See the module."""

    @case("C-153")
    @pytest.mark.parametrize("keep_last", [None, 0, 1])
    async def test_c153_none_nought_and_one_keep_the_current_execution_alone(
        self, store: Harness, keep_last: int | None
    ) -> None:
        provider = await store.open()
        await generations(store, provider, 4)
        kept = PruneOptions(keep_last=keep_last).kept

        assert await one(provider, PruneExecutions("i-1", Retention(kept))) == Pruned(3, 6)
        assert await left(provider) == [4]

    @case("C-154")
    @pytest.mark.parametrize(
        ("keep", "stay"), [(2, [4, 5]), (5, [1, 2, 3, 4, 5]), (99, [1, 2, 3, 4, 5])]
    )
    async def test_c154_the_newest_executions_stay(
        self, store: Harness, keep: int, stay: list[int]
    ) -> None:
        provider = await store.open()
        await generations(store, provider, 5)

        outcome = await one(provider, PruneExecutions("i-1", Retention(keep)))

        gone = [number for number in range(1, 6) if number not in stay]
        assert outcome == Pruned(len(gone), 2 * len(gone))
        assert await left(provider) == stay
        for number in range(1, 6):
            history = await provider.read_history("i-1", number)
            assert history == ([] if number in gone else [b"started", b"end"][: 1 + (number < 5)])

    @case("C-155")
    async def test_c155_by_age_those_go_that_ended_before(self, store: Harness) -> None:
        provider = await store.open()
        await generations(store, provider, 5)
        ended_ms = {e.execution_id: e.ended_ms for e in await provider.list_executions("i-1")}

        await one(provider, PruneExecutions("i-1", Retention(4, ended_ms[3])))
        assert await left(provider) == [2, 3, 4, 5]
        await one(provider, PruneExecutions("i-1", Retention(1, ended_ms[3])))
        assert await left(provider) == [3, 4, 5]
        await one(provider, PruneExecutions("i-1", Retention(1, store.clock.now + 1)))
        assert await left(provider) == [5]

    @case("C-156")
    async def test_c156_the_current_execution_stays_also_when_it_has_ended(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await generations(store, provider, 3)
        await one(provider, ending(of, b"end", first=2))
        before = await row(provider)
        store.clock.advance(1_000)

        prune = PruneExecutions("i-1", Retention(1, store.clock.now))
        assert await provider.commit([prune, prune]) == [Pruned(2, 4), Pruned(0, 0)]

        assert await row(provider) == before
        assert await provider.read_history("i-1") == [b"started", b"end"]
        assert await one(provider, PruneExecutions("unknown", Retention(1))) == NotFound()

    @case("C-157", needs=MULTI_PROCESS)
    async def test_c157_an_instance_is_pruned_while_its_owner_goes_on(self, store: Harness) -> None:
        provider, other = await store.open(), await store.open()
        of = await generations(store, provider, 3)

        assert await one(other, PruneExecutions("i-1", Retention(1))) == Pruned(2, 4)

        assert await one(provider, turn(of, b"next", first=2)) == Committed()
        assert await one(provider, continuing(of, b"end", first=3)) == Committed()
        assert await left(provider) == [3, 4]
        assert await provider.read_history("i-1", 3) == [b"started", b"next", b"end"]

    @case("C-158")
    async def test_c158_pruning_that_was_interrupted_is_done_by_repeating_it(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await generations(store, provider, 3)
        prune = PruneExecutions("i-1", Retention(1))
        field, value = UNSTORABLE[0]
        before = await everything(provider)

        with pytest.raises(ProviderError):
            await provider.commit([prune, new("bad", **{field: value})])

        assert await everything(provider) == before
        assert await provider.commit([prune]) == [Pruned(2, 4)]
        assert await provider.commit([prune]) == [Pruned(0, 0)]

    @case("C-159")
    async def test_c159_pruning_touches_nothing_but_executions(self, store: Harness) -> None:
        provider = await store.open()
        of = await generations(store, provider, 3)
        work = turn(of, b"2", first=2, activities=(running(2), queued(3)), timers=(NewTimer(4, 9),))
        await one(provider, work)
        await start(provider, "child", parent=link("i-1"))
        await provider.commit(
            [note(body=b"mail", external=True), note(body=b"item", queue="q", event_id="e-1")]
        )
        before = await everything(provider)

        assert await one(provider, PruneExecutions("i-1", Retention(1))) == Pruned(2, 4)

        after = await everything(provider)
        for name in ("instances", "activities", "surveys", "depths", "counts"):
            assert after[name] == before[name]
        assert await bodies(provider) == [b"mail"]
        assert await one(provider, note(event_id="e-1")) == Sent(of.key, duplicate=True)
        assert len(await provider.queue_items(of.key, "q", 0, 9)) == 1

    @case("C-160")
    async def test_c160_many_instances_are_pruned_in_one_batch(self, store: Harness) -> None:
        provider = await store.open()
        for n in range(6):
            await generations(store, provider, 3, f"{'xy'[n % 2]}-{n}")
        chosen = await provider.list_instances(RowFilter(id_prefix="x-"), limit=2)
        batch = [PruneExecutions(each.instance_id, Retention(1)) for each in chosen]

        outcomes = await provider.commit([*batch, PruneExecutions("unknown", Retention(1))])

        assert outcomes == [Pruned(2, 4), Pruned(2, 4), NotFound()]
        executions = [await left(provider, f"{'xy'[n % 2]}-{n}") for n in range(6)]
        assert executions == [[3], [1, 2, 3], [3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]

    @case("C-161")
    async def test_c161_nothing_is_left_of_a_deleted_instance(self, store: Harness) -> None:
        provider = await store.open()
        empty = await everything(provider)
        of = await generations(store, provider, 3)
        await provider.commit([note(body=b"mail"), note(body=b"item", queue="q", event_id="e-1")])
        await one(provider, ending(of, b"end", first=2))

        assert await one(provider, DeleteInstance("i-1")) == Deleted(1)

        assert await everything(provider) == empty
        assert await provider.get_instances(["i-1"]) == {}
        assert await provider.list_executions("i-1") == []
        assert await provider.list_tree("i-1") == []
        assert await provider.snapshots("i-1") == []
        assert await provider.get_execution(of.key, 3) is None
        assert await provider.histories([(of.key, n) for n in (1, 2, 3)]) == [[], [], []]
        assert await provider.queue_items(of.key, "q", 0, 9) == []
        assert await provider.list_activities(of.key) == []
        with pytest.raises(InstanceNotFound):
            await provider.read_history("i-1")
        assert await one(provider, DeleteInstance("i-1")) == NotFound()

    @case("C-161", needs=DURABLE)
    async def test_c161_a_deleted_instance_does_not_come_back(self, store: Harness) -> None:
        provider = await store.open()
        await acquire(provider, "stays")
        of = await acquire(provider)
        await one(provider, ending(of, b"1"))
        await one(provider, DeleteInstance("i-1"))

        provider = await store.reopen()

        assert [each.instance_id for each in await provider.list_instances(RowFilter())] == [
            "stays"
        ]

    @case("C-162")
    async def test_c162_an_instance_that_is_not_terminal_is_not_deleted_without_force(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await start(provider, "pending")
        of = await generations(store, provider, 2, "running")
        before = await everything(provider)

        outcomes = await provider.commit([DeleteInstance("pending"), DeleteInstance("running")])

        assert outcomes == [Undeletable("running", "pending"), Undeletable("running", "running")]
        assert await everything(provider) == before
        assert await one(provider, turn(of, b"2", first=2)) == Committed()

    @case("C-162")
    async def test_c162_one_descendant_that_runs_keeps_the_whole_tree(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider, "p")
        await start(provider, "c-1", parent=link("p"))
        await start(provider, "c-2", parent=link("p"))
        await start(provider, "g", parent=link("c-2"))
        await finish(provider, "p", "c-1", "c-2")
        before = await everything(provider)

        assert await one(provider, DeleteInstance("p")) == Undeletable("running", "g")

        assert await everything(provider) == before

    @case("C-163")
    async def test_c163_force_takes_it_from_its_owner_and_its_workers(self, store: Harness) -> None:
        provider = await store.open()
        empty = await everything(provider)
        of = await acquire(provider)
        await one(
            provider,
            turn(of, b"1", activities=(running(1), queued(2)), timers=(NewTimer(3, 9),)),
        )
        await provider.commit([note(), note(queue="q", event_id="e-1")])

        assert await one(provider, DeleteInstance("i-1", force=True)) == Deleted(1)

        assert await everything(provider) == empty
        outcomes = await provider.commit(
            [
                turn(of, b"2", first=2, starts=(new("child"),), activities=(queued(9),)),
                complete(of),
                ReleaseInstance(of.key, of.token, of.mail, None),
                note(),
                note(incarnation="inc of i-1"),
            ]
        )
        assert outcomes == [FENCED, STALE, FENCED, NotFound(), NotFound()]
        assert await provider.lost_activities("n-1", [(of.key, 1, 1)]) == [(of.key, 1, 1)]
        assert await everything(provider) == empty

    @case("C-163")
    async def test_c163_a_deletion_comes_first_in_its_batch(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        committed, started, deleted = await provider.commit(
            [turn(of, b"1"), new(incarnation="new one"), DeleteInstance("i-1", force=True)]
        )

        assert (committed, deleted) == (FENCED, Deleted(1))
        assert is_a(Started, started).key != of.key
        assert (await row(provider)).incarnation == "new one"
        assert await provider.read_history("i-1") == []

    @case("C-164")
    async def test_c164_children_and_theirs_go_with_the_instance(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider, "p")
        await start(provider, "c-1", parent=link("p"))
        await start(provider, "g", parent=link("c-1"))
        await start(provider, "detached")
        await start(provider, "stranger", parent=ParentLink("p", "another incarnation", 1, 1))
        await finish(provider, "p", "c-1", "g")

        assert await one(provider, DeleteInstance("p")) == Deleted(3)

        rows = await provider.list_instances(RowFilter())
        assert [each.instance_id for each in rows] == ["detached", "stranger"]

    @case("C-164")
    async def test_c164_a_child_is_not_deleted_alone(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider, "p")
        await start(provider, "c", parent=link("p"))
        await start(provider, "orphan", parent=ParentLink("p", "another incarnation", 1, 1))
        await finish(provider, "c", "orphan")
        before = await everything(provider)

        assert await one(provider, DeleteInstance("c")) == Undeletable("child", "p")
        assert await one(provider, DeleteInstance("c", force=True)) == Undeletable("child", "p")
        assert await everything(provider) == before
        assert await one(provider, DeleteInstance("orphan")) == Deleted(1)

    @case("C-164")
    async def test_c164_a_turn_of_a_deleted_parent_starts_no_orphan(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider, "p")
        child = new("c", parent=link("p"))

        await one(provider, DeleteInstance("p", force=True))

        assert await one(provider, turn(of, b"1", starts=(child,))) == FENCED
        assert await provider.get_instances(["c"]) == {}

    @case("C-165")
    async def test_c165_an_id_that_is_used_again_is_a_stranger_to_the_old_one(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider, incarnation="old")
        await one(provider, turn(of, b"1", activities=(running(1),), timers=(NewTimer(2, 5),)))
        await one(provider, note(event_id="e-1"))
        await one(provider, DeleteInstance("i-1", force=True))

        key = await start(provider, incarnation="new")

        assert key > of.key
        late: list[Operation] = [
            note(body=b"late", incarnation="old"),
            turn(of, b"late", first=2),
            complete(of, body=b"late"),
        ]
        assert await provider.commit(late) == [NotFound(), FENCED, STALE]
        assert await one(provider, note(body=b"mine", event_id="e-1")) == Sent(key)
        (again,) = await claim(provider)
        assert (again.key, again.incarnation, again.execution_id) == (key, "new", 1)
        assert ([m.body for m in again.messages], again.timers) == ([b"mine"], ())
        assert (again.mail, again.attempt) == (1, 1)
        assert await provider.read_history("i-1") == []
        assert (await claim_work(provider)).activities == ()

    @case("C-166")
    async def test_c166_a_large_tree_goes_in_one_step(self, store: Harness) -> None:
        provider = await store.open()
        await provider.commit([new("p"), new("stays")])
        for parent_id, first in (("p", 0), ("c-0", 1_000), ("c-1", 2_000)):
            await provider.commit(
                [new(f"c-{n}", parent=link(parent_id)) for n in range(first, first + 1_000)]
            )
        deep = ["p", *(f"deep-{n}" for n in range(30))]
        await provider.commit([new(below, parent=link(above)) for above, below in pairwise(deep)])

        assert await one(provider, DeleteInstance("p")) == Undeletable("running", "p")
        assert await one(provider, DeleteInstance("p", force=True)) == Deleted(3_031)

        assert await provider.count_instances() == {"pending": 1}
        survey = await provider.survey("n-1", CAPS, NAMES)
        assert survey.instances_due_ms == (await row(provider, "stays")).due_ms

    @case("C-161")
    async def test_c161_what_was_taken_out_before_can_be_put_in_again(self, store: Harness) -> None:
        provider = await store.open()
        of = await generations(store, provider, 2, "p")
        work = (running(2), queued(3, options=b"options"))
        timers = (NewTimer(4, store.clock.now + 9),)
        await one(provider, turn(of, b"2", first=2, activities=work, timers=timers))
        await start(provider, "c", parent=link("p"), nesting=1)
        await provider.commit(
            [note("p", b"mail", event_id="e-1"), note("p", b"item", queue="q", external=True)]
        )
        taken_out = tuple(await provider.snapshots("p"))
        await one(provider, DeleteInstance("p", force=True))
        store.clock.advance(1_000)

        assert await one(provider, ImportInstances(taken_out)) == Imported()

        assert tuple(await provider.snapshots("p")) == taken_out
        found = await row(provider, "p")
        assert (found.owner, found.attempt) == (None, 0)
        assert found.key > of.key
        assert await one(provider, turn(of, b"late", first=3)) == FENCED
        assert await one(provider, note("p", event_id="e-1")) == Sent(found.key, duplicate=True)
        again, child = await claim(provider)
        assert (again.execution_id, again.timers, again.queued) == (2, timers, 1)
        assert [message.body for message in again.messages] == [b"mail"]
        assert (child.parent, child.nesting) == (link("p"), 1)
        claimed = (await claim_work(provider)).activities
        assert [(each.event_id, each.options) for each in claimed] == [(2, None), (3, b"options")]

    @case("C-161")
    async def test_c161_of_instances_that_are_put_in_all_are_or_none(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider, "a")
        await start(provider, "b")
        (a,), (b,) = await provider.snapshots("a"), await provider.snapshots("b")
        await one(provider, DeleteInstance("a", force=True))
        before = await everything(provider)

        outcome = await one(provider, ImportInstances((a, b)))

        assert is_a(Taken, outcome).instance == await row(provider, "b")
        assert await everything(provider) == before

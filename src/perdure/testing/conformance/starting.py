"""Starting and identity: one instance for an id, whole or not at all (C-001 to C-014)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Committed,
    CommitTurn,
    Deleted,
    DeleteInstance,
    ExecutionRow,
    InstanceRow,
    NewTimer,
    NotFound,
    Operation,
    ParentLink,
    Sent,
    Started,
    Taken,
    Undeletable,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    FENCED,
    MULTI_PROCESS,
    STALE,
    UNSTORABLE,
    acquire,
    bodies,
    case,
    claim,
    complete,
    ending,
    everything,
    is_a,
    new,
    note,
    one,
    row,
    running,
    start,
    turn,
)

NOT_APPLICABLE = {
    "C-004": "a start is idempotent by its id alone; the inputs are not compared",
    "C-006": "an id in use is never restarted: the instance is deleted, then the id started anew",
    "C-014": "a start is due at once; an orchestration that is to begin later awaits a timer",
}


def first_turn(key: int, **parts: Any) -> CommitTurn:
    """The first turn of an instance that is started with it, by n-1 with the token t-1."""
    given: dict[str, Any] = {"mail_seen": 0, "version": "1", "settle": True}
    return CommitTurn(key, "t-1", "n-1", 1, 1, (b"1", b"2"), **{**given, **parts})


class StartingCases:
    """See the module."""

    @case("C-001")
    async def test_c001_a_started_instance_is_pending_and_due_now(self, store: Harness) -> None:
        provider = await store.open()
        now = store.clock.now
        key = await start(provider, "i-1", version="2", input=b"[1,2]")

        assert await row(provider) == InstanceRow(
            key=key,
            instance_id="i-1",
            incarnation="inc of i-1",
            name="order",
            version="2",
            status="pending",
            execution_id=1,
            created_ms=now,
            finished_ms=None,
            due_ms=now,
            owner=None,
            attempt=0,
            blocked=None,
            blocked_detail=None,
            hold_ms=None,
            parent_instance=None,
            input=b"[1,2]",
            output=None,
            error=None,
        )
        assert await provider.list_executions("i-1") == [
            ExecutionRow(1, "2", "pending", now, None, None, None, b"[1,2]")
        ]

    @case("C-001")
    async def test_c001_an_instance_started_with_owner_and_token_is_acquired(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        key = await start(provider, owner="n-1", token="t-1")

        assert ((await row(provider)).owner, (await row(provider)).attempt) == ("n-1", 1)
        assert await claim(provider, "n-2") == ()
        assert await one(provider, first_turn(key)) == Committed()

    @case("C-001")
    async def test_c001_a_start_with_its_first_turn_leaves_what_the_two_would_have_left(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", 10_000)
        key = provider.reserve_key()
        parts: dict[str, Any] = {
            "activities": (running(2),),
            "timers": (NewTimer(3, store.clock.now + 9),),
            "set_due": True,
        }
        with_turn = new("a", owner="n-1", token="t-1", key=key, turn=first_turn(key, **parts))

        # A store may have no key at hand, and then takes no turn with a start.
        if key:
            assert await one(provider, with_turn) == Started(key, Committed())
        else:
            key = await start(provider, "a", owner="n-1", token="t-1")
            assert await one(provider, first_turn(key, **parts)) == Committed()

        instance = await row(provider, "a")
        assert (instance.key, instance.status, instance.attempt) == (key, "running", 0)
        assert (instance.version, instance.due_ms) == ("1", None)
        assert await provider.read_history("a") == [b"1", b"2"]
        assert await provider.lost_activities("n-1", [(key, 1, 2)]) == []
        assert (await provider.depths()).timers == 1

    @case("C-001")
    async def test_c001_an_instance_starts_without_a_version(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider, version=None)

        (acquired,) = await claim(provider)

        assert (acquired.version, (await row(provider)).version) == (None, None)

    @case("C-001")
    async def test_c001_a_parent_link_and_the_nesting_come_back_with_the_acquisition(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        link = ParentLink("p", "inc of p", 3, 14)
        await start(provider, "p::sub::14", parent=link, nesting=2)

        (acquired,) = await claim(provider)

        assert (acquired.parent, acquired.nesting) == (link, 2)
        assert (await row(provider, "p::sub::14")).parent_instance == "p"

    @case("C-002", "C-003")
    async def test_c002_a_taken_id_is_answered_with_its_row_and_nothing_changes(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await start(provider, "i-1", input=b"first")
        before = await everything(provider)

        outcome = await one(provider, new("i-1", incarnation="other", input=b"second"))

        assert outcome == Taken(await row(provider))
        assert await everything(provider) == before
        assert (await row(provider)).input == b"first"

    @case("C-002")
    async def test_c002_an_ended_instance_keeps_its_id(self, store: Harness) -> None:
        provider = await store.open()
        await one(provider, ending(await acquire(provider), b"1"))

        taken = is_a(Taken, await one(provider, new("i-1", incarnation="other")))

        assert (taken.instance.status, taken.instance.output) == ("completed", b"done")

    @case("C-002")
    async def test_c002_the_same_id_twice_in_a_batch_starts_the_first(self, store: Harness) -> None:
        provider = await store.open()

        first, second = await provider.commit(
            [new("i-1", input=b"first"), new("i-1", incarnation="other", input=b"second")]
        )

        assert is_a(Taken, second).instance.key == is_a(Started, first).key
        assert (await row(provider)).input == b"first"

    @case("C-002")
    async def test_c002_whom_it_concerns_is_told_only_when_the_id_is_taken(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await start(provider, "parent", owner="n-1", token="t-1")
        told = note("parent", b"taken")

        await one(provider, new("child", if_taken=told))
        assert await bodies(provider) == []
        await one(provider, new("child", if_taken=told))
        assert await bodies(provider) == [b"taken"]
        is_a(Taken, await one(provider, new("child", if_taken=note("nobody"))))

    @case("C-005")
    async def test_c005_of_32_starts_at_once_one_wins_and_its_input_is_stored(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        starts = [new("i-1", incarnation=f"inc {n}", input=b"%d" % n) for n in range(32)]

        outcomes = await asyncio.gather(*(one(provider, each) for each in starts))

        (winner,) = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Started)]
        stored = await row(provider)
        assert (stored.incarnation, stored.input) == (f"inc {winner}", b"%d" % winner)
        losers = [outcome for outcome in outcomes if isinstance(outcome, Taken)]
        assert {loser.instance.incarnation for loser in losers} == {f"inc {winner}"}

    @case("C-005", needs=MULTI_PROCESS)
    async def test_c005_of_starts_by_several_processes_one_wins(self, store: Harness) -> None:
        providers = [await store.open() for _ in range(4)]

        outcomes = await asyncio.gather(
            *(one(each, new("i-1", incarnation=f"{n}")) for n, each in enumerate(providers * 8))
        )

        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Started)]
        assert [(await row(each)).key for each in providers] == [winner.key] * 4

    @case("C-007", "C-012")
    async def test_c007_a_deleted_id_that_is_started_again_is_a_stranger_to_the_old_one(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        old = await acquire(provider)
        await one(provider, turn(old, b"old", activities=(running(1),)))
        assert await one(provider, DeleteInstance("i-1", force=True)) == Deleted(1)

        key = await start(provider, incarnation="another")

        before = await everything(provider)
        assert key != old.key
        assert (await row(provider)).execution_id == 1
        assert await provider.read_history("i-1") == []
        assert await one(provider, complete(old)) == STALE
        assert await one(provider, turn(old, b"late", first=2)) == FENCED
        assert await one(provider, note(incarnation=old.incarnation)) == NotFound()
        assert await everything(provider) == before

    @case("C-008")
    async def test_c008_of_two_that_delete_and_start_an_ended_instance_one_wins(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await one(provider, ending(await acquire(provider), b"1"))

        outcomes = await asyncio.gather(
            *(provider.commit([DeleteInstance("i-1"), new(incarnation=each)]) for each in "ab")
        )

        won, lost = sorted(outcomes, key=lambda each: not isinstance(each[1], Started))
        assert won[0] == Deleted(1)
        assert lost[0] == Undeletable("running", "i-1")
        assert is_a(Taken, lost[1]).instance.key == is_a(Started, won[1]).key

    @case("C-009")
    async def test_c009_a_start_repeated_after_a_lost_answer_is_known_by_its_incarnation(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        mine = new("i-1", incarnation="mine")
        await one(provider, mine)

        repeated = is_a(Taken, await one(provider, mine))

        assert repeated.instance.incarnation == "mine"
        assert await provider.count_instances() == {"pending": 1}

    @case("C-010")
    async def test_c010_an_event_sent_right_after_the_start_comes_with_its_acquisition(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        sent, started = await provider.commit([note("i-1", b"event", external=True), new("i-1")])

        (of,) = await claim(provider)

        assert is_a(Sent, sent).key == is_a(Started, started).key
        assert [message.body for message in of.messages] == [b"event"]
        assert (of.input, of.mail, of.external) == (b"[1]", 1, 1)
        assert await provider.histories([(of.key, 1)]) == [[]]

    @case("C-011")
    @pytest.mark.parametrize(("field", "value"), UNSTORABLE)
    async def test_c011_a_start_that_cannot_be_stored_leaves_no_row(
        self, store: Harness, field: str, value: object
    ) -> None:
        provider = await store.open()
        before = await everything(provider)
        bad = new("i-2", **{field: value})
        batches: tuple[list[Operation], ...] = (
            [bad],
            [new("i-1"), bad],
            [bad, new("i-1"), note("i-1")],
        )
        for batch in batches:
            with pytest.raises(ProviderError):
                await provider.commit(batch)

        assert await everything(provider) == before
        is_a(Started, await one(provider, new("i-1")))

    @case("C-011")
    async def test_c011_owner_without_token_is_not_acceptable(self, store: Harness) -> None:
        provider = await store.open()

        for half in ({"owner": "n-1"}, {"token": "t-1"}):
            with pytest.raises(ProviderError):
                await one(provider, new(**half))

        assert await provider.count_instances() == {}

    @case("C-011")
    async def test_c011_a_taken_id_takes_nothing_of_its_first_turn_and_sends(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", 10_000)
        await acquire(provider, "a")
        before = await everything(provider)
        key = provider.reserve_key()
        first = first_turn(
            key, activities=(running(2),), sends=(note("a"),), starts=(new("child"),)
        )
        carried = {"turn": first, "key": key, "owner": "n-1", "token": "t-1"} if key else {}

        outcome = await one(provider, new("a", sends=(note("a", queue="q"),), **carried))

        assert is_a(Taken, outcome).instance.instance_id == "a"
        assert await everything(provider) == before

    @case("C-011")
    @pytest.mark.parametrize(
        "fault", [{"token": "another"}, {"execution_id": 2}, {"external_seen": 5}, {"key": 999_999}]
    )
    async def test_c011_a_start_with_a_turn_that_would_be_refused_leaves_no_row(
        self, store: Harness, fault: dict[str, Any]
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", 10_000)
        key = provider.reserve_key()
        before = await everything(provider)
        turn_ = msgspec.structs.replace(first_turn(key, starts=(new("child"),)), **fault)
        faulty = new("a", key=key, owner="n-1", token="t-1", turn=turn_)

        (outcome,) = await asyncio.gather(
            provider.commit([new("neighbour"), faulty]), return_exceptions=True
        )

        assert isinstance(outcome, Exception)
        assert await everything(provider) == before

    @case("C-013")
    async def test_c013_ids_are_compared_by_bytes(self, store: Harness) -> None:
        provider = await store.open()
        composed, decomposed = "\u00e9", "e\u0301"
        ids = ["a", "A", composed, decomposed, "a ", "a.", " a", ".", "..", "a/b", "a\\b", "%", "_"]
        ids += ["x" * 255, "x" * 254 + "y", "\U0001f600" * 63, "CON", "a:b", "'", '"', "0", "00"]

        outcomes = await provider.commit([new(each, input=each.encode()) for each in ids])

        assert len({is_a(Started, outcome).key for outcome in outcomes}) == len(ids)
        found = await provider.get_instances(ids)
        assert {each: found[each].input for each in ids} == {each: each.encode() for each in ids}

    @case("C-001")
    async def test_c001_keys_are_never_given_twice(self, store: Harness) -> None:
        provider = await store.open()
        await provider.register_node("n-1", 10_000)
        reserved = [key for key in (provider.reserve_key() for _ in range(100)) if key]

        started = [await start(provider, f"i-{n}") for n in range(20)]
        deleted = await start(provider, "gone")
        await one(provider, DeleteInstance("gone", force=True))
        again = await start(provider, "gone")

        keys = [*reserved, *started, deleted, again]
        assert len(set(keys)) == len(keys)
        assert started == sorted(started)

    @case("C-001")
    async def test_c001_a_large_batch_keeps_order_and_outcomes_apart(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider, "i-700")

        outcomes = await provider.commit([new(f"i-{n}") for n in range(1_500)])

        assert [n for n, each in enumerate(outcomes) if isinstance(each, Taken)] == [700]
        keys = [each.key for each in outcomes if isinstance(each, Started)]
        assert keys == sorted(keys)
        assert await provider.count_instances() == {"pending": 1_500}

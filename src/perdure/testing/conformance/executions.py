"""ContinueAsNew and executions (C-131 to C-142)."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core import events
from perdure.core.context import OrchestrationContext
from perdure.errors import ProviderError
from perdure.marks import orchestration
from perdure.providers.contract import (
    Committed,
    Done,
    Ending,
    NewTimer,
    NextExecution,
    NoteBlocked,
    Operation,
    Retention,
)
from perdure.testing.conformance.engine import client_of, host, recorded_of, time_passes
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    MULTI_PROCESS,
    STALE,
    UNSTORABLE,
    acquire,
    bodies,
    case,
    claim,
    claim_work,
    complete,
    continuing,
    everything,
    new,
    note,
    one,
    queued,
    row,
    running,
    turn,
)

NOT_APPLICABLE: dict[str, str] = {
    "C-137": "custom status and key-value data do not exist yet",
}

GENERATIONS = 1_000


@orchestration
async def counting(ctx: OrchestrationContext, left: int) -> str:
    if left:
        return await ctx.continue_as_new(left - 1)
    return f"execution {ctx.execution_id}"


@orchestration
async def hearing_one(ctx: OrchestrationContext, heard: list[str]) -> list[str]:
    """Takes one event an execution."""
    text = await ctx.schedule_wait("say", str)
    return heard if text == "stop" else await ctx.continue_as_new([*heard, text])


@orchestration
async def cancelled_later(ctx: OrchestrationContext, first: bool = True) -> str:
    """Is cancelled when its first execution is about to end."""
    if first:
        await ctx.schedule_wait("go")
        return await ctx.continue_as_new(False)
    try:
        await ctx.schedule_timer(3_600)
    except asyncio.CancelledError:
        return f"told in execution {ctx.execution_id}"
    return "not told"


@orchestration
async def parent(ctx: OrchestrationContext, left: int) -> str:
    """Calls a child with a derived id in each of its executions."""
    said = await ctx.schedule_sub_orchestration(counting, 2)
    return said if left == 0 else await ctx.continue_as_new(left - 1)


class ExecutionCases:
    """See the module."""

    @case("C-131")
    @pytest.mark.parametrize(("field", "value"), UNSTORABLE, ids=[f for f, _ in UNSTORABLE])
    async def test_c131_the_end_of_one_execution_and_the_next_are_one_step(
        self, store: Harness, field: str, value: object
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, b"1", activities=(queued(2),), timers=(NewTimer(3, 5),)))
        before = await everything(provider)
        bad = new("bad", **{field: value})

        batches: list[list[Operation]] = [
            [continuing(of, b"2", first=2), bad],
            [continuing(of, b"2", first=2, starts=(new("child"), bad))],
        ]
        for batch in batches:
            with pytest.raises(ProviderError):
                await provider.commit(batch)
            assert await everything(provider) == before

        assert await one(provider, continuing(of, b"2", first=2)) == Committed()
        ended, current = await provider.list_executions("i-1")
        assert (ended.status, ended.ended_ms) == ("continued_as_new", store.clock.now)
        assert (current.status, current.ended_ms) == ("running", None)
        assert (await row(provider)).execution_id == 2

    @case("C-132")
    async def test_c132_the_next_execution_has_its_own_input_version_and_history(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        following = NextExecution(2, "2", b"[2]", b"first event of 2")
        now = store.clock.advance(7)

        await one(provider, turn(of, b"1", b"2", ending=Ending("continued_as_new"), next=following))

        assert await provider.read_history("i-1") == [b"first event of 2"]
        assert await provider.read_history("i-1", 1) == [b"1", b"2"]
        current = await row(provider)
        assert (current.version, current.input, current.status) == ("2", b"[2]", "running")
        assert (current.finished_ms, current.output, current.error) == (None, None, None)
        execution = await provider.get_execution(of.key, 2)
        assert execution is not None
        assert (execution.version, execution.input, execution.started_ms) == ("2", b"[2]", now)
        await one(provider, turn(of, b"more", first=2, execution_id=2, release=True))
        (again,) = await claim(provider)
        assert (again.execution_id, again.version, again.input) == (2, "2", b"[2]")

    @case("C-132")
    async def test_c132_an_end_by_continuing_needs_a_next_execution(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        with pytest.raises(ProviderError):
            await one(provider, turn(of, b"1", ending=Ending("continued_as_new")))

        assert await provider.read_history("i-1") == []
        assert (await row(provider)).status == "pending"

    @case("C-133")
    async def test_c133_unread_mail_is_kept_in_order_for_the_next_execution(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        expected = [b"%d" % n for n in range(1_000)]
        for first in range(0, 1_000, 250):
            batch = expected[first : first + 250]
            await provider.commit([note(body=body, queue="q") for body in batch])
        await provider.commit([note(body=b"a"), note(body=b"b")])

        execution_id = 1
        for _ in range(3):
            following = NextExecution(execution_id + 1, "1", b"[]", b"started")
            outcome = await one(
                provider,
                turn(
                    of,
                    b"end",
                    first=min(execution_id, 2),
                    execution_id=execution_id,
                    mail_seen=1_002,
                    ending=Ending("continued_as_new"),
                    next=following,
                ),
            )
            assert outcome == Committed()
            execution_id += 1

        items = await provider.queue_items(of.key, "q", 0, 2_000)
        assert [message.body for message in items] == expected
        assert await bodies(provider) == [b"a", b"b"]

    @case("C-134")
    async def test_c134_timers_of_the_old_execution_do_not_wake_the_next(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        timer = NewTimer(1, store.clock.now + 50)
        await one(provider, turn(of, b"1", timers=(timer,)))

        await one(provider, continuing(of, b"2", first=2, set_due=True, release=True))

        store.clock.advance(1_000)
        assert await claim(provider) == ()
        assert (await provider.depths()).timers == 0

    @case("C-135")
    async def test_c135_a_late_completion_of_the_old_execution_is_refused_alone(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, b"1", activities=(running(1), queued(2))))
        late = (await claim_work(provider)).activities[0]
        await one(provider, continuing(of, b"2", first=2))
        await one(provider, turn(of, b"3", first=2, execution_id=2, activities=(running(1),)))

        outcomes = await provider.commit(
            [
                complete(of, body=b"late"),
                complete(of, late.event_id, body=b"late"),
                complete(of, execution_id=2, body=b"in time"),
            ]
        )

        assert outcomes == [STALE, STALE, Done()]
        assert await bodies(provider) == [b"in time"]

    @case("C-140")
    async def test_c140_a_thousand_executions_leave_as_much_as_is_kept(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        turns = [
            turn(
                of,
                b"end",
                first=min(n, 2),
                execution_id=n,
                ending=Ending("continued_as_new"),
                next=NextExecution(n + 1, "1", b"%d" % n, b"started %d" % n),
                retention=Retention(2),
            )
            for n in range(1, GENERATIONS)
        ]
        for first in range(0, GENERATIONS, 100):
            batch = turns[first : first + 100]
            assert await provider.commit(batch) == [Committed()] * len(batch)

        left = await provider.list_executions("i-1")
        assert [execution.execution_id for execution in left] == [GENERATIONS - 1, GENERATIONS]
        wanted = [(of.key, n) for n in range(1, GENERATIONS + 1)]
        histories = await provider.histories(wanted)
        assert histories[:-2] == [[]] * (GENERATIONS - 2)
        assert histories[-1] == [b"started %d" % (GENERATIONS - 1)]
        assert (await row(provider)).input == b"%d" % (GENERATIONS - 1)

    @case("C-141", needs=MULTI_PROCESS)
    async def test_c141_a_look_during_the_commit_shows_the_old_or_the_new_execution(
        self, store: Harness
    ) -> None:
        provider, other = await store.open(), await store.open()
        of = await acquire(provider, input=b"1")

        async def look() -> None:
            seen = 0
            while seen < 60:
                found = await row(other)
                assert found.input == b"%d" % found.execution_id
                assert found.execution_id >= seen
                seen = found.execution_id
                history = await other.read_history("i-1", found.execution_id)
                assert history[1:] in ([], [b"end"])
                # A read that need not wait would not let the commits go on.
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        for n in range(1, 60):
            following = NextExecution(n + 1, "1", b"%d" % (n + 1), b"started")
            events = (b"end",) if n > 1 else (b"started", b"end")
            last = turn(
                of,
                *events,
                first=min(n, 2),
                execution_id=n,
                ending=Ending("continued_as_new"),
                next=following,
            )
            assert await one(provider, last) == Committed()
        await looking

    @case("C-131")
    async def test_c131_a_batch_may_act_on_the_execution_that_it_creates(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)

        outcomes = await provider.commit(
            [
                NoteBlocked((of.key,), "waiting", "is owned, so this changes nothing"),
                continuing(of, b"1"),
                turn(of, b"2", first=2, execution_id=2, activities=(queued(2),)),
                note(body=b"for 2"),
            ]
        )

        assert [type(outcome).__name__ for outcome in outcomes] == [
            "Done",
            "Committed",
            "Committed",
            "Sent",
        ]
        assert await provider.read_history("i-1") == [b"started", b"2"]
        assert (await row(provider)).blocked is None
        assert [claim.execution_id for claim in (await claim_work(provider)).activities] == [2]

    @case("C-133", needs=MULTI_PROCESS)
    async def test_c133_events_at_the_boundary_reach_the_next_execution_in_order(
        self, store: Harness
    ) -> None:
        async with client_of(store) as client:
            handle = await client.start_orchestration(hearing_one, [], instance_id="i-1")
            for text in "abcdefgh":
                await client.raise_event("i-1", "say", text)

            async with host(store, hearing_one) as runtime:
                for text in "ijkl":
                    await runtime.client.raise_event("i-1", "say", text)
                await runtime.client.raise_event("i-1", "say", "stop")
                assert await handle.final_result() == list("abcdefghijkl")
                assert runtime.counters == {}

    @case("C-136", needs=MULTI_PROCESS)
    async def test_c136_a_cancel_request_at_the_boundary_reaches_the_next_execution(
        self, store: Harness
    ) -> None:
        async with client_of(store) as client:
            handle = await client.start_orchestration(cancelled_later, instance_id="i-1")
            await client.raise_event("i-1", "go")
            await client.cancel_instance("i-1", "enough")

            async with host(store, cancelled_later), time_passes(store):
                assert await handle.final_result() == "told in execution 2"

    @case("C-138")
    async def test_c138_the_parent_gets_the_final_result_of_its_child_once(
        self, store: Harness
    ) -> None:
        async with host(store, parent, counting) as runtime:
            client = runtime.client
            handle = await client.start_orchestration(parent, 0, instance_id="p")

            assert await handle.result() == "execution 3"
            assert len(await recorded_of(client, "p", events.SubOrchestrationCompleted)) == 1
            tree = await client.provider.list_tree("p")
            assert [(each.instance_id, each.execution_id) for each in tree] == [
                ("p", 1),
                ("p::sub::2", 3),
            ]

    @case("C-139")
    async def test_c139_the_derived_ids_of_children_differ_over_executions(
        self, store: Harness
    ) -> None:
        async with host(store, parent, counting) as runtime:
            handle = await runtime.client.start_orchestration(parent, 2, instance_id="p")

            assert await handle.final_result() == "execution 3"
            tree = await runtime.client.provider.list_tree("p")
            ids = [each.instance_id for each in tree]
            assert ids == ["p", "p::sub::2", "p::sub::2.2", "p::sub::3.2"]

    @case("C-142")
    async def test_c142_waiting_for_the_end_follows_the_chain(self, store: Harness) -> None:
        async with host(store, counting) as runtime:
            client = runtime.client
            handle = await client.start_orchestration(counting, 20, instance_id="i-1")

            ended = await client.wait_for_orchestration("i-1")

            assert (ended.execution_id, ended.output) == (21, "execution 21")
            assert await handle.result() is None
            assert await handle.final_result() == "execution 21"
            executions = await client.list_executions("i-1")
            statuses = [each.status for each in executions]
            assert statuses == ["continued_as_new"] * 20 + ["completed"]

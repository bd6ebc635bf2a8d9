"""What an orchestration is told of time, chance and itself is the same at every replay."""

from __future__ import annotations

import asyncio
import gc
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from constructs import act, child
from driver import INCARNATION, START_MS, Mode, World

from perdure import NotInOrchestration, OrchestrationContext, context, orchestration
from perdure.core import events
from perdure.limits import INSTANCE_ID_BYTES_MAX

modes = pytest.mark.parametrize("mode", Mode)


@orchestration
async def tells(ctx: OrchestrationContext) -> list[str]:
    seen = []
    for n in range(2):
        seen += [ctx.now().isoformat(), str(ctx.new_guid()), str(ctx.random.random())]
        await act(n)
    return [*seen, str(ctx.new_guid())]


def told(**options: Any) -> list[str]:
    output: list[str] = World(tells, **options).run().output
    return output


def test_it_is_the_same_in_every_mode() -> None:
    assert told(mode=Mode.EVICT) == told() == told(mode=Mode.CHECK)
    assert len(set(told())) == 6


def test_chance_differs_between_incarnations() -> None:
    mine, other = told(), told(incarnation="f" * 32)

    assert mine[0] == other[0]
    assert not set(mine[1:3]) & set(other[1:3])


def test_chance_differs_between_executions() -> None:
    first, second = World(tells), World(tells)
    second.execution_id = 2

    assert not set(first.run().output[1:3]) & set(second.run().output[1:3])


def test_chance_and_ids_do_not_disturb_each_other() -> None:
    @orchestration
    async def only_ids(ctx: OrchestrationContext) -> list[str]:
        return [str(ctx.new_guid()) for _ in range(2)]

    assert World(only_ids).run().output == [told()[1], told()[4]]


def test_now_is_the_aware_time_of_the_stimulus() -> None:
    @orchestration
    async def clock(ctx: OrchestrationContext) -> list[datetime]:
        loop = asyncio.get_running_loop()
        first = ctx.now()
        assert first.timestamp() == loop.time()
        await ctx.schedule_timer(1.5)
        return [first, ctx.now()]

    output = World(clock).run().output

    begin = datetime.fromtimestamp(START_MS / 1000, UTC)
    assert [datetime.fromisoformat(at) for at in output] == [
        begin,
        begin.replace(second=begin.second + 1, microsecond=500_000),
    ]


def test_a_guid_is_a_version_4_uuid() -> None:
    @orchestration
    async def make(ctx: OrchestrationContext) -> list[Any]:
        guid = ctx.new_guid()
        return [guid.version, guid.variant]

    assert World(make).run().output == [4, "specified in RFC 4122"]


def test_what_the_context_says_of_itself() -> None:
    @orchestration(version="1.2")
    async def who(ctx: OrchestrationContext) -> list[Any]:
        assert ctx is context()
        await act(1)
        return [ctx.instance_id, ctx.execution_id, ctx.version, ctx.history_length]

    world = World(who)
    world.execution_id = 3

    assert world.run().output == ["inst", 3, "1.2", 3]


# Replay.


@orchestration
async def logs(ctx: OrchestrationContext) -> None:
    for n in range(3):
        ctx.logger.info("step %d, replaying: %s", n, ctx.is_replaying)
        await act(n)
    ctx.logger.warning("done")


@modes
def test_the_logger_says_everything_once(mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "perdure.orchestration"):
        World(logs, mode=mode).run()

    assert [record.getMessage() for record in caplog.records] == [
        "step 0, replaying: False",
        "step 1, replaying: False",
        "step 2, replaying: False",
        "done",
    ]
    assert {record.__dict__["instance_id"] for record in caplog.records} == {"inst"}


def test_it_is_replaying_until_the_first_new_stimulus() -> None:
    seen: list[bool] = []

    @orchestration
    async def watches(ctx: OrchestrationContext) -> None:
        seen.append(ctx.is_replaying)
        await act(1)
        seen.append(ctx.is_replaying)
        await act(2)
        seen.append(ctx.is_replaying)

    world = World(watches, mode=Mode.EVICT)
    world.start()
    world.complete(2)
    assert seen == [False, True, False]
    seen.clear()
    world.complete(4)

    assert seen == [True, True, False]


def test_a_message_that_is_dropped_does_not_end_the_replay() -> None:
    seen: list[bool] = []

    @orchestration
    async def watches(ctx: OrchestrationContext) -> None:
        await asyncio.gather(act(1), ctx.schedule_wait("go"))
        seen.append(ctx.is_replaying)

    world = World(watches, mode=Mode.EVICT)
    world.start()
    world.raise_event("come")
    assert world.execution is not None
    assert world.execution.context.is_replaying
    world.raise_event("go")
    world.complete(2)

    assert seen == [False]


def test_a_history_of_only_its_start_is_run_live(caplog: pytest.LogCaptureFixture) -> None:
    world = World(logs)
    world.start()
    world.history = world.history[:1]
    world.close()
    with caplog.at_level(logging.INFO, "perdure.orchestration"):
        turn = world.step()

    assert [record.getMessage() for record in caplog.records] == ["step 0, replaying: False"]
    assert [type(event) for event in turn.events] == [events.ActivityScheduled]
    assert len(turn.actions) == 1


def test_no_copy_of_the_history_is_kept_once_it_is_replayed() -> None:
    world = World(logs, mode=Mode.EVICT)
    world.start()
    world.complete(2)

    assert world.execution is not None
    assert len(world.execution.journal.recorded) == 0


def test_an_exception_that_nobody_asks_for_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @orchestration
    async def forgets() -> None:
        asyncio.create_task(fails())
        await act(1)
        await act(2)

    async def fails() -> None:
        raise ValueError("unseen")

    world = World(forgets)
    world.start()
    gc.collect()
    world.run()
    world.replayed().close()
    gc.collect()

    assert [record.getMessage() for record in caplog.records] == [
        "instance inst: LoopTask exception was never retrieved"
    ]


# Ids.


@orchestration
async def family(ctx: OrchestrationContext) -> list[str]:
    child(1)
    await act(1)
    child(2)
    return [ctx.start_orchestration(child, 3)]


def child_ids(world: World) -> list[str]:
    world.run()
    return [
        event.instance
        for event in world.history
        if isinstance(event, events.SubOrchestrationScheduled)
    ]


@modes
def test_child_ids_are_derived_from_event_and_execution(mode: Mode) -> None:
    first, second = World(family, mode=mode), World(family, mode=mode)
    second.execution_id = 2

    assert child_ids(first) == ["inst::sub::2", "inst::sub::6"]
    assert child_ids(second) == ["inst::sub::2.2", "inst::sub::2.6"]
    assert first.output == [f"inst::detached::1.7-{INCARNATION[:8]}"]
    assert second.output == [f"inst::detached::2.7-{INCARNATION[:8]}"]


def test_a_derived_id_that_would_be_too_long_ends_in_a_hash() -> None:
    parents = ["x" * length for length in range(240, INSTANCE_ID_BYTES_MAX + 1)]
    parents += ["é" * (INSTANCE_ID_BYTES_MAX // 2), "\U0001f980" * (INSTANCE_ID_BYTES_MAX // 4)]
    ids: list[str] = []
    for parent in parents:
        world = World(family, instance_id=parent)
        found = [*child_ids(world), *world.output]
        assert child_ids(World(family, instance_id=parent)) == found[:2]
        ids += found

    assert len(set(ids)) == len(ids) == 3 * len(parents)
    assert max(len(found.encode()) for found in ids) == INSTANCE_ID_BYTES_MAX
    assert all("::sub::" in found or "::detached::" in found for found in ids)


def test_a_child_id_may_be_given() -> None:
    @orchestration
    async def names(ctx: OrchestrationContext) -> None:
        child.options(instance_id="first")(1)
        ctx.schedule_sub_orchestration(child, 2, instance_id="second", version="3")
        ctx.schedule_sub_orchestration("elsewhere", {"x": 1}, instance_id="third")

    world = World(names)
    scheduled = child_ids(world)

    assert scheduled == ["first", "second", "third"]
    second = world.history[2]
    assert isinstance(second, events.SubOrchestrationScheduled)
    assert second.version == "3"


# Elsewhere.


def test_a_leaked_context_is_of_no_use_outside_its_orchestration() -> None:
    leaked: list[Any] = []

    @orchestration
    async def leaks(ctx: OrchestrationContext) -> None:
        leaked.extend([ctx, act(1)])
        await leaked[1]

    world = World(leaks)
    world.start()
    ctx, future = leaked
    with pytest.raises(NotInOrchestration):
        ctx.schedule_activity(act, 2)
    with pytest.raises(NotInOrchestration):
        ctx.schedule_timer(2)
    with pytest.raises(NotInOrchestration):
        ctx.start_orchestration(child, 2)
    with pytest.raises(NotInOrchestration):
        ctx.continue_as_new()
    with pytest.raises(NotInOrchestration):
        future.cancel()
    with pytest.raises(NotInOrchestration):
        context()
    turn = world.complete(2)

    assert [type(event) for event in turn.events] == [
        events.ActivityCompleted,
        events.OrchestrationCompleted,
    ]


@pytest.mark.parametrize(
    ("verb", "argument", "mark"),
    [
        ("schedule_activity", len, "@perdure.activity"),
        ("schedule_activity", child, "@perdure.activity"),
        ("schedule_sub_orchestration", act, "@perdure.orchestration"),
        ("start_orchestration", act, "@perdure.orchestration"),
    ],
)
def test_what_is_not_marked_is_refused_at_the_call(verb: str, argument: Any, mark: str) -> None:
    @orchestration
    async def mistakes(ctx: OrchestrationContext) -> None:
        getattr(ctx, verb)(argument, 1)

    world = World(mistakes).run()

    assert world.kinds == ["OrchestrationFailed"]
    assert world.error.type == "TypeError"
    assert mark in world.error.message

"""Which stimulus reaches what, and what is dropped: each message alone, and by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from constructs import act, child
from driver import Mode, World, raw

from perdure import ActivityError, OrchestrationContext, SubOrchestrationError, orchestration
from perdure.core import events, work

modes = pytest.mark.parametrize("mode", Mode)


@orchestration
async def four_requests(ctx: OrchestrationContext) -> list[Any]:
    """Events 2 to 5: an activity, a timer, a wait and a child."""
    return await ctx.join(act(1), ctx.schedule_timer(5), ctx.schedule_wait("go"), child(2))


DROPPED: list[tuple[str, work.AnyWorkItem]] = [
    ("late_completion", work.ActivityCompleted(1, 99, raw(1))),
    ("late_completion", work.ActivityFailed(1, 1, events.Failure("E", ""))),
    ("late_completion", work.TimerFired(1, 99, 0)),
    ("unexpected_kind", work.ActivityCompleted(1, 3, raw(1))),
    ("unexpected_kind", work.ActivityFailed(1, 4, events.Failure("E", ""))),
    ("unexpected_kind", work.TimerFired(1, 2, 0)),
    ("unexpected_kind", work.SubOrchCompleted(1, 2, raw(1))),
    ("unexpected_kind", work.SubOrchFailed(1, 3, events.Failure("E", ""))),
    ("stale_execution", work.ActivityCompleted(2, 2, raw(1))),
    ("stale_execution", work.TimerFired(0, 3, 0)),
    ("stale_execution", work.SubOrchFailed(7, 5, events.Failure("E", ""))),
    ("no_subscription", work.ExternalRaised("come", raw(1))),
    ("unreadable", work.Unreadable()),
]


@modes
@pytest.mark.parametrize(("reason", "item"), DROPPED)
def test_what_has_no_effect_is_dropped_alone_and_named(
    reason: str, item: work.AnyWorkItem, mode: Mode
) -> None:
    world = World(four_requests, mode=mode)
    world.start()
    length = len(world.history)
    turn = world.step(item, world.completion(5, "child"), item)

    assert (turn.taken, turn.dropped) == (3, {reason: 2})
    assert world.kinds[length - 1 :] == ["SubOrchestrationCompleted 5"]
    assert world.run().output == [1, None, "go", "child"]


@modes
def test_a_second_completion_is_late(mode: Mode) -> None:
    world = World(four_requests, mode=mode)
    world.start()
    turn = world.step(world.completion(2, "first"), world.completion(2, "second"))
    again = world.step(world.failure(2))

    assert (turn.dropped, again.dropped) == ({"late_completion": 1}, {"late_completion": 1})
    assert world.run().output[0] == "first"


@modes
def test_a_completion_of_what_was_withdrawn_is_late(mode: Mode) -> None:
    @orchestration
    async def withdraws(ctx: OrchestrationContext) -> None:
        for future in (act(1), ctx.schedule_timer(1), child(1)):
            future.cancel()
        await ctx.schedule_wait("go")

    world = World(withdraws, mode=mode)
    world.start()
    turn = world.step(world.completion(2), world.firing(3), world.completion(4))

    assert turn.dropped == {"late_completion": 3}
    assert turn.events == []


@modes
def test_a_second_cancel_request_is_a_duplicate(mode: Mode) -> None:
    @orchestration
    async def stays(ctx: OrchestrationContext) -> str:
        try:
            await act(1)
        except asyncio.CancelledError:
            return await ctx.schedule_wait("go", str)
        return "not cancelled"

    world = World(stays, mode=mode)
    world.start()
    assert world.cancel("enough").dropped == {}
    assert world.cancel("really").dropped == {"duplicate_cancel": 1}
    world.raise_event("go", "stayed")

    assert world.output == "stayed"


@modes
def test_nothing_reaches_an_execution_behind_its_end(mode: Mode) -> None:
    @orchestration
    async def short(ctx: OrchestrationContext) -> None:
        await ctx.schedule_wait("go")

    world = World(short, mode=mode)
    world.start()
    turn = world.step(*(work.ExternalRaised(name, raw(1)) for name in ("come", "go", "go", "go")))

    assert (turn.taken, turn.dropped) == (2, {"no_subscription": 1})
    assert turn.ending is not None


# Events.


@modes
def test_the_oldest_open_subscription_takes_the_event(mode: Mode) -> None:
    @orchestration
    async def two_waits(ctx: OrchestrationContext) -> list[Any]:
        return await ctx.join(*(ctx.schedule_wait(name) for name in ("go", "come", "go")))

    world = World(two_waits, mode=mode)
    world.start()
    for data in ("first", "second"):
        world.raise_event("go", data)
    world.raise_event("come", "third")

    assert world.output == ["first", "third", "second"]


@modes
def test_a_cancelled_wait_takes_nothing(mode: Mode) -> None:
    @orchestration
    async def gives_up_one(ctx: OrchestrationContext) -> list[Any]:
        first, second = ctx.schedule_wait("go"), ctx.schedule_wait("go")
        await act(1)
        first.cancel()
        return [first.cancelled(), await second]

    world = World(gives_up_one, mode=mode)
    world.start()
    world.complete(4)
    world.raise_event("go", "taken by the second")

    assert world.output == [True, "taken by the second"]
    assert "ExternalUnsubscribed 2" in world.kinds


@modes
def test_an_event_that_comes_before_its_subscription_is_dropped(mode: Mode) -> None:
    @orchestration
    async def subscribes_late(ctx: OrchestrationContext) -> Any:
        await act(1)
        return await ctx.schedule_wait("go")

    world = World(subscribes_late, mode=mode)
    world.start()
    turn = world.step(
        work.ExternalRaised("go", raw("early")),
        world.completion(2),
        work.ExternalRaised("go", raw("in time")),
    )

    assert turn.dropped == {"no_subscription": 1}
    assert world.output == "in time"


# Races.


@modes
@pytest.mark.parametrize("winner", range(4))
def test_select_cancels_the_losers_and_records_it(winner: int, mode: Mode) -> None:
    @orchestration
    async def race(ctx: OrchestrationContext) -> list[Any]:
        racers = act(1), ctx.schedule_timer(5), ctx.schedule_wait("go"), child(2)
        index, result = await ctx.select(*racers)
        return [index, result]

    world = World(race, mode=mode)
    world.start()
    world.answer(winner + 2)

    withdrawn = [
        "ActivityCancelled 2",
        "TimerCancelled 3",
        "ExternalUnsubscribed 4",
        "SubOrchestrationCancelled 5",
    ]
    del withdrawn[winner]
    assert world.kinds[5:-1] == withdrawn
    assert world.output == [winner, [1, None, "go", 2][winner]]
    told = [getattr(action, "instance", "") for action in world.turns[-1].actions]
    assert [found for found in told if found] == ["inst::sub::5"] * (winner != 3)


@modes
def test_select_of_what_is_done_takes_the_first_and_costs_no_wait(mode: Mode) -> None:
    @orchestration
    async def late_race(ctx: OrchestrationContext) -> Any:
        first, second, third = act(1), act(2), act(3)
        await asyncio.wait([second, third])
        return await ctx.select(first, third, second)

    world = World(late_race, mode=mode)
    world.start()
    world.complete(3, "second")
    world.complete(4, "third")

    assert world.output == [1, "third"]
    assert world.kinds[-2:] == ["ActivityCancelled 2", "OrchestrationCompleted"]


@modes
def test_select_over_coroutines_unwinds_the_losers(mode: Mode) -> None:
    seen: list[str] = []

    async def slow() -> None:
        try:
            await act("slow")
        finally:
            seen.append(await act("cleaned up"))

    @orchestration
    async def race(ctx: OrchestrationContext) -> str:
        seen.clear()
        await ctx.select(ctx.schedule_timer(1), slow())
        await act("after")
        return seen[0]

    assert World(race, mode=mode).run().output == "cleaned up"


@modes
def test_select_raises_what_the_winner_raises(mode: Mode) -> None:
    @orchestration
    async def race(ctx: OrchestrationContext) -> str:
        try:
            await ctx.select(ctx.schedule_timer(1), act(1))
        except ActivityError as error:
            return str(error)
        return "no error"

    world = World(race, mode=mode)
    world.start()
    world.fail(3, "OSError", "disk")

    assert world.output == "OSError: disk"


def test_select_needs_something_to_wait_for() -> None:
    @orchestration
    async def race(ctx: OrchestrationContext) -> None:
        await ctx.select()

    assert World(race).run().error.type == "TypeError"


@modes
def test_join_raises_the_first_failure(mode: Mode) -> None:
    @orchestration
    async def both(ctx: OrchestrationContext) -> str:
        try:
            await ctx.join(act(1), child(2))
        except SubOrchestrationError as error:
            return error.message
        return "no error"

    world = World(both, mode=mode)
    world.start()
    world.fail(3, message="the id is taken")

    assert world.output == "the id is taken"


# Time.


@modes
def test_timestamps_never_decrease(mode: Mode) -> None:
    @orchestration
    async def steps(ctx: OrchestrationContext) -> None:
        for n in range(3):
            await act(n)
        await ctx.schedule_timer(1)

    world = World(steps, mode=mode)
    world.start()
    for offset_ms in (500, -500, 200):
        world.now_ms += offset_ms
        world.answer(next(iter(world.open)))
    world.run()

    times = [event.timestamp_ms for event in world.history]
    assert times == sorted(times)
    assert times[2] == times[0] + 500 == times[4]


@modes
def test_a_timer_never_fires_before_its_time_whatever_the_clock_says(mode: Mode) -> None:
    @orchestration
    async def sleeps() -> list[float]:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.sleep(60)
        await act(1)
        return [loop.time() - begin]

    world = World(sleeps, mode=mode)
    world.start()
    begin_ms = world.now_ms
    world.step(world.firing(2))
    world.now_ms = begin_ms + 10
    world.complete(4)

    assert world.history[2].timestamp_ms == begin_ms + 60_000
    assert world.history[4].timestamp_ms == begin_ms + 60_000
    assert world.output == [60.0]


@pytest.mark.parametrize(
    ("seconds", "delay_ms"),
    [(0.0001, 1), (1.0001, 1001), (0.07, 70), (1, 1000), (1e-6, 1)],
)
def test_a_delay_is_rounded_up_to_whole_milliseconds(seconds: float, delay_ms: int) -> None:
    @orchestration
    async def sleeps() -> None:
        await asyncio.sleep(seconds)

    world = World(sleeps)
    world.start()

    assert world.kinds == [f"TimerCreated {delay_ms}"]
    world.close()


@modes
def test_a_message_is_never_shared_with_the_code(mode: Mode) -> None:
    """What the code receives is decoded from the recorded bytes."""
    sent = {"items": [1]}

    @orchestration
    async def mutates(ctx: OrchestrationContext) -> Any:
        mine = {"items": [0]}
        future = ctx.schedule_activity("act", mine)
        mine["items"].append(9)
        result = await future
        result["items"].append(2)
        return result

    world = World(mutates, mode=mode)
    world.start()
    world.complete(2, sent)

    assert world.input_of(2) == {"items": [0]}
    assert (world.output, sent) == ({"items": [1, 2]}, {"items": [1]})

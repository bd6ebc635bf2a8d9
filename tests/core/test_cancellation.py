"""Cancelling: an instance from outside, a request from inside, and what is left of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from constructs import act, child
from driver import Mode, World, play_everywhere

from perdure import OrchestrationContext, orchestration
from perdure.core import actions, events
from perdure.core.work import CancelInstance

modes = pytest.mark.parametrize("mode", Mode)


def test_a_withdrawal_is_recorded_by_kind() -> None:
    @orchestration
    async def withdraws(ctx: OrchestrationContext) -> list[bool]:
        futures: list[Any] = [act(1), ctx.schedule_timer(5), ctx.schedule_wait("go"), child(2)]
        return [
            future.cancel() and future.cancelled() and not future.cancel() for future in futures
        ]

    world = play_everywhere(withdraws)

    assert world.output == [True] * 4
    assert world.kinds[4:-1] == [
        "ActivityCancelled 2",
        "TimerCancelled 3",
        "ExternalUnsubscribed 4",
        "SubOrchestrationCancelled 5",
    ]
    assert world.turns[0].actions[4:] == [
        actions.Cancel(6, 2, actions.CallActivity),
        actions.Cancel(7, 3, actions.CreateTimer),
        actions.Cancel(8, 4, actions.WaitExternal),
        actions.Cancel(9, 5, actions.StartSubOrchestration, "inst::sub::5"),
    ]


def test_cancelling_what_is_done_is_no_decision() -> None:
    @orchestration
    async def too_late() -> bool:
        future = act(1)
        await future
        return future.cancel()

    world = play_everywhere(too_late)

    assert world.output is False
    assert world.kinds == [
        "ActivityScheduled act",
        "ActivityCompleted 2",
        "OrchestrationCompleted",
    ]


def test_a_task_around_a_durable_future_withdraws_it_even_before_it_began() -> None:
    @orchestration
    async def cancels_at_once() -> None:
        task = asyncio.create_task(act(1))
        task.cancel()
        await asyncio.wait([task])

    assert "ActivityCancelled 2" in play_everywhere(cancels_at_once).kinds


# From outside.


@modes
def test_a_request_raises_at_the_await_and_cancels_if_it_propagates(mode: Mode) -> None:
    @orchestration
    async def waits() -> None:
        await act(1)

    world = World(waits, mode=mode)
    world.start()
    world.cancel("enough")

    assert world.kinds == [
        "ActivityScheduled act",
        "CancelRequested",
        "ActivityCancelled 2",
        "OrchestrationCancelled",
    ]
    assert isinstance(world.ending, events.OrchestrationCancelled)
    assert world.ending.reason == "enough"


@modes
def test_code_may_clean_up_durably_before_it_gives_way(mode: Mode) -> None:
    @orchestration
    async def cleans_up(ctx: OrchestrationContext) -> None:
        try:
            await act("work")
        except asyncio.CancelledError as error:
            await act(f"undo, {error}")
            raise
        finally:
            await ctx.schedule_timer(1)
            await act("finally")

    world = World(cleans_up, mode=mode)
    world.start()
    world.cancel("enough")
    world.run()

    assert world.kinds == [
        "ActivityScheduled act",
        "CancelRequested",
        "ActivityCancelled 2",
        "ActivityScheduled act",
        "ActivityCompleted 5",
        "TimerCreated 1000",
        "TimerFired 7",
        "ActivityScheduled act",
        "ActivityCompleted 9",
        "OrchestrationCancelled",
    ]
    assert world.input_of(5) == "undo, enough"


@modes
def test_code_that_handles_the_request_and_returns_is_completed(mode: Mode) -> None:
    @orchestration
    async def handles() -> str:
        try:
            await act(1)
        except asyncio.CancelledError:
            return str(await act("handled"))
        return "not cancelled"

    world = World(handles, mode=mode)
    world.start()
    world.cancel()
    world.run()

    assert world.output == "handled"


@modes
def test_code_that_answers_the_request_with_another_error_fails(mode: Mode) -> None:
    @orchestration
    async def fails() -> None:
        try:
            await act(1)
        finally:
            raise LookupError("while cleaning up")

    world = World(fails, mode=mode)
    world.start()
    world.cancel()

    assert world.error.type == "LookupError"


@modes
def test_open_children_are_cancelled_before_a_cancelled_parent_ends(mode: Mode) -> None:
    @orchestration
    async def parent(ctx: OrchestrationContext) -> None:
        children = [child(n) for n in range(3)]
        await children[1]
        ctx.schedule_timer(9)
        await act(1)

    world = World(parent, mode=mode)
    world.start()
    world.complete(3)
    turn = world.cancel()

    assert [type(event) for event in turn.events][-3:] == [
        events.SubOrchestrationCancelled,
        events.SubOrchestrationCancelled,
        events.OrchestrationCancelled,
    ]
    cancelled = [a.instance for a in turn.actions if isinstance(a, actions.Cancel) and a.instance]
    assert cancelled == ["inst::sub::2", "inst::sub::4"]


@modes
def test_children_go_on_when_their_parent_ends_in_another_way(mode: Mode) -> None:
    @orchestration
    async def parent() -> None:
        child(1)

    assert World(parent, mode=mode).run().kinds == [
        "SubOrchestrationScheduled",
        "OrchestrationCompleted",
    ]


@modes
def test_a_request_reaches_what_a_gather_waits_for(mode: Mode) -> None:
    @orchestration
    async def fan_out(ctx: OrchestrationContext) -> None:
        await asyncio.gather(act(1), ctx.schedule_timer(9), child(1))

    world = World(fan_out, mode=mode)
    world.start()
    world.cancel()

    assert world.kinds[-4:] == [
        "ActivityCancelled 2",
        "TimerCancelled 3",
        "SubOrchestrationCancelled 4",
        "OrchestrationCancelled",
    ]


@modes
def test_a_shielded_request_is_not_withdrawn(mode: Mode) -> None:
    @orchestration
    async def shields() -> str:
        inner = act(1)
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            return str(await inner)
        return "not cancelled"

    world = World(shields, mode=mode)
    world.start()
    world.cancel()
    world.complete(2, "went on")

    assert world.output == "went on"
    assert "ActivityCancelled 2" not in world.kinds


@modes
def test_an_instance_can_be_cancelled_in_its_first_turn(mode: Mode) -> None:
    @orchestration
    async def waits() -> None:
        await act(1)

    world = World(waits, mode=mode)
    world.cancel("at once")

    assert isinstance(world.ending, events.OrchestrationCancelled)


@modes
def test_a_cancellation_that_nobody_requested_is_a_failure(mode: Mode) -> None:
    @orchestration
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        await act(1)
        task.cancel()
        await act(2)

    world = World(cancels_itself, mode=mode)
    world.start()
    world.complete(2)

    assert world.error.type == "CancelledError"


@modes
def test_an_awaited_future_that_was_cancelled_inside_is_a_failure_too(mode: Mode) -> None:
    @orchestration
    async def cancels_what_it_awaits() -> None:
        future = act(1)
        asyncio.get_running_loop().call_soon(future.cancel)
        await future

    assert World(cancels_what_it_awaits, mode=mode).run().error.type == "CancelledError"


@modes
def test_a_request_that_comes_after_the_last_await_is_not_needed(mode: Mode) -> None:
    @orchestration
    async def nearly_done() -> str:
        await act(1)
        return "done"

    world = World(nearly_done, mode=mode)
    world.start()
    turn = world.step(world.completion(2), CancelInstance("late"))

    assert (turn.taken, world.output) == (1, "done")

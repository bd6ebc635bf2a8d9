"""What asyncio offers works inside an orchestration, is durable, and replays."""

from __future__ import annotations

import asyncio
import dataclasses
import decimal
from typing import Any

import pytest
from constructs import EXPECTED, act, decimal_arithmetic, double
from driver import World, play_everywhere

from perdure import OrchestrationContext, orchestration
from perdure.marks import Orchestration


@pytest.mark.parametrize("construct", EXPECTED, ids=lambda construct: construct.name)
def test_a_construct_gives_the_same_history_in_every_mode(
    construct: Orchestration[..., Any],
) -> None:
    assert play_everywhere(construct).output == EXPECTED[construct]


@dataclasses.dataclass
class Third:
    value: str = ""

    def __post_init__(self) -> None:
        self.value = str(decimal.Decimal(1) / 3)


def kinds(function: Any) -> list[str]:
    return play_everywhere(orchestration(function)).kinds


def test_fan_out_is_one_turn_in_argument_order() -> None:
    async def fan_out() -> None:
        await asyncio.gather(*(double(n) for n in range(3)))

    assert kinds(fan_out) == [
        "ActivityScheduled act",
        "ActivityScheduled act",
        "ActivityScheduled act",
        "ActivityCompleted 2",
        "ActivityCompleted 3",
        "ActivityCompleted 4",
        "OrchestrationCompleted",
    ]


def test_a_time_limit_that_is_kept_withdraws_its_timer() -> None:
    async def in_time() -> None:
        async with asyncio.timeout(10):
            await act(1)

    assert kinds(in_time) == [
        "TimerCreated 10000",
        "ActivityScheduled act",
        "ActivityCompleted 3",
        "TimerCancelled 2",
        "OrchestrationCompleted",
    ]


def test_a_time_limit_that_expires_withdraws_what_was_awaited() -> None:
    async def too_long(ctx: OrchestrationContext) -> str:
        try:
            async with asyncio.timeout(10):
                await ctx.schedule_timer(60)
        except TimeoutError:
            return "expired"
        return "in time"

    assert kinds(too_long) == [
        "TimerCreated 10000",
        "TimerCreated 60000",
        "TimerFired 2",
        "TimerCancelled 3",
        "OrchestrationCompleted",
    ]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_time_limit_of_nothing_costs_no_timer(limit: int) -> None:
    async def at_once() -> str:
        try:
            return str(await asyncio.wait_for(act(1), limit))
        except TimeoutError:
            return "expired"

    assert kinds(at_once) == [
        "ActivityScheduled act",
        "ActivityCancelled 2",
        "OrchestrationCompleted",
    ]


@pytest.mark.parametrize("delay", [0, -1])
def test_a_sleep_of_nothing_is_no_event_but_a_timer_of_nothing_is(delay: int) -> None:
    async def nothing(ctx: OrchestrationContext) -> None:
        await asyncio.sleep(delay)
        await ctx.schedule_timer(delay)

    assert kinds(nothing) == ["TimerCreated 0", "TimerFired 2", "OrchestrationCompleted"]


def test_a_callback_that_is_due_already_is_no_event() -> None:
    async def due() -> list[str]:
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        loop.call_later(0, seen.append, "zero")
        loop.call_later(-1, seen.append, "negative")
        loop.call_at(loop.time(), seen.append, "now")
        await asyncio.sleep(0)
        return seen

    world = play_everywhere(orchestration(due))

    assert world.output == ["zero", "negative", "now"]
    assert world.kinds == ["OrchestrationCompleted"]


def test_a_call_later_is_a_durable_timer_that_can_be_cancelled() -> None:
    async def handles() -> list[str]:
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        first = loop.call_later(5, seen.append, "first")
        second = loop.call_at(loop.time() + 3, seen.append, "second")
        third = loop.call_soon(seen.append, "third")
        first.cancel()
        third.cancel()
        assert (first.cancelled(), second.cancelled(), third.cancelled()) == (True, False, True)
        assert second.when() == loop.time() + 3
        await asyncio.sleep(4)
        return seen

    world = play_everywhere(orchestration(handles))

    assert world.output == ["second"]
    assert world.kinds[:3] == ["TimerCreated 5000", "TimerCreated 3000", "TimerCancelled 2"]


def test_an_execution_runs_in_a_context_of_its_own() -> None:
    with decimal.localcontext() as context:
        context.prec = 3
        world = World(decimal_arithmetic).run()

    assert world.output == "0.3333333333333333333333333333"


def test_what_a_result_is_decoded_with_runs_in_that_context_too() -> None:
    async def decodes(ctx: OrchestrationContext) -> str:
        third = await ctx.schedule_activity("third", result_type=Third)
        return third.value

    world = World(orchestration(decodes))
    with decimal.localcontext() as context:
        context.prec = 3
        world.start()
        world.complete(2, {})

    assert world.output == "0.3333333333333333333333333333"


def test_running_it_leaves_the_thread_as_it_was() -> None:
    found = []

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def turn() -> None:
            play_everywhere(decimal_arithmetic)
            found.append(asyncio.get_running_loop() is loop)
            done.set_result(None)

        loop.call_soon(turn)
        await done

    asyncio.run(host())

    assert found == [True]

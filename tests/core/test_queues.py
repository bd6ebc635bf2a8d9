"""Event queues: items are kept until they are taken, each once, in the order of acceptance."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from driver import Mode, World, lines

from perdure import OrchestrationContext, orchestration
from perdure.core import events

every_mode = pytest.mark.parametrize("mode", Mode)


@orchestration
async def takes_two(ctx: OrchestrationContext) -> list[Any]:
    await ctx.schedule_timer(1)
    return [await ctx.dequeue_event("q"), await ctx.dequeue_event("q", int)]


@every_mode
def test_items_are_kept_before_anyone_waits_and_come_in_order(mode: Mode) -> None:
    world = World(takes_two, mode=mode)
    world.start()
    world.enqueue("q", "first")
    world.enqueue("q", 2)
    world.enqueue("q", 3)
    assert world.kinds == ["TimerCreated 1000"]
    world.fire(2)

    assert world.output == ["first", 2]
    assert [bytes(item.data) for item in world.items] == [b"3"]


@orchestration
async def takes_from_both(ctx: OrchestrationContext) -> list[Any]:
    one, other = ctx.dequeue_event("a"), ctx.dequeue_event("b")
    await ctx.schedule_timer(1)
    return [await other, await one]


def test_queues_are_independent_of_each_other() -> None:
    world = World(takes_from_both)
    world.start()
    world.enqueue("b", "for b")
    world.fire(4)
    assert world.ending is None
    world.enqueue("a", "for a")

    assert world.output == ["for b", "for a"]


@orchestration
async def takes_the_earlier(ctx: OrchestrationContext) -> list[Any]:
    await ctx.schedule_timer(1)
    log: list[Any] = []

    async def take(queue: str) -> None:
        log.append(await ctx.dequeue_event(queue))

    await asyncio.gather(take("late"), take("early"))
    return log


@every_mode
def test_of_several_queues_the_item_that_was_accepted_first_comes_first(mode: Mode) -> None:
    world = World(takes_the_earlier, mode=mode)
    world.start()
    world.enqueue("early", 1)
    world.enqueue("late", 2)
    world.fire(2)

    assert world.output == [1, 2]


@orchestration
async def gives_up_then_takes(ctx: OrchestrationContext) -> Any:
    try:
        async with asyncio.timeout(1):
            return await ctx.dequeue_event("q")
    except TimeoutError:
        await ctx.schedule_timer(5)
    return ["at last", await ctx.dequeue_event("q")]


@every_mode
def test_a_cancelled_wait_takes_nothing(mode: Mode) -> None:
    world = World(gives_up_then_takes, mode=mode)
    world.start()
    world.fire(2)
    world.enqueue("q", "kept")
    assert world.ending is None
    world.fire(6)

    assert world.output == ["at last", "kept"]
    assert "QueueUnsubscribed 3" in world.kinds


@every_mode
def test_two_waits_at_one_queue_are_served_in_order(mode: Mode) -> None:
    @orchestration
    async def waits_twice(ctx: OrchestrationContext) -> list[Any]:
        first, second = ctx.dequeue_event("q"), ctx.dequeue_event("q")
        first_done = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        return [len(first_done[0]), first.done(), await first, await second]

    world = World(waits_twice, mode=mode)
    world.start()
    world.enqueue("q", 1)
    world.enqueue("q", 2)

    assert world.output == [1, True, 1, 2]


@orchestration
async def one_each(ctx: OrchestrationContext, left: int) -> Any:
    item = await ctx.dequeue_event("q")
    if left:
        return await ctx.continue_as_new(left - 1)
    return item


@every_mode
def test_items_stay_for_the_executions_to_come(mode: Mode) -> None:
    world = World(one_each, 2, mode=mode)
    world.start()
    world.step(*(world.item("q", n) for n in range(3)))
    while isinstance(world.ending, events.OrchestrationContinuedAsNew):
        unread = world.unread
        world.next_execution()
        world.step(*unread)

    assert world.execution_id == 3
    assert world.output == 2


def test_many_items_at_once_make_the_history_that_single_ones_make() -> None:
    at_once, singly = World(takes_two), World(takes_two)
    for world in (at_once, singly):
        world.start()
        world.fire(2)
    at_once.step(*(at_once.item("q", n) for n in range(2)))
    for n in range(2):
        singly.enqueue("q", n)

    assert lines(at_once.history) == lines(singly.history)


def test_an_item_of_the_wrong_type_fails_the_orchestration_that_takes_it() -> None:
    world = World(takes_two)
    world.start()
    world.fire(2)
    world.enqueue("q", 1)
    world.enqueue("q", "no number")

    assert world.error.type == "PayloadError"


def test_an_end_leaves_the_rest_unread() -> None:
    world = World(one_each, 0)
    world.start()
    world.step(world.item("q", 1), world.item("q", 2))

    assert world.output == 1
    assert len(world.unread) == 1

"""One orchestration for each asyncio construct that works inside an orchestration.

`World.run` answers what they ask for: activities and children in order with their own input,
waits with the name of the event, timers last.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import decimal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import perdure
from perdure import OrchestrationContext, activity, orchestration
from perdure.marks import Orchestration

EXPECTED: dict[Orchestration[..., Any], Any] = {}
"""Every construct with the output that it must come to."""


def gives(output: Any) -> Callable[[Callable[..., Any]], Orchestration[..., Any]]:
    """Mark an orchestration as a construct."""

    def mark(function: Callable[..., Any]) -> Orchestration[..., Any]:
        marked: Orchestration[..., Any] = orchestration(function)
        EXPECTED[marked] = output
        return marked

    return mark


@activity
async def act(x: Any) -> Any:
    return x


@activity(raises=[ValueError, ZeroDivisionError])
async def risky(x: Any) -> Any:
    return x


@orchestration
async def child(x: Any) -> Any:
    return x


async def double(x: int) -> Any:
    return 2 * await act(x)


async def fails(x: int) -> None:
    await act(x)
    raise ValueError(x)


# Waiting for several.


@gives([1, 4, [3, 8]])
async def gather_nested() -> list[Any]:
    return list(await asyncio.gather(act(1), double(2), asyncio.gather(act(3), double(4))))


@gives("failed with 2, the other goes on: 4")
async def gather_with_a_failing_member() -> str:
    other = asyncio.create_task(double(2))
    try:
        await asyncio.gather(fails(2), other)
    except ValueError as error:
        return f"failed with {error}, the other goes on: {await other}"
    return "not failed"


@gives(["ValueError", 4, "CancelledError"])
async def gather_with_exceptions_returned() -> list[Any]:
    third = asyncio.create_task(act(3))
    asyncio.get_running_loop().call_soon(third.cancel)
    results = await asyncio.gather(fails(1), double(2), third, return_exceptions=True)
    return [type(r).__name__ if isinstance(r, BaseException) else r for r in results]


@gives("1 done, 2 pending, then 6")
async def wait_for_the_first() -> str:
    tasks = [asyncio.create_task(double(n)) for n in (1, 2, 3)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert tasks[0] in done
    tasks[1].cancel()
    await asyncio.wait(pending)
    return f"{len(done)} done, {len(pending)} pending, then {tasks[2].result()}"


@gives("2 done, 1 pending")
async def wait_for_the_first_exception() -> str:
    tasks = [asyncio.create_task(work) for work in (double(1), fails(2), double(3))]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in pending:
        task.cancel()
    assert [type(task.exception()) for task in tasks[:2]] == [type(None), ValueError]
    return f"{len(done)} done, {len(pending)} pending"


@gives([1, 2, 3])
async def wait_for_all_in_a_set() -> list[Any]:
    done, _ = await asyncio.wait({act(1), act(2), act(3)})
    return [future.result() for future in done]


@gives("0 done, 2 pending")
async def wait_with_a_time_limit(ctx: OrchestrationContext) -> str:
    waits = [ctx.schedule_timer(20), ctx.schedule_timer(30)]
    done, pending = await asyncio.wait(waits, timeout=10)
    for future in waits:
        future.cancel()
    return f"{len(done)} done, {len(pending)} pending"


@gives([1, 2, 6])
async def as_completed_over_futures_and_tasks() -> list[Any]:
    found = []
    for first in asyncio.as_completed([act(1), act(2), asyncio.create_task(double(3))]):
        found.append(await first)
    return found


@gives("1, then TimeoutError")
async def as_completed_with_a_time_limit(ctx: OrchestrationContext) -> str:
    late = ctx.schedule_timer(100)
    found = []
    try:
        for first in asyncio.as_completed([act(1), late], timeout=10):
            found.append(str(await first))
    except TimeoutError:
        late.cancel()
        return f"{', '.join(found)}, then TimeoutError"
    return "all of them"


@gives([list(range(20)), list(range(20))])
async def gathers_in_a_set() -> list[Any]:
    gathers = [asyncio.gather(act(n), act(n)) for n in range(20)]
    done, _ = await asyncio.wait(gathers)
    return [
        [gathers.index(future) for future in done],
        [(await first)[0] for first in asyncio.as_completed(gathers)],
    ]


# Time limits.


@gives(1)
async def wait_for_in_time() -> Any:
    return await asyncio.wait_for(act(1), 10)


@gives(2)
async def wait_for_a_coroutine_in_time() -> Any:
    return await asyncio.wait_for(double(1), 10)


@gives([2, 4])
async def wait_for_several() -> list[Any]:
    """Orders its timers and activities differently on Python 3.11 and later."""
    waits = [asyncio.wait_for(double(n), 10) for n in (1, 2)]
    return list(await asyncio.gather(*waits))


@gives("TimeoutError")
async def wait_for_too_long(ctx: OrchestrationContext) -> str:
    try:
        await asyncio.wait_for(ctx.schedule_timer(60), 10)
    except TimeoutError:
        return "TimeoutError"
    return "in time"


@gives(["TimeoutError", "TimeoutError", 1])
async def wait_for_zero_negative_and_none() -> list[Any]:
    results: list[Any] = []
    for limit in (0, -1, None):
        try:
            results.append(await asyncio.wait_for(act(1), limit))
        except TimeoutError:
            results.append("TimeoutError")
    return results


@gives(["inner", 2])
async def timeout_nested(ctx: OrchestrationContext) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(100):
        try:
            async with asyncio.timeout(5):
                await ctx.schedule_timer(50)
        except TimeoutError:
            found.append("inner")
        found.append(await double(1))
    return found


@gives("expired after being prolonged to 30 s")
async def timeout_rescheduled(ctx: OrchestrationContext) -> str:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    try:
        async with asyncio.timeout(5) as limit:
            limit.reschedule(begin + 30)
            await ctx.schedule_timer(20)
            await ctx.schedule_timer(20)
    except TimeoutError:
        return f"expired after being prolonged to {round(loop.time() - begin)} s"
    return "not expired"


@gives(["expired", "expired", 1])
async def timeout_zero_negative_and_none() -> list[Any]:
    found: list[Any] = []
    for limit in (0, -1, None):
        try:
            async with asyncio.timeout(limit):
                found.append(await act(1))
        except TimeoutError:
            found.append("expired")
    return found


@gives([30.0, 30.0, 30.0])
async def sleep_positive_zero_and_negative() -> list[float]:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    found = []
    for delay in (30, 0, -5):
        await asyncio.sleep(delay)
        found.append(loop.time() - begin)
    return found


# Tasks.


@gives([1, 4, 3])
async def task_group_with_durable_futures() -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in (act(1), double(2), act(3))]
    return [task.result() for task in tasks]


@gives("ValueError(1), cancelled: [True, True]")
async def task_group_with_a_failing_member(ctx: OrchestrationContext) -> str:
    others: list[asyncio.Task[Any]] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails(1))
            others += [group.create_task(double(2)), group.create_task(ctx.schedule_timer(3))]
    except* ValueError as errors:
        shown = repr(errors.exceptions[0])
    return f"{shown}, cancelled: {[task.cancelled() for task in others]}"


@gives("the future was withdrawn")
async def task_group_left_before_its_member_began() -> str:
    member = act(1)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(member)
            raise ValueError
    except* ValueError:
        await asyncio.sleep(0)
    return "the future was withdrawn" if member.cancelled() else "it still runs"


@gives([2, "CancelledError", "named"])
async def create_task_and_cancel() -> list[Any]:
    good = asyncio.create_task(double(1))
    bad = asyncio.create_task(double(2), name="named")
    await asyncio.sleep(0)
    bad.cancel()
    found: list[Any] = [await good]
    try:
        await bad
    except asyncio.CancelledError:
        found.append("CancelledError")
    return [*found, bad.get_name()]


@gives("shielded: 1")
async def shield_from_a_time_limit() -> str:
    inner = act(1)
    try:
        await asyncio.wait_for(asyncio.shield(inner), 0)
    except TimeoutError:
        return f"shielded: {await inner}"
    return "not expired"


@gives(["main", "other", "Task-3"])
async def current_task_and_names() -> list[str]:
    async def name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    return [
        await name(),
        await asyncio.create_task(name(), name="other"),
        await asyncio.create_task(name()),
    ]


# Synchronisation.


@gives([0, 2, 4, 6])
async def queue_between_tasks() -> list[int]:
    queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=2)

    async def produce() -> None:
        for n in range(4):
            await queue.put(await double(n))
        await queue.put(None)

    producer = asyncio.create_task(produce())
    found: list[int] = []
    while (item := await queue.get()) is not None:
        found.append(item)
    await producer
    return found


@gives(["set", "set"])
async def event_wakes_all() -> list[str]:
    event = asyncio.Event()

    async def waiter() -> str:
        await event.wait()
        return "set"

    waiters = [asyncio.create_task(waiter()) for _ in range(2)]
    await act(1)
    event.set()
    return list(await asyncio.gather(*waiters))


@gives(["a in", "a out", "b in", "b out"])
async def lock_keeps_others_out() -> list[str]:
    lock = asyncio.Lock()
    seen: list[str] = []

    async def enter(name: str) -> None:
        async with lock:
            seen.append(f"{name} in")
            await act(name)
            seen.append(f"{name} out")

    await asyncio.gather(enter("a"), enter("b"))
    return seen


@gives(2)
async def semaphore_bounds_fan_out() -> int:
    semaphore = asyncio.Semaphore(2)
    running = most = 0

    async def one(n: int) -> None:
        nonlocal running, most
        async with semaphore:
            running += 1
            most = max(most, running)
            await act(n)
            running -= 1

    await asyncio.gather(*(one(n) for n in range(5)))
    return most


@gives(["consumed 1", "consumed 2"])
async def condition_hands_over() -> list[str]:
    condition = asyncio.Condition()
    items: list[int] = []
    seen: list[str] = []

    async def consume() -> None:
        async with condition:
            await condition.wait_for(lambda: items)
            seen.append(f"consumed {items.pop(0)}")

    consumers = [asyncio.create_task(consume()) for _ in range(2)]
    for n in (1, 2):
        await act(n)
        async with condition:
            items.append(n)
            condition.notify()
    await asyncio.gather(*consumers)
    return seen


@gives(["passed", "passed", "passed"])
async def barrier_holds_until_all_are_there() -> list[str]:
    barrier = asyncio.Barrier(3)

    async def arrive(n: int) -> str:
        await act(n)
        async with barrier:
            return "passed"

    return list(await asyncio.gather(*(arrive(n) for n in range(3))))


# Generators and context managers.


@gives([0, 1, 2, "closed"])
async def async_generator() -> list[Any]:
    seen: list[Any] = []

    async def numbers() -> AsyncGenerator[Any, None]:
        try:
            for n in range(5):
                yield await act(n)
        finally:
            seen.append("closed")

    async with contextlib.aclosing(numbers()) as source:
        async for n in source:
            seen.append(n)
            if n == 2:
                break
    return seen


@gives(["enter", 1, "exit"])
async def async_context_manager() -> list[Any]:
    seen: list[Any] = []

    @contextlib.asynccontextmanager
    async def held() -> AsyncIterator[None]:
        seen.append(await act("enter"))
        try:
            yield
        finally:
            seen.append(await act("exit"))

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(held())
        seen.append(await act(1))
    return seen


_name: contextvars.ContextVar[str] = contextvars.ContextVar("_name", default="unset")


@gives(["unset", "main", "inner", "main"])
async def context_variables() -> list[str]:
    async def inner() -> list[str]:
        inherited = _name.get()
        _name.set("inner")
        await act(1)
        return [inherited, _name.get()]

    found = [_name.get()]
    _name.set("main")
    found += await asyncio.create_task(inner())
    return [*found, _name.get()]


@gives("0.3333333333333333333333333333")
async def decimal_arithmetic() -> str:
    await act(1)
    return str(decimal.Decimal(1) / 3)


# Durable verbs of its own.


@gives([1, "done", "go", 2, "named"])
async def every_request(ctx: OrchestrationContext) -> list[Any]:
    timer = ctx.schedule_timer(1)
    results = [
        await ctx.schedule_activity(act, 1),
        {None: "done"}[(await asyncio.gather(timer))[0]],
        await ctx.schedule_wait("go", str),
        await child(2),
        await ctx.schedule_activity("by-name", "named", result_type=str),
    ]
    ctx.start_orchestration(child, 3)
    return results


@gives(["red", "green"])
async def items_of_event_queues(ctx: OrchestrationContext) -> list[str]:
    given_up = ctx.dequeue_event("blue")
    given_up.cancel()
    green = ctx.dequeue_event("green", str)
    return [await ctx.dequeue_event("red", str), await green]


@gives([0, 1])
async def select_cancels_the_losers(ctx: OrchestrationContext) -> list[Any]:
    return list(await ctx.select(act(1), ctx.schedule_timer(5), ctx.schedule_wait("go"), child(2)))


@gives([1, 2, 4])
async def join_keeps_the_order(ctx: OrchestrationContext) -> list[Any]:
    return await ctx.join(act(1), child(2), double(2))


@gives(["same", "same", "same"])
async def values_that_stay_the_same(ctx: OrchestrationContext) -> list[str]:
    seen = []
    for value in (ctx.now().isoformat(), str(ctx.new_guid()), str(ctx.random.random())):
        seen.append("same" if await act(value) == value else "changed")
    return seen


@gives("inst")
async def context_without_a_parameter() -> str:
    await act(1)
    return perdure.context().instance_id

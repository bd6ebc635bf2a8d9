"""An execution is thrown away without a trace: no effect, no warning, no log, nothing pending."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging.handlers
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from constructs import act, child
from driver import Mode, World, raw

from perdure import OrchestrationContext, orchestration
from perdure.core import unwinding, work
from perdure.core.journal import ExecutionClosed, TurnRefused

Body = Callable[[OrchestrationContext, list[str]], Coroutine[Any, Any, Any]]


@pytest.fixture
def silence() -> Iterator[None]:
    """Nothing is warned of, logged, or raised where nobody sees it; not at collection either."""
    unraisable: list[Any] = []
    logged: list[logging.LogRecord] = []
    handler = logging.handlers.BufferingHandler(capacity=1_000)
    handler.buffer = logged
    root = logging.getLogger()
    root.addHandler(handler)
    before, sys.unraisablehook = sys.unraisablehook, unraisable.append
    enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield
            gc.collect()
    finally:
        root.removeHandler(handler)
        sys.unraisablehook = before
        if enabled:
            gc.enable()
    assert (unraisable, warned, logged) == ([], [], [])


def thrown_away(body: Body) -> list[str]:
    """What the code noted after its execution was closed, which must have had no effect."""
    seen: list[str] = []

    async def orchestrates(ctx: OrchestrationContext) -> None:
        await body(ctx, seen)

    world = World(orchestration(orchestrates))
    world.start()
    execution = world.execution
    assert execution is not None
    before = execution.length
    seen.clear()
    assert world.close() == 0
    assert execution.length == before
    assert execution.journal.take_new() == ([], [])
    return seen


async def finally_blocks(ctx: OrchestrationContext, seen: list[str]) -> None:
    try:
        try:
            await act(1)
        finally:
            seen.append("inner")
            await act("release")
            seen.append("inner effect")
    finally:
        seen.append("outer")
        ctx.start_orchestration(child, 1)
        seen.append("outer effect")


async def except_base_exception(ctx: OrchestrationContext, seen: list[str]) -> None:
    for n in range(3):
        try:
            await act(n)
        except BaseException as error:
            seen.append(type(error).__name__)


async def bare_cleanup(ctx: OrchestrationContext, seen: list[str]) -> None:
    try:
        await act(1)
    finally:
        for _ in range(10):
            with contextlib.suppress(ExecutionClosed):
                await asyncio.sleep(0)
        seen.append("ended")


async def generator_in_use(ctx: OrchestrationContext, seen: list[str]) -> None:
    async for _ in numbers(seen):
        seen.append("never")


async def generator_left_behind(ctx: OrchestrationContext, seen: list[str]) -> None:
    source = numbers(seen, first="now")
    async for _ in source:
        break
    await act(1)


async def numbers(seen: list[str], first: Any = None) -> AsyncIterator[Any]:
    try:
        yield first or await act(1)
        yield await act(2)
    finally:
        seen.append("generator")
        await asyncio.sleep(0)
        seen.append("generator effect")


async def context_managers(ctx: OrchestrationContext, seen: list[str]) -> None:
    @contextlib.asynccontextmanager
    async def held(name: str) -> AsyncIterator[None]:
        try:
            yield
        finally:
            seen.append(name)
            await act(name)

    async with held("a"), held("b"), contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(held("c"))
        await act(1)


async def task_groups(ctx: OrchestrationContext, seen: list[str]) -> None:
    async with asyncio.TaskGroup() as a:
        a.create_task(finally_blocks(ctx, seen))
        async with asyncio.TaskGroup() as b, asyncio.TaskGroup() as c, asyncio.timeout(9):
            b.create_task(finally_blocks(ctx, seen))
            c.create_task(act(3))
            await act(1)


async def tasks_that_never_began(ctx: OrchestrationContext, seen: list[str]) -> None:
    try:
        await act(1)
    finally:
        seen.append("task")
        asyncio.create_task(bare_cleanup(ctx, seen))
        await asyncio.gather(bare_cleanup(ctx, seen), bare_cleanup(ctx, seen))


async def coroutines_that_were_not_awaited_yet(ctx: OrchestrationContext, seen: list[str]) -> None:
    for coroutine in [bare_cleanup(ctx, seen) for _ in range(3)]:
        await coroutine


async def locks(ctx: OrchestrationContext, seen: list[str]) -> None:
    lock = asyncio.Lock()
    condition = asyncio.Condition()

    async def hold() -> None:
        async with lock, condition:
            await condition.wait()

    async def compete() -> None:
        async with lock:
            seen.append("never")

    await asyncio.gather(hold(), compete(), asyncio.Queue[int]().get(), asyncio.Event().wait())


async def logging_and_cancelling(ctx: OrchestrationContext, seen: list[str]) -> None:
    future, task = act(1), asyncio.create_task(act(2))
    handle = asyncio.get_running_loop().call_later(5, print)
    try:
        await ctx.schedule_wait("go")
    finally:
        ctx.logger.error("too late")
        future.cancel()
        task.cancel()
        handle.cancel()
        seen.append("cancelled")


async def raising(ctx: OrchestrationContext, seen: list[str]) -> None:
    try:
        await act(1)
    finally:
        seen.append("raising")
        raise SystemExit


async def failed_task_that_nobody_asked_for(ctx: OrchestrationContext, seen: list[str]) -> None:
    async def fails() -> None:
        raise ValueError

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    seen.append(repr(task.done()))
    await act(1)


async def waits(ctx: OrchestrationContext, seen: list[str]) -> None:
    try:
        await asyncio.wait([act(1), asyncio.create_task(act(2))], timeout=5)
    finally:
        seen.append("waits")
        async with asyncio.timeout(3):
            await act(3)


LAST_WORDS: list[tuple[Body, list[str]]] = [
    (finally_blocks, ["inner", "outer"]),
    (except_base_exception, ["ExecutionClosed"] * 3),
    (bare_cleanup, ["ended"]),
    (generator_in_use, ["generator"]),
    (generator_left_behind, ["generator"]),
    (context_managers, ["c", "b", "a"]),
    (task_groups, ["inner", "outer", "inner", "outer"]),
    (tasks_that_never_began, ["task"]),
    (coroutines_that_were_not_awaited_yet, ["ended"]),
    (locks, []),
    (logging_and_cancelling, ["cancelled"]),
    (raising, ["raising"]),
    (failed_task_that_nobody_asked_for, []),
    (waits, ["waits"]),
]


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize(
    ("body", "words"), LAST_WORDS, ids=[body.__name__ for body, _ in LAST_WORDS]
)
def test_last_words_are_spoken_without_effect(body: Body, words: list[str]) -> None:
    assert thrown_away(body) == words


@pytest.mark.usefixtures("silence")
def test_an_execution_that_nobody_closed_ends_quietly_in_the_collector() -> None:
    @orchestration
    async def waits() -> None:
        await act(1)

    world = World(waits)
    world.start()
    world.execution = None


# Those that refuse.


async def swallows_act() -> None:
    await act(1)


async def swallows_sleep() -> None:
    await asyncio.sleep(1)


async def swallows_zero() -> None:
    await asyncio.sleep(0)


async def swallows_a_thread() -> None:
    await asyncio.to_thread(print)


async def swallows_a_queue() -> None:
    await asyncio.Queue[int]().get()


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize(
    "awaits", [swallows_act, swallows_sleep, swallows_zero, swallows_a_thread, swallows_a_queue]
)
def test_code_that_swallows_everything_for_ever_is_parked(
    awaits: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    @orchestration
    async def stubborn() -> None:
        await asyncio.gather(swallow(), act(2))

    async def swallow() -> None:
        with contextlib.suppress(BaseException):
            await act(1)
        while True:
            with contextlib.suppress(BaseException):
                await awaits()

    world = World(stubborn)
    world.start()
    before = unwinding.parked()

    assert world.close() == 1
    assert unwinding.parked() == before + 1


async def yields_again() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        yield 2


async def awaits_again() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        while True:
            with contextlib.suppress(BaseException):
                await asyncio.sleep(0)


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("generator", [yields_again, awaits_again])
def test_a_generator_that_goes_on_when_it_is_closed_is_parked(
    generator: Callable[[], AsyncIterator[int]],
) -> None:
    @orchestration
    async def stubborn() -> None:
        async for _ in generator():
            await act(1)

    world = World(stubborn)
    world.start()

    assert world.close() == 1


@pytest.mark.usefixtures("silence")
def test_generators_that_beget_generators_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwinding, "UNWOUND_MAX", 50)

    @orchestration
    async def begets() -> None:
        async for _ in heirs():
            break
        await act(1)

    async def heirs() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            async for _ in heirs():
                break

    world = World(begets)
    world.start()

    assert world.close() == 1


@pytest.mark.usefixtures("silence")
def test_a_full_execution_is_parked_too_if_it_swallows_its_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its refusal must not be that it has too many requests open."""
    monkeypatch.setattr("perdure.core.requests.PENDING_MAX", 2)

    @orchestration
    async def stubborn() -> None:
        act(1)
        for _ in range(10_000):
            with contextlib.suppress(BaseException):
                await act(2)

    world = World(stubborn)
    world.start()

    assert world.close() == 1


PARKS = """
from test_unwinding import waits_for_ever
from driver import World

world = World(waits_for_ever)
world.start()
print(world.close())
"""


@orchestration
async def waits_for_ever() -> None:
    while True:
        with contextlib.suppress(BaseException):
            await act(1)


@pytest.mark.slow
def test_what_is_parked_stays_silent_when_the_process_ends() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PARKS],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )

    assert (ran.stdout, ran.stderr, ran.returncode) == ("1\n", "", 0)


# When it happens.


@pytest.mark.usefixtures("silence")
def test_an_execution_may_be_thrown_away_in_the_middle_of_a_turn() -> None:
    seen: list[str] = []

    @orchestration
    async def refused(ctx: OrchestrationContext) -> None:
        tasks = [asyncio.create_task(finally_blocks(ctx, seen)) for _ in range(2)]
        await act(1)
        asyncio.create_task(bare_cleanup(ctx, seen))
        await asyncio.gather(*tasks, asyncio.to_thread(print))

    world = World(refused)
    world.start()
    with pytest.raises(TurnRefused):
        world.complete(2)

    assert world.close() == 0
    assert seen == ["inner", "outer", "inner", "outer", "ended"]


@pytest.mark.usefixtures("silence")
def test_an_execution_that_ended_leaves_nothing_of_its_tasks() -> None:
    seen: list[str] = []

    @orchestration
    async def leaves(ctx: OrchestrationContext) -> None:
        asyncio.create_task(finally_blocks(ctx, seen))
        await act(1)

    world = World(leaves)
    world.start()
    world.complete(2)

    assert world.ending is not None
    assert seen == ["inner", "outer"]
    assert world.kinds.count("ActivityScheduled act") == 2


@pytest.mark.usefixtures("silence")
def test_closing_twice_is_closing_once() -> None:
    seen: list[str] = []

    @orchestration
    async def waits(ctx: OrchestrationContext) -> None:
        await finally_blocks(ctx, seen)

    world = World(waits)
    world.start()
    execution = world.execution
    assert execution is not None

    assert (execution.close(), execution.close()) == (0, 0)
    assert seen == ["inner", "outer"]


def test_the_collector_never_ends_a_generator_of_a_living_execution() -> None:
    seen: list[str] = []

    @orchestration
    async def leaves(ctx: OrchestrationContext) -> None:
        await generator_left_behind(ctx, seen)

    world = World(leaves)
    world.start()
    gc.collect()
    assert seen == []

    world.complete(2)
    assert seen == ["generator"]


def test_generators_that_ended_are_let_go() -> None:
    @orchestration
    async def many(ctx: OrchestrationContext) -> None:
        for _ in range(1_000):
            async for _ in one():
                pass
        await act(1)

    async def one() -> AsyncIterator[int]:
        yield 1

    world = World(many)
    world.start()
    assert world.execution is not None

    assert len(world.execution._loop.asyncgens) < 100


# What it costs to have many.


def test_tasks_are_not_kept_in_the_set_of_all_tasks_of_the_process() -> None:
    sets = [
        found
        for name in ("_all_tasks", "_scheduled_tasks")
        if (found := getattr(asyncio.tasks, name, None)) is not None
    ]
    before = sum(len(found) for found in sets)

    @orchestration
    async def waits() -> None:
        await asyncio.gather(*(asyncio.create_task(act(n)) for n in range(10)))

    World(waits).start()

    assert sum(len(found) for found in sets) == before


@pytest.mark.slow
def test_one_more_task_costs_the_same_beside_5000_open_executions() -> None:
    @orchestration
    async def waits() -> None:
        await act(1)

    def cost(open_before: int) -> float:
        while len(worlds) < open_before:
            worlds.append(World(waits))
            worlds[-1].start()
        times = []
        for _ in range(200):
            world = World(waits)
            begin = time.perf_counter()
            world.start()
            times.append(time.perf_counter() - begin)
            world.close()
        return min(times)

    worlds: list[World] = []
    few = cost(100)

    assert cost(5_000) < 3 * few


@pytest.mark.parametrize("mode", Mode)
def test_what_happens_after_the_end_of_a_turn_is_void(mode: Mode) -> None:
    """Messages behind the one that ends it do not run the code any more."""
    seen: list[str] = []

    @orchestration
    async def short() -> None:
        asyncio.create_task(late())
        await act(1)

    async def late() -> None:
        await act(2)
        seen.append("ran")

    world = World(short, mode=mode)
    world.start()
    done = work.ActivityCompleted
    turn = world.step(done(1, 2, raw(1)), done(1, 3, raw(1)))

    assert (turn.taken, seen) == (1, [])

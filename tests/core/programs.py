"""Random orchestrations: a small language, what it means, and how Hypothesis writes it.

A program is a block: a list of statements, each a list of a keyword and its parts. It is the input
of one orchestration that interprets it, so that the same code replays every program.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from constructs import act, child
from hypothesis import strategies as st

from perdure import ActivityError, OrchestrationContext, SubOrchestrationError, orchestration

Block = list[Any]
EVENTS = ["red", "green"]
EXECUTIONS_MAX = 3
FAILS = "fails"
"""An activity or child with this in its input fails."""


class Return(Exception):
    """A program that ends from within its blocks."""


class Interpreter:
    """log: what the program has seen, which becomes its output and the input of activities."""

    def __init__(self, ctx: OrchestrationContext) -> None:
        self.ctx = ctx
        self.log: list[Any] = []
        self.lock = asyncio.Lock()
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def block(self, block: Block) -> int:
        for statement in block:
            await getattr(self, statement[0])(*statement[1:])
        return len(self.log)

    # What costs an event. `leaf` gives something to await.

    def leaf(self, kind: str, *parts: Any) -> Any:
        ctx = self.ctx
        if kind == "activity":
            return act([*parts, len(self.log)])
        if kind == "timer":
            return ctx.schedule_timer(parts[0])
        if kind == "wait":
            return ctx.schedule_wait(parts[0])
        if kind == "dequeue":
            return ctx.dequeue_event(parts[0])
        if kind == "child":
            return child([*parts])
        if kind == "sleep":
            return asyncio.create_task(asyncio.sleep(parts[0], "slept"))
        if kind == "gathered":
            return asyncio.gather(*(self.leaf(*part) for part in parts))
        assert kind == "coroutine"
        return asyncio.create_task(self.block(parts[0]))

    async def do(self, leaf: Block) -> None:
        self.log.append(await self.leaf(*leaf))

    async def told(self, what: str) -> None:
        ctx = self.ctx
        values: dict[str, Callable[[], Any]] = {
            "now": lambda: ctx.now().isoformat(),
            "guid": lambda: str(ctx.new_guid()),
            "random": lambda: ctx.random.randrange(1_000),
            "length": lambda: ctx.history_length,
        }
        self.log.append(await act(values[what]()))

    async def detached(self) -> None:
        self.log.append(self.ctx.start_orchestration(child, len(self.log)))

    # What waits for several.

    async def gather(self, keep: bool, blocks: list[Block]) -> None:
        tasks = [self.block(block) for block in blocks]
        found = await asyncio.gather(*tasks, return_exceptions=keep)
        self.log.append([found if isinstance(found, int) else repr(found) for found in found])

    async def wait(self, mode: str, limit: float | None, rest: str, leaves: list[Block]) -> None:
        futures = [asyncio.ensure_future(self.leaf(*leaf)) for leaf in leaves]
        done, pending = await asyncio.wait(futures, timeout=limit, return_when=mode)
        self.log.append([futures.index(future) for future in done])
        for future in pending:
            if rest == "cancel":
                future.cancel()
            elif rest == "await":
                self.log.append(await future)
        for future in done:
            self.log.append(repr(future.exception()) if future.exception() else future.result())

    async def select(self, leaves: list[Block]) -> None:
        self.log.append(list(await self.ctx.select(*(self.leaf(*leaf) for leaf in leaves))))

    async def completed(self, limit: float | None, leaves: list[Block]) -> None:
        futures = [asyncio.ensure_future(self.leaf(*leaf)) for leaf in leaves]
        try:
            for first in asyncio.as_completed(futures, timeout=limit):
                self.log.append(await first)
        finally:
            for future in futures:
                future.cancel()

    async def group(self, blocks: list[Block]) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.block(block)) for block in blocks]
            tasks.append(group.create_task(act("member")))
        self.log.append([task.result() for task in tasks])

    # Time limits, tasks and other control flow.

    async def wait_for(self, limit: float, leaf: Block) -> None:
        self.log.append(await asyncio.wait_for(self.leaf(*leaf), limit))

    async def timeout(self, limit: float, block: Block) -> None:
        async with asyncio.timeout(limit):
            await self.block(block)

    async def task(self, cancel: bool, block: Block, meanwhile: Block) -> None:
        task = asyncio.create_task(self.block(block))
        await self.block(meanwhile)
        if cancel:
            task.cancel()
        self.log.append(await task)

    async def left(self, block: Block) -> None:
        asyncio.create_task(self.block(block)).add_done_callback(retrieve)

    async def shield(self, limit: float, leaf: Block) -> None:
        inner = asyncio.ensure_future(self.leaf(*leaf))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(inner), limit)
        self.log.append(await inner)

    async def attempt(self, block: Block, handler: Block, last: Block) -> None:
        try:
            await self.block(block)
        except (ActivityError, SubOrchestrationError, TimeoutError, ExceptionGroup) as error:
            self.log.append(type(error).__name__)
            await self.block(handler)
        finally:
            await self.block(last)

    async def stubborn(self, block: Block, handler: Block) -> None:
        try:
            await self.block(block)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            await self.block(handler)

    async def loop(self, times: int, block: Block) -> None:
        for n in range(times):
            self.log.append(n)
            await self.block(block)

    async def locked(self, blocks: list[Block]) -> None:
        async def one(block: Block) -> None:
            async with self.lock:
                await self.block(block)

        if not self.lock.locked():
            await asyncio.gather(*(one(block) for block in blocks))

    async def queued(self, block: Block) -> None:
        async def produce() -> None:
            try:
                await self.block(block)
            finally:
                self.queue.put_nowait(len(self.log))

        producer = asyncio.create_task(produce())
        self.log.append(await self.queue.get())
        await producer

    async def generated(self, leaves: list[Block]) -> None:
        async def results() -> AsyncGenerator[Any, None]:
            try:
                for leaf in leaves:
                    yield await self.leaf(*leaf)
            finally:
                self.log.append(await act("generator closed"))

        async with contextlib.aclosing(results()) as source:
            async for result in source:
                self.log.append(result)

    # Ends.

    async def renew(self) -> None:
        if self.ctx.execution_id < EXECUTIONS_MAX:
            await self.ctx.continue_as_new([["do", ["activity", "renewed"]]])

    async def finish(self) -> None:
        raise Return

    async def fail(self) -> None:
        raise ValueError("program")


def retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


@orchestration
async def interpret(ctx: OrchestrationContext, program: Block) -> list[Any]:
    interpreter = Interpreter(ctx)
    try:
        for statement in program:
            await interpreter.attempt([statement], [["told", "length"]], [])
    except* Return:
        interpreter.log.append("returned")
    return interpreter.log


# How programs are written.

delays = st.sampled_from([0, 0.5, 1, 7, -1])
limits = st.sampled_from([None, 30, 5, 0.2, 0, -1])
leaves = st.one_of(
    st.tuples(st.just("activity"), st.sampled_from(["a", "b", FAILS])),
    st.tuples(st.just("timer"), delays),
    st.tuples(st.just("wait"), st.sampled_from(EVENTS)),
    st.tuples(st.just("dequeue"), st.sampled_from(EVENTS)),
    st.tuples(st.just("child"), st.sampled_from(["c", FAILS])),
    st.tuples(st.just("sleep"), delays),
    st.tuples(
        st.just("gathered"),
        st.tuples(st.just("activity"), st.just("x")),
        st.tuples(st.just("timer"), delays),
    ),
).map(list)


def blocks_of(statements: st.SearchStrategy[Any], max_size: int = 3) -> st.SearchStrategy[Any]:
    return st.lists(statements, min_size=1, max_size=max_size)


simple = st.one_of(
    st.tuples(st.just("do"), leaves),
    st.tuples(st.just("told"), st.sampled_from(["now", "guid", "random", "length"])),
    st.tuples(st.just("detached")),
    st.tuples(st.just("wait_for"), limits, leaves),
    st.tuples(st.just("shield"), limits, leaves),
    st.tuples(st.just("select"), st.lists(leaves, min_size=1, max_size=3)),
    st.tuples(st.just("completed"), limits, st.lists(leaves, min_size=1, max_size=3)),
    st.tuples(
        st.just("wait"),
        st.sampled_from([asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION, asyncio.ALL_COMPLETED]),
        limits,
        st.sampled_from(["cancel", "await", "leave"]),
        st.lists(leaves, min_size=1, max_size=3),
    ),
    st.tuples(st.just("generated"), st.lists(leaves, min_size=1, max_size=2)),
    st.tuples(st.sampled_from(["renew", "finish", "fail"])),
).map(list)


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    block = blocks_of(inner, 2)
    coroutine = st.tuples(st.just("coroutine"), block).map(list)
    several = st.lists(block, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("gather"), st.booleans(), several),
        st.tuples(st.just("group"), several),
        st.tuples(st.just("locked"), several),
        st.tuples(st.just("queued"), block),
        st.tuples(st.just("timeout"), limits, block),
        st.tuples(st.just("task"), st.booleans(), block, block),
        st.tuples(st.just("left"), block),
        st.tuples(st.just("attempt"), block, block, block),
        st.tuples(st.just("stubborn"), block, block),
        st.tuples(st.just("loop"), st.integers(0, 2), block),
        st.tuples(
            st.just("select"),
            st.lists(st.one_of(leaves, coroutine), min_size=2, max_size=3),
        ),
    ).map(list)


programs = blocks_of(st.recursive(simple, compound, max_leaves=8), 5)

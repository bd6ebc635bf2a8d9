"""Activities: what they are given, how many run, and that nothing they do harms the host."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from kit import Gate, Through, World, history, kinds, until, until_recorded

from perdure import (
    ActivityError,
    OrchestrationContext,
    OrchestrationFailedError,
    PayloadError,
    PerdureError,
    Runtime,
    activity,
    activity_context,
    orchestration,
)
from perdure.core import events
from perdure.providers.contract import CommitTurn, Operation


class CardDeclined(Exception):
    def __init__(self, card: str, amount: int) -> None:
        super().__init__(card, amount)
        self.card = card
        self.amount = amount


class Fatal(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("from __str__")


@activity
async def adding(left: int, right: int = 5) -> int:
    return left + right


@activity
def adding_in_thread(left: int, *, right: int) -> str:
    return f"{left + right} {threading.current_thread() is not threading.main_thread()}"


@orchestration
async def both(ctx: OrchestrationContext) -> list[Any]:
    return [
        await adding(1),
        await adding(1, right=2),
        await adding_in_thread(3, right=4),
        await ctx.schedule_activity(adding, 10),
        await ctx.schedule_activity("adding", {"left": 1, "right": 1}, result_type=int),
    ]


async def test_async_and_plain_activities_run_with_their_arguments(world: World) -> None:
    async with world.runtime(both, adding, adding_in_thread) as runtime:
        handle = await runtime.client.start_orchestration(both)

        assert await handle.result() == [6, 3, "7 True", 15, 2]


async def test_a_call_outside_just_runs_the_function() -> None:
    assert await adding(1) == 6
    assert await adding_in_thread(3, right=4) == "7 True"
    with pytest.raises(PerdureError, match="activity_context"):
        activity_context()


SEEN: list[dict[str, Any]] = []


@activity
async def looking(step: int) -> None:
    SEEN.append(_seen())


@activity
def looking_in_thread(step: int) -> None:
    SEEN.append(_seen())


def _seen() -> dict[str, Any]:
    context = activity_context()
    return {
        "who": (context.instance_id, context.execution_id, context.event_id),
        "name": context.activity_name,
        "attempt": context.attempt,
        "key": context.idempotency_key,
        "cancelled": context.is_cancelled,
    }


@orchestration
async def watching(ctx: OrchestrationContext) -> None:
    await looking(1)
    await looking_in_thread(2)
    await looking(1)


async def test_an_activity_knows_who_it_is(world: World) -> None:
    SEEN.clear()
    async with world.runtime(watching, looking, looking_in_thread) as runtime:
        client = runtime.client
        for id in ("a", "b"):
            await (await client.start_orchestration(watching, instance_id=id)).result()

        assert [seen["who"] for seen in SEEN[:3]] == [("a", 1, 2), ("a", 1, 4), ("a", 1, 6)]
        assert [seen["name"] for seen in SEEN[:3]] == ["looking", "looking_in_thread", "looking"]
        assert {seen["attempt"] for seen in SEEN} == {1}
        assert not any(seen["cancelled"] for seen in SEEN)
        keys = [seen["key"] for seen in SEEN]
        assert len(set(keys)) == 6, "each call has a key of its own"
        assert (await client.get_instance("a")).incarnation in keys[0]


@activity
async def tried_twice() -> list[Any]:
    SEEN.append(_seen())
    if len(SEEN) == 1:
        await asyncio.sleep(3600)
    return [seen["key"] for seen in SEEN]


@orchestration
async def trying() -> list[Any]:
    return await tried_twice()


async def test_the_idempotency_key_is_the_same_for_every_attempt(world: World) -> None:
    SEEN.clear()
    async with world.runtime(trying, tried_twice) as first:
        await first.client.start_orchestration(trying, instance_id="t")
        await until(lambda: SEEN)
        await first.stop(0)
    async with world.runtime(trying, tried_twice) as second:
        one, other = (await second.client.wait_for_orchestration("t")).output

        assert one == other
        # The first was given back by a node that stopped in good order.
        assert [seen["attempt"] for seen in SEEN] == [1, 1]


GATES: dict[str, Gate] = {}


@activity
async def gated(name: str) -> str:
    await GATES[name].wait()
    return name


@orchestration
async def fanning(ctx: OrchestrationContext, name: str, number: int) -> int:
    return len(await asyncio.gather(*(gated(name) for _ in range(number))))


async def test_no_more_activities_run_at_once_than_allowed(world: World) -> None:
    gate = GATES["bounded"] = Gate()
    async with world.runtime(fanning, gated, max_activities=3) as runtime:
        handle = await runtime.client.start_orchestration(fanning, "bounded", 50)
        await gate.has(3)
        await asyncio.sleep(0.02)
        assert gate.entered == 3
        gate.open()

        assert await handle.result() == 50
        assert (gate.most, gate.entered) == (3, 50)


@activity
def threaded(number: int) -> int:
    RUNNING.append(number)
    most = len(RUNNING)
    BARRIER.wait(0.01)
    RUNNING.remove(number)
    return most


RUNNING: list[int] = []
BARRIER = threading.Event()


@orchestration
async def fanning_threads(ctx: OrchestrationContext) -> list[int]:
    return await asyncio.gather(*(threaded(number) for number in range(12)))


async def test_no_more_threads_than_allowed(world: World) -> None:
    async with world.runtime(fanning_threads, threaded, max_threads=4) as runtime:
        handle = await runtime.client.start_orchestration(fanning_threads)

        assert max(await handle.result() or ()) <= 4


Way = Literal[
    "exception", "declared", "exit", "interrupt", "fatal", "unprintable", "cancelled",
    "generator exit", "stop iteration", "child exit", "child interrupt", "nan", "wrong type",
    "recursion", "own cancel", "memory",
]  # fmt: skip


@activity(name="harmful", raises=[CardDeclined])
async def harmful(way: Way) -> int:
    found: int = await _harm(way)
    return found


async def _harm(way: Way) -> Any:
    match way:
        case "exception":
            raise LookupError("not here")
        case "declared":
            raise CardDeclined("4711", 12)
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "fatal":
            raise Fatal("fatal")
        case "unprintable":
            raise Unprintable
        case "cancelled":
            raise asyncio.CancelledError("by itself")
        case "generator exit":
            raise GeneratorExit
        case "stop iteration":
            raise StopAsyncIteration("stop")
        case "child exit":
            await asyncio.create_task(_harm("exit"))
        case "child interrupt":
            await asyncio.gather(_harm("interrupt"), asyncio.sleep(0))
        case "nan":
            return float("nan")
        case "wrong type":
            return "no number"
        case "recursion":
            return await _harm(way)
        case "own cancel":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        case _:
            raise MemoryError
    return None


@activity(name="harmful_thread", raises=[CardDeclined])
def harmful_thread(way: Way) -> int:
    match way:
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "fatal":
            raise Fatal("fatal")
        case "unprintable":
            raise Unprintable
        case "declared":
            raise CardDeclined("4711", 12)
        case "cancelled":
            raise asyncio.CancelledError("by itself")
        case "stop iteration":
            raise StopIteration("stop")
        case "nan":
            return float("nan")  # type: ignore[return-value]  # that is the test
        case _:
            raise LookupError("not here")


@orchestration
async def trying_out(ctx: OrchestrationContext, name: str, way: str) -> str:
    try:
        await ctx.schedule_activity(name, way)
    except ActivityError as error:
        return f"{error.type}: {error.message}"
    return "no error"


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("exception", "LookupError: not here"),
        ("declared", "CardDeclined: ('4711', 12)"),
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt: "),
        ("fatal", "Fatal: fatal"),
        ("unprintable", "Unprintable: <its __str__ raised SystemExit>"),
        ("cancelled", "CancelledError: by itself"),
        ("generator exit", "GeneratorExit: "),
        ("stop iteration", "StopAsyncIteration: stop"),
        ("child exit", "ActivityTaskExit: a child task raised SystemExit(3)"),
        ("child interrupt", "ActivityTaskExit: a child task raised KeyboardInterrupt()"),
        ("nan", "PayloadError: "),
        ("wrong type", "PayloadError: "),
        ("recursion", "RecursionError: "),
        ("own cancel", "CancelledError: "),
        ("memory", "MemoryError: "),
    ],
)
async def test_whatever_an_activity_raises_fails_it_and_the_worker_goes_on(
    world: World, way: str, expected: str
) -> None:
    async with world.runtime(trying_out, harmful, both, adding, adding_in_thread) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(trying_out, "harmful", way, instance_id="t")
        said = await handle.result() or ""

        assert said.startswith(expected)
        assert "ActivityFailed" in kinds(await history(client, "t"))
        after = await client.start_orchestration(both)
        assert await after.result() == [6, 3, "7 True", 15, 2]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("exception", "LookupError: not here"),
        ("declared", "CardDeclined: ('4711', 12)"),
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt: "),
        ("fatal", "Fatal: fatal"),
        ("unprintable", "Unprintable: <its __str__ raised SystemExit>"),
        ("cancelled", "CancelledError: by itself"),
        ("stop iteration", "StopIteration: stop"),
        ("nan", "PayloadError: "),
    ],
)
async def test_whatever_a_threads_activity_raises_fails_it_and_the_worker_goes_on(
    world: World, way: str, expected: str
) -> None:
    async with world.runtime(trying_out, harmful_thread, both, adding, adding_in_thread) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(trying_out, "harmful_thread", way)

        assert (await handle.result() or "").startswith(expected)
        after = await client.start_orchestration(both)
        assert await after.result() == [6, 3, "7 True", 15, 2]


@orchestration
async def paying(ctx: OrchestrationContext) -> list[Any]:
    try:
        await harmful("declared")
    except CardDeclined as declined:
        return [type(declined).__name__, declined.card, declined.amount]
    return []


async def test_declared_exceptions_arrive_as_themselves(world: World) -> None:
    async with world.runtime(paying, harmful) as runtime:
        handle = await runtime.client.start_orchestration(paying, instance_id="p")

        assert await handle.result() == ["CardDeclined", "4711", 12]
        failed = (await history(runtime.client, "p"))[2]
        assert isinstance(failed, events.ActivityFailed)
        assert "raise CardDeclined" in failed.error.traceback


@orchestration
async def not_catching(ctx: OrchestrationContext) -> None:
    await harmful("exception")


async def test_a_failure_that_nobody_catches_fails_the_orchestration(world: World) -> None:
    async with world.runtime(not_catching, harmful) as runtime:
        handle = await runtime.client.start_orchestration(not_catching)

        with pytest.raises(OrchestrationFailedError) as failed:
            await handle.result()
        assert failed.value.type == "ActivityError"
        assert failed.value.message == "LookupError: not here"


@orchestration
async def sending_nonsense(ctx: OrchestrationContext) -> list[str]:
    found = []
    for bad in (float("nan"), object(), {1: 2, "1": 3}):
        try:
            await ctx.schedule_activity("adding", bad)
        except PayloadError as error:
            found.append(type(error).__name__)
    try:
        await adding("text")  # type: ignore[arg-type]  # that is the test
    except PayloadError as error:
        found.append(str(error))
    try:
        await adding()  # type: ignore[call-arg]  # that is the test
    except TypeError as error:
        found.append(str(error))
    return found


async def test_arguments_that_do_not_fit_are_refused_at_the_call(world: World) -> None:
    async with world.runtime(sending_nonsense, adding) as runtime:
        handle = await runtime.client.start_orchestration(sending_nonsense, instance_id="s")
        found = await handle.result() or []

        assert found[:3] == ["PayloadError"] * 3
        assert "parameter 'left'" in found[3]
        assert "misses required arguments: 'left'" in found[4]
        assert "ActivityScheduled" not in kinds(await history(runtime.client, "s"))


async def test_input_that_does_not_fit_fails_the_activity_before_its_code_runs(
    world: World,
) -> None:
    async with world.runtime(trying_out, adding) as runtime:
        handle = await runtime.client.start_orchestration(trying_out, "adding", "no number")

        assert (await handle.result() or "").startswith("PayloadError: ")


SETTING: contextvars.ContextVar[str] = contextvars.ContextVar("setting", default="default")


@activity
async def setting(runtime_of: str) -> str:
    found = SETTING.get()
    SETTING.set(f"left by {runtime_of}")
    await RUNTIMES[runtime_of].client.raise_event(activity_context().instance_id, "next")
    return found


RUNTIMES: dict[str, Runtime] = {}


@orchestration
async def setting_twice(ctx: OrchestrationContext, runtime: str) -> list[str]:
    first = await asyncio.gather(setting(runtime), ctx.schedule_wait("next"))
    second = await asyncio.gather(setting(runtime), ctx.schedule_wait("next"))
    return [first[0], second[0], SETTING.get()]


async def test_what_an_activity_sets_does_not_reach_others(world: World) -> None:
    SETTING.set("by the host")
    async with world.runtime(setting_twice, setting) as runtime:
        RUNTIMES["contexts"] = runtime
        handle = await runtime.client.start_orchestration(setting_twice, "contexts")

        # An orchestration has an empty context, an activity the one of the runtime's start.
        assert await handle.result() == ["by the host", "by the host", "default"]


async def test_a_sequential_activity_costs_one_commit(world: World) -> None:
    through = Through(world.provider())
    turns: list[CommitTurn] = []

    def look(batch: Sequence[Operation]) -> None:
        turns.extend(op for op in batch if isinstance(op, CommitTurn))

    through.before = look
    async with world.runtime(in_sequence, adding, provider=through) as runtime:
        handle = await runtime.client.start_orchestration(in_sequence, 20)

        assert await handle.result() == 20
        assert len(turns) == 20
        assert all(activity.claimed for turn in turns for activity in turn.activities)


@orchestration
async def in_sequence(ctx: OrchestrationContext, number: int) -> int:
    total = 0
    for _ in range(number):
        total = await adding(total, 1)
    return total


@orchestration
async def racing(ctx: OrchestrationContext) -> str:
    winner, _ = await ctx.select(gated("late"), ctx.schedule_timer(0.01))
    await ctx.schedule_wait("end")
    return str(winner)


async def test_a_completion_that_comes_too_late_is_counted(world: World) -> None:
    gate = GATES["late"] = Gate()
    async with world.runtime(racing, gated) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(racing, instance_id="r")
        await gate.has(1)
        await until_recorded(client, "r", "TimerFired")
        gate.open()
        await until(lambda: runtime.counters.get("late_completion") == 1)
        await client.raise_event("r", "end")

        assert await handle.result() == "1"
        assert runtime.counters == {"late_completion": 1}

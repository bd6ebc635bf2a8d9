"""Attempts of activities: retried with a growing pause, timed out, or made at most once."""

from __future__ import annotations

import asyncio
import itertools
import threading
from datetime import timedelta
from typing import Any

import pytest
from kit import World, history, kinds, until, until_async

from perdure import (
    ActivityError,
    ActivityLost,
    ActivityTimeout,
    OrchestrationContext,
    OrchestrationFailedError,
    RetryPolicy,
    activity,
    activity_context,
    orchestration,
)
from perdure.core import events

ATTEMPTS: list[tuple[float, int, str]] = []
"""When each attempt began, its number, its idempotency key."""


@pytest.fixture(autouse=True)
def no_attempts_yet() -> None:
    ATTEMPTS.clear()


def note_attempt() -> int:
    context = activity_context()
    now = asyncio.get_running_loop().time()
    ATTEMPTS.append((now, context.attempt, context.idempotency_key))
    return context.attempt


STEADY = RetryPolicy(max_attempts=5, initial_interval=10, backoff=3, max_interval=40, jitter=0)


@activity(retry=STEADY)
async def works_at_the_fifth() -> int:
    number = note_attempt()
    if number < 5:
        raise ConnectionError(f"attempt {number}")
    return number


@orchestration
async def persistent(ctx: OrchestrationContext) -> int:
    return await ctx.schedule_activity(works_at_the_fifth)


async def test_attempts_are_repeated_with_a_growing_pause_and_leave_one_event(
    memory: World,
) -> None:
    async with memory.runtime(persistent, works_at_the_fifth) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(persistent, instance_id="p")

        assert await handle.result() == 5
        times = [at for at, _, _ in ATTEMPTS]
        pauses = [round(later - at) for at, later in itertools.pairwise(times)]
        assert pauses == [10, 30, 40, 40]
        assert [number for _, number, _ in ATTEMPTS] == [1, 2, 3, 4, 5]
        assert len({key for _, _, key in ATTEMPTS}) == 1
        assert kinds(await history(client, "p")) == [
            "OrchestrationStarted",
            "ActivityScheduled",
            "ActivityCompleted",
            "OrchestrationCompleted",
        ]


@activity
async def never_works(text: str) -> str:
    raise ConnectionError(f"{text} {note_attempt()}")


@orchestration
async def gives_up(ctx: OrchestrationContext, attempts: int) -> list[Any]:
    quick = RetryPolicy(max_attempts=attempts, initial_interval=0.001)
    try:
        return [await never_works.options(retry=quick)("try")]
    except ActivityError as error:
        return [type(error).__name__, error.type, error.message, error.attempts]


async def test_the_last_error_arrives_with_the_number_of_attempts(world: World) -> None:
    async with world.runtime(gives_up, never_works) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(gives_up, 4, instance_id="g")

        assert await handle.result() == ["ActivityError", "ConnectionError", "try 4", 4]
        recorded = [
            event
            for event in await client.read_history("g")
            if isinstance(event, events.ActivityFailed)
        ]
        assert [event.attempts for event in recorded] == [4]


async def test_without_a_policy_the_first_failure_counts(world: World) -> None:
    @orchestration
    async def plain(ctx: OrchestrationContext) -> str:
        return await never_works("once")

    async with world.runtime(plain, never_works) as runtime:
        handle = await runtime.client.start_orchestration(plain)
        with pytest.raises(OrchestrationFailedError, match="once 1"):
            await handle.result()
        assert len(ATTEMPTS) == 1


class Declined(Exception):
    pass


class DeclinedForever(Declined):
    pass


@activity(
    raises=[DeclinedForever],
    retry=RetryPolicy(initial_interval=0.001, non_retryable=[Declined, "KeyError"]),
)
async def refuses(kind: str) -> None:
    note_attempt()
    raise {"class": DeclinedForever("no"), "name": KeyError("no"), "other": ValueError("no")}[kind]


@orchestration
async def asks_in_vain(ctx: OrchestrationContext, kind: str) -> str:
    try:
        await refuses(kind)
    except DeclinedForever:
        return "declined"
    except ActivityError as error:
        return error.type
    return "worked"


async def test_errors_that_are_not_retryable_end_it_at_once(world: World) -> None:
    async with world.runtime(asks_in_vain, refuses) as runtime:
        for kind, found in (("class", "declined"), ("name", "KeyError")):
            handle = await runtime.client.start_orchestration(asks_in_vain, kind)
            assert await handle.result() == found
        assert len(ATTEMPTS) == 2


async def test_an_input_that_does_not_fit_is_not_tried_again(world: World) -> None:
    @orchestration
    async def misfit(ctx: OrchestrationContext) -> str:
        try:
            await ctx.schedule_activity("refuses", 5)
        except ActivityError as error:
            return f"{error.type} {error.attempts}"
        return "worked"

    async with world.runtime(misfit, refuses) as runtime:
        handle = await runtime.client.start_orchestration(misfit)
        assert await handle.result() == "PayloadError 1"
        assert not ATTEMPTS


@activity(retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(seconds=40), jitter=0))
async def now_and_then() -> int:
    number = note_attempt()
    if number < 3:
        raise ConnectionError
    return number


@orchestration
async def patient(ctx: OrchestrationContext) -> int:
    return await now_and_then()


async def test_a_pause_survives_restarts_and_is_to_be_seen(memory: World) -> None:
    async with memory.client() as client:
        handle = await client.start_orchestration(patient, instance_id="p")
        began = asyncio.get_running_loop().time()
        for number in (1, 2):
            async with memory.runtime(patient, now_and_then):
                await until(lambda number=number: len(ATTEMPTS) == number, 90)

                async def gives_the_reason(number: int = number) -> bool:
                    (wait,) = await client.waiting_for("p")
                    return wait.attempt == number and "ConnectionError" in str(wait.error)

                await until_async(gives_the_reason)
        async with memory.runtime(patient, now_and_then):
            assert await handle.result() == 3
        assert [round(at - began, -1) for at, _, _ in ATTEMPTS] == [0, 40, 100]


async def test_a_pause_holds_no_slot(memory: World) -> None:
    @activity
    async def other() -> str:
        return "meanwhile"

    @orchestration
    async def bystander(ctx: OrchestrationContext) -> str:
        return await other()

    async with memory.runtime(patient, now_and_then, bystander, other, max_activities=1) as runtime:
        client = runtime.client
        waiting = await client.start_orchestration(patient)
        await until(lambda: len(ATTEMPTS) == 1)
        began = asyncio.get_running_loop().time()
        handle = await client.start_orchestration(bystander)
        assert await handle.result() == "meanwhile"
        assert asyncio.get_running_loop().time() - began < 20
        assert await waiting.result() == 3


@activity(timeout=5)
async def slow() -> str:
    note_attempt()
    await asyncio.sleep(600)
    return "finished"


@orchestration
async def impatient(ctx: OrchestrationContext, limit: float | None) -> list[Any]:
    retry = RetryPolicy(max_attempts=2, initial_interval=0.001)
    try:
        return [await slow.options(retry=retry, timeout=limit)()]
    except ActivityTimeout as error:
        return [error.type, error.attempts]


async def test_each_attempt_has_its_time_limit(memory: World) -> None:
    async with memory.runtime(impatient, slow) as runtime:
        handle = await runtime.client.start_orchestration(impatient, None)

        assert await handle.result() == ["ActivityTimeout", 2]
        (first, _, _), (second, _, _) = ATTEMPTS
        assert 5 <= second - first < 6


async def test_the_limit_of_the_call_goes_before_that_of_the_activity(memory: World) -> None:
    async with memory.runtime(impatient, slow) as runtime:
        handle = await runtime.client.start_orchestration(impatient, 900)

        assert await handle.result() == ["finished"]


async def test_a_function_in_a_thread_is_told_and_its_slot_is_free_when_it_returns(
    sqlite: World,
) -> None:
    let_go = threading.Event()
    told: list[bool] = []

    @activity(timeout=0.05)
    def hangs() -> str:
        told.append(activity_context().wait_cancelled(20))
        let_go.wait(20)
        return "too late"

    @activity
    def quick() -> str:
        return "quick"

    @orchestration
    async def hung(ctx: OrchestrationContext) -> list[str]:
        try:
            return [await hangs()]
        except ActivityTimeout as error:
            return [error.type, await quick()]

    async with sqlite.runtime(hung, hangs, quick, max_threads=1) as runtime:
        handle = await runtime.client.start_orchestration(hung, instance_id="h")
        await until_async(lambda: has_event(runtime.client, "h", events.ActivityFailed))
        assert told == [True]
        let_go.set()

        assert await handle.result() == ["ActivityTimeout", "quick"]
        assert runtime.counters == {"late_completion": 1}


async def has_event(client: Any, instance_id: str, kind: type[Any]) -> bool:
    return any(isinstance(event, kind) for event in await client.read_history(instance_id))


STARTED: list[int] = []


@activity(retry=RetryPolicy(max_attempts=1))
async def at_most_once() -> str:
    STARTED.append(activity_context().attempt)
    await asyncio.sleep(100_000)
    return "done"


@orchestration
async def careful(ctx: OrchestrationContext) -> list[Any]:
    try:
        return [await at_most_once()]
    except ActivityLost as error:
        return [error.type, error.attempts]


async def test_at_most_once_is_not_run_again_when_its_node_dies(memory: World) -> None:
    STARTED.clear()
    async with memory.client() as client:
        handle = await client.start_orchestration(careful, instance_id="c")
        dying = memory.runtime(careful, at_most_once)
        await dying.start()
        await until(lambda: STARTED)
        await fall_silent(memory, dying)
        async with memory.runtime(careful, at_most_once):
            assert await handle.result() == ["ActivityLost", 1]
        assert STARTED == [1]
        await dying.stop(0)


async def fall_silent(world: World, runtime: Any) -> None:
    """Let the others find its process gone."""
    assert world._memory is not None
    world._memory.kill_node(runtime.node_id)


async def test_at_most_once_is_not_run_again_after_a_stop_in_the_middle(world: World) -> None:
    STARTED.clear()
    async with world.client() as client:
        handle = await client.start_orchestration(careful, instance_id="c")
        stopping = world.runtime(careful, at_most_once)
        await stopping.start()
        await until(lambda: STARTED)
        await stopping.stop(0)
        async with world.runtime(careful, at_most_once):
            assert await handle.result() == ["ActivityLost", 1]
        assert STARTED == [1]


async def test_many_failed_attempts_do_not_make_an_activity_suspect(world: World) -> None:
    """Only deaths of processes do: a suspect is run alone, and after ten claims not at all."""

    @activity(retry=RetryPolicy(initial_interval=0.01, max_interval=0.01))
    async def fails_often() -> int:
        number = activity_context().attempt
        if number < 30:
            raise ConnectionError
        return number

    @orchestration
    async def tries(ctx: OrchestrationContext) -> int:
        return await fails_often()

    async with world.runtime(tries, fails_often) as runtime:
        handle = await runtime.client.start_orchestration(tries)
        assert await handle.result() == 30


async def test_a_cancelled_activity_is_not_tried_again(memory: World) -> None:
    @orchestration
    async def changes_its_mind(ctx: OrchestrationContext) -> str:
        task = asyncio.ensure_future(now_and_then())
        await ctx.schedule_timer(20)
        task.cancel()
        await ctx.schedule_timer(500)
        return "over"

    async with memory.runtime(changes_its_mind, now_and_then) as runtime:
        handle = await runtime.client.start_orchestration(changes_its_mind, instance_id="c")
        assert await handle.result() == "over"
        assert len(ATTEMPTS) == 1

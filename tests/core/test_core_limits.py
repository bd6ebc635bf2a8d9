"""Every limit raises its error at the call that would exceed it; code may catch it and go on."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from constructs import act, child
from driver import Mode, World, lines, play_everywhere

from perdure import (
    HistoryLimitExceeded,
    InvalidName,
    InvalidTimer,
    LimitExceeded,
    NestingTooDeep,
    OrchestrationContext,
    PayloadTooLarge,
    TooManyPending,
    TurnLimitExceeded,
    orchestration,
)
from perdure.core import events
from perdure.limits import HISTORY_EVENTS_MAX, PENDING_MAX, TURN_DECISIONS_MAX


def failure_of(function: Any, **options: Any) -> events.Failure:
    world = World(orchestration(function), **options).run()
    assert world.replayed().ended
    return world.error


# Decisions of one stimulus.


@pytest.mark.slow
def test_one_stimulus_makes_at_most_10000_decisions() -> None:
    made = 0

    async def busy(ctx: OrchestrationContext) -> None:
        nonlocal made
        made = 0
        while True:
            ctx.start_orchestration(child, 1)
            made += 1

    error = failure_of(busy)

    assert (error.type, made) == (TurnLimitExceeded.__qualname__, TURN_DECISIONS_MAX)
    assert "10,000 decisions" in error.message


def test_it_is_each_stimulus_that_may_make_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.core.journal.TURN_DECISIONS_MAX", 10)

    @orchestration
    async def busy(ctx: OrchestrationContext) -> None:
        for _ in range(3):
            for _ in range(9):
                ctx.start_orchestration(child, 1)
            await act(1)

    assert play_everywhere(busy).output is None


@orchestration
async def goes_on_after_a_limit(ctx: OrchestrationContext) -> list[Any]:
    futures: list[Any] = []
    caught = ""
    while not caught:
        try:
            futures.append(act(len(futures)))
        except LimitExceeded as error:
            caught = type(error).__name__
    futures[0].cancel()
    return [caught, len(futures), sum(await ctx.join(*futures[1:])), await act("after")]


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        ("perdure.core.journal.TURN_DECISIONS_MAX", "TurnLimitExceeded"),
        ("perdure.core.requests.PENDING_MAX", "TooManyPending"),
    ],
)
def test_code_may_catch_a_limit_and_go_on(
    limit: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit, 10)

    world = play_everywhere(goes_on_after_a_limit)

    assert world.output == [error, 10, 45, "after"]
    for cut in range(2, len(world.history)):
        if isinstance(world.history[cut], events.STIMULI):
            execution = world.fresh()
            execution.replay(world.history[:cut])
            execution.close()


# Open requests.


@pytest.mark.slow
def test_at_most_10000_requests_are_open() -> None:
    @orchestration
    async def hoards(ctx: OrchestrationContext) -> list[Any]:
        opened = [ctx.schedule_wait("go") for _ in range(TURN_DECISIONS_MAX - 1)]
        await act(1)
        opened.append(act(2))
        refused = []
        for call in CALLS:
            try:
                call(ctx)
            except TooManyPending as error:
                refused.append(str(error))
        opened[0].cancel()
        return [len(opened), len(refused), refused[0], await act(3)]

    world = World(hoards)
    world.start()
    source = len(world.history)
    world.complete(source)
    assert len(world.open) == PENDING_MAX
    world.complete(max(world.open), "went on")

    assert world.output[0] == PENDING_MAX
    assert world.output[1] == len(CALLS)
    assert "10,000" in world.output[2]
    assert world.output[3] == "went on"
    assert world.replayed().ended


CALLS: list[Callable[[OrchestrationContext], Any]] = [
    lambda ctx: act(1),
    lambda ctx: child(1),
    lambda ctx: ctx.schedule_timer(1),
    lambda ctx: ctx.schedule_wait("go"),
    lambda ctx: asyncio.get_running_loop().call_later(1, print),
]


# Events of one history.


@pytest.mark.slow
def test_a_history_has_at_most_50000_events() -> None:
    async def endless(ctx: OrchestrationContext) -> int:
        while True:
            for _ in range(9_000):
                ctx.start_orchestration(child, 1)
            await act(1)

    error = failure_of(endless)

    assert error.type == HistoryLimitExceeded.__qualname__
    assert "50,000 events" in error.message


def test_the_last_event_of_a_full_history_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.core.journal.HISTORY_EVENTS_MAX", 20)

    @orchestration
    async def endless(ctx: OrchestrationContext) -> int:
        while True:
            await act(ctx.history_length)

    world = World(endless).run()

    assert world.error.type == "HistoryLimitExceeded"
    assert len(world.history) == 20
    assert world.replayed().ended
    assert HISTORY_EVENTS_MAX == 50_000


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("perdure.core.journal.HISTORY_EVENTS_MAX", 20),
        ("perdure.core.journal.TURN_DECISIONS_MAX", 10),
    ],
)
def test_an_orchestration_at_a_limit_can_continue_as_new(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit, value)

    @orchestration
    async def renews(ctx: OrchestrationContext) -> None:
        waiting = ctx.schedule_wait("go")
        try:
            while True:
                ctx.start_orchestration(child, 1)
        except LimitExceeded:
            waiting.cancel()
            await ctx.continue_as_new()

    ending = play_everywhere(renews).ending

    assert isinstance(ending, events.OrchestrationContinuedAsNew)


# Loop callbacks.


async def sleeps_for_ever() -> None:
    for _ in itertools.count():
        await asyncio.sleep(0)


async def waits_for_time_to_pass() -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + 1
    for _ in itertools.takewhile(lambda _: loop.time() < end, itertools.count()):
        await asyncio.sleep(0)


async def calls_itself_soon() -> None:
    loop = asyncio.get_running_loop()

    def again() -> None:
        loop.call_soon(again)

    again()
    await asyncio.Event().wait()


@pytest.mark.slow
@pytest.mark.parametrize("function", [sleeps_for_ever, waits_for_time_to_pass, calls_itself_soon])
def test_one_stimulus_causes_at_most_100000_callbacks(function: Any) -> None:
    error = failure_of(function)

    assert error.type == "TurnLimitExceeded"
    assert "100,000 loop callbacks" in error.message


def test_callbacks_are_counted_for_each_stimulus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.core.loop.TURN_CALLBACKS_MAX", 20)

    @orchestration
    async def steady() -> None:
        for n in range(5):
            await act(n)
            for _ in range(10):
                await asyncio.sleep(0)

    assert play_everywhere(steady).output is None


@pytest.mark.parametrize(("callbacks", "ends"), [(20, True), (21, False)])
def test_the_limit_is_the_number_of_callbacks(
    callbacks: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.core.loop.TURN_CALLBACKS_MAX", 20)

    @orchestration
    async def steady() -> None:
        # The first callback is the start.
        for _ in range(callbacks - 1):
            await asyncio.sleep(0)

    assert (play_everywhere(steady).kinds == ["OrchestrationCompleted"]) is ends


# Nesting.


def test_children_are_nested_at_most_32_deep() -> None:
    async def descends(ctx: OrchestrationContext) -> str:
        await child(1)
        return ctx.start_orchestration(child, 1)

    assert World(orchestration(descends), nesting=31).run().ending is not None
    error = failure_of(descends, nesting=32)

    assert error.type == NestingTooDeep.__qualname__
    assert "32 deep" in error.message


def test_a_detached_start_is_possible_at_any_depth() -> None:
    @orchestration
    async def detaches(ctx: OrchestrationContext) -> None:
        ctx.start_orchestration(child, 1)

    assert World(detaches, nesting=32).run().kinds[0] == "OrchestrationChained"


# Timers.


@pytest.mark.parametrize(
    "delay",
    [
        math.nan,
        math.inf,
        -math.inf,
        timedelta(days=3_650, milliseconds=1),
        3_650 * 24 * 3_600 + 0.001,
        "5",
        None,
        True,
        10**400,
    ],
)
def test_a_delay_that_is_none_is_refused(delay: Any) -> None:
    async def sleeps(ctx: OrchestrationContext) -> None:
        await ctx.schedule_timer(delay)

    error = failure_of(sleeps)

    assert error.type == InvalidTimer.__qualname__


@pytest.mark.parametrize("delay", [math.inf, 3_650 * 24 * 3_600 + 1])
@pytest.mark.parametrize("sleep", [asyncio.sleep, asyncio.timeout])
def test_a_delay_that_is_too_long_is_refused_from_asyncio_too(sleep: Any, delay: float) -> None:
    async def sleeps() -> None:
        if sleep is asyncio.sleep:
            await sleep(delay)
        async with sleep(delay):
            await act(1)

    error = failure_of(sleeps)

    assert error.type == InvalidTimer.__qualname__
    assert "3,650 days" in error.message or "finite" in error.message


def test_ten_years_are_not_too_long() -> None:
    @orchestration
    async def sleeps(ctx: OrchestrationContext) -> None:
        await ctx.schedule_timer(timedelta(days=3_650))

    assert World(sleeps).run().kinds[1] == "TimerFired 2"


# Names, ids and sizes.


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda ctx: ctx.schedule_activity(""), InvalidName, "1 to 200"),
        (lambda ctx: ctx.schedule_activity("x" * 201), InvalidName, "1 to 200"),
        (lambda ctx: ctx.schedule_wait("é" * 101), InvalidName, "1 to 200"),
        (lambda ctx: ctx.schedule_wait("a\nb"), InvalidName, "'\\n'"),
        (lambda ctx: ctx.schedule_wait(5), InvalidName, "string"),
        (lambda ctx: ctx.schedule_sub_orchestration(""), InvalidName, "1 to 200"),
        (lambda ctx: ctx.start_orchestration("x" * 201), InvalidName, "1 to 200"),
        (lambda ctx: child.options(instance_id="x" * 256)(1), InvalidName, "1 to 255"),
        (lambda ctx: child.options(instance_id="a::sub::1")(1), InvalidName, "'::sub::'"),
        (
            lambda ctx: ctx.start_orchestration("c", instance_id="a::sub::1"),
            InvalidName,
            "'::sub::'",
        ),
        (lambda ctx: child.options(version="latest")(1), InvalidName, "dotted"),
        (lambda ctx: ctx.start_orchestration("c", version="1." * 33), InvalidName, "1 to 64"),
        (lambda ctx: ctx.continue_as_new(version="x"), InvalidName, "dotted"),
        (lambda ctx: act("x" * (1 << 20)), PayloadTooLarge, "1,048,576"),
        (lambda ctx: ctx.schedule_activity("a", 1, 2), TypeError, "one input"),
    ],
)
@pytest.mark.parametrize("mode", Mode)
def test_bad_input_is_refused_at_the_call_and_leaves_nothing(
    call: Callable[[OrchestrationContext], Any], error: type[Exception], says: str, mode: Mode
) -> None:
    @orchestration
    async def mistakes(ctx: OrchestrationContext) -> str:
        try:
            call(ctx)
        except error as found:
            await act(1)
            return str(found)
        return "not refused"

    world = World(mistakes, mode=mode).run()

    assert says in world.output
    assert world.kinds == [
        "ActivityScheduled act",
        "ActivityCompleted 2",
        "OrchestrationCompleted",
    ]


def test_a_result_that_is_too_large_fails_the_orchestration() -> None:
    async def large() -> str:
        return "x" * (1 << 20)

    assert failure_of(large).type == "PayloadTooLarge"


def test_a_limit_reached_twice_gives_one_history() -> None:
    worlds = [World(goes_on_after_a_limit) for _ in range(2)]
    for world in worlds:
        world.start()

    assert lines(worlds[0].history) == lines(worlds[1].history)
    assert len(worlds[0].history) == TURN_DECISIONS_MAX + 2

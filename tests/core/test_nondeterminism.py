"""A history that the code no longer makes is refused, with a report that a person can act on."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from constructs import act, child
from driver import START_MS, Mode, World, stored

from perdure import NondeterminismError, OrchestrationContext, activity, orchestration
from perdure.core import events
from perdure.core.journal import TurnRefused
from perdure.core.work import ExternalRaised

Body = Callable[[OrchestrationContext], Coroutine[Any, Any, Any]]


@activity
async def other(x: int) -> int:
    return x


@dataclasses.dataclass
class Order:
    number: int


@dataclasses.dataclass
class OrderWithMore:
    number: int
    express: bool = False


@activity(name="ship")
async def ship(order: Order) -> Any:
    return order


@activity(name="ship")
async def ship_with_more(order: OrderWithMore) -> Any:
    return order


@activity(name="ship")
async def ship_with_options(order: Order, tries: int = 3) -> Any:
    return order, tries


async def base(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    timer, _ = await asyncio.gather(ctx.schedule_timer(5), child(2))
    await ctx.schedule_wait("go")
    return first, timer


async def changed_name(ctx: OrchestrationContext) -> Any:
    first = await other(1)
    timer, _ = await asyncio.gather(ctx.schedule_timer(5), child(2))
    await ctx.schedule_wait("go")
    return first, timer


async def changed_input(ctx: OrchestrationContext) -> Any:
    first = await act(7)
    timer, _ = await asyncio.gather(ctx.schedule_timer(5), child(2))
    await ctx.schedule_wait("go")
    return first, timer


async def changed_order(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    _, timer = await asyncio.gather(child(2), ctx.schedule_timer(5))
    await ctx.schedule_wait("go")
    return first, timer


async def changed_delay(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    timer, _ = await asyncio.gather(ctx.schedule_timer(6), child(2))
    await ctx.schedule_wait("go")
    return first, timer


async def changed_child_id(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    timer, _ = await asyncio.gather(
        ctx.schedule_timer(5), ctx.schedule_sub_orchestration(child, 2, instance_id="mine")
    )
    await ctx.schedule_wait("go")
    return first, timer


async def changed_child_version(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    timer, _ = await asyncio.gather(
        ctx.schedule_timer(5), ctx.schedule_sub_orchestration(child, 2, version="2")
    )
    await ctx.schedule_wait("go")
    return first, timer


async def missing_decision(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    await ctx.schedule_timer(5)
    await ctx.schedule_wait("go")
    return first, None


async def changed_event(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    timer, _ = await asyncio.gather(ctx.schedule_timer(5), child(2))
    await ctx.schedule_wait("come")
    return first, timer


async def ends_earlier(ctx: OrchestrationContext) -> Any:
    first = await act(1)
    timer, _ = await asyncio.gather(ctx.schedule_timer(5), child(2))
    return first, timer


async def fails_earlier(ctx: OrchestrationContext) -> Any:
    await act(1)
    raise LookupError("gone")


async def goes_on_longer(ctx: OrchestrationContext) -> Any:
    await base(ctx)
    return await act(9)


async def never_ends(ctx: OrchestrationContext) -> Any:
    await base(ctx)
    await asyncio.Event().wait()


async def changed_output(ctx: OrchestrationContext) -> Any:
    await base(ctx)
    return "something else"


async def fails_at_the_end(ctx: OrchestrationContext) -> Any:
    await base(ctx)
    raise LookupError("gone")


async def continues_at_the_end(ctx: OrchestrationContext) -> Any:
    await base(ctx)
    return await ctx.continue_as_new()


def history_of(body: Body) -> list[events.AnyEvent]:
    world = World(marked(body)).run()
    assert world.ending is not None
    return world.history


def marked(body: Body) -> Any:
    return orchestration(name="shop")(body)


def verdict(body: Body, history: list[events.AnyEvent]) -> NondeterminismError:
    """What a replay of the history with this code is refused with."""
    execution = World(marked(body)).fresh()
    with pytest.raises(TurnRefused) as refused:
        execution.replay(stored(history))
    assert execution.close() == 0
    error = refused.value.verdict.error
    assert refused.value.verdict.reason == "nondeterminism"
    assert isinstance(error, NondeterminismError)
    assert refused.value.__suppress_context__
    return error


CHILD = "SubOrchestrationScheduled(name='child', instance='inst::sub::5', input=2)"
OUTPUT = "OrchestrationCompleted(output=[1,null])"
CHANGES: list[tuple[Body, int, str, str, str]] = [
    (
        changed_name,
        2,
        "ActivityScheduled(name='act', input=1)",
        "ActivityScheduled(name='other', input=1)",
        "other(1)",
    ),
    (
        changed_input,
        2,
        "ActivityScheduled(name='act', input=1)",
        "ActivityScheduled(name='act', input=7)",
        "act(7)",
    ),
    (
        changed_order,
        4,
        "TimerCreated(delay_ms=5000)",
        "SubOrchestrationScheduled(name='child', instance='inst::sub::4', input=2)",
        "child(2)",
    ),
    (
        changed_delay,
        4,
        "TimerCreated(delay_ms=5000)",
        "TimerCreated(delay_ms=6000)",
        "schedule_timer(6)",
    ),
    (
        changed_child_id,
        5,
        CHILD,
        "SubOrchestrationScheduled(name='child', instance='mine', input=2)",
        'instance_id="mine"',
    ),
    (
        changed_child_version,
        5,
        CHILD,
        "SubOrchestrationScheduled(name='child', instance='inst::sub::5', version='2', input=2)",
        'version="2"',
    ),
    (missing_decision, 5, CHILD, "no further decision", "schedule_timer(5)"),
    (
        changed_event,
        8,
        "ExternalSubscribed(name='go')",
        "ExternalSubscribed(name='come')",
        'schedule_wait("come")',
    ),
    (ends_earlier, 8, "ExternalSubscribed(name='go')", OUTPUT, "async def ends_earlier"),
    (
        fails_earlier,
        4,
        "TimerCreated(delay_ms=5000)",
        "OrchestrationFailed(error='LookupError: gone')",
        "raise LookupError",
    ),
    (goes_on_longer, 10, OUTPUT, "ActivityScheduled(name='act', input=9)", "act(9)"),
    (never_ends, 10, OUTPUT, "no further decision", "Event().wait()"),
    (
        changed_output,
        10,
        OUTPUT,
        'OrchestrationCompleted(output="something else")',
        "async def changed_output",
    ),
    (
        fails_at_the_end,
        10,
        OUTPUT,
        "OrchestrationFailed(error='LookupError: gone')",
        "raise LookupError",
    ),
    (
        continues_at_the_end,
        10,
        OUTPUT,
        "OrchestrationContinuedAsNew(input=null)",
        "continue_as_new()",
    ),
]
changes = pytest.mark.parametrize(
    ("body", "event_id", "expected", "found", "line"),
    CHANGES,
    ids=[change[0].__name__ for change in CHANGES],
)


@changes
def test_a_change_is_reported_with_what_was_expected_what_was_found_and_where(
    body: Body, event_id: int, expected: str, found: str, line: str
) -> None:
    error = verdict(body, history_of(base))

    assert (error.event_id, error.expected, error.found) == (event_id, expected, found)
    assert code_at(error.location, body.__name__).find(line) >= 0
    assert error.matched == matched_before(event_id)
    assert error.location in str(error)


def code_at(location: str, function: str) -> str:
    """The source line of a "file:line in function"."""
    place, _, where = location.partition(" in ")
    path, _, number = place.rpartition(":")
    assert path == __file__
    assert where == function
    return Path(path).read_text().splitlines()[int(number) - 1]


def matched_before(event_id: int) -> tuple[str, ...]:
    history = history_of(base)
    return tuple(
        f"{event.event_id} {type(event).__name__}"
        for event in history[max(0, event_id - 4) : event_id - 1]
    )


@changes
def test_catching_the_error_does_not_hide_the_change(
    body: Body, event_id: int, expected: str, found: str, line: str
) -> None:
    async def stubborn(ctx: OrchestrationContext) -> Any:
        try:
            return await body(ctx)
        except Exception:
            return "fallback"

    assert verdict(stubborn, history_of(base)).event_id == event_id


@changes
def test_a_change_is_found_as_soon_as_the_history_reaches_it(
    body: Body, event_id: int, expected: str, found: str, line: str
) -> None:
    history = history_of(base)
    turns = [n for n in range(2, len(history)) if isinstance(history[n], events.STIMULI)]
    for cut in turns:
        execution = World(marked(body)).fresh()
        if cut >= event_id:
            with pytest.raises(TurnRefused):
                execution.replay(stored(history[:cut]))
        else:
            execution.replay(stored(history[:cut]))
        execution.close()


def test_a_decision_more_at_the_tail_is_a_mismatch_before_the_first_new_stimulus() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await asyncio.gather(act(1), ctx.schedule_wait("go"))

    async def after(ctx: OrchestrationContext) -> None:
        await asyncio.gather(act(1), ctx.schedule_wait("go"), act(2))

    world = World(marked(before))
    world.start()
    error = verdict(after, world.history)

    assert (error.event_id, error.expected) == (4, "the end of the history")
    assert error.found == "ActivityScheduled(name='act', input=2)"
    assert error.matched == (
        "1 OrchestrationStarted",
        "2 ActivityScheduled",
        "3 ExternalSubscribed",
    )


def test_an_end_more_at_the_tail_is_a_mismatch_before_the_first_new_stimulus() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await act(1)

    async def after(ctx: OrchestrationContext) -> None:
        act(1)

    world = World(marked(before))
    world.start()
    error = verdict(after, world.history)

    assert (error.event_id, error.expected) == (3, "the end of the history")
    assert error.found == "OrchestrationCompleted(output=null)"


def test_a_cancellation_that_is_not_recorded_is_a_mismatch() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await ctx.select(act(1), ctx.schedule_timer(9))

    async def after(ctx: OrchestrationContext) -> None:
        await asyncio.wait([act(1), ctx.schedule_timer(9)], return_when=asyncio.FIRST_COMPLETED)

    error = verdict(after, history_of(before))

    assert error.expected == "TimerCancelled(source_event_id=3)"
    assert error.found == "OrchestrationCompleted(output=null)"


def test_a_completion_that_nobody_asked_for_is_a_mismatch() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await act(1)

    history = history_of(before)
    history[2] = events.ActivityCompleted(3, history[2].timestamp_ms, 7, msgspec.Raw(b"1"))
    error = verdict(before, history)

    assert (error.event_id, error.expected) == (3, "ActivityCompleted(source_event_id=7)")
    assert error.matched == ("1 OrchestrationStarted", "2 ActivityScheduled")
    assert error.location.startswith(f"{__file__}:{inspect.getsourcelines(before)[1] + 1} in ")


def test_an_answer_of_another_kind_is_a_mismatch() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await act(None)

    history = history_of(before)
    history[2] = events.TimerFired(3, history[2].timestamp_ms, 2, 0)

    assert verdict(before, history).event_id == 3


# Inputs.


def refusal(body: Body, history: list[events.AnyEvent]) -> str | None:
    """Why a replay is refused, if it is."""
    execution = World(marked(body)).fresh()
    try:
        execution.replay(history)
    except TurnRefused as refused:
        return refused.verdict.reason
    finally:
        execution.close()
    return None


def replays(before: Body, after: Body) -> bool:
    return refusal(after, stored(history_of(before))) is None


async def ships(ctx: OrchestrationContext) -> None:
    await ship(Order(1))


async def ships_with_more(ctx: OrchestrationContext) -> None:
    await ship_with_more(OrderWithMore(1))


async def ships_express(ctx: OrchestrationContext) -> None:
    await ship_with_more(OrderWithMore(1, express=True))


async def ships_with_options(ctx: OrchestrationContext) -> None:
    await ship_with_options(Order(1))


async def ships_with_other_options(ctx: OrchestrationContext) -> None:
    await ship_with_options(Order(1), 4)


def test_an_input_that_gained_a_field_with_a_default_is_no_mismatch() -> None:
    assert replays(ships, ships_with_more)


def test_an_input_whose_new_field_is_not_the_default_is_a_mismatch() -> None:
    assert not replays(ships, ships_express)


def test_a_parameter_that_was_added_with_a_default_is_no_mismatch() -> None:
    assert replays(ships, ships_with_options)


def test_a_parameter_that_was_added_and_set_is_a_mismatch() -> None:
    assert not replays(ships, ships_with_other_options)


SETS = """
import sys
sys.path[:0] = {path!r}
import perdure
from driver import World, lines
from constructs import act

@perdure.orchestration
async def shop():
    for word in {{"alpha", "beta", "gamma", "delta"}}:
        await act(word)

print("\\n".join(lines(World(shop).run().history)))
"""


@pytest.mark.slow
def test_a_set_of_strings_iterated_in_another_order_is_a_mismatch() -> None:
    async def shop(ctx: OrchestrationContext) -> None:
        for word in {"alpha", "beta", "gamma", "delta"}:
            await act(word)

    program = SETS.format(path=[str(Path(__file__).parent)])
    histories = set()
    for seed in range(1, 4):
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        histories.add(ran.stdout)
    assert len(histories) > 1

    refusals = [
        refusal(shop, [events.decode(line) for line in text.encode().splitlines()])
        for text in histories
    ]
    assert "nondeterminism" in refusals


# The report.


def test_another_python_minor_is_named() -> None:
    history = history_of(base)
    first = history[0]
    assert isinstance(first, events.OrchestrationStarted)
    history[0] = msgspec.structs.replace(first, python="3.9")
    error = verdict(changed_input, history)

    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert error.hint == f"the history was made on Python 3.9, this is {here}"
    assert error.hint in str(error)


def test_the_same_python_minor_is_not_named() -> None:
    assert verdict(changed_input, history_of(base)).hint == ""


def test_a_mismatch_in_a_child_task_is_located_there() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await asyncio.create_task(deeper(1))

    async def after(ctx: OrchestrationContext) -> None:
        await asyncio.create_task(deeper(2))

    async def deeper(n: int) -> None:
        await act(n)

    error = verdict(after, history_of(before))

    first = inspect.getsourcelines(deeper)[1]
    assert error.location.startswith(f"{__file__}:{first + 1} in ")


def test_a_long_input_is_cut_in_the_report() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await act("x" * 1_000)

    async def after(ctx: OrchestrationContext) -> None:
        await act("y" * 1_000)

    error = verdict(after, history_of(before))

    assert len(error.expected) < 300
    assert error.expected.endswith("xx…)")


# Damaged histories.


def test_events_behind_the_end_are_a_mismatch() -> None:
    history = history_of(base)
    at_ms = history[-1].timestamp_ms
    history.append(events.CancelRequested(len(history) + 1, at_ms))

    assert verdict(base, history).event_id == len(history)


@pytest.mark.parametrize("position", range(9))
def test_a_lost_event_is_a_mismatch(position: int) -> None:
    history = history_of(base)
    del history[position]

    assert verdict(base, history).event_id <= position + 1


def test_a_history_that_does_not_begin_with_its_start_is_a_mismatch() -> None:
    first = history_of(base)[0]
    twice = [first, msgspec.structs.replace(first, event_id=2)]

    assert "OrchestrationStarted" in verdict(base, twice).expected


def test_an_old_history_with_a_parent_link_replays_and_goes_on() -> None:
    async def one(ctx: OrchestrationContext) -> Any:
        return await act(ctx.history_length)

    at_ms = START_MS
    world = World(marked(one))
    world.start()
    world.history[1:] = [
        events.ParentLinked(2, at_ms, "parent", 7),
        events.ActivityScheduled(3, at_ms, "act", msgspec.Raw(b"2")),
    ]
    world.close()
    world.complete(3, "done")

    assert world.output == "done"
    assert world.replayed().ended


# Payloads that no longer decode.


def test_a_recorded_result_that_no_longer_decodes_blocks_the_instance() -> None:
    async def before(ctx: OrchestrationContext) -> None:
        await ctx.schedule_activity("price", result_type=str)
        await act(1)

    async def after(ctx: OrchestrationContext) -> None:
        await ctx.schedule_activity("price", result_type=int)
        await act(1)

    world = World(marked(before))
    world.start()
    world.complete(2, "cheap")
    with pytest.raises(TurnRefused) as refused:
        World(marked(after)).fresh().replay(world.history)

    assert refused.value.verdict.reason == "incompatible_payload"
    world.close()


def test_a_new_result_that_does_not_decode_blocks_the_instance() -> None:
    async def typed(ctx: OrchestrationContext) -> None:
        await ctx.schedule_activity("price", result_type=int)

    world = World(marked(typed))
    world.start()
    with pytest.raises(TurnRefused) as refused:
        world.complete(2, "cheap")

    assert refused.value.verdict.reason == "incompatible_payload"


def test_a_recorded_input_that_no_longer_decodes_blocks_the_instance() -> None:
    async def before(ctx: OrchestrationContext, n: str) -> None:
        await act(n)

    async def after(ctx: OrchestrationContext, n: int) -> None:
        await act(n)

    world = World(orchestration(name="shop")(before), "one")
    world.start()
    with pytest.raises(TurnRefused) as refused:
        World(orchestration(name="shop")(after), 1).fresh().replay(world.history)

    assert refused.value.verdict.reason == "incompatible_payload"
    world.close()


@pytest.mark.parametrize("mode", Mode)
def test_a_new_input_that_does_not_fit_fails_before_user_code_runs_and_replays(mode: Mode) -> None:
    ran = []

    async def typed(ctx: OrchestrationContext, n: int) -> None:
        ran.append(n)

    world = World(orchestration(typed), 1, mode=mode)
    world.input = msgspec.Raw(b'"one"')
    world.start()

    assert world.error.type == "PayloadError"
    assert ran == []
    assert world.replayed().ended


@pytest.mark.parametrize("mode", Mode)
def test_a_new_event_that_does_not_fit_fails_the_instance_and_replays(mode: Mode) -> None:
    async def typed(ctx: OrchestrationContext) -> None:
        await asyncio.gather(ctx.schedule_wait("go", int), act(1))

    world = World(orchestration(typed), mode=mode)
    world.start()
    turn = world.step(ExternalRaised("go", msgspec.Raw(b'"soon"')))

    assert [type(event) for event in turn.events] == [
        events.ExternalEvent,
        events.OrchestrationFailed,
    ]
    assert world.error.type == "PayloadError"
    assert world.replayed().ended

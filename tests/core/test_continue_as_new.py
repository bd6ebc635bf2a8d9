"""ContinueAsNew ends the execution with the step that asked for it, and nothing after it counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from constructs import act, child
from driver import INCARNATION, Mode, World, play_everywhere, raw, value_of

from perdure import OrchestrationContext, orchestration
from perdure.core import actions, events, work

modes = pytest.mark.parametrize("mode", Mode)


@orchestration
async def counts(ctx: OrchestrationContext, n: int = 0) -> int:
    if n == 2:
        return n
    await act(n)
    return await ctx.continue_as_new(n + 1)


@modes
def test_the_next_execution_begins_with_its_start_only_and_runs_live(mode: Mode) -> None:
    world = World(counts, mode=mode)
    world.run()
    assert isinstance(world.ending, events.OrchestrationContinuedAsNew)
    assert value_of(world.ending.input) == 1
    world.next_execution()
    assert world.kinds == []
    turn = world.step()

    assert [type(event) for event in turn.events] == [events.ActivityScheduled]
    world.run()
    world.next_execution()
    world.step()
    assert world.output == 2
    assert world.history[0].timestamp_ms == world.earlier[1][-1].timestamp_ms


@modes
def test_the_first_call_wins_also_over_a_result(mode: Mode) -> None:
    @orchestration
    async def undecided(ctx: OrchestrationContext, n: int = 0) -> int:
        ctx.continue_as_new(1)
        with contextlib.suppress(BaseException):
            ctx.continue_as_new(2)
        return 3

    world = World(undecided, mode=mode)
    turn = world.start()

    assert world.kinds == ["OrchestrationContinuedAsNew"]
    assert [type(action) for action in turn.actions] == [actions.ContinueAsNew]
    assert world.input_of(2) == 1
    assert world.replayed().ended


@modes
def test_nothing_has_an_effect_after_it(mode: Mode) -> None:
    reached: list[str] = []

    @contextlib.asynccontextmanager
    async def held() -> AsyncIterator[None]:
        try:
            yield
        finally:
            reached.append("exit")
            await act("exit")
            reached.append("beyond")

    @orchestration
    async def tries(ctx: OrchestrationContext) -> None:
        other = asyncio.create_task(ticks())
        await act(1)
        try:
            async with held():
                await asyncio.gather(ctx.continue_as_new())
                reached.append("resolved")
        finally:
            reached.append("finally")
            ctx.start_orchestration(child, 1)
            reached.append("beyond")
            await other

    async def ticks() -> None:
        await act(2)
        reached.append("tick")

    world = World(tries, mode=mode)
    world.start()
    turn = world.step(world.completion(2), world.completion(3))
    assert turn.taken == 1
    assert world.kinds[-1] == "OrchestrationContinuedAsNew"
    assert len(turn.actions) == 1
    assert "exit" in reached
    assert "finally" in reached
    assert not {"resolved", "beyond", "tick"} & set(reached)


@modes
@pytest.mark.parametrize("renews", [False, True])
def test_what_is_ready_when_it_ends_does_not_run(renews: bool, mode: Mode) -> None:
    ran: list[str] = []

    @orchestration
    async def ends(ctx: OrchestrationContext, renews: bool) -> None:
        async def other() -> None:
            ran.append("task")

        asyncio.create_task(other())
        asyncio.get_running_loop().call_soon(ran.append, "callback")
        if renews:
            await ctx.continue_as_new(True)

    world = World(ends, renews, mode=mode)
    world.start()

    assert world.ending is not None
    assert ran == []


@modes
def test_a_step_that_asked_for_it_cannot_be_refused_any_more(mode: Mode) -> None:
    @orchestration
    async def careless(ctx: OrchestrationContext) -> None:
        await act(1)
        ctx.continue_as_new()
        await asyncio.to_thread(print)

    world = World(careless, mode=mode)
    world.start()
    world.complete(2)

    assert isinstance(world.ending, events.OrchestrationContinuedAsNew)
    assert world.replayed().ended


@modes
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, ValueError])
def test_what_is_raised_after_it_is_of_no_interest(error: type[BaseException], mode: Mode) -> None:
    @orchestration
    async def careless(ctx: OrchestrationContext) -> None:
        ctx.continue_as_new()
        raise error

    world = World(careless, mode=mode, repeated=True)
    world.start()

    assert world.kinds == ["OrchestrationContinuedAsNew"]


@modes
def test_a_task_may_ask_for_it_too(mode: Mode) -> None:
    @orchestration
    async def delegates(ctx: OrchestrationContext) -> str:
        async def renew() -> None:
            await act(1)
            await ctx.continue_as_new()

        task = asyncio.create_task(renew())
        await act(2)
        await task
        return "never"

    assert isinstance(World(delegates, mode=mode).run().ending, events.OrchestrationContinuedAsNew)


@modes
def test_unread_events_and_cancel_requests_stay_for_the_next_execution(mode: Mode) -> None:
    @orchestration
    async def one_event(ctx: OrchestrationContext, seen: list[str] | None = None) -> list[str]:
        seen = [*(seen or []), await ctx.schedule_wait("go", str)]
        return seen if len(seen) == 2 else await ctx.continue_as_new(seen)

    world = World(one_event, mode=mode)
    world.start()
    items = [work.ExternalRaised("go", raw(name)) for name in ("a", "b")]
    turn = world.step(*items, work.CancelInstance())
    assert turn.taken == 1
    world.next_execution()
    turn = world.step(*items[1:], work.CancelInstance())

    assert turn.taken == 1
    assert world.output == ["a", "b"]


@modes
def test_detached_starts_of_the_last_step_are_started(mode: Mode) -> None:
    @orchestration
    async def leaves_work(ctx: OrchestrationContext, end: bool) -> str:
        first = ctx.start_orchestration(child, 1)
        await act(1)
        second = ctx.start_orchestration(child, 2, instance_id="given")
        return f"{first} {second}" if end else await ctx.continue_as_new(True)

    world = World(leaves_work, False, mode=mode)
    world.start()
    turn = world.complete(3)
    assert [type(action) for action in turn.actions] == [
        actions.StartOrchestrationDetached,
        actions.ContinueAsNew,
    ]
    world.next_execution()
    world.step()
    turn = world.complete(3)

    assert [type(action) for action in turn.actions] == [actions.StartOrchestrationDetached]
    assert world.output == f"inst::detached::2.2-{INCARNATION[:8]} given"


def test_its_input_is_bound_by_the_signature_it_is_for() -> None:
    @orchestration
    async def renews(ctx: OrchestrationContext, n: int, word: str = "") -> str:
        if word:
            return word
        try:
            await ctx.continue_as_new("not a number")
        except Exception as error:
            await act(type(error).__name__)
        return await ctx.continue_as_new(n, word="found")

    world = play_everywhere(renews, 1)
    assert world.kinds[:2] == ["ActivityScheduled act", "ActivityCompleted 2"]
    assert isinstance(world.ending, events.OrchestrationContinuedAsNew)
    assert value_of(world.ending.input) == {"n": 1, "word": "found"}
    assert world.input_of(2) == "PayloadError"


def test_a_version_may_be_asked_for() -> None:
    @orchestration
    async def upgrades(ctx: OrchestrationContext) -> None:
        await ctx.continue_as_new(version="2.1")

    ending = play_everywhere(upgrades).ending

    assert isinstance(ending, events.OrchestrationContinuedAsNew)
    assert ending.version == "2.1"


def test_the_latest_version_decides_how_the_input_is_encoded() -> None:
    @orchestration(name="job")
    async def old(ctx: OrchestrationContext, n: int) -> None:
        await ctx.continue_as_new(n, pages=2)

    @orchestration(name="job", version="2")
    async def new(ctx: OrchestrationContext, n: int, pages: int) -> None:
        pass

    class Latest(World):
        def _lookup(self, name: str, version: str | None) -> Any:
            return new

    world = Latest(old, 1)
    world.start()

    assert isinstance(world.ending, events.OrchestrationContinuedAsNew)
    assert msgspec.json.decode(world.ending.input) == {"n": 1, "pages": 2}

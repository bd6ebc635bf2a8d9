"""A turn that ends through no fault of its own is void, and recorded only when repeated."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from constructs import act
from driver import Mode, World

from perdure import OrchestrationContext, orchestration
from perdure.core.execution import TurnInterrupted
from perdure.core.journal import INNOCENT

innocents = pytest.mark.parametrize("error", INNOCENT)
places = pytest.mark.parametrize("place", ["main", "task", "group", "callback"])


@orchestration
async def strikes(error: Any, place: str) -> None:
    await act(1)
    if place == "main":
        raise ERRORS[error]
    if place == "callback":
        asyncio.get_running_loop().call_soon(raises, ERRORS[error])
        await act(2)
    if place == "task":
        await asyncio.create_task(struck(ERRORS[error]))
    async with asyncio.TaskGroup() as group:
        group.create_task(struck(ERRORS[error]))


def raises(error: type[BaseException]) -> None:
    raise error


async def struck(error: type[BaseException]) -> None:
    raise error


ERRORS = {error.__name__: error for error in INNOCENT}


@innocents
@places
@pytest.mark.parametrize("mode", Mode)
def test_the_turn_is_void(error: type[BaseException], place: str, mode: Mode) -> None:
    world = World(strikes, error.__name__, place, mode=mode)
    world.start()
    length = len(world.history)
    with pytest.raises(TurnInterrupted, match=error.__name__):
        world.complete(2)

    assert len(world.history) == length
    assert world.close() == 0


@innocents
@places
def test_a_repetition_is_recorded(error: type[BaseException], place: str) -> None:
    world = World(strikes, error.__name__, place, repeated=True)
    world.start()
    world.complete(2)

    assert error.__name__ in world.error.traceback
    assert len(world.history) == 4 + (place == "callback")
    assert world.replayed().ended


@innocents
def test_another_try_that_goes_well_is_as_if_nothing_had_happened(
    error: type[BaseException],
) -> None:
    once = [error]

    @orchestration
    async def unlucky() -> str:
        await act(1)
        if once:
            raise once.pop()
        return "well"

    world = World(unlucky)
    world.start()
    with pytest.raises(TurnInterrupted):
        world.complete(2)
    world.close()
    world.repeated = True
    world.complete(2)

    assert world.output == "well"


def test_an_infinite_recursion_is_an_interruption_and_then_a_failure() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1)

    @orchestration
    async def recurses() -> None:
        deeper(0)

    with pytest.raises(TurnInterrupted):
        World(recurses).start()
    world = World(recurses, repeated=True)
    world.start()

    assert world.error.type == "RecursionError"


def test_a_recursion_error_that_the_code_handles_is_none_of_our_business() -> None:
    @orchestration
    async def handles() -> str:
        results = await asyncio.gather(struck(RecursionError), return_exceptions=True)
        try:
            raise MemoryError
        except MemoryError:
            return type(results[0]).__name__

    assert World(handles).run().output == "RecursionError"


def test_a_durable_call_at_the_edge_of_the_stack_is_made_or_not() -> None:
    """A RecursionError inside a durable call must not leave half of a decision behind."""

    def down(depth: int) -> int:
        try:
            act(depth)
        except RecursionError:
            return 0
        return 1 + down(depth + 1)

    @orchestration
    async def digs(ctx: OrchestrationContext) -> None:
        with contextlib.suppress(RecursionError):
            down(0)
        ctx.start_orchestration("end")

    world = World(digs)
    world.start()

    assert [event.event_id for event in world.history] == list(range(1, len(world.history) + 1))
    assert world.turns[0].actions[-1].id == len(world.history) - 1
    assert len(world.turns[0].actions) == len(world.history) - 2


def test_the_error_of_a_user_that_is_no_exception_fails_the_orchestration() -> None:
    class Odd(BaseException):
        pass

    @orchestration
    async def odd() -> None:
        raise Odd

    assert World(odd).run().error.type.endswith("Odd")


@pytest.mark.parametrize("error", [GeneratorExit, StopAsyncIteration, asyncio.CancelledError])
def test_control_flow_that_leaves_the_orchestration_fails_it(error: type[BaseException]) -> None:
    @orchestration
    async def leaves() -> None:
        raise error

    assert World(leaves).run().error.type == error.__name__

"""What cannot be deterministic is refused by name, whatever the code does with the error."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from constructs import act
from driver import Mode, World

from perdure import ForbiddenOperation, orchestration
from perdure.core.journal import TurnRefused
from perdure.core.loop import DeterministicLoop

Call = Callable[[], Coroutine[Any, Any, Any]]


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def run_in_executor() -> None:
    await running().run_in_executor(None, print)


async def to_thread() -> None:
    await asyncio.to_thread(print)


async def open_connection() -> None:
    await asyncio.open_connection("localhost", 80)


async def start_server() -> None:
    await asyncio.start_server(print, "localhost", 0)


async def sock_connect() -> None:
    with socket.socket() as found:
        await running().sock_connect(found, ("localhost", 80))


async def getaddrinfo() -> None:
    await running().getaddrinfo("localhost", 80)


async def add_reader() -> None:
    running().add_reader(0, print)


async def create_subprocess() -> None:
    await asyncio.create_subprocess_exec("true")


async def add_signal_handler() -> None:
    running().add_signal_handler(signal.SIGUSR1, print)


async def call_soon_threadsafe() -> None:
    running().call_soon_threadsafe(print)


async def set_task_factory() -> None:
    running().set_task_factory(None)


async def stop() -> None:
    running().stop()


async def as_completed() -> None:
    coroutines = [idle(), idle()]
    try:
        for first in asyncio.as_completed(coroutines):
            await first
    finally:
        for coroutine in coroutines:
            coroutine.close()


async def idle() -> None:
    await act(1)


FORBIDDEN: list[tuple[Call, str, str]] = [
    (run_in_executor, "loop.run_in_executor", "a plain `def` activity"),
    (to_thread, "loop.run_in_executor", "a plain `def` activity"),
    (open_connection, "loop.create_connection", "an activity"),
    (start_server, "loop.create_server", "an activity"),
    (sock_connect, "loop.sock_connect", "an activity"),
    (getaddrinfo, "loop.getaddrinfo", "an activity"),
    (add_reader, "loop.add_reader", "an activity"),
    (create_subprocess, "loop.subprocess_exec", "an activity"),
    (add_signal_handler, "loop.add_signal_handler", "an activity"),
    (call_soon_threadsafe, "loop.call_soon_threadsafe", "an external event"),
    (set_task_factory, "loop.set_task_factory", "nothing: the runtime owns this loop"),
    (stop, "loop.stop", "nothing: the runtime owns this loop"),
    (as_completed, "asyncio.as_completed with bare coroutines", "asyncio.create_task"),
]
forbidden = pytest.mark.parametrize(
    ("call", "name", "instead"), FORBIDDEN, ids=[call.__name__ for call, _, _ in FORBIDDEN]
)


def refusal(world: World) -> ForbiddenOperation:
    """The verdict of the turn that the first answer causes."""
    world.start()
    with pytest.raises(TurnRefused) as refused:
        world.complete(2)
    assert refused.value.verdict.reason == "forbidden_operation"
    error = refused.value.verdict.error
    assert isinstance(error, ForbiddenOperation)
    assert world.close() == 0
    return error


@forbidden
def test_a_forbidden_call_names_itself_its_place_and_what_to_use(
    call: Call, name: str, instead: str
) -> None:
    async def forgetful() -> None:
        await act(1)
        await call()

    text = str(refusal(World(orchestration(forgetful))))

    assert text.startswith(f"{name} is not deterministic")
    assert f"use {instead}" in text
    first = inspect.getsourcelines(call)[1]
    assert f"(at {__file__}:" in text
    line = int(text.rpartition(f"{__file__}:")[2].split()[0])
    assert first < line <= first + len(inspect.getsourcelines(call)[0])


@forbidden
@pytest.mark.parametrize("mode", Mode)
def test_catching_the_error_does_not_save_the_turn(
    call: Call, name: str, instead: str, mode: Mode
) -> None:
    async def stubborn() -> str:
        await act(1)
        with contextlib.suppress(BaseException):
            await call()
        return "fallback"

    assert name in str(refusal(World(orchestration(stubborn), mode=mode)))


def test_trying_again_for_ever_ends_too() -> None:
    async def relentless() -> None:
        await act(1)
        while True:
            with contextlib.suppress(BaseException):
                await asyncio.to_thread(print)

    world = World(orchestration(relentless))
    world.start()

    with pytest.raises(TurnRefused):
        world.complete(2)
    assert world.close() == 1


@pytest.fixture
def foreign() -> Iterator[asyncio.Future[Any]]:
    loop = asyncio.new_event_loop()
    yield loop.create_future()
    loop.close()


async def awaits_directly(future: asyncio.Future[Any]) -> None:
    await future


async def awaits_in_a_task(future: asyncio.Future[Any]) -> None:
    await asyncio.create_task(awaits_directly(future))


async def awaits_in_a_generator(future: asyncio.Future[Any]) -> None:
    async def numbers() -> Any:
        yield await future

    async for _ in numbers():
        pass


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("how", [awaits_directly, awaits_in_a_task, awaits_in_a_generator])
def test_awaiting_a_future_of_another_loop_is_forbidden(
    how: Callable[[asyncio.Future[Any]], Coroutine[Any, Any, None]],
    mode: Mode,
    foreign: asyncio.Future[Any],
) -> None:
    async def foreigner() -> str:
        await act(1)
        with contextlib.suppress(Exception):
            await how(foreign)
        return "fallback"

    text = str(refusal(World(orchestration(foreigner), mode=mode)))

    assert text.startswith("awaiting a future of another loop")
    assert "use an activity" in text
    assert __file__ in text


def test_a_task_that_awaits_itself_is_a_plain_mistake() -> None:
    async def narcissus() -> str:
        task = asyncio.current_task()
        assert task is not None
        try:
            await task
        except RuntimeError as error:
            return str(error)
        return "no error"

    world = World(orchestration(narcissus)).run()

    assert world.output.startswith("Task cannot await on itself")


def test_a_thread_of_ones_own_is_found_out_at_the_next_turn() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        submitted: list[concurrent.futures.Future[Any]] = []

        async def sneaky() -> str:
            await act(1)
            submitted.append(concurrent.futures.Future())
            wrapped = asyncio.wrap_future(submitted[0])
            await act(2)
            return str(wrapped)

        world = World(orchestration(sneaky))
        world.start()
        world.complete(2)
        pool.submit(submitted[0].set_result, 1).result()
        with pytest.raises(TurnRefused) as refused:
            world.complete(4)

    assert refused.value.verdict.reason == "forbidden_operation"
    world.close()


def test_a_function_named_as_completed_is_not_mistaken_for_asyncios() -> None:
    async def innocent() -> list[Any]:
        async def as_completed() -> list[Any]:
            return list(await asyncio.gather(idle(), idle()))

        return await as_completed()

    assert World(orchestration(innocent)).run().output == [None, None]


def test_every_operation_of_a_loop_is_either_defined_or_refused() -> None:
    left_to_asyncio = {
        name
        for name in dir(asyncio.AbstractEventLoop)
        if not name.startswith("_")
        and getattr(DeterministicLoop, name) is getattr(asyncio.AbstractEventLoop, name)
    }

    assert left_to_asyncio == set()

"""What the tests of the running system share: stores, hosts, and a clock that needs no waiting.

A test that takes a `World` runs on a store in memory under a loop whose time jumps to the next
deadline when everything waits, and on SQLite, and perhaps on PostgreSQL, in real time. A duration
is therefore asked of the world: `world.s(60)` is a minute in memory and a moment on SQLite.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from perdure import Client, Options, Runtime
from perdure.core import events
from perdure.providers.contract import Operation, Outcome, Provider
from perdure.providers.memory import MemoryProvider, MemoryStore
from perdure.providers.postgres import PostgresProvider
from perdure.providers.sqlite import SqliteProvider
from perdure.registry import Listed

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

EPOCH_MS = 1_700_000_000_000
THREAD_GRACE_S = 0.05
"""How long the virtual clock waits for threads before it jumps."""
LONG_S = 600.0
LONG_GRACE_S = 1.0
"""Before it jumps so far: nothing is left to do but to give up, or a node's own thread is awaited,
which has not had its turn on a busy machine."""


class JumpingSelector(selectors.DefaultSelector):
    """Waits in no time: what the loop would wait, its clock jumps, once threads had their turn."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped_s = 0.0
        self.busy_threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            return super().select(None)
        if self.busy_threads or timeout > LONG_S:
            grace_s = LONG_GRACE_S if timeout > LONG_S else THREAD_GRACE_S
            found = super().select(min(timeout, grace_s))
            if found:
                return found
        self.jumped_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only by jumps."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.jumped_s

    def now_ms(self) -> int:
        """The same time as a store's clock."""
        return EPOCH_MS + int(self._jumping.jumped_s * 1000 + 1e-6)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], R], *args: *Ts
    ) -> asyncio.Future[R]:
        self._jumping.busy_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # A time limit (there is one from Python 3.12 on) would be over in no time.
        await super().shutdown_default_executor()

    def _thread_done(self, _: object) -> None:
        self._jumping.busy_threads -= 1


class World:
    """One store; each `provider()` is another process's view of it.

    `memory` is virtual time, `sqlite` and `postgres` real time. postgres_url: of an empty store,
    for the latter.
    """

    def __init__(self, kind: str, folder: Path, postgres_url: str = "") -> None:
        self.kind = kind
        self.folder = folder
        self.path = folder / "store.db"
        self._postgres_url = postgres_url
        self._memory: MemoryStore | None = None

    @property
    def url(self) -> str:
        """For what takes URLs only; not in memory."""
        return self._postgres_url or f"sqlite:///{self.path}"

    def s(self, seconds: float) -> float:
        """A duration that costs no patience: itself in virtual time, a thousandth in real time."""
        return seconds if self.kind == "memory" else seconds / 1000

    def provider(self) -> Provider:
        if self.kind == "sqlite":
            return SqliteProvider(self.path)
        if self.kind == "postgres":
            return PostgresProvider(self.url)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        if self._memory is None:
            self._memory = MemoryStore(loop.now_ms)
        return MemoryProvider(self._memory)

    def runtime(
        self, *functions: Listed, provider: Provider | None = None, **options: Any
    ) -> Runtime:
        """A runtime, as in a process of its own."""
        # In virtual time a long sleep must not look like a node that gives no sign of life.
        options.setdefault("lease_s", 3_600 if self.kind == "memory" else 10)
        return Runtime(provider or self.provider(), functions, options=Options(**options))

    def client(self) -> Client:
        """A client, as in a process of its own."""
        return Client(self.provider())

    def run(self, test: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine test; fail if it leaves anything behind."""
        return run_quietly(
            test, VirtualLoop if self.kind == "memory" else asyncio.SelectorEventLoop
        )


class Complaints(logging.Handler):
    """What asyncio complains about: forgotten tasks, exceptions that nobody has asked for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage() + str(record.exc_info or ""))


PATIENCE_S = 30.0
VIRTUAL_PATIENCE_S = 900.0


def run_quietly(
    test: Callable[[], Coroutine[Any, Any, R]],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop,
) -> R:
    """Run a coroutine; fail on whatever it leaves pending, on threads, on complaints of asyncio."""
    threads = set(threading.enumerate())
    complaints = Complaints()
    logging.getLogger("asyncio").addHandler(complaints)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            patience_s = VIRTUAL_PATIENCE_S if new_loop is VirtualLoop else PATIENCE_S
            result = runner.run(_with_patience(test, patience_s))
        gc.collect()
    finally:
        logging.getLogger("asyncio").removeHandler(complaints)
    assert complaints.texts == []
    for thread in threading.enumerate():
        if thread not in threads:
            # It may be on its way out.
            thread.join(0.5)
            assert not thread.is_alive(), f"{thread.name} is left"
    return result


async def _with_patience(test: Callable[[], Coroutine[Any, Any, R]], patience_s: float) -> R:
    async with asyncio.timeout(patience_s):
        result = await test()
    me = asyncio.current_task()
    left = [task for task in asyncio.all_tasks() if task is not me]
    assert left == [], "tasks are left"
    return result


async def until(holds: Callable[[], Any], patience_s: float = 20.0) -> None:
    """Wait until something that is only to be seen from outside holds."""
    await until_async(lambda: _at_once(holds()), patience_s)


async def until_async(holds: Callable[[], Awaitable[Any]], patience_s: float = 20.0) -> None:
    """As `until`, for conditions that have to be awaited."""
    async with asyncio.timeout(patience_s):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.002)


async def _at_once(value: R) -> R:
    return value


async def until_recorded(
    client: Client, instance_id: str, kind: str = "", number: int = 1, execution: int | None = None
) -> None:
    """Wait until a history has so many events, of one type if that is given."""

    async def recorded() -> bool:
        found = kinds(await client.read_history(instance_id, execution))
        return (found.count(kind) if kind else len(found)) >= number

    await until_async(recorded)


async def until_execution(client: Client, instance_id: str, number: int) -> None:
    """Wait until this is the current execution."""

    async def reached() -> bool:
        return (await client.get_instance(instance_id)).execution_id == number

    await until_async(reached)


async def until_status(client: Client, instance_id: str, *statuses: str) -> None:
    """Wait until the instance has one of these statuses."""

    async def reached() -> bool:
        return (await client.get_instance(instance_id)).status in statuses

    await until_async(reached)


async def until_blocked(client: Client, instance_id: str) -> str:
    """Wait until the instance is blocked; returns the reason."""

    async def blocked() -> bool:
        return (await client.get_instance(instance_id)).blocked is not None

    await until_async(blocked)
    reason = (await client.get_instance(instance_id)).blocked
    assert reason is not None
    return reason


def kinds(history: Iterable[events.AnyEvent]) -> list[str]:
    """The event types of a history, in order."""
    return [type(event).__name__ for event in history]


async def history(
    client: Client, instance_id: str, execution_id: int | None = None
) -> list[events.AnyEvent]:
    """The events of an execution; checks what every history has to be."""
    found = await client.read_history(instance_id, execution_id)
    assert [event.event_id for event in found] == list(range(1, len(found) + 1))
    assert isinstance(found[0], events.OrchestrationStarted)
    stamps = [event.timestamp_ms for event in found]
    assert stamps == sorted(stamps), "time goes back"
    answered = [event.source_event_id for event in found if isinstance(event, _COMPLETIONS)]
    assert len(answered) == len(set(answered)), "something was completed twice"
    return found


_COMPLETIONS = (
    events.ActivityCompleted,
    events.ActivityFailed,
    events.TimerFired,
    events.ExternalEvent,
    events.SubOrchestrationCompleted,
    events.SubOrchestrationFailed,
)


class Through:
    """A provider that lets a test see, hold up or answer what goes to another one."""

    def __init__(self, inner: Provider) -> None:
        self.inner = inner
        self.before: Callable[[Sequence[Operation]], Awaitable[None] | None] = lambda batch: None
        self.after: Callable[[Sequence[Operation], list[Outcome]], None] = lambda batch, out: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def commit(self, batch: Sequence[Operation]) -> list[Outcome]:
        waiting = self.before(batch)
        if waiting is not None:
            await waiting
        outcomes = await self.inner.commit(batch)
        self.after(batch, outcomes)
        return outcomes


class Gate:
    """Holds activities up until it is opened; counts who has come."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.entered = 0
        self.running = 0
        self.most = 0

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self.entered += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await until(self._open.is_set, 3600)
        finally:
            self.running -= 1

    async def has(self, number: int) -> None:
        """Wait until so many have come."""
        await until(lambda: self.entered >= number)

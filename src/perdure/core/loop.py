"""The deterministic event loop: a ready queue and nothing else.

Time is the timestamp of the stimulus being delivered; timers are durable and belong to the
context; everything that reaches outside the process is refused.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from collections import deque
from collections.abc import Callable
from types import AsyncGeneratorType, CodeType, FrameType
from typing import Any, Protocol, TypeVarTuple

from perdure.core.frames import awaited_future, suspended_line
from perdure.core.futures import DurableFuture, DurableTimer, LoopFuture, LoopTask
from perdure.core.journal import INNOCENT, Journal
from perdure.errors import TurnLimitExceeded
from perdure.limits import TURN_CALLBACKS_MAX

Ts = TypeVarTuple("Ts")

ASYNCGENS_MIN = 64
"""From this number on, those that have ended are looked for."""

Outer = tuple[asyncio.AbstractEventLoop | None, Any]


class LoopHost(Protocol):
    """What the loop asks of the execution around it."""

    journal: Journal
    """Closed once nothing more may run: the execution has ended, or its turn is void."""

    def refuse(self, operation: str, instead: str, location: str = "") -> None:
        """Block the instance for a forbidden operation, and raise ForbiddenOperation.

        location: the line that did it, if it is not the one that is running. Of a closed
        execution it is refused like a durable call (see Journal.refuse).
        """

    def create_timer(self, delay_s: float, fire: Callable[[], object]) -> DurableTimer:
        """A durable timer that calls `fire` when it fires."""

    def report(self, context: dict[str, Any]) -> None:
        """asyncio's report of an exception that nothing else will see."""


class Callback:
    """One entry of the ready queue; asyncio.Handle in the little that is used of it."""

    __slots__ = ("args", "callback", "context", "is_cancelled")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled


class DeterministicLoop(asyncio.AbstractEventLoop):
    """Runs one execution. It never waits: `run_until_idle` returns when nothing is ready.

    orchestration: the context that marked functions find when they are called in a turn.
    """

    def __init__(self, host: LoopHost, orchestration: Any) -> None:
        self._host = host
        self._ready: deque[Callback] = deque()
        self._created = 0
        self.orchestration = orchestration
        self.now_ms = 0
        self.tasks: dict[LoopTask, None] = {}
        self.asyncgens: dict[int, AsyncGeneratorType[Any, Any]] = {}
        self._asyncgens_max = ASYNCGENS_MIN

    def next_number(self) -> int:
        self._created += 1
        return self._created

    def run_until_idle(self) -> None:
        """Run what is ready until nothing is, or until the journal is closed.

        Raises TurnLimitExceeded after 100,000 callbacks: time stands still in here, so code that
        waits for it to pass would never become idle.
        """
        ready = self._ready
        journal = self._host.journal
        left = TURN_CALLBACKS_MAX
        while ready and not journal.closed:
            entry = ready.popleft()
            if entry.is_cancelled:
                continue
            left -= 1
            if left < 0:
                raise TurnLimitExceeded(
                    f"one stimulus caused more than {TURN_CALLBACKS_MAX:,} loop callbacks; "
                    "time does not pass inside a turn: await a timer or an activity"
                )
            try:
                entry.context.run(entry.callback, *entry.args)
            except INNOCENT:
                raise
            except BaseException as error:
                self.call_exception_handler(
                    {"message": f"exception in callback {entry.callback!r}", "exception": error}
                )

    def enter(self) -> Outer:
        """Become the running loop of this thread, with our own hooks for async generators.

        Returns what `leave` needs to restore the outer loop; always pair the two.
        """
        outer = (asyncio._get_running_loop(), sys.get_asyncgen_hooks())
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(self._keep_asyncgen, _ignore_asyncgen)
        return outer

    def leave(self, outer: Outer) -> None:
        """Give the thread back to the loop that `enter` found running."""
        sys.set_asyncgen_hooks(*outer[1])
        asyncio._set_running_loop(outer[0])

    def _keep_asyncgen(self, generator: Any) -> None:
        # Held until the execution ends: the collector would otherwise finalise it at a moment, and
        # on a thread, that replay cannot repeat.
        asyncgens = self.asyncgens
        if len(asyncgens) >= self._asyncgens_max:
            for key in [key for key, held in asyncgens.items() if held.ag_frame is None]:
                del asyncgens[key]
            self._asyncgens_max = max(ASYNCGENS_MIN, 2 * len(asyncgens))
        asyncgens[id(generator)] = generator

    def clear(self) -> None:
        """Forget everything, after unwinding."""
        self._ready.clear()
        self.tasks.clear()
        self.asyncgens.clear()

    # What asyncio asks of a loop, and what is deterministic.

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        if not args:
            self._check_awaited(callback)
        # Not `context or …`: an empty context is false.
        entry = Callback(callback, args, contextvars.copy_context() if context is None else context)
        self._ready.append(entry)
        return entry

    def _check_awaited(self, callback: object) -> None:
        """Refuse a task that awaits a future of another loop.

        asyncio then runs the task's next step at once, with an error that the code may catch.
        """
        task = getattr(callback, "__self__", None)
        if not isinstance(task, LoopTask) or task not in self.tasks:
            return
        coroutine = task.get_coro()
        future = awaited_future(coroutine)
        if future is not None and future.get_loop() is not self:
            self._host.refuse("awaiting a future of another loop", _IO, suspended_line(coroutine))

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        where = contextvars.copy_context() if context is None else context
        if delay <= 0:
            return self.call_soon(callback, *args, context=where)
        return self._host.create_timer(
            delay, lambda: self.call_soon(callback, *args, context=where)
        )

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def time(self) -> float:
        return self.now_ms / 1000

    def create_future(self) -> asyncio.Future[Any]:
        return LoopFuture(self, self.next_number())

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        if options.get("eager_start"):
            self._host.refuse("an eager task", "a task that starts at the next await")
        _refuse_unordered(sys._getframe(1), self._host)
        if isinstance(coro, DurableFuture):
            task = LoopTask(_awaiting(coro), self, self.next_number(), name, context)
            # One that is cancelled before its first step never gets to await the future.
            task.add_done_callback(functools.partial(_withdraw, coro))
        else:
            task = LoopTask(coro, self, self.next_number(), name, context)
        self.tasks[task] = None
        task.add_done_callback(self._forget_task)
        return task

    def _forget_task(self, task: Any) -> None:
        self.tasks.pop(task, None)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return False

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._host.report(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self._host.report(context)

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: async generators end with their execution."""


def _gathering_hash(gathering: Any) -> int:
    loop = gathering.get_loop()
    if not isinstance(loop, DeterministicLoop):
        return object.__hash__(gathering)
    number: int | None = getattr(gathering, "_number", None)
    if number is None:
        number = gathering._number = loop.next_number()
    return number


# asyncio.gather makes its future itself, not through the loop. In a set, as asyncio.wait and
# as_completed keep them, it must have its place like all others; elsewhere nothing changes.
vars(asyncio.tasks)["_GatheringFuture"].__hash__ = _gathering_hash


def _ignore_asyncgen(generator: Any) -> None:
    """Nothing to do: generators are closed by the unwinding of the execution."""


async def _awaiting(future: DurableFuture[Any]) -> Any:
    return await future


def _withdraw(future: DurableFuture[Any], task: asyncio.Future[Any]) -> None:
    if task.cancelled():
        future.cancel()


def _code_of(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None)


_ENSURE_FUTURE = {
    _code_of(asyncio.ensure_future),
    _code_of(getattr(asyncio.tasks, "_ensure_future", None)),
}
_AS_COMPLETED = {
    _code_of(asyncio.as_completed),
    _code_of(getattr(getattr(asyncio.tasks, "_AsCompletedIterator", None), "__init__", None)),
}


def _refuse_unordered(frame: FrameType, host: LoopHost) -> None:
    """Refuse `as_completed` over bare coroutines: it takes them from a set ordered by memory
    address, before any task of ours exists."""
    if frame.f_code not in _ENSURE_FUTURE:
        return
    caller: FrameType | None = frame
    for _ in range(4):
        caller = caller.f_back if caller else None
        if caller and caller.f_code in _AS_COMPLETED:
            host.refuse(
                "asyncio.as_completed with bare coroutines",
                "asyncio.create_task around each of them",
            )


def _forbidden(name: str, instead: str) -> Callable[..., asyncio.Future[Any]]:
    def refused(self: DeterministicLoop, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        self._host.refuse(f"loop.{name}", instead)
        return self.create_future()

    refused.__name__ = name
    return refused


_IO = "an activity"
_OWNED = "nothing: the runtime owns this loop"
_REFUSED: dict[str, str] = {
    "run_in_executor": "a plain `def` activity, which runs in a thread",
    "call_soon_threadsafe": "an external event, raised by a client",
    "set_task_factory": _OWNED,
    "set_debug": _OWNED,
    "set_default_executor": _OWNED,
    "set_exception_handler": _OWNED,
    "get_exception_handler": _OWNED,
    "shutdown_default_executor": _OWNED,
    "run_forever": _OWNED,
    "run_until_complete": "await",
    "stop": _OWNED,
    "close": _OWNED,
    **dict.fromkeys(
        [
            "add_reader",
            "remove_reader",
            "add_writer",
            "remove_writer",
            "add_signal_handler",
            "remove_signal_handler",
            "create_connection",
            "create_server",
            "create_unix_connection",
            "create_unix_server",
            "create_datagram_endpoint",
            "connect_accepted_socket",
            "start_tls",
            "connect_read_pipe",
            "connect_write_pipe",
            "subprocess_exec",
            "subprocess_shell",
            "getaddrinfo",
            "getnameinfo",
            "sendfile",
            "sock_accept",
            "sock_connect",
            "sock_recv",
            "sock_recv_into",
            "sock_recvfrom",
            "sock_recvfrom_into",
            "sock_sendall",
            "sock_sendfile",
            "sock_sendto",
        ],
        _IO,
    ),
}
for _name, _instead in _REFUSED.items():
    setattr(DeterministicLoop, _name, _forbidden(_name, _instead))

"""Futures and tasks of the deterministic loop.

They hash by their creation number, so that the sets in which asyncio keeps them iterate in the
same order in every process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from perdure.core.actions import Action, CreateTimer

if TYPE_CHECKING:
    import contextvars

    from perdure.codec import Codec

R = TypeVar("R")


class Withdrawer(Protocol):
    """Takes back what a durable future or timer asked for: the open requests of the execution."""

    def withdraw(self, request: DurableFuture[Any] | DurableTimer) -> None: ...


class LoopFuture(asyncio.Future[Any]):
    """A future that code in an orchestration makes by `loop.create_future()`."""

    __slots__ = ("_number",)

    def __init__(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        super().__init__(loop=loop)
        self._number = number

    def __hash__(self) -> int:
        return self._number


if TYPE_CHECKING:
    # A coroutine for type checkers only: asyncio.create_task and TaskGroup accept it, because the
    # deterministic loop does.
    class _DurableBase(asyncio.Future[R], Coroutine[Any, Any, R]):
        def send(self, value: Any, /) -> Any: ...
        def throw(self, *error: Any) -> Any: ...
        def close(self) -> None: ...
else:
    _DurableBase = asyncio.Future


class DurableFuture(_DurableBase[R]):
    """The result of a durable call, bound to the history event that records the call.

    Await it, hand it to gather, wait, wait_for, create_task; `cancel` withdraws the call.
    """

    __slots__ = ("_number", "codec", "event_id", "kind", "name", "raises", "withdrawer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int,
        withdrawer: Withdrawer,
        event_id: int,
        kind: type[Action],
        name: str,
        codec: Codec[R],
        raises: tuple[type[BaseException], ...] = (),
    ) -> None:
        super().__init__(loop=loop)
        self._number = number
        self.withdrawer = withdrawer
        self.event_id = event_id
        self.kind = kind
        self.name = name
        self.codec = codec
        self.raises = raises

    def __hash__(self) -> int:
        return self._number

    def cancel(self, msg: Any = None) -> bool:
        """Withdraw the call, as a recorded decision; False if it has a result already."""
        if self.done():
            return False
        self.withdrawer.withdraw(self)
        return super().cancel(msg)

    def close(self) -> None:
        """What a TaskGroup calls on a coroutine that it does not start."""
        self.cancel()


class DurableTimer:
    """What `loop.call_later` returns: a durable timer with a callback, as asyncio.TimerHandle."""

    __slots__ = ("_callback", "_cancelled", "_fired", "_when", "event_id", "withdrawer")

    kind: ClassVar[type[Action]] = CreateTimer

    def __init__(
        self, withdrawer: Withdrawer, event_id: int, when: float, fire: Callable[[], object]
    ) -> None:
        self.withdrawer = withdrawer
        self.event_id = event_id
        self._when = when
        self._callback: Callable[[], object] | None = fire
        self._cancelled = False
        self._fired = False

    def when(self) -> float:
        return self._when

    def cancelled(self) -> bool:
        return self._cancelled

    def done(self) -> bool:
        return self._fired or self._cancelled

    def cancel(self) -> None:
        if self._fired or self._cancelled:
            return
        self._cancelled = True
        self._callback = None
        self.withdrawer.withdraw(self)

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        self._fired = True
        if callback is not None:
            callback()


class LoopTask(asyncio.Task[Any]):
    """A task of the deterministic loop."""

    __slots__ = ("_number",)

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        number: int,
        name: str | None,
        context: contextvars.Context | None,
    ) -> None:
        self._number = number
        super().__init__(coro, loop=loop, name=name or f"Task-{number}", context=context)
        # asyncio keeps every task of the process in one set; ours hash alike in each execution, so
        # thousands of residents would make that set a linear search.
        asyncio.tasks._unregister_task(self)
        # A task thrown away with its execution is no mistake of the user's.
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._number

"""Keeps what user code raises in a task of its own from ending the host loop.

asyncio lets SystemExit and KeyboardInterrupt of any task out of the loop itself. The activity's
own task catches them; the tasks that its code makes need a task factory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

guarded: ContextVar[bool] = ContextVar("perdure_guarded", default=False)
"""True in the context of an activity, and so in the tasks made from there."""


class ActivityTaskExit(RuntimeError):
    """A child task of an activity raised SystemExit or KeyboardInterrupt."""


class TaskGuard:
    """Installs the factory on a loop and takes it away again."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._before = loop.get_task_factory()
        loop.set_task_factory(self._make)

    def remove(self) -> None:
        """Restore the factory found, unless somebody has replaced ours meanwhile."""
        if self._loop.get_task_factory() == self._make:
            self._loop.set_task_factory(self._before)

    def _make(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
    ) -> asyncio.Future[Any]:
        context = options.get("context")
        if context.get(guarded, False) if context is not None else guarded.get():
            coro = _contain(coro)
        if self._before is not None:
            return self._before(loop, coro, **options)
        return asyncio.Task(coro, loop=loop, **options)


async def _contain(coro: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coro
    except (SystemExit, KeyboardInterrupt) as error:
        raise ActivityTaskExit(f"a child task raised {error!r}") from error

"""Throwing an execution away without a trace: no durable effect, no warning, no pending task."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

from perdure.core.loop import DeterministicLoop

ATTEMPTS = 3

_parked: list[object] = []
"""Coroutines that refused to end. Kept for ever, so that nothing finalises them later."""


def parked() -> int:
    """How many coroutines of this process refused to end when their execution was thrown away."""
    return len(_parked)


def unwind(loop: DeterministicLoop, context: contextvars.Context) -> int:
    """Close every coroutine and async generator of the loop, in order of creation.

    The journal must be closed already, so that the `finally` blocks that run have no durable
    effect. Returns how many refused to end and were parked.
    """
    outer = loop.enter()
    stubborn = 0
    try:
        for task in list(loop.tasks):
            coroutine: Any = task.get_coro()
            stubborn += not _closed(context, coroutine.close, coroutine)
            # What is closed may have an exception that nobody has asked for.
            task._log_traceback = False
        for generator in list(loop.asyncgens.values()):
            stubborn += not _closed(context, functools.partial(_shut, generator), generator)
    finally:
        loop.clear()
        loop.leave(outer)
    return stubborn


def _shut(generator: AsyncGenerator[Any, Any]) -> None:
    """Run `aclose` as far as it goes without waiting."""
    closing = generator.aclose()
    try:
        closing.send(None)
    except (StopIteration, StopAsyncIteration):
        return
    raise RuntimeError("the generator awaited something while it was closed")


def _closed(context: contextvars.Context, close: Callable[[], object], subject: object) -> bool:
    for _ in range(ATTEMPTS):
        try:
            context.run(close)
        except RuntimeError:
            # It caught GeneratorExit and awaited something again.
            continue
        except BaseException:
            # Whatever its last words are, they are not the runtime's concern.
            return True
        return True
    _parked.append(subject)
    return False

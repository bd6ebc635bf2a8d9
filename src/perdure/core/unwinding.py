"""Throwing an execution away without a trace: no durable effect, no warning, no pending task."""

from __future__ import annotations

import contextvars
import ctypes
import warnings
from collections.abc import Callable
from typing import Any

from perdure.core.journal import ExecutionClosed
from perdure.core.loop import DeterministicLoop

ATTEMPTS = 100
"""Awaits that one coroutine may make while it ends, before it counts as refusing to."""
UNWOUND_MAX = 100_000

_parked = 0

_hooks = vars(warnings)
_WARN_UNAWAITED = "_warn_unawaited_coroutine"
_warn_unawaited = _hooks.get(_WARN_UNAWAITED)


def parked() -> int:
    """How many coroutines of this process refused to end when their execution was thrown away."""
    return _parked


def unwind(loop: DeterministicLoop, context: contextvars.Context) -> int:
    """End every coroutine and async generator of the loop, in order of creation.

    The journal must be closed already, so that the `finally` blocks that run have no durable
    effect. Returns how many refused to end and were parked.
    """
    outer = loop.enter()
    stubborn = 0
    if _warn_unawaited is not None:
        # That the code has not come to await what it has made is no mistake. A filter would not
        # do: filters belong to all threads, and to the user.
        _hooks[_WARN_UNAWAITED] = _ignore
    try:
        for _ in range(UNWOUND_MAX):
            # What is unwound may create tasks and generators, which are ended in turn.
            if loop.tasks:
                task = next(iter(loop.tasks))
                del loop.tasks[task]
                stubborn += not _ended(context, task.get_coro())
            elif loop.asyncgens:
                generator = loop.asyncgens.pop(next(iter(loop.asyncgens)))
                stubborn += not _ended_generator(context, generator)
            else:
                break
    finally:
        for subject in (*loop.tasks, *loop.asyncgens.values()):
            _park(subject)
            stubborn += 1
        loop.clear()
        if _warn_unawaited is not None:
            _hooks[_WARN_UNAWAITED] = _warn_unawaited
        loop.leave(outer)
    return stubborn


def _ended(context: contextvars.Context, coroutine: Any) -> bool:
    # Not `close`: it ends the code that iterates over an async generator without telling the
    # generator, which could then not be ended any more.
    for _ in range(ATTEMPTS):
        if _leaves(context, coroutine.throw, ExecutionClosed()):
            return True
    _park(coroutine)
    return False


def _ended_generator(context: contextvars.Context, generator: Any) -> bool:
    closing = generator.aclose()
    left = _leaves(context, closing.send, None)
    for _ in range(ATTEMPTS):
        if left:
            break
        left = _leaves(context, closing.throw, ExecutionClosed())
    # One that yields once more while it is closed cannot be closed a second time.
    if generator.ag_frame is None:
        return True
    _park(generator)
    return False


def _park(subject: object) -> None:
    global _parked
    _parked += 1
    # Never given back, so that nothing finalises it, not even the end of the interpreter.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(subject))


def _leaves(context: contextvars.Context, go_on: Callable[[Any], object], value: object) -> bool:
    """Let it go on until its next await; True if it came to its end instead."""
    try:
        context.run(go_on, value)
    except BaseException:
        # Whatever its last words are, they are not the runtime's concern.
        return True
    return False


def _ignore(coroutine: object) -> None:
    """The execution is being thrown away."""

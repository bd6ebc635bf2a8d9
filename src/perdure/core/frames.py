"""Which line of the user's code did something: for reports only, never for decisions."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Iterator
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType
from typing import Any

_NOT_THE_USERS = ("perdure.core.", "perdure.marks", "perdure.codec", "perdure.signatures")
_ASYNCIO = ("asyncio.", "contextlib")
_DRIVERS = ("perdure.core.execution", "perdure.core.unwinding")


def calling_line(frame: FrameType | None) -> str:
    """The innermost line of the user's code from `frame` outwards; "" if there is none.

    A line is given as "file:line in function".
    """
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        # Outside of these stands whoever runs the turn, with its own callers.
        if module in _DRIVERS or frame.f_code.co_name == "run_until_idle":
            return ""
        if _is_users(frame):
            return _line(frame)
        frame = frame.f_back
    return ""


def suspended_line(coroutine: object) -> str:
    """The innermost line of the user's code at which a suspended coroutine waits, or ""."""
    found = ""
    for awaiting in _chain(coroutine):
        frame = getattr(awaiting, "cr_frame", None) or getattr(awaiting, "ag_frame", None)
        if frame is not None and _is_users(frame):
            found = _line(frame)
    return found


def raising_line(error: BaseException) -> str:
    """The innermost line of the user's code in a traceback, or ""."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        if _is_users(trace.tb_frame):
            found = _line(trace.tb_frame, trace.tb_lineno)
        trace = trace.tb_next
    return found


def defining_line(function: Callable[..., object]) -> str:
    """Where a function is defined."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return _in(code, code.co_firstlineno) if isinstance(code, CodeType) else ""


def awaited_future(coroutine: object) -> asyncio.Future[Any] | None:
    """The future that a suspended coroutine waits for, through all that it awaits."""
    *_, last = _chain(coroutine)
    return last if isinstance(last, asyncio.Future) else None


def _chain(awaiting: object) -> Iterator[object]:
    while awaiting is not None:
        yield awaiting
        awaiting = _behind(awaiting)


def _behind(awaiting: object) -> object:
    if isinstance(awaiting, asyncio.Future):
        return None
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        if hasattr(awaiting, name):
            return getattr(awaiting, name)
    # Some iterators, such as that of a future, do not say what they iterate over.
    for held in gc.get_referents(awaiting):
        if isinstance(held, asyncio.Future | AsyncGeneratorType | CoroutineType):
            return held
    return None


def _is_users(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "")
    return not module.startswith(_NOT_THE_USERS + _ASYNCIO)


def _line(frame: FrameType, line: int | None = None) -> str:
    return _in(frame.f_code, frame.f_lineno if line is None else line)


def _in(code: CodeType, line: int) -> str:
    return f"{code.co_filename}:{line} in {code.co_qualname}"

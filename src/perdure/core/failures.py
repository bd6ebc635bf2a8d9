"""Exceptions as they are recorded, and as they arrive in an orchestration.

Recording never fails, whatever the exception's own methods do. Nothing is imported by a stored
name: only classes that a function declares (`raises=`) are ever built again.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence
from pathlib import PurePath
from types import TracebackType
from typing import Any, TypeGuard

import msgspec

from perdure.codec import ANY
from perdure.core.events import Failure
from perdure.errors import (
    ActivityError,
    ActivityLost,
    ActivityTimeout,
    PayloadError,
    RecordedFailure,
)
from perdure.limits import ERROR_TEXT_BYTES_MAX, TRACEBACK_BYTES_MAX

BY_ENGINE: dict[str, type[ActivityError]] = {
    kind.__name__: kind for kind in (ActivityLost, ActivityTimeout)
}
"""The failures of activities that the engine itself records, by type."""

_OWN_FILES = f"{PurePath(__file__).parents[1]}/"
_GAP = "\n  ... cut ...\n"


def record(error: BaseException, declared: Sequence[type[BaseException]] = ()) -> Failure:
    """The exception as history has it: qualified class name, text, traceback.

    The text is cut after 16 KiB, the traceback in its middle to 64 KiB; `truncated` tells. If its
    class is one of `declared` or derived from one, its arguments are recorded, provided that they
    can be encoded; they come back as plain JSON has them, tuples as lists.
    """
    type_, type_cut = _head(type(error).__qualname__, ERROR_TEXT_BYTES_MAX)
    message, message_cut = _head(_text(error), ERROR_TEXT_BYTES_MAX)
    trace, trace_cut = _both_ends(_formatted(error), TRACEBACK_BYTES_MAX)
    truncated = type_cut or message_cut or trace_cut
    failure = Failure(type=type_, message=message, traceback=trace, truncated=truncated)
    args = _encoded_args(error) if isinstance(error, tuple(declared)) else None
    return failure if args is None else msgspec.structs.replace(failure, args=args)


def rebuild(
    failure: Failure,
    fallback: type[RecordedFailure],
    declared: Sequence[type[BaseException]] = (),
) -> Exception:
    """The exception to raise for a recorded failure, with the recorded traceback as a note.

    It is an instance of the declared class of that qualified name: the class called with the
    recorded arguments (classes that hand `super().__init__` others than they take come back
    wrong), or, if that is impossible, one made without `__init__` that has its `args` only.
    Without such a class it is `fallback(type, message, traceback)`.
    """
    error: Exception | None = None
    for cls in declared:
        if error is None and cls.__qualname__ == failure.type and _may_arrive(cls):
            error = _built(cls, failure)
    if error is None:
        error = fallback(failure.type, failure.message, failure.traceback)
    if failure.traceback:
        # A frozen dataclass takes no notes.
        with contextlib.suppress(Exception):
            error.add_note(f"Traceback from where it was raised:\n{failure.traceback}")
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # a SystemExit from here would end the runtime
        return f"<its __str__ raised {type(broken).__qualname__}>"


def _formatted(error: BaseException) -> str:
    try:
        trace = _below_own_frames(error.__traceback__)
        return "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as broken:  # as above: formatting asks the exception for many things
        return f"<formatting its traceback raised {type(broken).__qualname__}>"


def _below_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not Perdure's; whole if there is none."""
    first = trace
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_OWN_FILES):
        first = first.tb_next
    return first or trace


def _head(text: str, bytes_max: int) -> tuple[str, bool]:
    data = _encodable(text)
    return data[:bytes_max].decode(errors="ignore"), len(data) > bytes_max


def _both_ends(text: str, bytes_max: int) -> tuple[str, bool]:
    # The frames are at the start, the innermost and the exception itself at the end.
    data = _encodable(text)
    if len(data) <= bytes_max:
        return data.decode(), False
    half = (bytes_max - len(_GAP)) // 2
    return data[:half].decode(errors="ignore") + _GAP + data[-half:].decode(errors="ignore"), True


def _encodable(text: str) -> bytes:
    # Called on the class, since a __str__ may return a str with methods of its own.
    return str.encode(text, "utf-8", "backslashreplace")


def _encoded_args(error: BaseException) -> msgspec.Raw | None:
    try:
        return msgspec.Raw(ANY.encode(list(error.args)))
    except Exception:
        return None


def _may_arrive(cls: type[BaseException]) -> TypeGuard[type[Exception]]:
    # Futures refuse StopIteration; the others end loops and processes.
    return issubclass(cls, Exception) and not issubclass(cls, StopIteration)


def _built(cls: type[Exception], failure: Failure) -> Exception | None:
    args = _recorded_args(failure)
    if args is None:
        return _bare(cls, [failure.message])
    try:
        error = cls(*args)
    except _TRANSIENT:
        raise
    except Exception:
        return _bare(cls, args)
    return error if isinstance(error, cls) else None


def _bare(cls: type[Exception], args: list[Any]) -> Exception | None:
    """An instance that `__init__` has not seen; None if there can be none."""
    try:
        error = cls.__new__(cls, *args)
        BaseException.__setattr__(error, "args", tuple(args))
    except _TRANSIENT:
        raise
    except Exception:
        return None
    return error


# What may go well in the next attempt must not decide which class the code gets to see.
_TRANSIENT = (MemoryError, RecursionError)


def _recorded_args(failure: Failure) -> list[Any] | None:
    if not isinstance(failure.args, msgspec.Raw):
        return None
    try:
        args = ANY.decode(failure.args)
    except PayloadError:
        return None
    return args if isinstance(args, list) else None

"""Exceptions as they are recorded, and as they arrive in an orchestration.

Recording never fails, whatever the exception's own methods do. Nothing is imported by a stored
name: only classes that a function declares (`raises=`) are ever built again.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import PurePath
from types import TracebackType

import msgspec

from perdure.codec import ANY
from perdure.core.events import Failure
from perdure.errors import PayloadError, RecordedFailure
from perdure.limits import ERROR_TEXT_BYTES_MAX, TRACEBACK_BYTES_MAX

_OWN_FILES = f"{PurePath(__file__).parents[1]}/"
_GAP = "\n  ... cut ...\n"
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"


def record(error: BaseException, declared: Sequence[type[BaseException]] = ()) -> Failure:
    """The exception as history has it: qualified class name, text, traceback.

    The text is cut behind 16 KiB, the traceback in its middle to 64 KiB, which `truncated` tells.
    The arguments are recorded if its class is one of `declared` or derived from one, and if they
    can be encoded; tuples among them come back as lists.
    """
    type_, type_cut = _head(type(error).__qualname__, ERROR_TEXT_BYTES_MAX)
    message, message_cut = _head(_text(error), ERROR_TEXT_BYTES_MAX)
    trace, trace_cut = _ends(_formatted(error), TRACEBACK_BYTES_MAX)
    return Failure(
        type=type_,
        message=message,
        traceback=trace,
        truncated=type_cut or message_cut or trace_cut,
        args=_encoded_args(error) if isinstance(error, tuple(declared)) else None,
    )


def rebuild(
    failure: Failure,
    fallback: type[RecordedFailure],
    declared: Sequence[type[BaseException]] = (),
) -> Exception:
    """The exception to raise for a recorded failure.

    It is of the declared class of that qualified name: the class called with the recorded
    arguments, which is right for classes that pass them to `super().__init__` unchanged, or else
    an instance that only has its `args`. The traceback becomes a note. Without such a class it is
    `fallback`, with the traceback as an attribute.
    """
    for cls in declared:
        if cls.__qualname__ == failure.type and _can_arrive(cls):
            error = _instance(cls, failure)
            if error is not None:
                return error
    return fallback(failure.type, failure.message, failure.traceback)

"""How a command ends: exit codes, and errors as one line with a hint."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from perdure import errors

UNEXPECTED = 1
USAGE = 2
NOT_FOUND = 3
CONFLICT = 4
FAILED = 5
CANCELLED = 6
TIMED_OUT = 7
NO_STORE = 8
PROBLEMS = 9
INTERRUPTED = 130


class Refusal(Exception):
    """The command cannot do what was asked. hint: what to do instead."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


CODES: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.InstanceNotFound, NOT_FOUND, "`perdure list` shows what the store has"),
    (errors.InstanceAlreadyExists, CONFLICT, "`perdure show` tells what has this id"),
    (errors.InstanceTerminal, CONFLICT, ""),
    (errors.InstanceRunning, CONFLICT, ""),
    (errors.InstanceIsChild, CONFLICT, ""),
    (errors.InvalidImport, PROBLEMS, ""),
    (errors.StoreTooNew, NO_STORE, ""),
    (errors.ProviderError, NO_STORE, "check --store"),
    (errors.InvalidName, USAGE, ""),
    (errors.PayloadError, USAGE, "check the JSON that was given"),
    (errors.RegistrationError, USAGE, ""),
    (TimeoutError, TIMED_OUT, "the instance is not over; run the command again to wait on"),
    (KeyboardInterrupt, INTERRUPTED, ""),
    (click.Abort, INTERRUPTED, ""),
)
"""The exit code and the hint of each error; the first class that fits counts."""


@contextmanager
def reported(*, debug: bool) -> Iterator[None]:
    """Turn what the block raises into one line on stderr and SystemExit with its code.

    debug: the traceback comes first. What click itself reports (wrong options, --help) and
    SystemExit pass through.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, SystemExit):
        raise
    except BaseException as error:
        if debug:
            traceback.print_exception(error)
        code, hint = judge(error)
        text = f"{type(error).__name__}: {error}" if code == UNEXPECTED else str(error)
        line = f"{text or 'interrupted'} ({hint})" if hint else text or "interrupted"
        click.echo("perdure: " + " ".join(line.split()), err=True)
        raise SystemExit(code) from None


def judge(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and what its reader can do."""
    if isinstance(error, Refusal):
        return error.code, error.hint
    if isinstance(error, errors.OrchestrationFailedError):
        code = CANCELLED if error.status == "cancelled" else FAILED
        return code, f"`perdure show {error.instance_id}` tells how it came to that"
    for kind, code, hint in CODES:
        if isinstance(error, kind):
            return code, hint
    return UNEXPECTED, "`perdure --debug …` shows the traceback"

"""One attempt of an activity: user code runs here, and nothing that it raises gets out."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from perdure import retries
from perdure.core import events, failures, work
from perdure.errors import ActivityLost, ActivityTimeout, PayloadError
from perdure.limits import CLAIMS_MAX
from perdure.marks import Activity
from perdure.runtime.activity_context import ActivityContext, inside
from perdure.runtime.guard import guarded

Finished = work.ActivityCompleted | work.ActivityFailed
Key = tuple[int, int, int]
"""key, execution id and event id of an activity."""


class Running:
    """One attempt of one activity on this node. when_alone: it has yet to start, with this input,
    when the others have finished, or at the latest by this timer."""

    __slots__ = (
        "attempt",
        "context",
        "event_id",
        "execution_id",
        "key",
        "options",
        "task",
        "when_alone",
    )

    def __init__(
        self, key: int, context: ActivityContext, options: retries.ActivityOptions
    ) -> None:
        self.key = key
        self.execution_id = context.execution_id
        self.event_id = context.event_id
        self.attempt = context.attempt
        self.context = context
        self.options = options
        self.task: asyncio.Future[Any] | None = None
        self.when_alone: tuple[asyncio.TimerHandle, bytes] | None = None

    @property
    def id(self) -> Key:
        return (self.key, self.execution_id, self.event_id)

    @property
    def at_most_once(self) -> bool:
        retry = self.options.retry
        return retry is not None and retry.max_attempts == 1


class Over(msgspec.Struct, frozen=True):
    """How an attempt ended. final: whatever the number of attempts, none may follow."""

    item: Finished
    final: bool = True


def options_for(
    activity: Activity[..., Any] | None, called_with: bytes | None
) -> retries.ActivityOptions:
    """What holds for the attempts: what the call says, completed by what the activity says."""
    marked = retries.ActivityOptions() if activity is None else activity.attempts
    return marked if called_with is None else retries.decode(called_with).over(marked)


async def attempt(running: Running, activity: Activity[..., Any], payload: bytes) -> Over | None:
    """Run a coroutine function. None: the node stops, and the attempt was abandoned."""
    context, options = running.context, running.options
    inside.set(context)
    guarded.set(True)
    limit = None
    try:
        args, kwargs = activity.signature.unbind(payload)
    except PayloadError as error:
        return Over(failed(context, error, activity.raises))
    try:
        if options.timeout_ms is None:
            result = await activity.function(*args, **kwargs)
        else:
            async with asyncio.timeout(options.timeout_ms / 1000) as limit:
                result = await activity.function(*args, **kwargs)
        return Over(completed(context, activity, result))
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and context.abandoned:
            return None
        if limit is not None and limit.expired() and isinstance(error, TimeoutError):
            return timed_out(running)
        return failed_attempt(running.options, context, error, activity)


def attempt_in_thread(running: Running, activity: Activity[..., Any], payload: bytes) -> Over:
    """Run a plain function."""
    context = running.context
    inside.set(context)
    try:
        args, kwargs = activity.signature.unbind(payload)
    except PayloadError as error:
        return Over(failed(context, error, activity.raises))
    try:
        return Over(completed(context, activity, activity.function(*args, **kwargs)))
    except BaseException as error:
        return failed_attempt(running.options, context, error, activity)


def completed(
    context: ActivityContext, activity: Activity[..., Any], result: Any
) -> work.ActivityCompleted:
    """Raises PayloadError for a result that cannot be encoded."""
    encoded = msgspec.Raw(activity.signature.result.encode(result))
    return work.ActivityCompleted(context.execution_id, context.event_id, encoded)


def failed_attempt(
    options: retries.ActivityOptions,
    context: ActivityContext,
    error: BaseException,
    activity: Activity[..., Any],
) -> Over:
    """What the function raised; whether another attempt may follow is for the retry policy."""
    retry = options.retry
    return Over(
        failed(context, error, activity.raises), final=retry is None or retry.is_final(error)
    )


def failed(
    context: ActivityContext, error: BaseException, raises: tuple[type[BaseException], ...] = ()
) -> work.ActivityFailed:
    return _with(context, failures.record(error, raises))


def _with(context: ActivityContext, failure: events.Failure) -> work.ActivityFailed:
    return work.ActivityFailed(context.execution_id, context.event_id, failure, context.attempt)


def timed_out(running: Running, reason: str | None = None) -> Over:
    """The attempt takes longer than it may. reason: what to say instead of its time-out."""
    context, retry = running.context, running.options.retry
    seconds = (running.options.timeout_ms or 0) / 1000
    what = f"attempt {context.attempt} of {context.activity_name!r}"
    message = f"{what}: {reason}" if reason else f"{what} took longer than {seconds:g} s"
    error = ActivityTimeout(ActivityTimeout.__name__, message)
    failure = events.Failure(error.type, error.message)
    return Over(_with(context, failure), final=retry is None or retry.is_final(error))


def lost(context: ActivityContext, attempts: int) -> work.ActivityFailed:
    """No attempt is left, and the last one ended with its process."""
    failure = events.Failure(
        ActivityLost.__name__,
        f"the process that ran attempt {attempts} of {context.activity_name!r} ended meanwhile, "
        "and no other attempt is allowed; it may have had its effect",
    )
    return work.ActivityFailed(context.execution_id, context.event_id, failure, attempts)


def poisoned(context: ActivityContext) -> work.ActivityFailed:
    """Every attempt brings its process down."""
    failure = events.Failure(
        "Poison",
        f"{CLAIMS_MAX} attempts of activity {context.activity_name!r} ended with the death of "
        "their process; it is not run again",
    )
    return _with(context, failure)

"""Transactional activities: their bodies run where the store runs them, inside a transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import msgspec

from perdure.errors import (
    PayloadError,
    RegistrationError,
    StoreUnavailable,
    TransactionTimeout,
)
from perdure.marks import Activity
from perdure.providers.contract import CompleteActivity, Outcome, Provider
from perdure.runtime.activity_context import inside
from perdure.runtime.attempts import Over, Running, completed, failed, failed_attempt, timed_out
from perdure.runtime.guard import guarded
from perdure.runtime.node import Node

RETRY_S_MIN = 0.05
RETRY_S_MAX = 1.0

_encode = msgspec.json.Encoder().encode
logger = logging.getLogger("perdure")


def check_transactional(activities: Iterable[Activity[..., Any]], provider: Provider) -> None:
    """Raises RegistrationError for transactional activities that cannot run in such a store."""
    for activity in activities:
        if not activity.transactional:
            continue
        if provider.transactional is None:
            raise RegistrationError(
                f"activity {activity.name!r} is transactional, which this store has no means for; "
                "use sqlite:/// or postgresql://"
            )
        if activity.is_async is not (provider.transactional == "async def"):
            raise RegistrationError(
                f"activity {activity.name!r} is transactional: in this store it must be "
                f"{provider.transactional}"
            )


async def attempt_in_transaction(
    node: Node, running: Running, activity: Activity[..., Any], payload: bytes
) -> Over | Outcome | None:
    """Run the function inside a transaction that also completes the activity.

    Returns the outcome of the completion; or how the attempt failed, with nothing written; None:
    the node stops, and the attempt was abandoned. An outage of the store is waited out.
    """
    context, options = running.context, running.options
    try:
        args, kwargs = activity.signature.unbind(payload)
    except PayloadError as error:
        return Over(failed(context, error, activity.raises))
    claim = CompleteActivity(
        running.key, running.execution_id, running.event_id, node.node_id, running.attempt, b""
    )
    limit_s = None if options.timeout_ms is None else options.timeout_ms / 1000
    pause_s = RETRY_S_MIN
    while True:
        body = _Body(running, activity, args, kwargs)
        try:
            return await node.provider.transact(claim, body.work, limit_s)
        except StoreUnavailable as error:
            logger.warning("%s: %s; trying again", activity.name, error)
        except TransactionTimeout as error:
            return timed_out(running, str(error))
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and context.abandoned:
                return None
            return failed_attempt(options, context, body.error or error, activity)
        try:
            await asyncio.sleep(node.random.uniform(pause_s / 2, pause_s))
        except asyncio.CancelledError:
            return None
        pause_s = min(2 * pause_s, RETRY_S_MAX)


class BodyFailed(Exception):
    """The function has raised. Its own error may be one that no future takes."""


class _Body:
    """One run of the function. error: what it raised."""

    def __init__(
        self,
        running: Running,
        activity: Activity[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._running = running
        self._activity = activity
        self._args = args
        self._kwargs = kwargs
        self.error: BaseException | None = None
        self.work = self._run_coroutine if activity.is_async else self._run_function

    def _run_function(self, connection: Any) -> bytes:
        context = self._running.context
        token = inside.set(context)
        context.connect(connection)
        try:
            return self._completion(self._activity.function(*self._args, **self._kwargs))
        except StoreUnavailable:
            raise
        except BaseException as error:
            self.error = error
            raise BodyFailed from error
        finally:
            context.connect(None)
            inside.reset(token)

    async def _run_coroutine(self, connection: Any) -> bytes:
        context = self._running.context
        inside.set(context)
        guarded.set(True)
        context.connect(connection)
        try:
            return self._completion(await self._activity.function(*self._args, **self._kwargs))
        except (StoreUnavailable, asyncio.CancelledError):
            raise
        except BaseException as error:
            self.error = error
            raise BodyFailed from error
        finally:
            context.connect(None)

    def _completion(self, result: Any) -> bytes:
        return _encode(completed(self._running.context, self._activity, result))

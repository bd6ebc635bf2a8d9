"""What an orchestration may do: one method a durable verb.

Every verb encodes its inputs when it is called, takes one decision in the journal, and returns a
future bound to that decision's event id.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from random import Random
from typing import Any, Never, TypeVar, TypeVarTuple, overload

import msgspec

from perdure.codec import ANY, NULL, Codec, codec_for, same_value
from perdure.core import actions
from perdure.core.derived import child_id, detached_id
from perdure.core.futures import DurableFuture
from perdure.core.journal import Journal, Same
from perdure.core.logs import ReplayAwareLogger
from perdure.core.loop import DeterministicLoop
from perdure.core.marked import Info, Lookup, MarkedActivity, MarkedOrchestration
from perdure.core.requests import Requests
from perdure.durations import Duration, to_ms
from perdure.errors import NestingTooDeep
from perdure.limits import NESTING_MAX
from perdure.names import check_instance_id, check_name, check_version

_same_any: Same = functools.partial(same_value, ANY)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class OrchestrationContext:
    """The first parameter of an orchestration, also `perdure.context()` inside one."""

    def __init__(
        self,
        info: Info,
        journal: Journal,
        requests: Requests,
        orchestration: MarkedOrchestration,
        lookup: Lookup,
        ended: Callable[[], None],
    ) -> None:
        self._info = info
        self._journal = journal
        self._requests = requests
        self._orchestration = orchestration
        self._lookup = lookup
        self._ended = ended
        self._random: Random | None = None
        self._guids: Random | None = None
        self._logger: ReplayAwareLogger | None = None
        self._loop: DeterministicLoop

    # Who and when.

    @property
    def instance_id(self) -> str:
        return self._info.instance_id

    @property
    def execution_id(self) -> int:
        """1 for the first execution, one more after each ContinueAsNew."""
        return self._info.execution_id

    @property
    def version(self) -> str:
        """The version of the orchestration that this execution runs."""
        return self._orchestration.version

    @property
    def is_replaying(self) -> bool:
        """True while recorded events are repeated; side effects such as prints can check it."""
        return self._journal.replaying

    @property
    def history_length(self) -> int:
        """Events of this execution so far; continue as new before it reaches 50,000."""
        return self._journal.next_id - 1

    @property
    def random(self) -> Random:
        """A generator seeded by incarnation and execution: the same numbers at every replay."""
        if self._random is None:
            self._random = Random(f"{self._info.incarnation}/{self._info.execution_id}/random")
        return self._random

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that is silent while replaying."""
        if self._logger is None:
            self._logger = ReplayAwareLogger(self._journal, self._info)
        return self._logger

    def now(self) -> datetime:
        """The time of the event being handled: aware, UTC, never going back, same at replay."""
        return datetime.fromtimestamp(self._journal.timestamp_ms / 1000, UTC)

    def new_guid(self) -> uuid.UUID:
        """A random UUID (version 4) that is the same at every replay."""
        if self._guids is None:
            self._guids = Random(f"{self._info.incarnation}/{self._info.execution_id}/guid")
        return uuid.UUID(int=self._guids.getrandbits(128), version=4)

    # Durable verbs.

    @overload
    def schedule_activity(
        self, activity: Callable[[*Ts], DurableFuture[R]], *inputs: *Ts
    ) -> DurableFuture[R]: ...
    @overload
    def schedule_activity(
        self, activity: str, *inputs: Any, result_type: type[R]
    ) -> DurableFuture[R]: ...
    @overload
    def schedule_activity(self, activity: str, *inputs: Any) -> DurableFuture[Any]: ...
    def schedule_activity(  # type: ignore[misc]  # mypy 2.4 cannot match *Ts with *Any
        self, activity: Any, *inputs: Any, result_type: Any = Any
    ) -> Any:
        """Run an activity. It runs at least once; exactly one completion is recorded.

        activity: a marked function or a registered name; by name, result_type is what the result
        decodes to, and at most one input can be given. Awaiting the future gives the activity's
        result, or raises ActivityError (or a class it declares in `raises`).
        Raises PayloadError for an input that cannot be encoded, TooManyPending, LimitExceeded.
        """
        if isinstance(activity, str):
            check_name(activity, "activity name")
            return self._call(
                activity, _by_name(activity, inputs), codec_for(result_type), (), None
            )
        _check_marked(activity, "raises", "@perdure.activity")
        return self.call_activity(activity, inputs, {})

    def call_activity(
        self,
        activity: MarkedActivity,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: bytes | None = None,
    ) -> DurableFuture[Any]:
        """Run a marked activity with inputs as its own signature takes them."""
        signature = activity.signature
        return self._call(
            activity.name,
            signature.bind(args, kwargs),
            signature.result,
            activity.raises,
            signature.same,
            options,
        )

    def _call(
        self,
        name: str,
        payload: bytes,
        codec: Codec[Any],
        raises: tuple[type[BaseException], ...],
        same: Same | None,
        options: bytes | None = None,
    ) -> DurableFuture[Any]:
        journal = self._journal
        action = actions.CallActivity(journal.next_id, name, msgspec.Raw(payload), options)
        return self._request(action, name, codec, same or _same_any, raises)

    def schedule_timer(self, delay: Duration) -> DurableFuture[None]:
        """A durable timer: done `delay` from now, in seconds or as a timedelta.

        Zero or less fires at the next turn. Raises InvalidTimer, TooManyPending, LimitExceeded.
        """
        action = actions.CreateTimer(self._journal.next_id, to_ms(delay))
        return self._request(action, "", codec_for(None))

    @overload
    def schedule_wait(self, name: str, data_type: type[R]) -> DurableFuture[R]: ...
    @overload
    def schedule_wait(self, name: str) -> DurableFuture[Any]: ...
    def schedule_wait(self, name: str, data_type: Any = Any) -> Any:
        """Subscribe to an external event; the future gives the data of the first one that comes.

        Of several open subscriptions to one name the oldest takes the event. An event that finds
        no subscription is dropped and counted.
        """
        check_name(name, "event name")
        action = actions.WaitExternal(self._journal.next_id, name)
        return self._request(action, name, codec_for(data_type))

    @overload
    def dequeue_event(self, queue: str, data_type: type[R]) -> DurableFuture[R]: ...
    @overload
    def dequeue_event(self, queue: str) -> DurableFuture[Any]: ...
    def dequeue_event(self, queue: str, data_type: Any = Any) -> Any:
        """Take the next item of an event queue of this instance, now or when one comes.

        Items are kept until they are taken, also across ContinueAsNew; each is taken once, in the
        order in which they were accepted. A call that is cancelled takes none.
        """
        check_name(queue, "queue name")
        action = actions.DequeueEvent(self._journal.next_id, queue)
        return self._request(action, queue, codec_for(data_type))

    @overload
    def schedule_sub_orchestration(
        self,
        orchestration: Callable[[*Ts], DurableFuture[R]],
        *inputs: *Ts,
        instance_id: str | None = None,
        version: str | None = None,
    ) -> DurableFuture[R]: ...
    @overload
    def schedule_sub_orchestration(
        self,
        orchestration: str,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        result_type: type[R],
    ) -> DurableFuture[R]: ...
    @overload
    def schedule_sub_orchestration(
        self,
        orchestration: str,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
    ) -> DurableFuture[Any]: ...
    def schedule_sub_orchestration(  # type: ignore[misc]  # mypy 2.4 cannot match *Ts with *Any
        self,
        orchestration: Any,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        result_type: Any = Any,
    ) -> Any:
        """Start a child instance and await its end, across its ContinueAsNew.

        instance_id: given, or derived from this instance and stable at replay. The future gives
        the child's output or raises SubOrchestrationError, also when the id is taken.
        """
        if isinstance(orchestration, str):
            check_name(orchestration, "orchestration name")
            payload, same = _by_name(orchestration, inputs), _same_any
            return self._child(
                orchestration, payload, codec_for(result_type), same, instance_id, version
            )
        _check_marked(orchestration, "takes_context", "@perdure.orchestration")
        return self.call_orchestration(orchestration, inputs, {}, instance_id, version)

    def call_orchestration(
        self,
        orchestration: MarkedOrchestration,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        instance_id: str | None = None,
        version: str | None = None,
    ) -> DurableFuture[Any]:
        """Start a marked orchestration as a child, with inputs as its own signature takes them."""
        signature = orchestration.signature
        payload = signature.bind(args, kwargs)
        return self._child(
            orchestration.name, payload, signature.result, signature.same, instance_id, version
        )

    def _child(
        self,
        name: str,
        payload: bytes,
        codec: Codec[Any],
        same: Same,
        instance_id: str | None,
        version: str | None,
    ) -> DurableFuture[Any]:
        if self._info.nesting >= NESTING_MAX:
            raise NestingTooDeep(
                f"sub-orchestrations are nested {NESTING_MAX} deep; use ctx.start_orchestration"
            )
        journal = self._journal
        if instance_id is None:
            instance_id = child_id(self._info, journal.next_id)
        else:
            check_instance_id(instance_id)
        action = actions.StartSubOrchestration(
            journal.next_id,
            name,
            instance_id,
            msgspec.Raw(payload),
            None if version is None else check_version(version),
        )
        return self._request(action, instance_id, codec, same)

    @overload
    def start_orchestration(
        self,
        orchestration: Callable[[*Ts], DurableFuture[Any]],
        *inputs: *Ts,
        instance_id: str | None = None,
        version: str | None = None,
    ) -> str: ...
    @overload
    def start_orchestration(
        self,
        orchestration: str,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
    ) -> str: ...
    def start_orchestration(  # type: ignore[misc]  # mypy 2.4 cannot match *Ts with *Any
        self,
        orchestration: Any,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
    ) -> str:
        """Start a detached orchestration: it is not awaited and outlives this one.

        Returns its instance id. If that id is taken the start is dropped and counted.
        """
        same: Same
        if isinstance(orchestration, str):
            name, payload, same = (
                check_name(orchestration, "orchestration name"),
                _by_name(orchestration, inputs),
                _same_any,
            )
        else:
            _check_marked(orchestration, "takes_context", "@perdure.orchestration")
            signature = orchestration.signature
            name, payload, same = orchestration.name, signature.bind(inputs, {}), signature.same
        journal = self._journal
        if instance_id is None:
            instance_id = detached_id(self._info, journal.next_id)
        else:
            check_instance_id(instance_id)
        action = actions.StartOrchestrationDetached(
            journal.next_id,
            name,
            instance_id,
            msgspec.Raw(payload),
            None if version is None else check_version(version),
        )
        journal.decide(action, same)
        return instance_id

    def continue_as_new(
        self, *args: Any, version: str | None = None, **kwargs: Any
    ) -> DurableFuture[Never]:
        """End this execution and begin the next one with these inputs, in one commit.

        version: the one asked for; otherwise the latest registered. Nothing of this execution runs
        after the step that calls it; the future never resolves. Write
        `return await ctx.continue_as_new(…)`.
        """
        wanted = None if version is None else check_version(version)
        target = self._lookup(self._orchestration.name, wanted) or self._orchestration
        signature = target.signature
        payload = signature.bind(args, kwargs)
        journal = self._journal
        loop, requests = self._loop, self._requests
        action = actions.ContinueAsNew(journal.next_id, msgspec.Raw(payload), wanted)
        future: DurableFuture[Never] = DurableFuture(
            loop, loop.next_number(), requests, action.id, actions.ContinueAsNew, "", ANY
        )
        journal.decide(action, signature.same)
        if not journal.closed:
            self._ended()
        return future

    # Combinators.

    async def select(self, *awaitables: Awaitable[Any]) -> tuple[int, Any]:
        """Wait for the first of several; return its position and result, and cancel the others.

        Of several that are done, the first in argument order wins. Raises what the winner raises.
        """
        if not awaitables:
            raise TypeError("select needs at least one awaitable")
        futures = [asyncio.ensure_future(item) for item in awaitables]
        try:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            winner = next(index for index, future in enumerate(futures) if future.done())
        finally:
            for future in futures:
                future.cancel()
        return winner, futures[winner].result()

    async def join(self, *awaitables: Awaitable[Any]) -> list[Any]:
        """Wait for all; return their results in argument order. Raises the first failure."""
        return list(await asyncio.gather(*awaitables))

    # Inside the core.

    def _request(
        self,
        action: actions.AnyAction,
        name: str,
        codec: Codec[Any],
        same: Same | None = None,
        raises: tuple[type[BaseException], ...] = (),
    ) -> DurableFuture[Any]:
        """Take a decision that is answered later, and return the future of the answer."""
        requests, loop = self._requests, self._loop
        requests.check_room()
        # Made before the decision is taken: a RecursionError that the code catches must find
        # either both or neither.
        future: DurableFuture[Any] = DurableFuture(
            loop, loop.next_number(), requests, action.id, type(action), name, codec, raises
        )
        self._journal.decide(action, same)
        requests.add(future)
        return future


def _check_marked(function: object, having: str, mark: str) -> None:
    if not hasattr(function, having):
        raise TypeError(f"{function!r} is neither marked with {mark} nor the name of one that is")


def _by_name(name: str, inputs: tuple[Any, ...]) -> bytes:
    if len(inputs) > 1:
        raise TypeError(
            f"{name!r} is called by name, so its parameters are not known here: "
            "pass one input, a mapping of parameter names if it takes several"
        )
    return ANY.encode(inputs[0]) if inputs else NULL

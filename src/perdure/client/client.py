"""The client: start, signal, cancel and await instances. It talks to a store only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, TypeVarTuple, overload

from perdure.client.connection import check_addressable, not_found
from perdure.client.handles import OrchestrationHandle
from perdure.client.inspecting import Inspecting
from perdure.client.models import Instance
from perdure.client.queues import QueuedEvent, enqueueing, enqueueing_all
from perdure.client.transfer import Transfer
from perdure.client.upkeep import Upkeep
from perdure.codec import ANY, NULL, Codec, codec_for
from perdure.core import work
from perdure.core.events import Payload
from perdure.core.futures import DurableFuture
from perdure.errors import InstanceAlreadyExists, InstanceNotFound, InstanceTerminal
from perdure.marks import Orchestration
from perdure.names import check_instance_id, check_name, check_version
from perdure.providers.contract import (
    Ended,
    InstanceRow,
    Outcome,
    SendMessage,
    Sent,
    Started,
    StartInstance,
    Taken,
)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

IfExists = Literal["error", "return"]


class Client(Inspecting, Upkeep, Transfer):
    """Use as `async with Client(url) as client`, or as `runtime.client`.

    Every method raises StoreClosed outside that block, ProviderError if the store refuses.
    """

    # Acting.

    @overload
    async def start_orchestration(
        self,
        orchestration: Callable[[*Ts], DurableFuture[R]],
        *inputs: *Ts,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
        events: Sequence[QueuedEvent] = (),
    ) -> OrchestrationHandle[R]: ...
    @overload
    async def start_orchestration(
        self,
        orchestration: str,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
        events: Sequence[QueuedEvent] = (),
        result_type: type[R],
    ) -> OrchestrationHandle[R]: ...
    @overload
    async def start_orchestration(
        self,
        orchestration: str,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
        events: Sequence[QueuedEvent] = (),
    ) -> OrchestrationHandle[Any]: ...
    async def start_orchestration(  # type: ignore[misc]  # mypy 2.4 cannot match *Ts with *Any
        self,
        orchestration: Any,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
        events: Sequence[QueuedEvent] = (),
        result_type: Any = Any,
    ) -> OrchestrationHandle[Any]:
        """Start an instance, durably, and return the handle of its first execution.

        orchestration: a marked function or a registered name. instance_id: made up if not given.
        version: the one asked for, otherwise the latest where it runs. if_exists: "error" raises
        InstanceAlreadyExists, "return" gives the handle of the existing instance instead. events:
        items for its event queues, there as soon as it exists (and only if this call starts it).
        Raises InvalidName, PayloadError, TypeError before anything is stored.
        """
        if if_exists not in ("error", "return"):
            raise ValueError(f'if_exists is "error" or "return", not {if_exists!r}')
        name, payload, codec = _start_of(orchestration, inputs, result_type)
        instance_id = secrets.token_hex(16) if instance_id is None else instance_id
        if version is not None:
            check_version(version)
        start = StartInstance(
            check_instance_id(instance_id),
            secrets.token_hex(16),
            name,
            version,
            payload,
            sends=enqueueing_all(instance_id, events),
        )
        handle, taken = await self._insert(start, codec)
        if taken is not None and if_exists == "error":
            raise InstanceAlreadyExists(
                f'instance {instance_id!r} exists ({taken.status}); use if_exists="return" for '
                "its handle, or another id",
                instance_id=instance_id,
                status=taken.status,
            )
        return handle

    async def raise_event(self, instance_id: str, name: str, data: Any = None) -> None:
        """Send an external event to the current execution of an instance.

        It resolves the oldest open subscription to that name; if nothing is subscribed when it is
        taken, it is dropped and counted (`enqueue_event` keeps it). Raises InstanceNotFound,
        InstanceTerminal, PayloadError.
        """
        check_name(name, "event name")
        item = work.ExternalRaised(name, Payload(ANY.encode(data)))
        await self._send(SendMessage(instance_id, work.encode(item), external=True))

    async def enqueue_event(
        self, instance_id: str, queue: str, data: Any = None, event_id: str | None = None
    ) -> bool:
        """Put an item at the end of an event queue of an instance, where it stays until
        `ctx.dequeue_event` takes it, across ContinueAsNew.

        event_id: the instance takes each id once (of the last 10,000); a repeat changes nothing.
        Returns False for a repeat, otherwise True. Raises InstanceNotFound, InstanceTerminal,
        InvalidName, PayloadError.
        """
        outcome = await self._send(enqueueing(instance_id, QueuedEvent(queue, data, event_id)))
        return not outcome.duplicate

    async def cancel_instance(self, instance_id: str, reason: str = "") -> None:
        """Ask an instance to stop: asyncio.CancelledError is raised at its await.

        Its cleanup code runs and may await more; a second request has no further effect. Raises
        InstanceNotFound, InstanceTerminal.
        """
        if not isinstance(reason, str):
            raise TypeError(f"a reason is a text, not {type(reason).__name__}: {reason!r}")
        ANY.encode(reason)
        item = work.CancelInstance(reason)
        await self._send(SendMessage(instance_id, work.encode(item), external=True))

    # Waiting.

    async def get_handle(
        self, instance_id: str, execution_id: int | None = None, *, result_type: Any = Any
    ) -> OrchestrationHandle[Any]:
        """The handle of an execution (None: the current one). Raises InstanceNotFound."""
        row = await self._row(instance_id)
        number = row.execution_id if execution_id is None else execution_id
        if not 1 <= number <= row.execution_id:
            raise InstanceNotFound(
                f"instance {instance_id!r} has executions 1 to {row.execution_id}, not {number}"
            )
        return self._handle(row.key, instance_id, row.incarnation, codec_for(result_type), number)

    async def wait_for_orchestration(
        self, instance_id: str, timeout: float | None = None
    ) -> Instance:
        """Wait for the instance's end, across ContinueAsNew, however it ends.

        timeout: seconds, or None for no limit. Raises TimeoutError, InstanceNotFound.
        """
        row = await self._row(instance_id)
        watch = self._open_endings.watch(row.key, instance_id, row.incarnation)
        await asyncio.wait_for(self._open_endings.wait(watch, None), timeout)
        return await self.get_instance(instance_id)

    # Inside.

    async def _insert(
        self, start: StartInstance, codec: Codec[Any]
    ) -> tuple[OrchestrationHandle[Any], InstanceRow | None]:
        """The handle, and the instance that exists already, if one does."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[OrchestrationHandle[Any], InstanceRow | None]] = (
            loop.create_future()
        )

        def done(outcome: Outcome | BaseException) -> None:
            # At once, not when the caller wakes up: the instance may have ended by then, and its
            # watch must exist before.
            if isinstance(outcome, Started):
                made = self._handle(
                    outcome.key, start.instance_id, start.incarnation, codec, 1, True
                )
                _settle(future, (made, None))
            elif isinstance(outcome, Taken):
                row = outcome.instance
                found = self._handle(row.key, row.instance_id, row.incarnation, codec, 1)
                _settle(future, (found, row))
            elif not future.done():
                assert isinstance(outcome, BaseException)
                future.set_exception(outcome)

        committer = self.committer
        if self._host is None:
            committer.submit(start, done)
        else:
            # In a callback of its own: the first turn may run in there, and no task of the host's
            # loop may be current while the orchestration's loop runs.
            loop.call_soon(self._host.start_instance, start, done)
        return await future

    def _handle(
        self,
        key: int,
        instance_id: str,
        incarnation: str,
        codec: Codec[Any],
        execution_id: int,
        created: bool = False,
    ) -> OrchestrationHandle[Any]:
        endings = self._open_endings
        watch = endings.watch(key, instance_id, incarnation, fresh=created)
        return OrchestrationHandle(endings, watch, codec, execution_id, created)

    async def _send(self, message: SendMessage) -> Sent:
        instance_id = message.instance_id
        check_addressable(instance_id)
        outcome = await self.committer.write(message)
        if isinstance(outcome, Ended):
            raise InstanceTerminal(
                f"instance {instance_id!r} has ended ({outcome.status}) and takes nothing more",
                instance_id=instance_id,
                status=outcome.status,
            )
        if not isinstance(outcome, Sent):
            raise not_found(instance_id)
        if self._host is not None:
            self._host.news()
        return outcome


def _settle(future: asyncio.Future[R], value: R) -> None:
    if not future.done():
        future.set_result(value)


def _start_of(
    orchestration: Any, inputs: tuple[Any, ...], result_type: Any
) -> tuple[str, bytes, Codec[Any]]:
    """Name, encoded input and result codec of what is to be started."""
    if isinstance(orchestration, str):
        if len(inputs) > 1:
            raise TypeError(
                f"{orchestration!r} is started by name, so its parameters are not known here: "
                "pass one input, a mapping of parameter names if it takes several"
            )
        payload = ANY.encode(inputs[0]) if inputs else NULL
        return check_name(orchestration, "orchestration name"), payload, codec_for(result_type)
    if not isinstance(orchestration, Orchestration):
        raise TypeError(
            f"{orchestration!r} is not an orchestration: mark it with @perdure.orchestration"
        )
    signature = orchestration.signature
    return orchestration.name, signature.bind(inputs, {}), signature.result

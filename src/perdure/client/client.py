"""The client: start, signal, cancel, await and look at instances. It talks to a store only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from random import Random
from typing import Any, Literal, Protocol, Self, TypeVar, TypeVarTuple, overload

from perdure.client.endings import Endings
from perdure.client.handles import OrchestrationHandle
from perdure.client.models import (
    ExecutionInfo,
    Instance,
    PruneResult,
    execution_of,
    instance_of,
)
from perdure.codec import ANY, NULL, Codec, codec_for
from perdure.core import events, work
from perdure.core.futures import DurableFuture
from perdure.errors import (
    InstanceAlreadyExists,
    InstanceNotFound,
    InstanceTerminal,
    InvalidName,
    StoreClosed,
)
from perdure.marks import Orchestration
from perdure.names import check_instance_id, check_name, check_version
from perdure.providers.committer import Committer, Done
from perdure.providers.contract import (
    Ended,
    InstanceFilter,
    InstanceRow,
    NotFound,
    Outcome,
    Provider,
    Pruned,
    PruneExecutions,
    Retention,
    SendMessage,
    Started,
    StartInstance,
    Taken,
)
from perdure.providers.urls import open_provider
from perdure.retention import PruneOptions

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

IfExists = Literal["error", "return"]


class Host(Protocol):
    """The runtime in the same process, if there is one."""

    def start_instance(self, start: StartInstance, done: Done) -> None:
        """Submit a start, taken over by the runtime at once if it can run it."""

    def news(self) -> None:
        """A message has been stored."""


class Client:
    """Use as `async with Client(url) as client`, or as `runtime.client`.

    Every method raises StoreClosed outside that block, ProviderError if the store refuses.
    """

    def __init__(self, store: str | Provider) -> None:
        self._provider = open_provider(store) if isinstance(store, str) else store
        self._committer: Committer | None = None
        self._endings: Endings | None = None
        self._host: Host | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the store. Raises ProviderError if it cannot be used."""
        await self._provider.open()
        self._committer = Committer(self._provider, Random(secrets.randbits(64)))
        self._endings = Endings(self._committer)

    async def close(self) -> None:
        """Finish what was accepted and close the store. A second call does nothing."""
        endings, self._endings = self._endings, None
        committer, self._committer = self._committer, None
        if endings is not None:
            await endings.close()
        if committer is not None:
            await committer.close()
        await self._provider.close()

    @property
    def provider(self) -> Provider:
        return self._provider

    @property
    def committer(self) -> Committer:
        """The committer that this client's process shares."""
        if self._committer is None:
            raise StoreClosed("the client is not open: use `async with`, or a started runtime's")
        return self._committer

    def attach(self, host: Host | None) -> None:
        """Called by the runtime of the same process."""
        self._host = host

    # Acting.

    @overload
    async def start_orchestration(
        self,
        orchestration: Callable[[*Ts], DurableFuture[R]],
        *inputs: *Ts,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
    ) -> OrchestrationHandle[R]: ...
    @overload
    async def start_orchestration(
        self,
        orchestration: str,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
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
    ) -> OrchestrationHandle[Any]: ...
    async def start_orchestration(  # type: ignore[misc]  # mypy 2.4 cannot match *Ts with *Any
        self,
        orchestration: Any,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
        result_type: Any = Any,
    ) -> OrchestrationHandle[Any]:
        """Start an instance, durably, and return the handle of its first execution.

        orchestration: a marked function or a registered name. instance_id: made up if not given.
        version: the one asked for, otherwise the latest where it runs. if_exists: "error" raises
        InstanceAlreadyExists, "return" gives the handle of the existing instance instead.
        Raises InvalidName, PayloadError, TypeError before anything is stored.
        """
        if if_exists not in ("error", "return"):
            raise ValueError(f'if_exists is "error" or "return", not {if_exists!r}')
        name, payload, codec = _start_of(orchestration, inputs, result_type)
        instance_id = secrets.token_hex(16) if instance_id is None else instance_id
        if version is not None:
            check_version(version)
        start = StartInstance(
            check_instance_id(instance_id), secrets.token_hex(16), name, version, payload
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
        taken, it is dropped and counted. Raises InstanceNotFound, InstanceTerminal, PayloadError.
        """
        payload = events.Payload(ANY.encode(data))
        await self._send(instance_id, work.ExternalRaised(check_name(name, "event name"), payload))

    async def cancel_instance(self, instance_id: str, reason: str = "") -> None:
        """Ask an instance to stop: asyncio.CancelledError is raised at its await.

        Its cleanup code runs and may await more; a second request has no further effect. Raises
        InstanceNotFound, InstanceTerminal.
        """
        if not isinstance(reason, str):
            raise TypeError(f"a reason is a text, not {type(reason).__name__}: {reason!r}")
        ANY.encode(reason)
        await self._send(instance_id, work.CancelInstance(reason))

    async def prune_executions(self, instance_id: str, options: PruneOptions) -> PruneResult:
        """Delete ended executions with their histories; see PruneOptions for which.

        The current execution is never pruned, running or not. Safe while the instance runs, and
        from several processes at once. Raises InstanceNotFound.
        """
        outcome = await self.committer.write(self._prune(instance_id, options))
        if not isinstance(outcome, Pruned):
            raise _not_found(instance_id)
        return PruneResult(outcome.executions, outcome.events)

    def _prune(self, instance_id: str, options: PruneOptions) -> PruneExecutions:
        before_ms = options.before_ms(self._provider.now_ms())
        return PruneExecutions(instance_id, Retention(options.kept, before_ms))

    # Looking.

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

    async def get_instance(self, instance_id: str) -> Instance:
        """The instance as it is now. Raises InstanceNotFound."""
        return instance_of(await self._row(instance_id))

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

    async def list_instances(
        self,
        *,
        status: Literal["pending", "running", "completed", "failed", "cancelled"] | None = None,
        name: str | None = None,
        id_prefix: str | None = None,
        blocked: bool | None = None,
        limit: int = 100,
    ) -> list[Instance]:
        """Up to `limit` (1 to 1,000) matching instances, oldest start first."""
        if not 1 <= limit <= 1_000:
            raise ValueError(f"limit is 1 to 1,000, not {limit}")
        self._check_open()
        rows = await self._provider.list_instances(
            InstanceFilter(status, name, id_prefix, blocked), limit=limit
        )
        return [instance_of(row) for row in rows]

    async def list_executions(self, instance_id: str) -> list[ExecutionInfo]:
        """All executions of an instance, oldest first. Raises InstanceNotFound."""
        await self._row(instance_id)
        return [execution_of(row) for row in await self._provider.list_executions(instance_id)]

    async def read_history(
        self, instance_id: str, execution_id: int | None = None
    ) -> list[events.AnyEvent]:
        """The events of an execution (None: the current one). Raises InstanceNotFound."""
        self._check_open()
        if execution_id is None:
            execution_id = (await self._row(instance_id)).execution_id
        lines: list[bytes] = []
        while True:
            page = await self._provider.read_history(instance_id, execution_id, len(lines))
            if not page:
                return [events.decode(line) for line in lines]
            lines.extend(page)

    # Inside.

    def _check_open(self) -> None:
        _ = self.committer

    @property
    def _open_endings(self) -> Endings:
        self._check_open()
        assert self._endings is not None
        return self._endings

    async def _row(self, instance_id: str) -> InstanceRow:
        self._check_open()
        _check_addressable(instance_id)
        rows = await self._provider.get_instances([instance_id])
        if instance_id not in rows:
            raise _not_found(instance_id)
        return rows[instance_id]

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

    async def _send(self, instance_id: str, item: work.AnyWorkItem) -> None:
        _check_addressable(instance_id)
        outcome = await self.committer.write(
            SendMessage(instance_id, work.encode(item), external=True)
        )
        if isinstance(outcome, NotFound):
            raise _not_found(instance_id)
        if isinstance(outcome, Ended):
            raise InstanceTerminal(
                f"instance {instance_id!r} has ended ({outcome.status}) and takes nothing more",
                instance_id=instance_id,
                status=outcome.status,
            )
        if self._host is not None:
            self._host.news()


def _check_addressable(instance_id: str) -> None:
    """Refuse what no instance can be called. Ids made by the engine are allowed here."""
    if not isinstance(instance_id, str):
        raise InvalidName(f"an instance id is a text, not {type(instance_id).__name__}")
    try:
        instance_id.encode()
    except UnicodeEncodeError:
        raise _not_found(instance_id) from None


def _not_found(instance_id: str) -> InstanceNotFound:
    return InstanceNotFound(
        f"there is no instance {instance_id!r} in this store; check the id and the store's URL"
    )


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

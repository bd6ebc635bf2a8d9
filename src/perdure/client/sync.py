"""The client for code without an event loop: scripts, WSGI, notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Self, TypeVar

from perdure.client.client import Client, IfExists
from perdure.client.filters import InstanceFilter
from perdure.client.models import (
    ExecutionInfo,
    Instance,
    InstancePage,
    InstanceTree,
    Metrics,
    NodeInfo,
    PruneResult,
    QueueDepths,
)
from perdure.client.queues import QueuedEvent
from perdure.client.waits import Wait
from perdure.core import events
from perdure.retention import PruneOptions

T = TypeVar("T")


class SyncClient:
    """Client, one blocking call each: `with SyncClient(url) as client`. Safe to share by threads.

    It runs a Client on an event loop in a thread of its own.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Client | None = None

    def __enter__(self) -> Self:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="perdure-client", daemon=True)
        thread.start()
        self._loop, self._thread = loop, thread
        try:
            self._client = self._call(self._open())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        client, self._client = self._client, None
        try:
            if client is not None:
                self._call(client.close())
        finally:
            self._stop()

    async def _open(self) -> Client:
        client = Client(self._store)
        await client.open()
        return client

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("use `with SyncClient(url) as client`")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @property
    def _open_client(self) -> Client:
        if self._client is None:
            raise RuntimeError("use `with SyncClient(url) as client`")
        return self._client

    @property
    def degraded(self) -> str | None:
        """See Client.degraded."""
        return self._open_client.degraded

    def start_orchestration(
        self,
        orchestration: Any,
        *inputs: Any,
        instance_id: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "error",
        events: Sequence[QueuedEvent] = (),
    ) -> str:
        """Start an instance; returns its id. See Client.start_orchestration."""
        handle = self._call(
            self._open_client.start_orchestration(
                orchestration,
                *inputs,
                instance_id=instance_id,
                version=version,
                if_exists=if_exists,
                events=events,
            )
        )
        return handle.instance_id

    def raise_event(self, instance_id: str, name: str, data: Any = None) -> None:
        """See Client.raise_event."""
        self._call(self._open_client.raise_event(instance_id, name, data))

    def enqueue_event(
        self, instance_id: str, queue: str, data: Any = None, event_id: str | None = None
    ) -> bool:
        """See Client.enqueue_event."""
        return self._call(self._open_client.enqueue_event(instance_id, queue, data, event_id))

    def cancel_instance(self, instance_id: str, reason: str = "") -> None:
        """See Client.cancel_instance."""
        self._call(self._open_client.cancel_instance(instance_id, reason))

    def prune_executions(self, instance_id: str, options: PruneOptions) -> PruneResult:
        """See Client.prune_executions."""
        return self._call(self._open_client.prune_executions(instance_id, options))

    def prune_executions_bulk(self, filter: InstanceFilter, options: PruneOptions) -> PruneResult:
        """See Client.prune_executions_bulk."""
        return self._call(self._open_client.prune_executions_bulk(filter, options))

    def delete_instance(self, instance_id: str, force: bool = False) -> int:
        """See Client.delete_instance."""
        return self._call(self._open_client.delete_instance(instance_id, force))

    def delete_instances_bulk(self, filter: InstanceFilter, force: bool = False) -> int:
        """See Client.delete_instances_bulk."""
        return self._call(self._open_client.delete_instances_bulk(filter, force))

    def get_instance(self, instance_id: str) -> Instance:
        """See Client.get_instance."""
        return self._call(self._open_client.get_instance(instance_id))

    def wait_for_orchestration(self, instance_id: str, timeout: float | None = None) -> Instance:
        """See Client.wait_for_orchestration."""
        return self._call(self._open_client.wait_for_orchestration(instance_id, timeout))

    def final_result(
        self, instance_id: str, timeout: float | None = None, *, result_type: Any = Any
    ) -> Any:
        """Wait for the end of an instance and return its result. See OrchestrationHandle."""

        async def wait() -> Any:
            handle = await self._open_client.get_handle(instance_id, result_type=result_type)
            return await handle.final_result(timeout)

        return self._call(wait())

    def list_instances(
        self, filter: InstanceFilter | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> InstancePage:
        """See Client.list_instances."""
        return self._call(self._open_client.list_instances(filter, cursor=cursor, limit=limit))

    def list_executions(self, instance_id: str) -> list[ExecutionInfo]:
        """See Client.list_executions."""
        return self._call(self._open_client.list_executions(instance_id))

    def read_history(
        self, instance_id: str, execution_id: int | None = None
    ) -> list[events.AnyEvent]:
        """See Client.read_history."""
        return self._call(self._open_client.read_history(instance_id, execution_id))

    def get_instance_tree(self, instance_id: str) -> InstanceTree:
        """See Client.get_instance_tree."""
        return self._call(self._open_client.get_instance_tree(instance_id))

    def waiting_for(self, instance_id: str) -> list[Wait]:
        """See Client.waiting_for."""
        return self._call(self._open_client.waiting_for(instance_id))

    def get_queue_depths(self) -> QueueDepths:
        """See Client.get_queue_depths."""
        return self._call(self._open_client.get_queue_depths())

    def nodes(self) -> list[NodeInfo]:
        """See Client.nodes."""
        return self._call(self._open_client.nodes())

    def get_metrics(self) -> Metrics:
        """See Client.get_metrics."""
        return self._call(self._open_client.get_metrics())

    def export_instance(self, instance_id: str) -> list[bytes]:
        """See Client.export_instance."""
        return self._call(self._open_client.export_instance(instance_id))

    def import_instances(self, lines: Iterable[bytes]) -> list[str]:
        """See Client.import_instances."""
        return self._call(self._open_client.import_instances(list(lines)))

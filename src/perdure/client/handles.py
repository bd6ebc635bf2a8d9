"""Handles: a typed reference to one execution of an instance."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from perdure.client.endings import Endings, Watch
from perdure.client.models import failed_error
from perdure.codec import Codec
from perdure.providers.contract import Ending

R = TypeVar("R")


class OrchestrationHandle(Generic[R]):
    """instance_id and execution_id name what it refers to; created: this call started it."""

    def __init__(
        self,
        endings: Endings,
        watch: Watch,
        codec: Codec[R],
        execution_id: int,
        created: bool,
    ) -> None:
        self._endings = endings
        self._watch = watch
        self._codec = codec
        self.instance_id = watch.instance_id
        self.execution_id = execution_id
        self.created = created

    async def result(self, timeout: float | None = None) -> R | None:
        """Wait for this execution's end and return its result; None if it continued as new.

        timeout: seconds, or None for no limit. Raises TimeoutError, OrchestrationFailedError,
        InstanceNotFound if the instance is deleted meanwhile.
        """
        ending = await self._wait(self.execution_id, timeout)
        return None if ending.status == "continued_as_new" else self._value(ending)

    async def final_result(self, timeout: float | None = None) -> R:
        """Wait for the instance's end, across ContinueAsNew, and return its result."""
        return self._value(await self._wait(None, timeout))

    async def _wait(self, execution_id: int | None, timeout: float | None) -> Ending:
        known = self._watch.ending(execution_id)
        if known is not None:
            return known
        return await asyncio.wait_for(self._endings.wait(self._watch, execution_id), timeout)

    def _value(self, ending: Ending) -> R:
        if ending.status == "completed":
            return self._codec.decode(ending.output or b"null")
        raise failed_error(self.instance_id, ending.status, ending.error)

    def __repr__(self) -> str:
        return f"<handle of {self.instance_id!r} execution {self.execution_id}>"

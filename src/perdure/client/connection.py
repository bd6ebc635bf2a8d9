"""What every part of a client stands on: the open store, its committer, who waits for what."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from random import Random
from typing import Protocol, Self

from perdure.client.endings import Endings
from perdure.errors import InstanceNotFound, InvalidName, StoreClosed
from perdure.providers.committer import Committer, Done
from perdure.providers.contract import InstanceRow, Provider, StartInstance
from perdure.providers.urls import open_provider


class Host(Protocol):
    """The runtime in the same process, if there is one."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What was dropped, refused or repeated so far, by reason."""

    def start_instance(self, start: StartInstance, done: Done) -> None:
        """Submit a start, taken over by the runtime at once if it can run it."""

    def news(self) -> None:
        """A message has been stored."""


class Connection:
    """A store, opened and closed."""

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

    @property
    def degraded(self) -> str | None:
        """Why the store takes no writes at the moment, as text; None while it does. What is asked
        of it meanwhile waits, and goes on by itself."""
        return self.committer.degraded

    def attach(self, host: Host | None) -> None:
        """Called by the runtime of the same process."""
        self._host = host

    def _check_open(self) -> None:
        _ = self.committer

    @property
    def _open_provider(self) -> Provider:
        self._check_open()
        return self._provider

    @property
    def _open_endings(self) -> Endings:
        self._check_open()
        assert self._endings is not None
        return self._endings

    async def _row(self, instance_id: str) -> InstanceRow:
        self._check_open()
        check_addressable(instance_id)
        rows = await self._provider.get_instances([instance_id])
        if instance_id not in rows:
            raise not_found(instance_id)
        return rows[instance_id]


def check_addressable(instance_id: str) -> None:
    """Refuse what no instance can be called. Ids made by the engine are allowed here."""
    if not isinstance(instance_id, str):
        raise InvalidName(f"an instance id is a text, not {type(instance_id).__name__}")
    try:
        instance_id.encode()
    except UnicodeEncodeError:
        raise not_found(instance_id) from None


def not_found(instance_id: str) -> InstanceNotFound:
    return InstanceNotFound(
        f"there is no instance {instance_id!r} in this store; check the id and the store's URL"
    )

"""The runtime: hosts orchestrations and activities in this process. Wiring, no logic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from perdure.client.client import Client
from perdure.errors import PerdureError, ProviderError
from perdure.providers.committer import Done
from perdure.providers.contract import Provider, StartInstance
from perdure.registry import Listed, Registry
from perdure.runtime.activities import Activities
from perdure.runtime.guard import TaskGuard
from perdure.runtime.intake import Intake
from perdure.runtime.node import Node
from perdure.runtime.options import Options
from perdure.runtime.starts import Starts
from perdure.runtime.transactions import check_transactional
from perdure.runtime.turns import Turns
from perdure.runtime.watchdog import Watchdog

STOP_TIMEOUT_S = 5.0
RETRY_S = 0.5

logger = logging.getLogger("perdure")


class Runtime:
    """Use as `async with Runtime(url, [functions or modules]) as runtime`.

    store: a URL (`sqlite:///file.db`, `memory://`) or a provider that nothing else uses.
    functions: marked functions, modules of them, bound methods. Raises RegistrationError for what
    cannot be hosted. Unfinished instances go on by themselves once it is started.
    """

    def __init__(
        self,
        store: str | Provider,
        functions: Iterable[Listed] = (),
        *,
        options: Options | None = None,
        new_token: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._registry = Registry(functions)
        self._options = options or Options()
        self._new_token = new_token
        self._client = Client(store)
        self._parts: _Parts | None = None
        self._guard: TaskGuard | None = None
        self._counters: Counter[str] = Counter()
        self._replacing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def client(self) -> Client:
        """The client of this process; open while the runtime is started."""
        return self._client

    @property
    def counters(self) -> Mapping[str, int]:
        """What was dropped, refused or repeated so far, by reason."""
        return dict(self._counters)

    @property
    def node_id(self) -> str:
        """The id of the started node; a new one at each start."""
        if self._parts is None:
            raise PerdureError("the runtime is not started")
        return self._parts.node.node_id

    async def start(self) -> None:
        """Open the store, become a node, and take up unfinished work."""
        if self._guard is not None:
            raise PerdureError("the runtime is started already")
        check_transactional(self._registry.activities.values(), self._client.provider)
        await self._client.open()
        guard = TaskGuard(asyncio.get_running_loop())
        try:
            await self._become_node()
        except BaseException:
            guard.remove()
            await self._client.close()
            raise
        self._guard = guard

    async def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """Stop gracefully: begin nothing new, let running activities finish for `timeout` seconds,
        then give everything back uncharged. Nothing of the runtime is left when it returns."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        try:
            if self._replacing is not None:
                # Not cancelled: it has the old node's thread and activities to end.
                await asyncio.gather(self._replacing, return_exceptions=True)
            if self._parts is not None:
                await self._leave(timeout)
        finally:
            await self._client.close()
            guard.remove()

    async def _leave(self, timeout_s: float) -> None:
        """Stop being a node."""
        parts, self._parts = self._parts, None
        assert parts is not None
        self._client.attach(None)
        await parts.stop(timeout_s)
        with contextlib.suppress(PerdureError):
            await self._client.provider.release_node(parts.node.node_id)

    async def _become_node(self) -> None:
        client = self._client
        node = Node(
            client.provider, client.committer, self._registry, self._options, self._new_token
        )
        node.counters = self._counters
        await client.provider.register_node(node.node_id, round(self._options.lease_s * 1000))
        self._parts = _Parts(node, self._lost)
        client.attach(self._parts)
        self._parts.start()

    def _lost(self) -> None:
        """The node was taken over (it was paused for too long, or its turn was stuck)."""
        if self._guard is not None and self._parts is not None and self._replacing is None:
            logger.error("this node was taken over by others; it starts again as a new node")
            self._replacing = asyncio.get_running_loop().create_task(self._replace())

    async def _replace(self) -> None:
        await self._leave(0)
        while self._guard is not None:
            try:
                await self._become_node()
                break
            except ProviderError as error:
                logger.warning("cannot start again as a new node: %s; trying again", error)
                await asyncio.sleep(RETRY_S)
        self._replacing = None


class _Parts:
    """The parts of one node, wired; also the host that the client of this process talks to."""

    def __init__(self, node: Node, lost: Callable[[], None]) -> None:
        self.node = node
        loop = node.loop
        self._watchdog = Watchdog(
            lambda: node.provider.beat(node.node_id),
            lambda: loop.call_soon_threadsafe(lost),  # type: ignore[arg-type]
            lease_s=node.options.lease_s,
            turn_timeout_s=node.options.turn_timeout_s,
        )
        self._activities = Activities(node)
        self._turns = Turns(node, self._activities, self._watchdog)
        self._starts = Starts(node, self._turns, self._activities)
        self._intake = Intake(node, self._turns, self._activities)
        self._activities.deliver = self._turns.deliver
        self._activities.news = self._intake.news
        self._turns.reload = self._intake.reload
        self._turns.fetch = self._intake.fetch
        self._turns.news = self._turns.leaving.news = self._intake.news

    @property
    def counters(self) -> Mapping[str, int]:
        return dict(self.node.counters)

    def start(self) -> None:
        self._watchdog.start()
        self._intake.start()

    async def stop(self, timeout_s: float) -> None:
        self.node.stopping = True
        try:
            await self._intake.stop()
            self._turns.timers.stop()
            await self._activities.stop(timeout_s)
            self._turns.leaving.give_everything_back()
            await self.node.committer.drain()
        finally:
            await self._watchdog.stop()

    def start_instance(self, start: StartInstance, done: Done) -> None:
        self._starts.start(start, done)

    def news(self) -> None:
        self._intake.news()

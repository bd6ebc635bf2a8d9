"""Nodes that die at any commit, in one process and in virtual time: nothing is lost or done twice.

A death is a provider that answers nothing any more, before or after it has applied a batch; the
store is then told that the node's process is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import pytest
from kit import World, history
from mixed import CLIENTS, HOSTED, expected, start_mixed

from perdure import Runtime
from perdure.errors import StoreUnavailable
from perdure.providers.contract import Operation, Outcome, Provider

DEATHS_MAX = 14


class Fate:
    """When the nodes of one run die: after every few commits, all nodes together."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.batches_at_once = 1 + seed % 4
        self.deaths = 0
        self._commits_left = self.random.randint(1, 20)

    def strikes(self) -> str | None:
        """ "before" or "after" this commit, or not at all."""
        self._commits_left -= 1
        if self._commits_left or self.deaths == DEATHS_MAX:
            return None
        self.deaths += 1
        self._commits_left = self.random.randint(1, 20)
        return self.random.choice(["before", "after"])


class Mortal:
    """A provider of a process that dies. With several batches at once they are applied, and their
    outcomes arrive, in any order."""

    def __init__(self, inner: Provider, fate: Fate) -> None:
        self.inner = inner
        self.batches_at_once = fate.batches_at_once
        self.died = asyncio.Event()
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name in ("now_ms", "watch", "open", "close"):
            return found
        return self._while_alive(found)

    def _while_alive(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def alive(*args: Any) -> Any:
            if self.died.is_set():
                raise StoreUnavailable("dead")
            return call(*args)

        return alive

    async def commit(self, batch: Sequence[Operation]) -> list[Outcome]:
        when = None if self.died.is_set() else self._fate.strikes()
        if when == "after":
            await self._commit(batch)
        if when is not None:
            self.died.set()
        if self.died.is_set():
            raise StoreUnavailable("dead")
        return await self._commit(batch)

    async def _commit(self, batch: Sequence[Operation]) -> list[Outcome]:
        if self.batches_at_once == 1:
            return await self.inner.commit(batch)
        await asyncio.sleep(self._fate.random.uniform(0, 0.01))
        outcomes = await self.inner.commit(batch)
        await asyncio.sleep(self._fate.random.uniform(0, 0.01))
        return outcomes


class Place:
    """Where one runtime after the other lives and dies, until the end."""

    def __init__(self, world: World, fate: Fate, options: dict[str, int]) -> None:
        self._world = world
        self._fate = fate
        self._options = options
        self._over = asyncio.Event()

    async def run(self) -> None:
        while not self._over.is_set():
            mortal = Mortal(self._world.provider(), self._fate)
            provider: Any = mortal
            runtime = self._world.runtime(*HOSTED, provider=provider, **self._options)
            await runtime.start()
            node_id = runtime.node_id
            await first_of(mortal.died.wait(), self._over.wait())
            await self._bury(runtime, mortal, node_id)

    async def _bury(self, runtime: Runtime, mortal: Mortal, node_id: str) -> None:
        if mortal.died.is_set():
            assert self._world._memory is not None
            self._world._memory.kill_node(node_id)
        await runtime.stop(0 if mortal.died.is_set() else 5)

    def end(self) -> None:
        self._over.set()


async def first_of(*waits: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("seed", range(12))
async def test_nodes_that_die_at_any_commit_lose_nothing_and_do_nothing_twice(
    memory: World, seed: int
) -> None:
    fate = Fate(seed)
    ways: list[dict[str, int]] = [
        {},
        {"max_residents": 0},
        {"max_residents": 2, "max_activities": 2},
    ]
    async with memory.client() as client:
        places = [Place(memory, fate, ways[number]) for number in range(1 + seed % 3)]
        living = [asyncio.create_task(place.run()) for place in places]
        handles = await start_mixed(client, f"chaos {seed}", range(3))
        found = await asyncio.gather(*(handle.final_result() for handle in handles))
        for place in places:
            place.end()
        await asyncio.gather(*living)

        by_id = {handle.instance_id: one for handle, one in zip(handles, found, strict=True)}
        assert by_id == expected(range(3))
        assert fate.deaths > 0
        for instance in await client.list_instances(limit=1000):
            assert instance.status in ("completed", "failed")
            for execution in await client.list_executions(instance.instance_id):
                await history(client, instance.instance_id, execution.execution_id)
        await client.provider.reap_nodes("nobody")
        assert await client.provider.nodes() == []
        del CLIENTS[f"chaos {seed}"]

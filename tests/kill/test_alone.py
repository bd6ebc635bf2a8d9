"""Activities that may have brought their node down run alone, and hold nothing else up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import Runtime
from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import ClaimActivities, ClaimedActivities, Operation, Outcome
from perdure.providers.sqlite import SqliteProvider

PROMPTLY_S = 5.0
NAMES = frozenset(["in_loop", "in_thread"])

_gates: list[asyncio.Event] = []
_first_turns: list[int] = []


@perdure.activity
async def in_loop() -> str:
    return "in a coroutine"


@perdure.activity
def in_thread() -> str:
    return "in a thread"


@perdure.activity
async def wait_at_gate() -> str:
    gate = asyncio.Event()
    _gates.append(gate)
    await gate.wait()
    return "open"


@perdure.orchestration
async def suspects() -> list[str]:
    return list(await asyncio.gather(in_loop(), in_thread()))


@perdure.orchestration
async def suspect() -> str:
    return await in_thread()


@perdure.orchestration
async def simple() -> str:
    _first_turns.append(1)
    return await in_loop()


@perdure.orchestration
async def bystander() -> str:
    return await wait_at_gate()


@pytest.mark.slow
def test_two_that_may_have_brought_nodes_down_do_not_wait_for_each_other(tmp_path: Path) -> None:
    output = asyncio.run(suspects_beside_a_bystander(tmp_path / "store.db"))

    assert output == ["in a coroutine", "in a thread"]


async def suspects_beside_a_bystander(path: Path) -> Any:
    url, outside = f"sqlite:///{path}", SqliteProvider(path)
    async with Runtime(url, [suspects]) as runtime:
        # It does not have their activities, so that these wait in the store.
        await runtime.client.start_orchestration(suspects, instance_id="suspects")
    await outside.open()
    last = await claimed_by_dying_nodes(outside)
    async with Runtime(url, [in_loop, in_thread, wait_at_gate, suspects, bystander]) as runtime:
        handle = await runtime.client.start_orchestration(bystander)
        gate = await entered()
        await outside.release_node(last)
        await one_is_taken(outside)
        gate.set()
        async with asyncio.timeout(PROMPTLY_S):
            assert await handle.result() == "open"
            ended = await runtime.client.wait_for_orchestration("suspects")
    await outside.close()
    return ended.output


class Held(SqliteProvider):
    """Holds claims of threads that are to run alone up, until `go_on` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.holds = asyncio.Event()
        self.go_on = asyncio.Event()

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        claims = [operation for operation in batch if isinstance(operation, ClaimActivities)]
        if any(claim.alone and in_thread.name in claim.names for claim in claims):
            return self._commit_later(batch)
        return super().commit(batch)

    async def _commit_later(self, batch: Sequence[Operation]) -> list[Outcome]:
        self.holds.set()
        await self.go_on.wait()
        return await super().commit(batch)


@pytest.mark.slow
def test_one_that_is_to_run_alone_does_not_wait_for_what_is_not_started_after_all(
    tmp_path: Path,
) -> None:
    output = asyncio.run(suspect_beside_a_start_in_vain(tmp_path / "store.db"))

    assert output == "in a thread"


async def suspect_beside_a_start_in_vain(path: Path) -> Any:
    outside = SqliteProvider(path)
    async with Runtime(f"sqlite:///{path}", [suspect, simple, in_loop]) as runtime:
        await runtime.client.start_orchestration(suspect, instance_id="suspect")
        await (await runtime.client.start_orchestration(simple, instance_id="taken")).result()
    await outside.open()
    last = await claimed_by_dying_nodes(outside)
    provider = Held(path)
    async with Runtime(provider, [suspect, simple, in_loop, in_thread]) as runtime:
        await outside.release_node(last)
        async with asyncio.timeout(PROMPTLY_S):
            await provider.holds.wait()
        _first_turns.clear()
        start = runtime.client.start_orchestration(simple, instance_id="taken", if_exists="return")
        starting = asyncio.create_task(start)
        # Its first turn takes a slot for its activity, before it turns out that it exists.
        await until(lambda: _first_turns)
        provider.go_on.set()
        await starting
        async with asyncio.timeout(PROMPTLY_S):
            ended = await runtime.client.wait_for_orchestration("suspect")
    await outside.close()
    return ended.output


async def claimed_by_dying_nodes(provider: SqliteProvider) -> str:
    """Nodes claim the suspects and die, until these may only run alone. Returns the last of the
    nodes, which is still to die."""
    for number in range(1, CLAIMS_SHARED_MAX + 1):
        node_id = f"node-{number}"
        await provider.register_node(node_id, 60_000)
        (claimed,) = await provider.commit([ClaimActivities(node_id, NAMES, 10)])
        assert isinstance(claimed, ClaimedActivities)
        assert {claim.attempt for claim in claimed.activities} == {number}
        if number < CLAIMS_SHARED_MAX:
            await provider.release_node(node_id)
    return node_id


async def entered() -> asyncio.Event:
    """Wait for the bystander to run; returns its gate."""
    await until(lambda: _gates)
    return _gates.pop()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PROMPTLY_S):
        while not holds():
            await asyncio.sleep(0.002)


async def one_is_taken(provider: SqliteProvider) -> None:
    """Wait until the living node has claimed a suspect."""
    async with asyncio.timeout(PROMPTLY_S):
        while True:
            for name in NAMES:
                found = await provider.survey("nobody", frozenset(), frozenset([name]))
                if found.activities_due_ms is None:
                    return
            await asyncio.sleep(0.002)

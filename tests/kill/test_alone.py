"""Activities that may have brought their node down run alone, and hold nothing else up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import Runtime
from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import ClaimActivities, ClaimedActivities
from perdure.providers.sqlite import SqliteProvider

PROMPTLY_S = 5.0
NAMES = frozenset(["in_loop", "in_thread"])

_gates: list[asyncio.Event] = []


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


async def claimed_by_dying_nodes(provider: SqliteProvider) -> str:
    """Nodes claim the suspects and die, until these may only run alone. Returns the last of the
    nodes, which is still to die."""
    for number in range(1, CLAIMS_SHARED_MAX + 1):
        node_id = f"node-{number}"
        await provider.register_node(node_id, 60_000)
        (claimed,) = await provider.commit([ClaimActivities(node_id, NAMES, 10)])
        assert isinstance(claimed, ClaimedActivities)
        assert [claim.attempt for claim in claimed.activities] == [number, number]
        if number < CLAIMS_SHARED_MAX:
            await provider.release_node(node_id)
    return node_id


async def entered() -> asyncio.Event:
    """Wait for the bystander to run; returns its gate."""
    async with asyncio.timeout(PROMPTLY_S):
        while not _gates:
            await asyncio.sleep(0.002)
    return _gates.pop()


async def one_is_taken(provider: SqliteProvider) -> None:
    """Wait until the living node has claimed a suspect."""
    async with asyncio.timeout(PROMPTLY_S):
        while True:
            for name in NAMES:
                found = await provider.survey("nobody", frozenset(), frozenset([name]))
                if not found.activities:
                    return
            await asyncio.sleep(0.002)

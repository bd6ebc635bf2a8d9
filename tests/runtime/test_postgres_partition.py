"""Several runtimes on one PostgreSQL store: cut off, without notifications, behind a pooler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from kit import Gate, history, until
from mixed import HOSTED, expected, run_mixed

from perdure import Client, Options, OrchestrationContext, Runtime, activity, orchestration
from perdure.errors import PerdureError
from perdure.providers.postgres import connections, session
from perdure.runtime import intake
from postgres_pooler import PROGRAM, Pooler
from postgres_proxy import Proxy, Way

pytestmark = pytest.mark.slow

GATES: dict[str, Gate] = {}
LEASE_S = 3.0
"""A heartbeat comes every second."""


@activity
async def gated(name: str, number: int) -> int:
    await GATES[name].wait()
    return number


@activity
async def add(left: int, right: int) -> int:
    return left + right


@orchestration
async def passing(ctx: OrchestrationContext, name: str, number: int) -> int:
    total = await add(number, 1)
    total = await gated(name, total)
    return await add(total, 1)


EVENTS = 8


@asynccontextmanager
async def nodes(*urls: str, hosted: Any = (gated, add, passing)) -> AsyncIterator[list[Runtime]]:
    async with AsyncExitStack() as stack:
        options = Options(lease_s=LEASE_S)
        yield [
            await stack.enter_async_context(Runtime(url, hosted, options=options)) for url in urls
        ]


async def start_all(client: Client, name: str, number: int) -> list[str]:
    ids = [f"{name}-{each}" for each in range(number)]
    for each, instance_id in enumerate(ids):
        await client.start_orchestration(passing, name, each, instance_id=instance_id)
    return ids


async def check_all(client: Client, ids: list[str]) -> None:
    """Everything has ended right, and nothing was recorded twice."""
    for each, instance_id in enumerate(ids):
        ended = await client.wait_for_orchestration(instance_id)
        assert ended.output == each + 2
        assert len(await history(client, instance_id)) == EVENTS


def node_of(runtime: Runtime) -> str | None:
    try:
        return runtime.node_id
    except PerdureError:
        # It is about to start again as a new node.
        return None


async def cut_off(proxy: Proxy, far: Runtime, near: Runtime, ways: set[Way]) -> None:
    """Cut one of two nodes off for so long that the other takes over."""
    gate = GATES["cut"] = Gate()
    ids = await start_all(far.client, "cut", 8)
    await gate.has(8)
    before = far.node_id
    if ways:
        proxy.swallows = ways
    else:
        proxy.cut()
    # The other has taken over, and does again what has not been recorded.
    await gate.has(16)
    gate.open()
    await check_all(near.client, ids)

    proxy.mend()
    await until(lambda: node_of(far) not in (None, before))
    await check_all(near.client, ids)
    await check_all(far.client, ids)
    GATES["after"] = Gate()
    GATES["after"].open()
    await check_all(far.client, await start_all(far.client, "after", 4))


@pytest.mark.parametrize("ways", [(), ("questions", "answers")], ids=["closed", "silent"])
async def test_a_node_that_was_cut_off_comes_back_fenced_and_nothing_is_done_twice(
    postgres_url: str, ways: tuple[Way, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "COMMAND_S", 2.0)
    monkeypatch.setattr(connections, "CONNECT_S", 2.0)
    async with Proxy(postgres_url) as proxy, nodes(proxy.url, postgres_url) as (far, near):
        await cut_off(proxy, far, near, set(ways))


async def test_without_notifications_everything_ends_right_by_looking_now_and_then(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.Session, "tell", lambda *_: None)
    monkeypatch.setattr(session, "LOOK_S", 0.1)
    monkeypatch.setattr(intake, "IDLE_POLL_S", 60)
    GATES["quiet"] = Gate()
    GATES["quiet"].open()
    async with (
        nodes(postgres_url, hosted=(passing,)),
        nodes(postgres_url, hosted=(gated, add)),
        Client(postgres_url) as client,
    ):
        ids = await start_all(client, "quiet", 4)
        await check_all(client, ids)


# Behind a pooler.

needs_pooler = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


@pytest.fixture
def pooled_url(postgres_url: str) -> Iterator[str]:
    before, _, query = postgres_url.partition("?")
    pooler = Pooler(before)
    try:
        yield f"{pooler.url}?{query}&pooling=transaction"
    finally:
        pooler.close()


@needs_pooler
async def test_two_nodes_behind_a_pooler_share_a_mixed_load(pooled_url: str) -> None:
    async with nodes(pooled_url, pooled_url, hosted=HOSTED) as (first, second):
        loads = [
            run_mixed(first.client, "first", range(4)),
            run_mixed(second.client, "second", range(10, 14)),
        ]
        found = await asyncio.gather(*loads)
    assert found == [expected(range(4)), expected(range(10, 14))]


@needs_pooler
async def test_a_dead_node_behind_a_pooler_is_taken_over_at_the_end_of_its_lease(
    pooled_url: str,
) -> None:
    async with Proxy(pooled_url) as proxy, nodes(proxy.url, pooled_url) as (far, near):
        await cut_off(proxy, far, near, set())

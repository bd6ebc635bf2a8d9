"""What a client shows: the tree, what is waited for, what is in the store."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

import msgspec
import pytest
from kit import World, until_async, until_recorded, until_status

from perdure import (
    ActivityDepth,
    InstanceNotFound,
    InstanceTree,
    OrchestrationContext,
    StoreClosed,
    Wait,
    activity,
    orchestration,
)
from perdure.providers.contract import ClaimActivities, RetryActivity


@activity
async def echo(value: int) -> int:
    return value


@orchestration
async def leaf(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@orchestration
async def branch(ctx: OrchestrationContext, leaves: int) -> list[str]:
    return list(await asyncio.gather(*(leaf() for _ in range(leaves))))


@orchestration
async def trunk(ctx: OrchestrationContext) -> Any:
    return await asyncio.gather(branch(2), branch(0), branch(1))


@orchestration
async def everything(ctx: OrchestrationContext) -> Any:
    await echo(1)
    abandoned = ctx.schedule_wait("never")
    abandoned.cancel()
    return await asyncio.gather(
        ctx.schedule_activity("elsewhere", 7),
        ctx.schedule_timer(3600),
        ctx.schedule_wait("approved"),
        ctx.dequeue_event("mail"),
        ctx.schedule_sub_orchestration(leaf, instance_id="child"),
    )


def shape(tree: InstanceTree) -> dict[str, Any]:
    return {tree.instance.name: [shape(child) for child in tree.children]}


# get_instance_tree


async def test_a_tree_has_all_sub_orchestrations_below_their_parents(world: World) -> None:
    async with world.runtime(leaf, branch, trunk) as runtime:
        client = runtime.client
        await client.start_orchestration(trunk, instance_id="t")
        await client.start_orchestration(leaf, instance_id="stranger")
        await until_recorded(client, "t", "SubOrchestrationCompleted")

        async def is_grown() -> bool:
            return str(shape(await client.get_instance_tree("t"))).count("leaf") == 3

        await until_async(is_grown)
        tree = await client.get_instance_tree("t")
        two, none, one = sorted(tree.children, key=lambda child: child.instance.instance_id)
        assert shape(two) == {"branch": [{"leaf": []}, {"leaf": []}]}
        assert shape(none) == {"branch": []}
        assert none.instance.status == "completed"
        assert shape(one) == {"branch": [{"leaf": []}]}
        below = await client.get_instance_tree("t::sub::2")
        assert below == two
        assert below.instance.parent_instance == "t"


@pytest.mark.parametrize("instance_id", ["nobody", "", "\ud800"])
async def test_what_is_not_there_has_no_tree_and_waits_for_nothing(
    world: World, instance_id: str
) -> None:
    async with world.client() as client:
        with pytest.raises(InstanceNotFound):
            await client.get_instance_tree(instance_id)
        with pytest.raises(InstanceNotFound):
            await client.waiting_for(instance_id)


# waiting_for


async def test_an_instance_tells_everything_that_it_waits_for(world: World) -> None:
    async with world.runtime(everything, leaf, echo) as runtime:
        client = runtime.client
        await client.start_orchestration(everything, instance_id="e")
        await until_recorded(client, "e", "SubOrchestrationScheduled")
        events = {event.event_id: event for event in await client.read_history("e")}

        waits = await client.waiting_for("e")

        assert [(wait.kind, wait.name, wait.instance_id) for wait in waits] == [
            ("activity", "elsewhere", None),
            ("timer", "", None),
            ("event", "approved", None),
            ("queue", "mail", None),
            ("child", "leaf", "child"),
        ]
        assert all(wait.since_ms == events[wait.event_id].timestamp_ms for wait in waits)
        queued, timer = waits[:2]
        assert (queued.attempt, queued.error, queued.running_on) == (0, None, None)
        assert queued.due_ms is not None
        assert timer.due_ms == timer.since_ms + 3_600_000


async def test_an_activity_shows_its_attempt_where_it_runs_and_how_the_last_one_failed(
    world: World,
) -> None:
    async with world.runtime(everything, leaf, echo) as runtime, world.client() as other:
        client = runtime.client
        await client.start_orchestration(everything, instance_id="e")
        await until_recorded(client, "e", "ActivityScheduled", 2)
        await other.provider.register_node("worker", 3_600_000)
        names = frozenset({"elsewhere"})
        (outcome,) = await other.provider.commit([ClaimActivities("worker", names, 1)])
        (claim,) = outcome.activities  # type: ignore[union-attr]

        (running,) = [wait for wait in await client.waiting_for("e") if wait.kind == "activity"]
        assert (running.attempt, running.running_on, running.due_ms) == (1, "worker", None)

        later_ms = other.provider.now_ms() + 60_000
        error = json.dumps({"type": "LookupError", "message": "no"}).encode()
        place = (claim.key, claim.execution_id, claim.event_id)
        await other.provider.commit([RetryActivity(*place, "worker", 1, later_ms, error)])

        (failed,) = [wait for wait in await client.waiting_for("e") if wait.kind == "activity"]
        assert (failed.attempt, failed.running_on, failed.due_ms) == (1, None, later_ms)
        assert failed.error is not None
        assert (failed.error.type, failed.error.message) == ("LookupError", "no")


async def test_what_has_ended_or_not_begun_waits_for_nothing(world: World) -> None:
    async with world.runtime(leaf) as runtime:
        client = runtime.client
        await client.start_orchestration("unknown", instance_id="u")
        assert await client.waiting_for("u") == []
        handle = await client.start_orchestration(leaf, instance_id="w")
        await until_status(client, "w", "running")
        (wait,) = await client.waiting_for("w")
        assert wait == Wait("event", 2, "go", wait.since_ms)
        await client.raise_event("w", "go", "on")
        await handle.result()

        assert await client.waiting_for("w") == []


# get_queue_depths and get_metrics


async def test_depths_tell_how_much_waits(world: World) -> None:
    async with world.runtime(everything, leaf, echo) as runtime:
        client = runtime.client
        await client.start_orchestration(everything, instance_id="e")
        await until_recorded(client, "e", "SubOrchestrationScheduled")
        depths = await client.get_queue_depths()

        assert depths.timers == 1
        assert depths.activities == {"elsewhere": ActivityDepth(1, 0, 0)}
        assert (depths.messages, depths.items) == (0, 0)


async def test_metrics_count_instances_blocked_ones_and_nodes(world: World) -> None:
    async with world.client() as alone:
        await alone.start_orchestration("unknown", instance_id="u")
        metrics = await alone.get_metrics()
        assert (metrics.instances, metrics.blocked) == ({"pending": 1}, {})
        assert (metrics.nodes, metrics.counters) == ([], None)
    async with world.runtime(leaf) as runtime, world.client() as other:
        client = runtime.client
        await client.start_orchestration(leaf, instance_id="w")
        await until_status(client, "w", "running")
        await client.raise_event("w", "nobody listens")

        async def is_counted() -> bool:
            return bool((await client.get_metrics()).counters)

        await until_async(is_counted)
        metrics = await client.get_metrics()
        assert metrics.instances == {"pending": 1, "running": 1}
        assert [node.node_id for node in metrics.nodes] == [runtime.node_id]
        assert metrics.counters == runtime.counters == {"no_subscription": 1}
        assert (await other.get_metrics()).counters is None
        assert (await other.get_metrics()).nodes == metrics.nodes
    assert msgspec.json.encode(metrics)


async def test_nodes_tell_where_they_run_when_they_last_lived_and_what_they_hold(
    world: World,
) -> None:
    async with world.client() as alone:
        assert await alone.nodes() == []
    async with world.runtime(everything, leaf, echo) as runtime, world.client() as other:
        client = runtime.client
        await client.start_orchestration(everything, instance_id="e")
        await until_recorded(client, "e", "SubOrchestrationScheduled")
        await until_status(client, "child", "running")
        await other.provider.register_node("worker", 3_600_000)
        claim = ClaimActivities("worker", frozenset({"elsewhere"}), 1)
        await other.provider.commit([claim])

        nodes = {node.node_id: node for node in await other.nodes()}

        host, worker = nodes[runtime.node_id], nodes["worker"]
        assert (host.instances, host.activities) == (2, 0)
        assert (worker.instances, worker.activities) == (0, 1)
        assert (worker.host, worker.pid) == (socket.gethostname(), os.getpid())
        assert worker.beat_ms == worker.started_ms == worker.lease_until_ms - 3_600_000
        assert list(nodes) == sorted(nodes)


async def test_a_closed_client_shows_nothing(world: World) -> None:
    client = world.client()
    for call in (client.get_metrics, client.get_queue_depths, client.nodes):
        with pytest.raises(StoreClosed):
            await call()
    with pytest.raises(StoreClosed):
        await client.get_instance_tree("x")
    with pytest.raises(StoreClosed):
        await client.waiting_for("x")

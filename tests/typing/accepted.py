"""What type checkers must accept, with the types that they must find. Never run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import perdure
from perdure import (
    ActivityDepth,
    Client,
    DurableFuture,
    Instance,
    InstanceFilter,
    InstancePage,
    InstanceTree,
    OrchestrationContext,
    OrchestrationHandle,
    PruneOptions,
    PruneResult,
    QueuedEvent,
    RetryPolicy,
    Runtime,
    Wait,
    activity,
    orchestration,
)


class Declined(Exception):
    pass


@activity
async def charge(order: str, amount: int = 1) -> str:
    return f"paid {order} {amount}"


@activity(name="send-mail", raises=[Declined])
def send_mail(address: str) -> bool:
    return bool(address)


@activity(retry=RetryPolicy(max_attempts=3, non_retryable=[Declined]), timeout=timedelta(minutes=1))
async def retried(number: int) -> str:
    return str(number)


@orchestration
async def takes_events(ctx: OrchestrationContext) -> int:
    assert_type(await retried(1), str)
    assert_type(await retried.options(timeout=5, retry=RetryPolicy())(2), str)
    assert_type(await ctx.dequeue_event("untyped"), Any)
    return assert_type(await ctx.dequeue_event("numbers", int), int)


@orchestration
async def with_context(ctx: OrchestrationContext, order: str) -> str:
    return await charge(order)


@orchestration
async def without_context(count: int) -> list[int]:
    return [count]


@orchestration(name="later", version="1.2")
async def with_options(ctx: OrchestrationContext, order: str, tries: int = 3) -> None:
    return None


class Mailer:
    @activity
    async def send(self, address: str) -> bool:
        return bool(address)


@orchestration
async def calls(ctx: OrchestrationContext) -> str:
    assert_type(charge("o-1"), DurableFuture[str])
    assert_type(charge("o-1", amount=2), DurableFuture[str])
    assert_type(await send_mail("ada@example.org"), bool)
    assert_type(await with_context("o-1"), str)
    assert_type(await without_context(1), list[int])
    assert_type(await with_options("o-1", tries=1), None)
    assert_type(await with_options.options(version="1.2")("o-1", tries=1), None)
    return "done"


@orchestration
async def verbs(ctx: OrchestrationContext, names: list[str]) -> int:
    assert_type(await ctx.schedule_activity(charge, "o-1", 1), str)
    assert_type(await ctx.schedule_activity("charge", "o-1", result_type=str), str)
    assert_type(await ctx.schedule_activity("charge", "o-1"), Any)
    assert_type(await ctx.schedule_timer(1.5), None)
    assert_type(await ctx.schedule_timer(timedelta(days=30)), None)
    assert_type(await ctx.schedule_wait("approved", bool), bool)
    assert_type(await ctx.schedule_wait("approved"), Any)
    assert_type(await ctx.schedule_sub_orchestration(without_context, 1), list[int])
    assert_type(await ctx.schedule_sub_orchestration("child", result_type=int), int)
    assert_type(ctx.start_orchestration(without_context, 1, instance_id="other"), str)
    assert_type(await asyncio.gather(charge("a"), without_context(2)), tuple[str, list[int]])
    assert_type(await asyncio.wait_for(charge("a"), 10), str)
    assert_type(await asyncio.create_task(charge("a")), str)
    async with asyncio.TaskGroup() as group:
        assert_type(await group.create_task(charge("a")), str)
    index, _ = await ctx.select(charge("a"), ctx.schedule_timer(1))
    assert_type(index, int)
    if names:
        return await ctx.continue_as_new(names[1:])
    return 0


@orchestration
async def bound(address: str) -> bool:
    return await Mailer().send(address)


async def client_calls(url: str) -> None:
    async with Client(url) as client:
        handle = await client.start_orchestration(
            with_context, "o-1", instance_id="a", events=[QueuedEvent("q", 1)]
        )
        assert_type(await client.enqueue_event("a", "q", {"any": 1}, event_id="x"), bool)
        assert_type(handle, OrchestrationHandle[str])
        assert_type(await handle.result(), str | None)
        assert_type(await handle.final_result(timeout=5), str)
        named = await client.start_orchestration("checkout", "o-1", result_type=int)
        assert_type(await named.final_result(), int)
        await client.raise_event("a", "approved", True)
        await client.cancel_instance("a", reason="changed my mind")
        assert_type(await client.get_instance("a"), Instance)
        assert_type(await client.wait_for_orchestration("a", timeout=1), Instance)
        page = await client.list_instances(InstanceFilter(status="failed"))
        assert_type(page, InstancePage)
        assert_type(list(page), list[Instance])
        await client.list_instances(cursor=page.cursor, limit=5)
        assert_type(await client.get_instance_tree("a"), InstanceTree)
        assert_type(await client.waiting_for("a"), list[Wait])
        assert_type((await client.get_queue_depths()).activities, dict[str, ActivityDepth])
        assert_type((await client.get_metrics()).counters, dict[str, int] | None)
        lines = await client.export_instance("a")
        assert_type(await client.import_instances(lines), list[str])
        everything = InstanceFilter(finished_before=datetime.now(UTC) - timedelta(days=30))
        assert_type(
            await client.prune_executions_bulk(everything, PruneOptions(keep_last=3)), PruneResult
        )
        assert_type(await client.delete_instance("a", force=True), int)
        assert_type(await client.delete_instances_bulk(everything), int)


async def service() -> None:
    async with Runtime(
        "sqlite:///a.db", [charge, send_mail, with_context, Mailer().send]
    ) as runtime:
        started = await runtime.client.start_orchestration(without_context, 3)
        assert_type(await started.final_result(), list[int])


def script() -> None:
    assert_type(perdure.run("sqlite:///a.db", with_context, "o-1", instance_id="a"), str)
    assert_type(perdure.run("sqlite:///a.db", without_context, 1, host=[charge]), list[int])

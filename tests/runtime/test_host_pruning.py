"""Pruning while an instance runs, by call and by policy."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import apsw
import pytest
from kit import World

from perdure import InstanceNotFound, OrchestrationContext, PruneOptions, PruneResult, orchestration
from perdure.client.client import Client


@orchestration(retention=PruneOptions(keep_last=3))
async def kept(ctx: OrchestrationContext, left: int) -> str:
    return await ctx.continue_as_new(left - 1) if left else "done"


@orchestration
async def unkept(ctx: OrchestrationContext, left: int) -> str:
    return await ctx.continue_as_new(left - 1) if left else "done"


async def executions(client: Client, instance_id: str) -> list[int]:
    return [row.execution_id for row in await client.list_executions(instance_id)]


async def test_a_policy_keeps_the_last_executions_as_they_end(world: World) -> None:
    async with world.runtime(kept) as runtime:
        client = runtime.client
        first = await client.start_orchestration(kept, 20, instance_id="k")

        assert await first.final_result() == "done"
        assert await executions(client, "k") == [19, 20, 21]
        assert await first.result() is None


@pytest.mark.parametrize("keep_last", [None, 0, 1])
async def test_none_nought_and_one_keep_the_current_execution_alone(
    world: World, keep_last: int | None
) -> None:
    async with world.runtime(unkept) as runtime:
        client = runtime.client
        await (await client.start_orchestration(unkept, 4, instance_id="u")).final_result()

        result = await client.prune_executions("u", PruneOptions(keep_last=keep_last))

        assert result.executions == 4
        assert result.events == 4 * 2
        assert await executions(client, "u") == [5]
        assert (await client.get_instance("u")).output == "done"


async def test_the_age_counts_from_the_end_of_an_execution(world: World) -> None:
    async with world.runtime(unkept) as runtime:
        client = runtime.client
        await (await client.start_orchestration(unkept, 4, instance_id="u")).final_result()

        hour_ago = PruneOptions(completed_before=timedelta(hours=1))
        assert await client.prune_executions("u", hour_ago) == PruneResult(0, 0)
        later = PruneOptions(completed_before=datetime(2200, 1, 1, tzinfo=UTC))
        assert (await client.prune_executions("u", later)).executions == 4


async def test_an_instance_is_pruned_while_it_continues_as_new_and_ends_right(
    world: World,
) -> None:
    async with world.runtime(unkept) as runtime, world.client() as other:
        client = runtime.client
        handle = await client.start_orchestration(unkept, 200, instance_id="u")
        running = asyncio.ensure_future(handle.final_result())
        pruned = 0
        while not running.done():
            pruned += (await other.prune_executions("u", PruneOptions())).executions
            current = (await client.get_instance("u")).execution_id
            assert (await executions(client, "u"))[-1] >= current
            # A store in memory answers without waiting: let the instance have its turn.
            await asyncio.sleep(0.001)

        assert await running == "done"
        pruned += (await other.prune_executions("u", PruneOptions())).executions
        assert pruned == 200
        assert await executions(client, "u") == [201]


async def test_an_unknown_instance_cannot_be_pruned(world: World) -> None:
    async with world.client() as client:
        with pytest.raises(InstanceNotFound):
            await client.prune_executions("nobody", PruneOptions())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keep_last": -1}, ValueError),
        ({"keep_last": True}, TypeError),
        ({"keep_last": "3"}, TypeError),
        ({"completed_before": 3}, TypeError),
        ({"completed_before": datetime(2026, 1, 1)}, ValueError),
        ({"completed_before": timedelta(days=-1)}, ValueError),
    ],
)
def test_options_that_mean_nothing_are_refused(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        PruneOptions(**options)


def test_a_policy_has_no_date_that_would_pass() -> None:
    with pytest.raises(ValueError, match="timedelta"):
        orchestration(retention=PruneOptions(completed_before=datetime.now(UTC)))


async def test_a_policy_keeps_the_file_flat(sqlite: World) -> None:
    async with sqlite.runtime(kept) as runtime:
        client = runtime.client
        pages = []
        for number in range(3):
            handle = await client.start_orchestration(kept, 400, instance_id=f"k{number}")
            await handle.final_result()
            assert len(await executions(client, f"k{number}")) == 3
            pages.append(page_count(sqlite))

        assert max(pages) - min(pages) <= 2


def page_count(world: World) -> int:
    with contextlib.closing(apsw.Connection(str(world.path))) as connection:
        return int(connection.execute("pragma page_count").get)

"""The client for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from kit import World

from perdure import (
    Client,
    InstanceAlreadyExists,
    InstanceFilter,
    InstanceNotFound,
    OrchestrationContext,
    OrchestrationFailedError,
    PruneOptions,
    PruneResult,
    Runtime,
    SyncClient,
    activity,
    orchestration,
)


@activity
async def double(number: int) -> int:
    return 2 * number


@orchestration
async def doubled(ctx: OrchestrationContext, number: int) -> int:
    return await double(number)


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


async def test_a_sync_client_does_what_a_client_does(sqlite: World) -> None:
    def script() -> None:
        with SyncClient(sqlite.url) as client:
            assert client.start_orchestration(doubled, 4, instance_id="d") == "d"
            assert client.final_result("d", timeout=10, result_type=int) == 8
            with pytest.raises(InstanceAlreadyExists):
                client.start_orchestration(doubled, 4, instance_id="d")
            client.start_orchestration("waiting", instance_id="w")
            with pytest.raises(TimeoutError):
                client.wait_for_orchestration("w", timeout=0.05)
            client.raise_event("w", "go", "on")
            assert client.wait_for_orchestration("w", timeout=10).output == "on"
            client.start_orchestration(waiting, instance_id="c")
            client.cancel_instance("c", "enough")
            with pytest.raises(OrchestrationFailedError) as cancelled:
                client.final_result("c", timeout=10)
            assert cancelled.value.message == "enough"
            assert client.get_instance("w").status == "completed"
            waiters = client.list_instances(InstanceFilter(name="waiting"))
            assert [row.instance_id for row in waiters] == ["w", "c"]
            assert len(client.list_executions("d")) == 1
            assert client.get_instance_tree("d").children == []
            client.start_orchestration(waiting, instance_id="x")
            while not (waits := client.waiting_for("x")):
                assert client.get_instance("x").finished_ms is None
            (wait,) = waits
            assert (wait.kind, wait.name) == ("event", "go")
            lines = client.export_instance("x")
            assert client.get_metrics().instances["completed"] == 2
            assert [node.instances for node in client.nodes()] == [1]
            assert client.get_queue_depths().timers == 0
            assert client.prune_executions("x", PruneOptions()) == PruneResult(0, 0, 0)
            assert client.prune_executions_bulk(
                InstanceFilter(name="waiting"), PruneOptions()
            ) == PruneResult(0, 0, 0)
            assert client.delete_instance("x", force=True) == 1
            assert client.import_instances(lines) == ["x"]
            assert client.delete_instances_bulk(InstanceFilter(id_prefix="x"), force=True) == 1
            assert len(client.read_history("d")) == 4
            with pytest.raises(InstanceNotFound):
                client.get_instance("nobody")

    async with Runtime(sqlite.url, [double, doubled, waiting]):
        await asyncio.to_thread(script)


def test_it_has_every_call_of_a_client() -> None:
    theirs = {name for name in dir(Client) if not name.startswith("_")}
    inside = {"open", "close", "provider", "committer", "attach"}

    # A handle belongs to a loop; `final_result` stands for it.
    assert theirs - inside - {"get_handle"} <= set(dir(SyncClient))


async def test_many_threads_may_share_one(sqlite: World) -> None:
    def script() -> list[int]:
        with SyncClient(sqlite.url) as client, ThreadPoolExecutor(8) as pool:

            def one(number: int) -> int:
                id = client.start_orchestration(doubled, number)
                found: int = client.final_result(id, timeout=10, result_type=int)
                return found

            return list(pool.map(one, range(40)))

    async with Runtime(sqlite.url, [double, doubled]):
        assert await asyncio.to_thread(script) == [2 * number for number in range(40)]


def test_outside_its_block_it_says_so(sqlite: World) -> None:
    client = SyncClient(sqlite.url)
    with pytest.raises(RuntimeError, match="with SyncClient"):
        client.get_instance("x")
    with client:
        assert len(client.list_instances()) == 0
    with pytest.raises(RuntimeError, match="with SyncClient"):
        client.get_instance("x")
    assert not [thread for thread in threading.enumerate() if "perdure-client" in thread.name]


def test_a_store_that_cannot_be_opened_leaves_no_thread(sqlite: World) -> None:
    sqlite.path.mkdir()
    before = set(threading.enumerate())
    with pytest.raises(Exception, match=r"store\.db"), SyncClient(sqlite.url):
        pass
    for thread in set(threading.enumerate()) - before:
        thread.join(1)
        assert not thread.is_alive()

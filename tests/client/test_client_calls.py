"""What a client refuses at the call, and what it shows."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from kit import World, until_status

from perdure import (
    Client,
    InstanceFilter,
    InstanceNotFound,
    InvalidName,
    OrchestrationContext,
    OrchestrationFailedError,
    PayloadError,
    PayloadTooLarge,
    StoreClosed,
    activity,
    orchestration,
)


class Color(enum.Enum):
    RED = "red"


@dataclass
class Order:
    id: UUID
    amount: Decimal
    placed: datetime
    color: Color
    parts: list[bytes]


@activity
async def same(order: Order) -> Order:
    assert isinstance(order, Order)
    return order


@orchestration
async def pricing(ctx: OrchestrationContext, order: Order, factor: int = 1) -> Order:
    order.amount *= factor
    return await same(order)


@orchestration
async def waiting(ctx: OrchestrationContext) -> Any:
    return await ctx.schedule_wait("go")


@orchestration
async def failing(ctx: OrchestrationContext) -> None:
    raise LookupError("not here")


ORDER = Order(
    UUID(int=7), Decimal("1.10"), datetime(2024, 2, 29, 12, tzinfo=UTC), Color.RED, [b"\x00\xff"]
)


async def test_typed_values_arrive_as_themselves(world: World) -> None:
    async with world.runtime(pricing, same) as runtime:
        handle = await runtime.client.start_orchestration(pricing, ORDER, 3, instance_id="o")
        found = await handle.result()

        assert found == Order(ORDER.id, Decimal("3.30"), ORDER.placed, Color.RED, [b"\x00\xff"])
        again = await runtime.client.get_handle("o", result_type=Order)
        assert await again.result() == found


@pytest.mark.parametrize(
    ("instance_id", "error"),
    [
        ("", InvalidName),
        ("x" * 256, InvalidName),
        ("a::sub::1", InvalidName),
        ("line\nbreak", InvalidName),
        ("\ud800", InvalidName),
        (5, InvalidName),
        (b"bytes", InvalidName),
    ],
)
async def test_an_id_that_breaks_the_rules_is_refused(
    world: World, instance_id: Any, error: type[Exception]
) -> None:
    async with world.client() as client:
        with pytest.raises(error):
            await client.start_orchestration("waiting", instance_id=instance_id)
        assert len(await client.list_instances()) == 0


async def test_an_id_at_the_limit_is_taken(world: World) -> None:
    async with world.runtime(waiting) as runtime:
        id = "ü" * 127 + "x"
        handle = await runtime.client.start_orchestration(waiting, instance_id=id)
        await runtime.client.raise_event(id, "go", 1)
        assert await handle.result() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda client, id: client.raise_event(id, "go"),
        lambda client, id: client.cancel_instance(id),
        lambda client, id: client.get_instance(id),
        lambda client, id: client.get_handle(id),
        lambda client, id: client.read_history(id),
        lambda client, id: client.list_executions(id),
        lambda client, id: client.wait_for_orchestration(id, timeout=1),
    ],
)
async def test_an_id_that_nothing_can_have_is_not_found(world: World, call: Any) -> None:
    async with world.client() as client:
        for id in ("nobody", "", "x" * 1000, "\ud800", 5, None, b"bytes"):
            with pytest.raises((InstanceNotFound, InvalidName)):
                await call(client, id)


async def test_arguments_are_checked_before_anything_is_stored(world: World) -> None:
    async with world.client() as client:
        start: Any = client.start_orchestration
        with pytest.raises(TypeError, match="misses required arguments: 'order'"):
            await start(pricing)
        with pytest.raises(TypeError, match="takes 2 positional"):
            await start(pricing, ORDER, 2, 3)
        with pytest.raises(TypeError):
            await start(pricing, ORDER, unknown_option=1)
        with pytest.raises(PayloadError, match="parameter 'order'"):
            await start(pricing, "text")
        with pytest.raises(PayloadError):
            await start("pricing", float("nan"))
        with pytest.raises(PayloadTooLarge):
            await start("waiting", "x" * (1 << 20))
        with pytest.raises(TypeError, match="is not an orchestration"):
            await start(same, ORDER)
        with pytest.raises(TypeError, match="by name"):
            await start("pricing", ORDER, 2)
        with pytest.raises(InvalidName):
            await start("pricing", ORDER, version="latest")
        with pytest.raises(InvalidName):
            await start("")
        with pytest.raises(ValueError, match="if_exists"):
            await start("pricing", ORDER, if_exists="replace")
        assert len(await client.list_instances()) == 0


async def test_what_is_sent_is_checked_at_the_call(world: World) -> None:
    async with world.runtime(waiting) as runtime:
        client: Any = runtime.client
        handle = await client.start_orchestration(waiting, instance_id="w")
        with pytest.raises(PayloadError):
            await client.raise_event("w", "go", float("inf"))
        with pytest.raises(PayloadError):
            await client.raise_event("w", "go", object())
        with pytest.raises(PayloadTooLarge):
            await client.raise_event("w", "go", "x" * (1 << 20))
        with pytest.raises(InvalidName):
            await client.raise_event("w", "", 1)
        with pytest.raises(InvalidName):
            await client.raise_event("w", 5, 1)
        for reason in (5, None, "\ud800", b"bytes"):
            with pytest.raises((TypeError, PayloadError)):
                await client.cancel_instance("w", reason)
        await client.raise_event("w", "go", {"fine": [1, None, 2.5]})

        assert await handle.result() == {"fine": [1, None, 2.5]}
        assert not runtime.counters


async def test_an_instance_is_shown_as_it_stands(world: World) -> None:
    async with world.runtime(waiting, failing) as runtime:
        client = runtime.client
        await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        row = await client.get_instance("w")
        assert (row.name, row.version, row.execution_id) == ("waiting", "1", 1)
        assert (row.output, row.error, row.blocked, row.finished_ms) == (None,) * 4

        await client.raise_event("w", "go", [1, 2])
        ended = await client.wait_for_orchestration("w")
        assert (ended.status, ended.output) == ("completed", [1, 2])
        assert ended.finished_ms is not None
        assert ended.finished_ms >= ended.created_ms

        handle = await client.start_orchestration(failing, instance_id="f")
        with pytest.raises(OrchestrationFailedError):
            await handle.result()
        failed = await client.get_instance("f")
        assert failed.error is not None
        assert (failed.error.type, failed.error.message) == ("LookupError", "not here")


async def test_lists_are_filtered(world: World) -> None:
    async with world.runtime(waiting, failing) as runtime:
        client = runtime.client
        for number in range(5):
            await client.start_orchestration(waiting, instance_id=f"w{number}")
            failed = await client.start_orchestration(failing, instance_id=f"f{number}")
            with pytest.raises(OrchestrationFailedError):
                await failed.result()

        async def ids(**wanted: Any) -> list[str]:
            return [
                row.instance_id for row in await client.list_instances(InstanceFilter(**wanted))
            ]

        assert await ids(status="failed") == [f"f{number}" for number in range(5)]
        assert await ids(name="waiting") == [f"w{number}" for number in range(5)]
        assert await ids(id_prefix="w3") == ["w3"]
        assert await ids(blocked=True) == []
        assert len(await ids()) == 10
        for limit in (0, 1001):
            with pytest.raises(ValueError, match="limit"):
                await client.list_instances(limit=limit)


async def test_a_closed_client_says_so(world: World) -> None:
    client = world.client()
    for _ in range(2):
        with pytest.raises(StoreClosed):
            await client.get_instance("x")
        with pytest.raises(StoreClosed):
            await client.start_orchestration("x")
        with pytest.raises(StoreClosed):
            await client.raise_event("x", "go")
        with pytest.raises(StoreClosed):
            await client.list_instances()
        if client._committer is None:
            break
    async with client:
        assert len(await client.list_instances()) == 0
    await client.close()
    with pytest.raises(StoreClosed):
        await client.list_executions("x")


async def test_results_can_be_waited_for_with_a_time_out(world: World) -> None:
    async with world.runtime(waiting) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(waiting, instance_id="w")
        for wait in (handle.result, handle.final_result):
            with pytest.raises(TimeoutError):
                await wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            await client.wait_for_orchestration("w", timeout=0.01)
        await client.raise_event("w", "go", "on")

        assert await handle.result(timeout=5) == "on"
        # What is known already needs no time.
        assert await handle.result(timeout=0) == "on"


async def test_many_wait_for_one_result(world: World) -> None:
    async with world.runtime(waiting) as runtime, world.client() as other:
        client = runtime.client
        handle = await client.start_orchestration(waiting, instance_id="w")
        elsewhere = [await other.get_handle("w") for _ in range(50)]
        results = [asyncio.create_task(one.result()) for one in [handle] * 50 + elsewhere]
        ends = [asyncio.create_task(other.wait_for_orchestration("w")) for _ in range(50)]
        gone = results.pop()
        await asyncio.sleep(0.01)
        gone.cancel()
        await client.raise_event("w", "go", "all")

        assert await asyncio.gather(*results) == ["all"] * 99
        assert {end.output for end in await asyncio.gather(*ends)} == {"all"}


async def test_a_result_that_does_not_fit_the_type_asked_for(world: World) -> None:
    async with world.runtime(waiting) as runtime:
        client: Client = runtime.client
        await client.start_orchestration(waiting, instance_id="w")
        await client.raise_event("w", "go", "text")
        with pytest.raises(PayloadError):
            await (await client.get_handle("w", result_type=int)).result()
        assert await (await client.get_handle("w", result_type=str)).result() == "text"


async def test_a_failed_look_up_does_not_lose_the_result(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.runtime(waiting) as runtime, world.client() as other:
        await runtime.client.start_orchestration(waiting, instance_id="w")
        await runtime.client.raise_event("w", "go", "on")
        await runtime.client.wait_for_orchestration("w")
        handle = await other.get_handle("w")
        inner = other.provider.get_instances

        async def failing(*_: object) -> Any:
            raise StoreClosed("for a moment")

        monkeypatch.setattr(other.provider, "get_instances", failing)
        with pytest.raises(StoreClosed):
            await handle.result()
        monkeypatch.setattr(other.provider, "get_instances", inner)

        assert await handle.result(timeout=2) == "on"


DAY = timedelta(days=1)

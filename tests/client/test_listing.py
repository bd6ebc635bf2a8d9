"""Lists of instances: which are meant, and pages that neither repeat nor lose any."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from kit import World, until_recorded, until_status

from perdure import InstanceFilter, InstancePage, OrchestrationContext, orchestration
from perdure.client.client import Client
from perdure.client.filters import cursor_after, key_of


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@orchestration
async def parent(ctx: OrchestrationContext) -> str:
    return await waiting()


@orchestration
async def done(number: int) -> int:
    return number


def ids(page: InstancePage) -> list[str]:
    return [instance.instance_id for instance in page]


async def all_pages(client: Client, limit: int, wanted: InstanceFilter | None = None) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await client.list_instances(wanted, cursor=cursor, limit=limit)
        assert len(page) <= limit
        found += ids(page)
        if page.cursor is None:
            return found
        cursor = page.cursor


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_pages_give_everything_once_in_order(world: World, limit: int) -> None:
    async with world.client() as client:
        started = [f"i{number}" for number in range(7)]
        for instance_id in started:
            await client.start_orchestration("done", 1, instance_id=instance_id)

        assert await all_pages(client, limit) == started


async def test_the_last_page_has_no_cursor_even_if_it_is_full(world: World) -> None:
    async with world.client() as client:
        assert (await client.list_instances(limit=1)).cursor is None
        for number in range(2):
            await client.start_orchestration("done", 1, instance_id=f"i{number}")

        assert (await client.list_instances(limit=2)).cursor is None
        first = await client.list_instances(limit=1)
        second = await client.list_instances(limit=1, cursor=first.cursor)
        assert (ids(first), ids(second), second.cursor) == (["i0"], ["i1"], None)


async def test_what_comes_and_goes_between_pages_moves_nothing_else(world: World) -> None:
    chance = random.Random(7)
    async with world.client() as client:
        for number in range(30):
            await client.start_orchestration("done", 1, instance_id=f"i{number}")
        gone: set[str] = set()
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await client.list_instances(cursor=cursor, limit=4)
            seen += ids(page)
            if page.cursor is None:
                break
            cursor = page.cursor
            victim = f"i{chance.randrange(30)}"
            if victim not in gone:
                await client.delete_instance(victim, force=True)
                gone.add(victim)
            await client.start_orchestration("done", 1, instance_id=f"new{len(seen)}")

        assert len(seen) == len(set(seen))
        assert {f"i{number}" for number in range(30)} - gone <= set(seen)


async def test_each_field_of_a_filter_narrows(world: World) -> None:
    async with world.runtime(waiting, parent, done) as runtime:
        client = runtime.client
        await client.start_orchestration(parent, instance_id="p")
        await until_recorded(client, "p", "SubOrchestrationScheduled")
        await (await client.start_orchestration(done, 1, instance_id="d")).result()
        await client.start_orchestration("done", 1, instance_id="d2", version="2")
        child = "p::sub::2"
        await until_status(client, child, "running")

        async def found(**fields: Any) -> list[str]:
            return ids(await client.list_instances(InstanceFilter(**fields)))

        assert sorted(await found()) == ["d", "d2", "p", child]
        assert await found(status="completed") == ["d"]
        assert await found(status="pending") == ["d2"]
        assert await found(name="waiting") == [child]
        assert await found(version="2") == ["d2"]
        assert await found(id_prefix="p::") == [child]
        assert await found(id_prefix="d", status="completed") == ["d"]
        assert await found(parent="p") == [child]
        assert await found(parent="d") == []
        assert await found(blocked=True, name="waiting") == []
        assert await found(blocked=False, name="waiting") == [child]


async def test_times_exclude_themselves_and_know_zones(world: World) -> None:
    async with world.runtime(done) as runtime:
        client = runtime.client
        await (await client.start_orchestration(done, 1, instance_id="d")).result()
        instance = await client.get_instance("d")
        created = datetime.fromtimestamp(instance.created_ms / 1000, UTC)
        created = created.replace(microsecond=round(created.microsecond, -3))
        tick = timedelta(milliseconds=1)
        there = created.astimezone(timezone(timedelta(hours=-7)))

        async def matches(**fields: Any) -> bool:
            return len(await client.list_instances(InstanceFilter(**fields))) == 1

        assert await matches(created_after=created - tick)
        assert await matches(created_after=created - tick / 2)
        assert not await matches(created_after=created)
        assert not await matches(created_before=created)
        assert await matches(created_before=created + tick / 2)
        assert await matches(created_before=there + tick)
        assert not await matches(created_before=there)
        assert await matches(finished_after=created - tick)
        assert not await matches(finished_before=created - tick)


async def test_what_is_not_finished_has_no_time_of_it(world: World) -> None:
    async with world.client() as client:
        await client.start_orchestration("done", 1, instance_id="d")
        for field in ("finished_after", "finished_before"):
            for at in (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)):
                page = await client.list_instances(InstanceFilter(**{field: at}))
                assert len(page) == 0


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ({"status": "lost"}, ValueError, "status is one of"),
        ({"name": 3}, TypeError, "name"),
        ({"id_prefix": b"a"}, TypeError, "id_prefix"),
        ({"parent": "\ud800"}, ValueError, "parent"),
        ({"blocked": "yes"}, TypeError, "blocked"),
        ({"created_after": datetime(2026, 1, 1)}, ValueError, "time zone"),
        ({"finished_before": 3}, TypeError, "finished_before"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(
    fields: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        InstanceFilter(**fields)


async def test_arguments_of_a_list_are_checked(world: World) -> None:
    async with world.client() as client:
        anything: Any = client.list_instances
        for limit in (0, 1001, -1):
            with pytest.raises(ValueError, match="limit is 1 to 1,000"):
                await anything(limit=limit)
        for limit in ("3", True, 2.0, None):
            with pytest.raises(TypeError, match="limit"):
                await anything(limit=limit)
        with pytest.raises(TypeError, match="InstanceFilter"):
            await anything({"status": "failed"})
        with pytest.raises(TypeError, match="cursor"):
            await anything(cursor=5)
        with pytest.raises(ValueError, match="is no cursor"):
            await anything(cursor="")


def test_a_cursor_that_was_tampered_with_is_refused() -> None:
    cursor = cursor_after(123_456)
    assert key_of(cursor) == 123_456
    assert key_of(None) == 0
    changed = [
        cursor[:place] + letter + cursor[place + 1 :]
        for place in range(len(cursor))
        for letter in "0123456789abcdef-_ Aé"
        if cursor[place] != letter
    ]
    cut = [cursor[:length] for length in range(len(cursor))]
    for wrong in [*changed, *cut, cursor + "0", cursor.upper() + " ", "next page", "\ud800"]:
        with pytest.raises(ValueError, match="is no cursor"):
            key_of(wrong)


async def test_many_may_page_at_once(world: World) -> None:
    async with world.client() as client:
        for number in range(20):
            await client.start_orchestration("done", 1, instance_id=f"i{number}")

        pages = await asyncio.gather(*(all_pages(client, limit) for limit in range(1, 6)))

        assert all(found == pages[0] for found in pages)
        assert len(pages[0]) == 20

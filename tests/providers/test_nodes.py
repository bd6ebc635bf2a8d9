"""Nodes: leases, death, and what falls free with them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from provider_world import (
    CAPS,
    LEASE_MS,
    World,
    acquire,
    claim,
    claim_work,
    one,
    queued,
    row,
    running,
    start,
    turn,
)

from perdure.errors import ProviderError
from perdure.providers.contract import NodeRow, Provider, Refused


async def test_a_registered_node_is_known_with_its_process_and_lease(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-2", LEASE_MS)
    await provider.register_node("n-1", 2 * LEASE_MS)

    now, host, pid = world.clock.now, socket.gethostname(), os.getpid()
    assert await provider.nodes() == [
        NodeRow("n-1", host, pid, now, now + 2 * LEASE_MS, now, instances=0, activities=0),
        NodeRow("n-2", host, pid, now, now + LEASE_MS, now, instances=0, activities=0),
    ]


async def test_a_node_id_is_registered_once(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)

    for provider in (first, second):
        with pytest.raises(ProviderError):
            await provider.register_node("n-1", LEASE_MS)
    assert await second.reap_nodes("n-2") == []


async def test_a_beat_renews_the_lease(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", LEASE_MS)
    now = world.clock.advance(LEASE_MS - 1)

    assert provider.beat("n-1") is True

    (node,) = await provider.nodes()
    assert node.lease_until_ms == now + LEASE_MS
    assert node.beat_ms == now
    assert node.started_ms == now - LEASE_MS + 1


async def test_every_process_sees_when_a_node_last_gave_a_sign_of_life(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)
    await second.register_node("n-2", 3 * LEASE_MS)
    before = world.clock.now
    now = world.clock.advance(LEASE_MS)
    assert second.beat("n-2") is True

    for provider in (first, second):
        beats = {node.node_id: node.beat_ms for node in await provider.nodes()}
        assert beats == {"n-1": before, "n-2": now}


async def test_a_node_shows_how_much_it_holds(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)
    await second.register_node("n-2", LEASE_MS)
    await holding(first)
    await start(first, "held too", owner="n-1", token="t-1")
    await start(first, "held by n-2", owner="n-2", token="t-2")
    await start(first, "held by nobody")

    async def load() -> list[tuple[str, int, int]]:
        return [(node.node_id, node.instances, node.activities) for node in await first.nodes()]

    assert await load() == [("n-1", 2, 1), ("n-2", 1, 0)]
    await claim_work(second, node_id="n-2")
    await claim(second, "n-2")
    assert await load() == [("n-1", 2, 1), ("n-2", 2, 1)]
    await first.release_node("n-1")
    assert await load() == [("n-2", 2, 1)]


def empty_only_file(folder: Path) -> None:
    (file,) = folder.iterdir()
    file.write_bytes(b"")


async def test_a_node_whose_lock_file_says_nothing_was_alive_when_it_started(
    store: World,
) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    now = store.clock.now
    empty_only_file(Path(f"{store.path}-nodes"))
    store.clock.advance(LEASE_MS)
    assert provider.beat("n-1") is True

    (node,) = await provider.nodes()
    assert (node.beat_ms, node.lease_until_ms) == (now, now + 2 * LEASE_MS)


async def test_a_node_that_nobody_knows_cannot_beat(world: World) -> None:
    provider = await world.open()

    assert provider.beat("n-1") is False
    assert await provider.nodes() == []


async def test_a_node_that_beats_in_time_is_not_reaped(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)
    for _ in range(10):
        world.clock.advance(LEASE_MS // 2)
        assert first.beat("n-1")
        assert await second.reap_nodes("n-2") == []


async def test_a_node_whose_lease_ran_out_is_dead_though_its_process_lives(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)
    world.clock.advance(LEASE_MS)
    assert await second.reap_nodes("n-2") == []
    world.clock.advance(1)

    assert await second.reap_nodes("n-2") == ["n-1"]
    assert await second.nodes() == []
    assert first.beat("n-1") is False
    assert await second.reap_nodes("n-2") == []


async def test_a_node_whose_process_is_gone_is_dead_at_once(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)
    await second.register_node("n-2", LEASE_MS)
    await first.close()

    assert await second.reap_nodes("n-2") == ["n-1"]
    assert [node.node_id for node in await second.nodes()] == ["n-2"]


async def test_a_node_does_not_reap_itself(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", LEASE_MS)
    world.clock.advance(10 * LEASE_MS)

    assert await provider.reap_nodes("n-1") == []
    assert provider.beat("n-1") is True


async def holding(provider: Provider) -> None:
    """Let n-1 hold an instance and one of its two activities."""
    of = await acquire(provider)
    await one(provider, turn(of, b"1", activities=(running(1), queued(2)), settle=True))


async def test_what_a_dead_node_held_is_free_and_its_attempts_stay(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)
    await second.register_node("n-2", LEASE_MS)
    await holding(first)
    await start(first, "claimed only")
    await claim(first)
    await start(first, "held by n-2", owner="n-2", token="t-2")
    await first.close()

    await second.reap_nodes("n-2")

    assert (await row(second, "claimed only")).attempt == 1
    assert (await row(second, "held by n-2")).owner == "n-2"
    assert {each.instance_id: each.attempt for each in await claim(second, "n-2")} == {
        "i-1": 1,
        "claimed only": 2,
    }
    work = (await claim_work(second, node_id="n-2")).activities
    assert [(item.event_id, item.attempt) for item in work] == [(1, 2), (2, 1)]


async def test_a_reaped_node_finds_its_commits_fenced(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", LEASE_MS)
    of = await acquire(first)
    world.clock.advance(LEASE_MS + 1)
    await second.reap_nodes("n-2")

    assert await one(first, turn(of, b"1")) == Refused("fenced")
    await claim(second, "n-2")
    assert await one(first, turn(of, b"1")) == Refused("fenced")


async def test_a_released_node_is_forgotten_and_frees_what_it_held(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", LEASE_MS)
    await provider.register_node("n-2", LEASE_MS)
    await holding(provider)

    await provider.release_node("n-1")

    assert [node.node_id for node in await provider.nodes()] == ["n-2"]
    assert (await row(provider)).owner is None
    assert provider.beat("n-1") is False
    work = (await claim_work(provider, node_id="n-2")).activities
    assert [(item.event_id, item.attempt) for item in work] == [(1, 2), (2, 1)]
    (again,) = await claim(provider, "n-2")
    assert again.attempt == 1


async def test_a_released_node_that_is_released_again_is_no_error(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", LEASE_MS)
    await provider.release_node("n-1")
    await provider.release_node("n-1")

    assert await provider.nodes() == []


async def test_a_commit_does_not_need_a_registered_node(world: World) -> None:
    provider = await world.open()
    await acquire(provider)

    assert (await provider.survey("n-1", CAPS, frozenset())).mail == ()
    assert (await row(provider)).owner == "n-1"

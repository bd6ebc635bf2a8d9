"""Starting instances: one instance for an id, whole or not at all."""

from __future__ import annotations

import pytest
from provider_world import World, bodies, claim, is_a, new, note, one, row, start

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Committed,
    CommitTurn,
    ExecutionRow,
    InstanceRow,
    NotFound,
    ParentLink,
    Sent,
    Started,
    Taken,
)


async def test_a_started_instance_is_pending_and_due_now(world: World) -> None:
    provider = await world.open()
    key = await start(provider, "i-1", name="order", version="2", input=b"[1,2]")

    assert await row(provider) == InstanceRow(
        key=key,
        instance_id="i-1",
        incarnation="inc of i-1",
        name="order",
        version="2",
        status="pending",
        execution_id=1,
        created_ms=world.clock.now,
        finished_ms=None,
        due_ms=world.clock.now,
        owner=None,
        attempt=0,
        blocked=None,
        blocked_detail=None,
        hold_ms=None,
        parent_instance=None,
        input=b"[1,2]",
        output=None,
        error=None,
    )
    assert await provider.list_executions("i-1") == [
        ExecutionRow(1, "2", "pending", world.clock.now, None, None, None, b"[1,2]")
    ]


async def test_an_id_that_is_taken_is_answered_with_its_row_and_nothing_changes(
    world: World,
) -> None:
    provider = await world.open()
    await start(provider, "i-1", input=b"first")
    before = await row(provider)

    taken = is_a(Taken, await one(provider, new("i-1", incarnation="other", input=b"second")))

    assert taken.instance == before == await row(provider)
    assert await provider.count_instances() == {"pending": 1}


async def test_the_same_id_twice_in_a_batch_starts_once(world: World) -> None:
    provider = await world.open()
    first, second = await provider.commit(
        [new("i-1", input=b"first"), new("i-1", incarnation="other", input=b"second")]
    )

    key = is_a(Started, first).key
    assert is_a(Taken, second).instance.key == key
    assert (await row(provider)).input == b"first"


async def test_the_same_incarnation_twice_is_taken_too(world: World) -> None:
    provider = await world.open()
    await start(provider)

    assert is_a(Taken, await one(provider, new())).instance.incarnation == "inc of i-1"


async def test_ids_are_compared_by_bytes(world: World) -> None:
    provider = await world.open()
    ids = ["a", "A", "\u00e9", "e\u0301", "a ", "x" * 255]
    outcomes = await provider.commit([new(instance_id) for instance_id in ids])

    assert len({is_a(Started, outcome).key for outcome in outcomes}) == len(ids)
    assert set(await provider.get_instances(ids)) == set(ids)


async def test_keys_grow(world: World) -> None:
    provider = await world.open()
    keys = [await start(provider, f"i-{n}") for n in range(3)]

    assert keys == sorted(set(keys))


async def test_an_instance_started_with_owner_and_token_is_acquired(world: World) -> None:
    provider = await world.open()
    key = await start(provider, owner="n-1", token="t-1")

    assert ((await row(provider)).owner, (await row(provider)).attempt) == ("n-1", 1)
    assert await claim(provider, "n-2") == ()
    first = CommitTurn(key, "t-1", "n-1", 1, 1, (b"started",), mail_seen=0)
    assert await one(provider, first) == Committed()


async def test_owner_without_token_is_not_acceptable(world: World) -> None:
    provider = await world.open()
    with pytest.raises(ProviderError):
        await one(provider, new(owner="n-1"))
    assert await provider.count_instances() == {}


async def test_an_instance_starts_without_a_version(world: World) -> None:
    provider = await world.open()
    await start(provider, version=None)

    assert (await row(provider)).version is None
    (acquired,) = await claim(provider)
    assert acquired.version is None


async def test_a_parent_link_comes_back_with_the_acquisition(world: World) -> None:
    provider = await world.open()
    link = ParentLink("p", "inc of p", 3, 14)
    await start(provider, "p::sub::14", parent=link, nesting=2)

    (acquired,) = await claim(provider)

    assert (acquired.parent, acquired.nesting) == (link, 2)
    assert (await row(provider, "p::sub::14")).parent_instance == "p"


async def test_if_taken_is_sent_only_when_the_id_is_taken(world: World) -> None:
    provider = await world.open()
    await start(provider, "parent", owner="n-1", token="t-1")
    told = note("parent", b"taken")

    await one(provider, new("child", if_taken=told))
    assert await bodies(provider) == []

    await one(provider, new("child", if_taken=told))
    assert await bodies(provider) == [b"taken"]


async def test_if_taken_to_nobody_is_no_error(world: World) -> None:
    provider = await world.open()
    await start(provider, "child")

    is_a(Taken, await one(provider, new("child", if_taken=note("nobody"))))


async def test_a_start_comes_before_a_send_in_the_same_batch(world: World) -> None:
    provider = await world.open()
    sent, started = await provider.commit([note("i-1"), new("i-1")])

    assert is_a(Sent, sent).key == is_a(Started, started).key
    assert await one(provider, note("i-2")) == NotFound()


async def test_a_batch_with_a_value_that_cannot_be_stored_changes_nothing(world: World) -> None:
    provider = await world.open()
    for bad in (new("i-2", name="\ud800"), new("i-2", nesting=1 << 70), new("i-2", input="text")):
        with pytest.raises(ProviderError):
            await provider.commit([new("i-1"), bad])
    assert await provider.count_instances() == {}

    assert is_a(Started, await one(provider, new("i-1")))


async def test_a_large_batch_keeps_order_and_outcomes_apart(world: World) -> None:
    provider = await world.open()
    await start(provider, "i-1500")
    outcomes = await provider.commit([new(f"i-{n}") for n in range(3_000)])

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Taken)] == [1500]
    keys = [outcome.key for outcome in outcomes if isinstance(outcome, Started)]
    assert keys == sorted(keys)
    assert await provider.count_instances() == {"pending": 3_000}

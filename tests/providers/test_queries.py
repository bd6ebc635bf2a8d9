"""Reads: the survey, histories, and the lists that people look at."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from provider_world import (
    CAPS,
    LEASE_MS,
    World,
    acquire,
    claim,
    is_a,
    new,
    note,
    one,
    queued,
    row,
    running,
    start,
    turn,
)

from perdure.errors import InstanceNotFound, StoreClosed
from perdure.providers.contract import (
    Committed,
    CommitTurn,
    Ending,
    ExecutionRow,
    Mail,
    NextExecution,
    ParentLink,
    ReleaseInstance,
    RetryActivity,
    RowFilter,
    Started,
    Survey,
)

NAMES = frozenset({"pay", "ship"})


async def test_the_survey_of_an_empty_store_is_empty(world: World) -> None:
    provider = await world.open()

    assert await provider.survey("n-1", CAPS, NAMES) == Survey((), None, None)
    assert await provider.survey("n-1", frozenset(), frozenset()) == Survey((), None, None)


async def test_the_survey_shows_mail_of_held_instances_that_are_due(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await start(provider, "not held")
    await start(provider, "no mail", owner="n-1", token="t")
    await provider.commit([note(body=b"1", external=True), note(body=b"2"), note("not held")])

    (mail,) = (await provider.survey("n-1", CAPS, NAMES)).mail

    assert isinstance(mail, Mail)
    assert (mail.key, mail.mail, mail.external) == (of.key, 2, 1)
    assert [message.body for message in mail.messages] == [b"1", b"2"]
    assert (await provider.survey("n-2", CAPS, NAMES)).mail == ()


async def test_mail_that_a_turn_has_taken_note_of_is_not_shown_again(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, note())

    await one(provider, turn(of, b"1", mail_seen=1, set_due=True, due_ms=None))
    assert (await provider.survey("n-1", CAPS, NAMES)).mail == ()

    await one(provider, note())
    (mail,) = (await provider.survey("n-1", CAPS, NAMES)).mail
    assert len(mail.messages) == 2


async def test_the_survey_names_the_earliest_due_time_that_the_node_could_use(
    world: World,
) -> None:
    provider = await world.open()
    base = world.clock.now
    for instance_id, name, due_ms in (
        ("a", "order", base + 300),
        ("b", "refund", base + 200),
        ("c", "other", base + 100),
    ):
        key = await start(provider, instance_id, name=name, owner="n-1", token=instance_id)
        await one(provider, ReleaseInstance(key, instance_id, 0, due_ms))
    await start(provider, "held", owner="n-1", token="t")

    async def earliest(*pairs: tuple[str, str]) -> int | None:
        return (await provider.survey("n-1", frozenset(pairs), NAMES)).instances_due_ms

    assert await earliest(*CAPS) == base + 200
    assert await earliest(("order", "1")) == base + 300
    assert await earliest(("order", "2")) is None
    assert await earliest() is None
    await start(provider, "new", version=None)
    assert await earliest(("order", "2")) == base


async def test_the_survey_tells_of_unclaimed_activities_that_the_node_knows(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    now = world.clock.now

    async def seen(*names: str) -> int | None:
        return (await provider.survey("n-1", CAPS, frozenset(names))).activities_due_ms

    await one(provider, turn(of, activities=(running(1, "pay"),)))
    assert await seen("pay") is None
    await one(provider, turn(of, activities=(queued(2, "ship"),)))
    assert await seen("pay", "ship") == now
    assert await seen("pay") is None
    await one(provider, RetryActivity(of.key, 1, 1, "n-1", 1, now + 500, b"error"))
    assert await seen("pay") == now + 500
    assert await seen("pay", "ship") == now


async def test_unrunnable_lists_due_instances_that_no_pair_fits_oldest_first(
    world: World,
) -> None:
    provider = await world.open()
    for instance_id, name, version in (
        ("1", "order", "1"),
        ("2", "order", "9"),
        ("3", "other", None),
        ("4", "order", None),
        ("5", "other", "1"),
    ):
        await start(provider, instance_id, name=name, version=version)
        world.clock.advance(1)
    await start(provider, "held", name="other", owner="n-1", token="t")
    parked = await start(provider, "parked", name="other", owner="n-1", token="p")
    await one(provider, ReleaseInstance(parked, "p", 0, world.clock.now + 5))

    found = await provider.unrunnable(CAPS, 10)

    assert [instance.instance_id for instance in found] == ["2", "3", "5"]
    assert found[0] == await row(provider, "2")
    assert [each.instance_id for each in await provider.unrunnable(CAPS, 2)] == ["2", "3"]


async def test_histories_come_in_the_order_asked_and_empty_where_there_is_none(
    world: World,
) -> None:
    provider = await world.open()
    of = [await acquire(provider, f"i-{n}") for n in range(3)]
    events = [[b"\x00%d-%d\xff" % (n, m) for m in range(n * 2)] for n in range(3)]
    await provider.commit([turn(each, *its) for each, its in zip(of, events, strict=True)])

    first, second, third = (each.key for each in of)
    wanted = [(third, 1), (second, 2), (99, 1), (second, 1), (third, 1), (first, 1)]

    assert await provider.histories(wanted) == [
        events[2],
        [],
        [],
        events[1],
        events[2],
        [],
    ]
    assert await provider.histories([]) == []


async def test_the_histories_of_many_instances_are_kept_apart(world: World) -> None:
    provider = await world.open()
    started = await provider.commit([new(f"i-{n}", owner="n-1", token="t") for n in range(1_200)])
    keys = [is_a(Started, outcome).key for outcome in started]
    turns = [
        CommitTurn(key, "t", "n-1", 1, 1, (b"a%d" % key, b"b%d" % key), mail_seen=0) for key in keys
    ]
    assert set(await provider.commit(turns)) == {Committed()}

    assert await provider.histories([(key, 1) for key in keys]) == [
        [b"a%d" % key, b"b%d" % key] for key in keys
    ]


async def test_a_history_is_read_in_pages(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    events = [b"%d" % n for n in range(1, 2_501)]
    await one(provider, turn(of, *events))

    pages = [await provider.read_history("i-1", after=after) for after in (0, 1_000, 2_000, 2_500)]

    assert [len(page) for page in pages] == [1_000, 1_000, 500, 0]
    assert [event for page in pages for event in page] == events
    assert await provider.read_history("i-1", after=3, limit=2) == [b"4", b"5"]
    assert await provider.read_history("i-1", limit=0) == []


async def test_a_history_is_that_of_the_current_execution_unless_named(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    following = NextExecution(2, "1", b"[2]", b"started")
    await one(provider, turn(of, b"1", ending=Ending("continued_as_new"), next=following))

    assert await provider.read_history("i-1") == [b"started"]
    assert await provider.read_history("i-1", 1) == [b"1"]
    assert await provider.read_history("i-1", 2) == [b"started"]
    assert await provider.read_history("i-1", 3) == []


async def test_the_history_of_an_unknown_instance_is_an_error(world: World) -> None:
    provider = await world.open()
    await start(provider)

    assert await provider.read_history("i-1") == []
    with pytest.raises(InstanceNotFound, match="nobody"):
        await provider.read_history("nobody")


async def test_instances_are_got_by_id_and_unknown_ones_left_out(world: World) -> None:
    provider = await world.open()
    for n in range(3):
        await start(provider, f"i-{n}")

    found = await provider.get_instances({"i-0", "i-2", "nobody"})

    assert {instance_id: each.instance_id for instance_id, each in found.items()} == {
        "i-0": "i-0",
        "i-2": "i-2",
    }
    assert await provider.get_instances([]) == {}


async def test_one_execution_is_got_by_key_and_number(world: World) -> None:
    provider = await world.open()
    key = await start(provider, version="2", input=b"[7]")

    assert await provider.get_execution(key, 1) == ExecutionRow(
        1, "2", "pending", world.clock.now, None, None, None, b"[7]"
    )
    assert await provider.get_execution(key, 2) is None
    assert await provider.get_execution(key + 1, 1) is None


async def test_executions_of_an_unknown_id_are_an_empty_list(world: World) -> None:
    provider = await world.open()

    assert await provider.list_executions("nobody") == []


async def some_of_everything(world: World) -> None:
    provider = await world.open()
    for instance_id, name in (
        ("shop-1", "order"),
        ("shop-2", "refund"),
        ("SHOP-3", "order"),
        ("shop%4", "order"),
        ("shop-5", "order"),
    ):
        await start(provider, instance_id, name=name, owner="n-1", token=instance_id)
    key = (await row(provider, "shop-5")).key
    await one(provider, ReleaseInstance(key, "shop-5", 0, None, blocked="poison", detail="d"))


async def listed(world: World, **wanted: Any) -> list[str]:
    provider = await world.open()
    found = await provider.list_instances(RowFilter(**wanted))
    return [instance.instance_id for instance in found]


async def test_a_list_is_filtered_by_every_field_given(world: World) -> None:
    await some_of_everything(world)

    assert await listed(world) == ["shop-1", "shop-2", "SHOP-3", "shop%4", "shop-5"]
    assert await listed(world, name="order") == ["shop-1", "SHOP-3", "shop%4", "shop-5"]
    assert await listed(world, id_prefix="shop-") == ["shop-1", "shop-2", "shop-5"]
    assert await listed(world, id_prefix="shop%") == ["shop%4"]
    assert await listed(world, id_prefix="") == await listed(world)
    assert await listed(world, blocked=True) == ["shop-5"]
    assert await listed(world, blocked=False, name="refund") == ["shop-2"]
    assert await listed(world, status="pending", name="refund") == ["shop-2"]
    assert await listed(world, status="running") == []


async def test_a_list_is_paged_by_key(world: World) -> None:
    provider = await world.open()
    for n in range(25):
        await start(provider, f"i-{n}", name="order" if n % 2 else "refund")

    pages, after = [], 0
    while page := await provider.list_instances(RowFilter(name="order"), after, 5):
        pages.append([instance.instance_id for instance in page])
        after = page[-1].key

    assert [len(page) for page in pages] == [5, 5, 2]
    assert [each for page in pages for each in page] == [f"i-{n}" for n in range(1, 25, 2)]


async def test_a_tree_has_the_children_of_this_incarnation_oldest_first(world: World) -> None:
    provider = await world.open()
    await start(provider, "p", incarnation="now")
    for n in range(3):
        await start(provider, f"c-{n}", parent=ParentLink("p", "now", 1, n))
    await start(provider, "other", parent=ParentLink("q", "now", 1, 1))
    await start(provider, "old", parent=ParentLink("p", "before", 1, 1))

    await start(provider, "grandchild", parent=ParentLink("c-1", "inc of c-1", 1, 1))

    root, *below = await provider.list_tree("p")

    assert [child.instance_id for child in below] == ["c-0", "c-1", "c-2", "grandchild"]
    assert (root, below[0]) == (await row(provider, "p"), await row(provider, "c-0"))
    assert await provider.list_tree("nobody") == []


async def test_instances_are_counted_by_status(world: World) -> None:
    provider = await world.open()
    assert await provider.count_instances() == {}
    done = await acquire(provider, "done")
    runs = await acquire(provider, "runs")
    await start(provider, "new-1")
    await start(provider, "new-2")
    await provider.commit(
        [turn(done, b"1", ending=Ending("failed", error=b"x")), turn(runs, b"1", version="1")]
    )

    assert await provider.count_instances() == {"pending": 2, "running": 1, "failed": 1}


async def test_other_processes_are_told_of_a_commit_and_this_one_is_not(world: World) -> None:
    first, second = await world.open(), await world.open()
    told: dict[str, int] = {"first": 0, "second": 0}
    news = asyncio.Event()

    def second_told() -> None:
        told["second"] += 1
        news.set()

    def first_told() -> None:
        told["first"] += 1

    first.watch(first_told)
    end = second.watch(second_told)
    for n in range(6):
        news.clear()
        await start(first, f"i-{n}")
        await asyncio.wait_for(news.wait(), 5)

    assert told["first"] == 0
    end()
    before = told["second"]
    await start(first, "unwatched")
    await second.survey("n-1", CAPS, NAMES)
    await start(second, "own")
    assert told["second"] == before


async def test_other_processes_are_told_when_a_node_lets_go(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.register_node("n-1", 10_000)
    await acquire(first)
    news = asyncio.Event()
    second.watch(news.set)
    await second.nodes()

    await first.release_node("n-1")

    await asyncio.wait_for(news.wait(), 5)
    assert len(await claim(second, "n-2")) == 1


async def test_a_closed_provider_refuses_everything(world: World) -> None:
    provider = await world.open()
    await start(provider)
    await provider.close()
    await provider.close()

    with pytest.raises(StoreClosed):
        await one(provider, note())
    with pytest.raises(StoreClosed):
        await provider.survey("n-1", CAPS, NAMES)
    with pytest.raises(StoreClosed):
        await provider.nodes()
    with pytest.raises(StoreClosed):
        provider.beat("n-1")
    with pytest.raises(StoreClosed):
        provider.watch(lambda: None)
    with pytest.raises(StoreClosed):
        await provider.open()


async def test_close_finishes_what_was_accepted(world: World) -> None:
    provider, other = await world.open(), await world.open()
    commits = [asyncio.ensure_future(provider.commit([note("nobody")])) for _ in range(5)]
    commits += [asyncio.ensure_future(provider.commit([new(f"i-{n}")])) for n in range(20)]
    await provider.close()

    assert len(await asyncio.gather(*commits)) == 25
    assert await other.count_instances() == {"pending": 20}


async def test_another_process_sees_what_was_committed(world: World) -> None:
    first, second = await world.open(), await world.open()
    for n in range(10):
        await start(first, f"i-{n}")
        assert await row(second, f"i-{n}") == await row(first, f"i-{n}")
    (of, *_) = await claim(second, "n-2")
    assert (await row(first, of.instance_id)).owner == "n-2"


async def test_a_survey_counts_the_other_nodes(world: World) -> None:
    provider, another = await world.open(), await world.open()
    await provider.register_node("n-1", LEASE_MS)
    assert (await provider.survey("n-1", CAPS, NAMES)).others == 0

    await another.register_node("n-2", LEASE_MS)

    assert (await provider.survey("n-1", CAPS, NAMES)).others == 1
    await another.release_node("n-2")
    assert (await provider.survey("n-1", CAPS, NAMES)).others == 0

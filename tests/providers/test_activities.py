"""Activities: claimed, completed once, given back, never by two nodes."""

from __future__ import annotations

from typing import Any

from provider_world import (
    World,
    acquire,
    bodies,
    claim_work,
    note,
    one,
    queued,
    row,
    running,
    turn,
)

from perdure.providers.contract import (
    Acquired,
    ActivityClaim,
    ClaimedActivities,
    Committed,
    CompleteActivity,
    Done,
    Ending,
    NextExecution,
    Provider,
    Refused,
    ReleaseActivity,
    ReleaseInstance,
)

STALE = Refused("stale")


def complete(of: Acquired, event_id: int = 1, **fields: Any) -> CompleteActivity:
    given: dict[str, Any] = {"execution_id": 1, "node_id": "n-1", "attempt": 1, "body": b"done"}
    return CompleteActivity(of.key, event_id=event_id, **{**given, **fields})


def release(
    of: Acquired, event_id: int = 1, attempt: int = 1, node: str = "n-1"
) -> ReleaseActivity:
    return ReleaseActivity(of.key, 1, event_id, node, attempt)


async def parked_with(provider: Provider, world: World, *activities: object) -> Acquired:
    """An instance that waits for these activities, and is owned by n-1."""
    of = await acquire(provider)
    await one(provider, turn(of, b"1", activities=activities, settle=True, set_due=True))
    world.clock.advance(10)
    return of


async def test_a_completion_deletes_the_item_and_puts_a_message_in_the_inbox(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1))

    assert await one(provider, complete(of, body=b"\x00done")) == Done()

    (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail
    assert (mail.mail, mail.external) == (1, 0)
    assert [(m.body, m.accepted_ms) for m in mail.messages] == [(b"\x00done", world.clock.now)]
    assert (await row(provider)).due_ms == world.clock.now
    assert await provider.lost_activities("n-1", [(of.key, 1, 1)]) == [(of.key, 1, 1)]


async def test_an_activity_completes_exactly_once(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1))

    assert await provider.commit([complete(of), complete(of)]) == [Done(), STALE]
    assert await one(provider, complete(of)) == STALE
    assert await bodies(provider) == [b"done"]


async def test_a_completion_by_another_claim_is_stale(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1), queued(2))
    wrong = [
        complete(of, node_id="n-2"),
        complete(of, attempt=2),
        complete(of, attempt=0),
        complete(of, execution_id=2),
        complete(of, event_id=2),
        complete(of, event_id=3),
    ]

    assert await provider.commit(wrong) == [STALE] * len(wrong)
    assert await bodies(provider) == []
    assert await one(provider, complete(of)) == Done()


async def test_a_completion_for_an_execution_that_ended_is_stale(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1))
    following = NextExecution(2, "1", b"[2]", b"started")
    last = turn(of, b"2", first=2, ending=Ending("continued_as_new"), next=following)

    assert await provider.commit([complete(of), last]) == [STALE, Committed()]
    assert await bodies(provider) == []


async def test_a_blocked_instance_is_not_due_because_of_a_completion(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1))
    hold_ms = world.clock.now + 1_000
    blocked = ReleaseInstance(of.key, of.token, 0, None, blocked="poison", hold_ms=hold_ms)
    await provider.commit([blocked])

    assert await one(provider, complete(of)) == Done()
    assert (await row(provider)).due_ms == hold_ms


async def test_many_completions_of_a_batch_are_counted_right(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, *(running(n) for n in range(1, 101)))

    outcomes = await provider.commit([complete(of, n, body=b"%d" % n) for n in range(1, 102)])

    assert outcomes == [Done()] * 100 + [STALE]
    (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail
    assert mail.mail == 100
    assert [m.body for m in mail.messages] == [b"%d" % n for n in range(1, 101)]


async def test_a_claim_brings_all_that_running_it_needs(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, queued(3, "pay", b"\x00[7]"))

    claimed = await claim_work(provider, "pay", node_id="n-2")

    assert claimed == ClaimedActivities(
        (ActivityClaim(of.key, "i-1", "inc of i-1", 1, 3, "pay", b"\x00[7]", 1, 1),), more=False
    )
    assert await one(provider, complete(of, 3, node_id="n-2")) == Done()


async def test_only_known_names_are_claimed(world: World) -> None:
    provider = await world.open()
    await parked_with(provider, world, queued(1, "pay"), queued(2, "ship"), queued(3, "mail"))

    claimed = await claim_work(provider, "ship", "mail", "unknown")

    assert [item.name for item in claimed.activities] == ["ship", "mail"]
    assert (await claim_work(provider, "unknown")) == ClaimedActivities((), more=False)


async def test_a_claimed_activity_is_not_claimed_again(world: World) -> None:
    provider = await world.open()
    await parked_with(provider, world, queued(1), running(2))

    assert len((await claim_work(provider, node_id="n-1")).activities) == 1
    assert (await claim_work(provider, node_id="n-1")).activities == ()
    assert (await claim_work(provider, node_id="n-2")).activities == ()


async def test_the_oldest_activities_are_claimed_first_across_names(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    for event_id, name in ((4, "pay"), (3, "ship"), (2, "pay"), (1, "ship")):
        await one(provider, turn(of, activities=(queued(event_id, name),)))
        world.clock.advance(1)

    first = await claim_work(provider, "pay", "ship", limit=3)
    rest = await claim_work(provider, "pay", "ship", limit=3)

    assert ([item.event_id for item in first.activities], first.more) == ([4, 3, 2], True)
    assert ([item.event_id for item in rest.activities], rest.more) == ([1], False)


async def test_more_tells_of_what_the_limit_left(world: World) -> None:
    provider = await world.open()
    await parked_with(provider, world, queued(1), queued(2), queued(3, "ship"))

    assert await claim_work(provider, "pay", limit=0) == ClaimedActivities((), more=True)
    assert (await claim_work(provider, "pay", limit=1)).more
    assert not (await claim_work(provider, "pay", limit=1)).more
    assert not (await claim_work(provider, "pay", limit=0)).more


async def test_a_released_activity_is_uncharged_and_keeps_its_place(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, queued(1), queued(2))
    await claim_work(provider, limit=1)

    assert await one(provider, release(of)) == Done()

    first, second = (await claim_work(provider)).activities
    assert (first.event_id, first.attempt, second.event_id) == (1, 1, 2)


async def test_a_release_by_another_claim_is_refused(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1))
    wrong = [release(of, node="n-2"), release(of, attempt=2), release(of, 2)]

    assert await provider.commit(wrong) == [STALE] * 3
    assert await provider.commit([release(of), release(of)]) == [Done(), STALE]
    assert await one(provider, complete(of)) == STALE


async def charged(provider: Provider, event_id: int, times: int) -> None:
    """Let nodes die over an activity."""
    for n in range(times):
        await provider.register_node(f"dying-{event_id}-{n}", 10_000)
        claimed = await claim_work(provider, f"act-{event_id}", node_id=f"dying-{event_id}-{n}")
        assert len(claimed.activities) == 1
        await provider.release_node(f"dying-{event_id}-{n}")


async def test_an_activity_claimed_twice_in_vain_is_claimed_alone(world: World) -> None:
    provider = await world.open()
    await parked_with(provider, world, *(queued(n, f"act-{n}") for n in range(1, 5)))
    assert await claim_work(provider, "act-1", alone=True) == ClaimedActivities((), more=False)
    await charged(provider, 2, 2)
    await charged(provider, 3, 2)
    await charged(provider, 4, 1)
    names = [f"act-{n}" for n in range(1, 5)]

    shared = await claim_work(provider, *names)
    alone = await claim_work(provider, *names, alone=True)
    last = await claim_work(provider, *names, alone=True)

    assert [(item.event_id, item.attempt) for item in shared.activities] == [(1, 1), (4, 2)]
    assert not shared.more
    assert [(item.event_id, item.attempt) for item in alone.activities] == [(2, 3)]
    assert alone.more
    assert [(item.event_id, item.attempt) for item in last.activities] == [(3, 3)]
    assert not last.more


async def test_lost_activities_are_those_gone_or_claimed_by_others(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1), running(2), queued(3), running(4))
    await one(provider, complete(of, 2))
    await claim_work(provider, node_id="n-2")
    asked = [(of.key, 1, n) for n in (4, 3, 2, 1)] + [(of.key, 2, 1), (of.key + 9, 1, 1)]

    assert await provider.lost_activities("n-1", asked) == [asked[1], asked[2], *asked[4:]]
    assert await provider.lost_activities("n-1", []) == []


async def test_a_message_sent_before_a_completion_in_a_batch_comes_first(world: World) -> None:
    provider = await world.open()
    of = await parked_with(provider, world, running(1))

    await provider.commit([complete(of, body=b"completed"), note(body=b"sent")])

    assert await bodies(provider) == [b"sent", b"completed"]

"""Claiming and giving back instances: who may, in which order, what it costs and brings."""

from __future__ import annotations

from provider_world import World, acquire, claim, is_a, new, note, one, row, start, turn

from perdure.providers.contract import (
    Claimed,
    ClaimInstances,
    Committed,
    Done,
    Ending,
    Message,
    NewTimer,
    NoteBlocked,
    Provider,
    Refused,
    ReleaseInstance,
)

FENCED = Refused("fenced")


async def test_a_claim_brings_the_instance_with_its_mail_and_timers(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider, version=None, input=b"\x00[1]", nesting=2)
    accepted_ms = world.clock.advance(3)
    await provider.commit([note(body=b"a", external=True), note(body=b"b")])
    timers = (NewTimer(2, 50), NewTimer(5, 20))
    await one(provider, turn(of, b"1", timers=timers, version="2", release=True))

    (again,) = await claim(provider, "n-2")

    seqs = [message.seq for message in again.messages]
    assert again.messages == (
        Message(seqs[0], accepted_ms, b"a"),
        Message(seqs[1], accepted_ms, b"b"),
    )
    assert seqs == sorted(seqs)
    assert again.timers == timers
    assert (again.key, again.instance_id, again.incarnation) == (of.key, "i-1", "inc of i-1")
    assert (again.name, again.version, again.execution_id) == ("order", "2", 1)
    assert (again.input, again.parent, again.nesting) == (b"\x00[1]", None, 2)
    assert (again.mail, again.external) == (2, 1)


async def test_every_acquisition_has_a_token_of_its_own_and_counts_an_attempt(
    world: World,
) -> None:
    provider = await world.open()
    await provider.commit([new(f"i-{n}") for n in range(200)])

    taken = await claim(provider, limit=1_000)

    assert len({each.token for each in taken}) == 200
    assert {each.attempt for each in taken} == {1}
    assert (await row(provider, "i-7")).owner == "n-1"


async def test_an_owned_instance_is_not_claimed_again(world: World) -> None:
    provider = await world.open()
    await start(provider)
    first, second = await provider.commit(
        [ClaimInstances("n-1", frozenset({("order", "1")}), 9)] * 2
    )

    assert len(is_a(Claimed, first).instances) == 1
    assert is_a(Claimed, second).instances == ()
    assert await claim(provider, "n-2") == ()


async def test_the_limit_holds_and_the_oldest_due_come_first(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider, "late")
    await one(provider, turn(of, set_due=True, due_ms=world.clock.now + 25, release=True))
    for n in range(6):
        name, version = (("order", "1"), ("order", "2"), ("refund", "1"))[n % 3]
        await start(provider, f"i-{n}", name=name, version=version)
        world.clock.advance(10)

    taken = [await claim(provider, limit=3) for _ in range(3)]

    assert [[each.instance_id for each in some] for some in taken] == [
        ["i-0", "i-1", "i-2"],
        ["late", "i-3", "i-4"],
        ["i-5"],
    ]
    await start(provider, "one more")
    assert await claim(provider, limit=0) == ()


async def test_what_is_not_due_is_not_claimed(world: World) -> None:
    provider = await world.open()
    parked = await acquire(provider, "parked")
    waiting = await acquire(provider, "waiting")
    ended = await acquire(provider, "ended")
    due_ms = world.clock.now + 100
    await provider.commit(
        [
            turn(parked, set_due=True, due_ms=None, release=True),
            turn(waiting, set_due=True, due_ms=due_ms, release=True),
            turn(ended, ending=Ending("completed", output=b"1")),
        ]
    )

    world.clock.advance(99)
    assert await claim(provider) == ()
    world.clock.advance(1)
    assert [each.instance_id for each in await claim(provider)] == ["waiting"]


async def test_only_what_the_node_can_run_is_claimed(world: World) -> None:
    provider = await world.open()
    await start(provider, "1", name="order", version="1")
    await start(provider, "2", name="order", version="2")
    await start(provider, "3", name="refund", version="2")
    await start(provider, "4", name="order", version=None)
    await start(provider, "5", name="other", version=None)

    async def ids(*pairs: tuple[str, str]) -> list[str]:
        return [each.instance_id for each in await claim(provider, capabilities=frozenset(pairs))]

    assert await ids() == []
    assert await ids(("refund", "1"), ("order", "3")) == ["4"]
    assert await ids(("order", "2"), ("refund", "2"), ("refund", "1")) == ["2", "3"]
    assert await ids(("order", "1"), ("other", "7")) == ["1", "5"]


async def charged(provider: Provider, instance_id: str, times: int) -> None:
    """Start an instance that has been claimed that often without a commit."""
    await start(provider, instance_id)
    for _ in range(times):
        (of,) = await claim(provider, alone=False) or await claim(provider, alone=True)
        await one(provider, ReleaseInstance(of.key, of.token, of.mail, of.mail, charge=True))


async def test_an_instance_claimed_twice_in_vain_is_claimed_alone(world: World) -> None:
    provider = await world.open()
    for instance_id, times in (("a", 2), ("b", 3), ("c", 1)):
        await charged(provider, instance_id, times)
        (of,) = await claim(provider) or await claim(provider, alone=True)
        await one(provider, ReleaseInstance(of.key, of.token, 0, world.clock.now + 10))
    await start(provider, "d")
    world.clock.advance(10)

    shared = await claim(provider)
    alone = [await claim(provider, alone=True) for _ in range(3)]

    assert [(each.instance_id, each.attempt) for each in shared] == [("d", 1), ("c", 2)]
    assert [[(each.instance_id, each.attempt) for each in some] for some in alone] == [
        [("a", 3)],
        [("b", 4)],
        [],
    ]


async def test_what_was_hardly_tried_is_not_claimed_alone(world: World) -> None:
    provider = await world.open()
    await charged(provider, "once", 1)
    await start(provider, "fresh")

    assert await claim(provider, alone=True) == ()


async def test_a_release_is_uncharged_unless_asked(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    due_ms = world.clock.now
    assert await one(provider, ReleaseInstance(of.key, of.token, 0, due_ms)) == Done()
    assert ((await row(provider)).attempt, (await row(provider)).owner) == (0, None)

    (of,) = await claim(provider)
    assert await one(provider, ReleaseInstance(of.key, of.token, 0, due_ms, charge=True)) == Done()
    assert (await row(provider)).attempt == 1


async def test_a_release_after_a_settled_turn_does_not_go_below_zero(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"1", settle=True))

    await one(provider, ReleaseInstance(of.key, of.token, 0, None))

    assert (await row(provider)).attempt == 0


async def test_a_release_with_a_lost_token_is_refused(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    released = ReleaseInstance(of.key, of.token, 0, None, blocked="poison", hold_ms=5)
    lost = ReleaseInstance(of.key, "lost", 0, None, blocked="poison", hold_ms=5)

    assert await one(provider, lost) == FENCED
    assert ((await row(provider)).owner, (await row(provider)).blocked) == ("n-1", None)
    assert await provider.commit([released, released]) == [Done(), FENCED]
    assert await one(provider, turn(of, b"1")) == FENCED


async def test_a_release_sets_due_ms_only_if_all_mail_was_seen(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider, "a")
    later = world.clock.now + 500
    await one(provider, ReleaseInstance(of.key, of.token, 0, later))
    assert (await row(provider, "a")).due_ms == later

    of = await acquire(provider, "b")
    await one(provider, turn(of, set_due=True, due_ms=None))
    await one(provider, note("b"))
    await one(provider, ReleaseInstance(of.key, of.token, 0, None))
    assert (await row(provider, "b")).due_ms == world.clock.now


async def test_a_blocked_instance_shows_why_and_is_held(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, note())
    hold_ms = world.clock.now + 1_000
    detail = "line 1\nline 2 \u2028 é"
    await one(
        provider,
        ReleaseInstance(
            of.key, of.token, 0, None, blocked="nondeterminism", detail=detail, hold_ms=hold_ms
        ),
    )

    blocked = await row(provider)
    assert (blocked.blocked, blocked.blocked_detail) == ("nondeterminism", detail)
    assert (blocked.hold_ms, blocked.due_ms, blocked.attempt) == (hold_ms, hold_ms, 0)
    world.clock.advance(999)
    assert await claim(provider) == ()
    world.clock.advance(1)
    assert len(await claim(provider)) == 1


async def test_a_plain_release_leaves_what_blocked_as_it_was(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    hold_ms = world.clock.now
    await one(
        provider,
        ReleaseInstance(of.key, of.token, 0, None, blocked="poison", detail="why", hold_ms=hold_ms),
    )
    (of,) = await claim(provider)

    await one(provider, ReleaseInstance(of.key, of.token, 0, None))

    after = await row(provider)
    assert (after.blocked, after.blocked_detail, after.hold_ms) == ("poison", "why", hold_ms)


async def test_a_note_shows_why_unowned_open_instances_wait_and_changes_nothing_else(
    world: World,
) -> None:
    provider = await world.open()
    await acquire(provider, "owned")
    ended = await acquire(provider, "ended")
    await one(provider, turn(ended, ending=Ending("completed", output=b"1")))
    await start(provider, "waiting")
    before = await provider.get_instances(["owned", "ended", "waiting"])
    keys = tuple(instance.key for instance in before.values())

    assert await one(provider, NoteBlocked((*keys, 999), "not_registered", "no order 7")) == Done()

    after = await provider.get_instances(["owned", "ended", "waiting"])
    assert (after["owned"], after["ended"]) == (before["owned"], before["ended"])
    waiting = after["waiting"]
    assert (waiting.blocked, waiting.blocked_detail) == ("not_registered", "no order 7")
    assert (waiting.due_ms, waiting.hold_ms) == (before["waiting"].due_ms, None)
    assert len(await claim(provider)) == 1


async def test_a_claim_comes_last_in_its_batch(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    claiming = ClaimInstances("n-2", frozenset({("order", "1")}), 9)
    due_ms = world.clock.now

    claimed, _, released, committed = await provider.commit(
        [
            claiming,
            new("i-2"),
            ReleaseInstance(of.key, of.token, 0, due_ms),
            turn(of, b"1", timers=(NewTimer(1, 5),)),
        ]
    )

    assert (released, committed) == (Done(), Committed())
    taken = is_a(Claimed, claimed).instances
    assert [each.instance_id for each in taken] == ["i-1", "i-2"]
    assert taken[0].timers == (NewTimer(1, 5),)


async def test_two_processes_never_claim_the_same_instance(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.commit([new(f"i-{n}") for n in range(50)])

    taken = [
        each.key
        for _ in range(5)
        for provider, node in ((first, "n-1"), (second, "n-2"))
        for each in await claim(provider, node, limit=5)
    ]

    assert len(taken) == len(set(taken)) == 50

"""Turns: fenced, all or nothing, and what each part of one does."""

from __future__ import annotations

import pytest
from provider_world import (
    World,
    acquire,
    bodies,
    claim,
    claim_work,
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

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Committed,
    Ending,
    NewTimer,
    NotFound,
    ParentLink,
    Refused,
    ReleaseInstance,
    Sent,
    Started,
    Taken,
)

FENCED = Refused("fenced")
BEHIND = Refused("behind")


async def test_events_are_appended_byte_for_byte_in_event_order(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    events = (b"\x00\xff\n", b"", '{"text":"\u2028é"}'.encode(), b"last")

    assert await one(provider, turn(of, *events)) == Committed()
    assert await one(provider, turn(of, b"more", first=5)) == Committed()

    assert await provider.read_history("i-1") == [*events, b"more"]


async def test_a_turn_with_another_token_is_refused_whole(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    for token in ("", "no", of.token.upper() + "x", "x" * 1_000):
        refused = turn(
            of,
            b"event",
            token=token,
            consumed=(1,),
            activities=(queued(), queued(2)),
            timers=(NewTimer(3, 5),),
            starts=(new("child"),),
            sends=(note("i-1"),),
            version="2",
            settle=True,
            set_due=True,
            ending=Ending("completed", output=b"9"),
        )
        assert await one(provider, refused) == FENCED

    assert await provider.read_history("i-1") == []
    assert (await row(provider)).status == "pending"
    assert set(await provider.get_instances(["i-1", "child"])) == {"i-1"}
    assert (await claim_work(provider)).activities == ()
    assert await bodies(provider) == []


async def test_a_turn_of_an_execution_that_is_not_current_is_refused(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)

    assert await one(provider, turn(of, b"event", execution_id=2)) == FENCED
    assert await one(provider, turn(of, b"event", key=of.key + 1)) == FENCED
    assert await provider.read_history("i-1") == []


async def test_the_token_of_an_earlier_acquisition_by_the_same_node_is_refused(
    world: World,
) -> None:
    provider = await world.open()
    old = await acquire(provider)
    await one(provider, ReleaseInstance(old.key, old.token, old.mail, world.clock.now))
    (current,) = await claim(provider)

    assert current.token != old.token
    assert await one(provider, turn(old, b"old")) == FENCED
    assert await one(provider, turn(current, b"current")) == Committed()


async def test_a_refused_turn_leaves_its_neighbours_untouched(world: World) -> None:
    provider = await world.open()
    of = [await acquire(provider, f"i-{n}") for n in range(20)]
    batch = [
        turn(of[n], b"event", token="lost" if n in (3, 11) else of[n].token) for n in range(20)
    ]

    outcomes = await provider.commit(batch)

    assert [n for n, outcome in enumerate(outcomes) if outcome == FENCED] == [3, 11]
    written = await provider.histories([(each.key, 1) for each in of])
    assert [n for n, history in enumerate(written) if history == []] == [3, 11]


async def test_a_turn_that_has_not_seen_an_external_message_is_behind(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, note(external=False))
    assert await one(provider, turn(of, b"1", external_seen=0)) == Committed()

    await one(provider, note(external=True))

    assert await one(provider, turn(of, b"2", first=2, external_seen=0)) == BEHIND
    assert await one(provider, turn(of, b"2", first=2, external_seen=1)) == Committed()
    assert await one(provider, turn(of, b"3", first=3, external_seen=None)) == Committed()
    assert await provider.read_history("i-1") == [b"1", b"2", b"3"]


async def test_a_lost_token_is_fenced_rather_than_behind(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, note(external=True))

    assert await one(provider, turn(of, b"1", token="lost", external_seen=0)) == FENCED


async def test_turns_act_in_list_order_and_see_each_other(world: World) -> None:
    provider = await world.open()
    first, second, third = [await acquire(provider, f"i-{n}") for n in range(3)]

    outcomes = await provider.commit(
        [
            turn(first, b"1", sends=(note("i-1", external=True),)),
            turn(second, b"1", external_seen=0),
            turn(third, b"1", ending=Ending("completed", output=b"1")),
            turn(first, b"2", first=2, sends=(note("i-2"),)),
            turn(third, b"2", first=2),
        ]
    )

    assert outcomes == [Committed(), BEHIND, Committed(), Committed(dropped=1), FENCED]


async def test_an_event_id_that_is_there_already_is_not_acceptable(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    other = await acquire(provider, "i-2")
    await one(provider, turn(of, b"1", b"2"))

    with pytest.raises(ProviderError):
        await provider.commit([turn(other, b"other"), turn(of, b"again", first=2)])

    assert await provider.histories([(of.key, 1), (other.key, 1)]) == [[b"1", b"2"], []]


async def test_consumed_messages_go_and_the_others_stay(world: World) -> None:
    provider = await world.open()
    await start(provider)
    await provider.commit([note(body=b"1"), note(body=b"2"), note(body=b"3")])
    (of,) = await claim(provider)
    one_, _, three = of.messages

    await one(provider, turn(of, b"event", consumed=(one_.seq, three.seq)))

    assert await bodies(provider) == [b"2"]


async def test_a_turn_consumes_only_from_its_own_inbox(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await start(provider, "i-2", owner="n-1", token="t-2")
    await provider.commit([note("i-2", b"theirs")])
    (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail

    await one(provider, turn(of, b"event", consumed=(mail.messages[0].seq,)))

    assert await bodies(provider) == [b"theirs"]


async def test_activities_come_claimed_or_unclaimed_and_go(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    new_ones = (running(1), queued(2), running(3), queued(4))
    await one(provider, turn(of, activities=new_ones))

    mine = [(of.key, 1, n) for n in range(1, 5)]
    assert await provider.lost_activities("n-1", mine) == [mine[1], mine[3]]

    await one(provider, turn(of, activities_gone=(1, 2, 9)))

    work = (await claim_work(provider)).activities
    assert [(item.event_id, item.attempt) for item in work] == [(4, 1)]
    assert await provider.lost_activities("n-1", mine) == mine[:2]


async def test_timers_come_and_go(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, turn(of, timers=(NewTimer(1, 100), NewTimer(2, 50), NewTimer(3, 75))))
    await one(provider, turn(of, timers_gone=(3, 9), release=True))

    (again,) = await claim(provider)

    assert again.timers == (NewTimer(1, 100), NewTimer(2, 50))


async def test_the_first_turn_records_the_version_and_that_it_runs(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider, version=None)

    await one(provider, turn(of, b"started", version="2"))

    instance = await row(provider)
    assert (instance.version, instance.status) == ("2", "running")
    (execution,) = await provider.list_executions("i-1")
    assert (execution.version, execution.status) == ("2", "running")


async def test_a_turn_without_a_version_leaves_version_and_status(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider, version="2")

    await one(provider, turn(of, b"event", settle=True, set_due=True))

    instance = await row(provider)
    assert (instance.version, instance.status) == ("2", "pending")


async def test_settle_forgets_attempts_and_what_blocked(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    hold_ms = world.clock.now + 10
    blocked = ReleaseInstance(
        of.key, of.token, 0, None, charge=True, blocked="poison", detail="why", hold_ms=hold_ms
    )
    await one(provider, blocked)
    world.clock.advance(10)
    (again,) = await claim(provider)
    assert again.attempt == 2

    await one(provider, turn(again, b"1"))
    before = await row(provider)
    assert (before.attempt, before.blocked, before.hold_ms) == (2, "poison", hold_ms)

    await one(provider, turn(again, b"2", first=2, settle=True))
    after = await row(provider)
    assert (after.attempt, after.blocked, after.blocked_detail, after.hold_ms) == (
        0,
        None,
        None,
        None,
    )


async def test_due_ms_is_set_if_the_turn_has_seen_all_mail(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)

    await one(provider, turn(of, b"1", set_due=True, due_ms=world.clock.now + 500))
    assert (await row(provider)).due_ms == world.clock.now + 500

    await one(provider, turn(of, b"2", first=2, set_due=False, due_ms=5))
    assert (await row(provider)).due_ms == world.clock.now + 500

    await one(provider, turn(of, b"3", first=3, set_due=True, due_ms=None))
    assert (await row(provider)).due_ms is None


async def test_due_ms_stays_if_mail_has_come_that_the_turn_has_not_seen(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    now = world.clock.advance(5)
    await one(provider, turn(of, b"1", set_due=True, due_ms=None))
    await one(provider, note())

    await one(provider, turn(of, b"2", first=2, set_due=True, due_ms=None))
    assert (await row(provider)).due_ms == now

    await one(provider, turn(of, b"3", first=3, mail_seen=1, set_due=True, due_ms=None))
    assert (await row(provider)).due_ms is None


async def test_release_gives_the_instance_back(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)

    await one(provider, turn(of, b"1", release=True))

    assert (await row(provider)).owner is None
    assert await one(provider, turn(of, b"2", first=2)) == FENCED
    (again,) = await claim(provider, "n-2")
    assert again.key == of.key


async def test_starts_and_sends_of_a_turn_are_applied(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await start(provider, "i-2", owner="n-1", token="t-2")
    link = ParentLink("i-1", "inc of i-1", 1, 1)

    outcome = await one(
        provider,
        turn(
            of,
            b"1",
            starts=(
                new("child-1", parent=link),
                new("i-2", if_taken=note("i-1", b"taken")),
                new("child-2", parent=link),
            ),
            sends=(note("i-2", b"first"), note("child-1", b"hello"), note("i-2", b"second")),
        ),
    )

    starts = is_a(Committed, outcome).starts
    _, *children = await provider.list_tree("i-1")
    assert [child.instance_id for child in children] == ["child-1", "child-2"]
    assert [is_a(Started, starts[n]).key for n in (0, 2)] == [child.key for child in children]
    assert is_a(Taken, starts[1]).instance.instance_id == "i-2"
    assert sorted(await bodies(provider)) == [b"first", b"second", b"taken"]
    assert [m.body for each in await claim(provider) for m in each.messages] == [b"hello"]


async def test_an_unreachable_target_is_counted_and_no_error(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    done = await acquire(provider, "done")
    await one(provider, turn(done, b"1", ending=Ending("failed", error=b"x")))

    outcome = await one(
        provider,
        turn(
            of,
            b"1",
            starts=(new("done", if_taken=note("nobody")),),
            sends=(
                note("nobody"),
                note("done"),
                note("i-1", incarnation="another"),
                note("i-1", incarnation="inc of i-1"),
            ),
        ),
    )

    assert is_a(Committed, outcome).dropped == 4
    assert await provider.read_history("i-1") == [b"1"]


async def test_a_turn_with_thousands_of_rows_is_one_turn(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    events = [b"%d" % n for n in range(5_000)]
    activities = tuple(queued(n) for n in range(1, 1_500))
    big = turn(of, *events, activities=activities, settle=True)

    assert await provider.commit([turn(of, b"1", token="lost"), big]) == [FENCED, Committed()]
    assert await provider.histories([(of.key, 1)]) == [events]
    assert await one(provider, turn(of, *events, first=5_001, token="lost")) == FENCED
    assert await provider.histories([(of.key, 1)]) == [events]


async def test_the_order_of_kinds_within_a_batch_is_fixed(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    release = ReleaseInstance(of.key, of.token, of.mail, None)

    outcomes = await provider.commit(
        [release, note("child"), turn(of, b"1", starts=(new("child"),))]
    )

    assert [type(outcome) for outcome in outcomes[1:]] == [Sent, Committed]
    assert await provider.read_history("i-1") == [b"1"]
    assert await one(provider, note("nobody")) == NotFound()

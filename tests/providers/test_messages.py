"""Messages: to whom they go, what they make due, in which order they are seen."""

from __future__ import annotations

from provider_world import World, acquire, bodies, claim, is_a, note, one, row, start, turn

from perdure.providers.contract import (
    Ended,
    Ending,
    NotFound,
    ReleaseInstance,
    Sent,
)


async def test_a_message_waits_in_the_inbox_with_its_time_of_acceptance(world: World) -> None:
    provider = await world.open()
    key = await start(provider)
    world.clock.advance(5)
    outcome = await one(provider, note(body=b"\x00\xffhello"))

    assert outcome == Sent(key)
    (of,) = await claim(provider)
    (message,) = of.messages
    assert (message.body, message.accepted_ms) == (b"\x00\xffhello", world.clock.now)
    assert (of.mail, of.external) == (1, 0)


async def test_an_unknown_id_or_another_incarnation_is_not_found(world: World) -> None:
    provider = await world.open()
    key = await start(provider)

    assert await one(provider, note("nobody")) == NotFound()
    assert await one(provider, note(incarnation="another")) == NotFound()
    assert await one(provider, note(incarnation="inc of i-1")) == Sent(key)
    (of,) = await claim(provider)
    assert len(of.messages) == 1


async def test_an_ended_instance_takes_nothing(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"1", ending=Ending("cancelled", error=b"x")))

    assert await one(provider, note()) == Ended("cancelled")
    assert await one(provider, note(incarnation="inc of i-1")) == Ended("cancelled")
    assert await one(provider, note(incarnation="another")) == NotFound()
    assert (await row(provider)).due_ms is None


async def test_messages_come_in_the_order_of_the_list_and_of_the_batches(world: World) -> None:
    provider = await world.open()
    await start(provider, "a")
    await start(provider, "b")
    sends = [note("ab"[n % 2], b"%d" % n) for n in range(40)]
    await provider.commit(sends[:30])
    await provider.commit(sends[30:])

    a, b = await claim(provider)

    assert [message.body for message in a.messages] == [b"%d" % n for n in range(0, 40, 2)]
    assert [message.body for message in b.messages] == [b"%d" % n for n in range(1, 40, 2)]
    assert (a.mail, b.mail) == (20, 20)


async def test_seq_grows_over_the_whole_store_and_is_not_used_again(world: World) -> None:
    provider = await world.open()
    a = await acquire(provider, "a")
    await one(provider, note("a"))
    (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail
    first = mail.messages[0].seq
    await one(provider, turn(a, b"1", consumed=(first,), mail_seen=1, set_due=True))

    await start(provider, "b", owner="n-1", token="t")
    await one(provider, note("b"))

    (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail
    assert mail.messages[0].seq > first


async def test_mail_counts_all_messages_ever_and_external_those_of_clients(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await provider.commit([note(external=True), note(), note(external=True)])
    (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail
    assert (mail.mail, mail.external) == (3, 2)

    seen = tuple(message.seq for message in mail.messages)
    await one(provider, turn(of, b"1", consumed=seen, release=True))
    await one(provider, note(external=True))

    (again,) = await claim(provider)
    assert (again.mail, again.external, len(again.messages)) == (4, 3, 1)


async def test_a_message_makes_a_parked_instance_due_now(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"1", set_due=True, due_ms=None, release=True))
    assert await claim(provider) == ()
    now = world.clock.advance(50)

    await one(provider, note())

    assert (await row(provider)).due_ms == now
    assert len(await claim(provider)) == 1


async def test_a_message_does_not_make_an_instance_later(world: World) -> None:
    provider = await world.open()
    await start(provider)
    due_ms = world.clock.now
    world.clock.advance(50)

    await one(provider, note())

    assert (await row(provider)).due_ms == due_ms


async def test_a_message_comes_before_a_later_timer(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    later = world.clock.now + 60_000
    await one(provider, turn(of, b"1", set_due=True, due_ms=later, release=True))
    now = world.clock.advance(10)

    await one(provider, note())

    assert (await row(provider)).due_ms == now


async def test_a_message_does_not_wake_a_blocked_instance_before_its_time(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    hold_ms = world.clock.now + 1_000
    await one(
        provider,
        ReleaseInstance(of.key, of.token, of.mail, None, blocked="nondeterminism", hold_ms=hold_ms),
    )

    await provider.commit([note(), note()])

    assert (await row(provider)).due_ms == hold_ms
    assert await claim(provider) == ()
    now = world.clock.advance(1_500)
    (again,) = await claim(provider)
    await one(provider, turn(again, b"1", mail_seen=2, set_due=True, due_ms=None))
    await one(provider, note())
    assert (await row(provider)).due_ms == now


async def test_a_message_to_an_owned_instance_is_seen_by_its_owner(world: World) -> None:
    provider = await world.open()
    await acquire(provider)
    await one(provider, note(body=b"for n-1"))

    assert await bodies(provider, "n-1") == [b"for n-1"]
    assert await bodies(provider, "n-2") == []


async def test_one_missing_target_does_not_hold_up_the_others(world: World) -> None:
    provider = await world.open()
    await start(provider, "a")
    outcomes = await provider.commit([note("a"), note("nobody"), note("a")])

    assert [type(outcome) for outcome in outcomes] == [Sent, NotFound, Sent]
    (of,) = await claim(provider)
    assert (of.mail, len(of.messages)) == (2, 2)
    assert is_a(Sent, outcomes[0]).key == of.key

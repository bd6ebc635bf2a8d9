"""The end of an execution: with the instance, or with a next execution in the same commit."""

from __future__ import annotations

from typing import Any

import pytest
from provider_world import (
    World,
    acquire,
    bodies,
    claim,
    claim_work,
    note,
    one,
    queued,
    row,
    running,
    turn,
)

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Committed,
    Ended,
    Ending,
    ExecutionRow,
    NewTimer,
    NextExecution,
    Refused,
)

FENCED = Refused("fenced")


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_an_ending_makes_the_instance_terminal(world: World, status: Any) -> None:
    provider = await world.open()
    started_ms = world.clock.now
    of = await acquire(provider)
    now = world.clock.advance(7)

    await one(
        provider,
        turn(of, b"1", version="1", set_due=True, due_ms=5, ending=Ending(status, b"out", b"err")),
    )

    ended = await row(provider)
    assert (ended.status, ended.finished_ms, ended.owner, ended.due_ms) == (status, now, None, None)
    assert (ended.output, ended.error) == (b"out", b"err")
    assert await provider.list_executions("i-1") == [
        ExecutionRow(1, "1", status, started_ms, now, b"out", b"err", b"[1]")
    ]
    assert await one(provider, turn(of, b"2", first=2)) == FENCED
    assert await one(provider, note()) == Ended(status)
    assert await claim(provider) == ()


async def test_an_ending_takes_timers_activities_and_mail_with_it(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    await one(
        provider,
        turn(of, activities=(running(1), queued(2)), timers=(NewTimer(3, 1),)),
    )
    await provider.commit([note(body=b"1"), note(body=b"2"), note(body=b"3")])
    (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail

    outcome = await one(
        provider,
        turn(
            of,
            b"1",
            consumed=(mail.messages[1].seq,),
            activities=(queued(5),),
            timers=(NewTimer(6, 1),),
            ending=Ending("completed", output=b"1"),
        ),
    )

    assert outcome == Committed(dropped=2)
    assert (await claim_work(provider)).activities == ()
    assert await provider.lost_activities("n-1", [(of.key, 1, 1)]) == [(of.key, 1, 1)]
    assert await bodies(provider) == []


async def test_a_message_to_itself_in_the_last_turn_is_dropped_and_counted(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    last = turn(of, b"1", sends=(note("i-1"),), ending=Ending("completed", output=b"1"))

    assert await one(provider, last) == Committed(dropped=1)


async def test_continue_as_new_makes_the_next_execution_in_the_same_commit(world: World) -> None:
    provider = await world.open()
    started_ms = world.clock.now
    of = await acquire(provider)
    await one(provider, turn(of, b"1", activities=(queued(2),), timers=(NewTimer(3, 1),)))
    await provider.commit([note(body=b"unread", external=True)])
    now = world.clock.advance(3)

    outcome = await one(
        provider,
        turn(
            of,
            b"2",
            first=2,
            version="1",
            set_due=True,
            due_ms=now,
            mail_seen=1,
            ending=Ending("continued_as_new"),
            next=NextExecution(2, "2", b"[2]", b"started"),
        ),
    )

    assert outcome == Committed()
    current = await row(provider)
    assert (current.execution_id, current.version, current.status) == (2, "2", "running")
    assert (current.owner, current.due_ms, current.input) == ("n-1", now, b"[2]")
    assert current.finished_ms is None
    assert await provider.list_executions("i-1") == [
        ExecutionRow(1, "1", "continued_as_new", started_ms, now, None, None, b"[1]"),
        ExecutionRow(2, "2", "running", now, None, None, None, b"[2]"),
    ]
    assert await provider.read_history("i-1") == [b"started"]
    assert await provider.read_history("i-1", 1) == [b"1", b"2"]
    assert (await claim_work(provider)).activities == ()
    assert await bodies(provider) == [b"unread"]


async def test_the_token_stays_good_across_continue_as_new(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    following = NextExecution(2, "1", b"[2]", b"started")
    await one(provider, turn(of, b"1", ending=Ending("continued_as_new"), next=following))

    assert await one(provider, turn(of, b"late", first=2)) == FENCED
    assert await one(provider, turn(of, b"2", first=2, execution_id=2)) == Committed()
    assert await provider.read_history("i-1") == [b"started", b"2"]


async def test_continue_as_new_can_release_the_instance(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    following = NextExecution(2, "2", b"[2]", b"started")
    await one(
        provider,
        turn(
            of,
            b"1",
            timers=(NewTimer(1, 5),),
            ending=Ending("continued_as_new"),
            next=following,
            release=True,
        ),
    )

    (again,) = await claim(provider)

    assert again.timers == ()

    assert (again.execution_id, again.version, again.input) == (2, "2", b"[2]")


async def test_an_instance_cannot_end_as_continued_without_a_next_execution(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)

    with pytest.raises(ProviderError):
        await one(provider, turn(of, b"1", ending=Ending("continued_as_new")))
    assert await provider.read_history("i-1") == []

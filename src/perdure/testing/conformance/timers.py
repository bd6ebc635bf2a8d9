"""Timers and when they are due (C-101 to C-112)."""

from __future__ import annotations

import asyncio

from perdure.core import events
from perdure.core.context import OrchestrationContext
from perdure.limits import TIMER_MS_MAX
from perdure.marks import orchestration
from perdure.providers.contract import NewTimer, Provider, Sent
from perdure.testing.conformance.engine import host, recorded_of, time_passes
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    CAPS,
    DURABLE,
    acquire,
    case,
    claim,
    continuing,
    is_a,
    new,
    note,
    one,
    row,
    turn,
)

NOT_APPLICABLE: dict[str, str] = {
    "C-108": "refused at the call, before a provider is asked: tests/core/test_core_limits.py",
}


async def parked(provider: Provider, *timers: NewTimer, instance_id: str = "i-1") -> None:
    """Leave an instance to nobody that waits for timers alone."""
    of = await acquire(provider, instance_id)
    due_ms = min((timer.fire_at_ms for timer in timers), default=None)
    await one(
        provider,
        turn(of, b"1", timers=timers, settle=True, set_due=True, due_ms=due_ms, release=True),
    )


@orchestration
async def sleeping(ctx: OrchestrationContext, delays_ms: list[int]) -> list[int]:
    """Sleeps for all of these times at once; returns the places in the order of waking up."""
    woken: list[int] = []

    async def sleep(place: int) -> None:
        await asyncio.sleep(delays_ms[place] / 1000)
        woken.append(place)

    await asyncio.gather(*(sleep(place) for place in range(len(delays_ms))))
    return woken


@orchestration
async def pausing(ctx: OrchestrationContext) -> None:
    await ctx.schedule_timer(0)


class TimerCases:
    """See the module."""

    @case("C-101")
    async def test_c101_an_instance_is_not_due_before_its_timer(self, store: Harness) -> None:
        provider = await store.open()
        due_ms = store.clock.now + 1_000
        await parked(provider, NewTimer(1, due_ms))

        store.clock.advance(999)

        assert await claim(provider) == ()
        survey = await provider.survey("n-1", CAPS, frozenset())
        assert survey.instances_due_ms == due_ms

    @case("C-102")
    async def test_c102_an_instance_is_due_at_the_time_of_its_timer(self, store: Harness) -> None:
        provider = await store.open()
        timer = NewTimer(1, store.clock.now + 1_000)
        await parked(provider, timer)

        store.clock.advance(1_000)

        (of,) = await claim(provider)
        assert of.timers == (timer,)

    @case("C-103")
    async def test_c103_a_message_wakes_the_instance_but_brings_no_timer_forward(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        timer = NewTimer(1, store.clock.now + 1_000)
        await parked(provider, timer)
        store.clock.advance(10)

        await one(provider, note(body=b"message"))

        (of,) = await claim(provider)
        assert [message.body for message in of.messages] == [b"message"]
        assert of.timers == (timer,)
        consumed = tuple(message.seq for message in of.messages)
        await one(
            provider,
            turn(
                of,
                b"2",
                first=2,
                consumed=consumed,
                set_due=True,
                due_ms=timer.fire_at_ms,
                release=True,
            ),
        )
        store.clock.advance(989)
        assert await claim(provider) == ()
        store.clock.advance(1)
        assert len(await claim(provider)) == 1

    @case("C-104")
    async def test_c104_the_end_of_one_timer_leaves_the_other_its_time(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        near, far = NewTimer(1, store.clock.now + 50), NewTimer(2, store.clock.now + 100)
        await parked(provider, near, far)
        store.clock.advance(50)
        (of,) = await claim(provider)

        fired = turn(
            of, b"2", first=2, timers_gone=(1,), set_due=True, due_ms=far.fire_at_ms, release=True
        )
        await one(provider, fired)

        store.clock.advance(49)
        assert await claim(provider) == ()
        store.clock.advance(1)
        (again,) = await claim(provider)
        assert again.timers == (far,)

    @case("C-105")
    async def test_c105_a_thousand_timers_due_at_once_come_once_each(self, store: Harness) -> None:
        provider = await store.open()
        due_ms = store.clock.now + 500
        await provider.commit([new(f"i-{n}") for n in range(100)])
        timers = tuple(NewTimer(event_id, due_ms) for event_id in range(1, 11))
        await provider.commit(
            [
                turn(of, timers=timers, settle=True, set_due=True, due_ms=due_ms, release=True)
                for of in await claim(provider)
            ]
        )
        store.clock.advance(500)

        claimed = [of for n in range(10) for of in await claim(provider, f"n-{n % 2}", limit=15)]

        assert sorted(of.instance_id for of in claimed) == sorted(f"i-{n}" for n in range(100))
        assert {of.timers for of in claimed} == {timers}

    @case("C-106")
    async def test_c106_a_timer_that_is_due_already_makes_the_instance_due_at_once(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of_now, of_past = await acquire(provider, "now"), await acquire(provider, "past")
        now = store.clock.now

        await provider.commit(
            [
                turn(of, timers=(NewTimer(1, at),), set_due=True, due_ms=at, release=True)
                for of, at in ((of_now, now), (of_past, now - 5))
            ]
        )

        assert [of.instance_id for of in await claim(provider)] == ["past", "now"]

    @case("C-107")
    async def test_c107_the_longest_timer_is_kept_to_the_millisecond(self, store: Harness) -> None:
        provider = await store.open()
        timer = NewTimer(1, store.clock.now + TIMER_MS_MAX)
        await parked(provider, timer)
        assert (await row(provider)).due_ms == timer.fire_at_ms

        store.clock.advance(TIMER_MS_MAX - 1)
        assert await claim(provider) == ()
        store.clock.advance(1)

        (of,) = await claim(provider)
        assert of.timers == (timer,)

    @case("C-109")
    async def test_c109_timers_of_an_execution_that_ended_go_and_nothing_else_does(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, b"1", timers=(NewTimer(1, 5), NewTimer(2, 7))))
        await one(provider, note(body=b"unread"))
        await one(provider, continuing(of, b"2", first=2))
        fresh = NewTimer(2, store.clock.now + 9)

        await one(provider, turn(of, b"3", first=2, execution_id=2, timers=(fresh,), release=True))

        (again,) = await claim(provider)
        assert (again.execution_id, again.timers) == (2, (fresh,))
        assert [message.body for message in again.messages] == [b"unread"]

    @case("C-110")
    async def test_c110_a_cancelled_timer_never_comes(self, store: Harness) -> None:
        provider = await store.open()
        await parked(provider, NewTimer(1, store.clock.now + 50), NewTimer(2, store.clock.now + 90))
        store.clock.advance(50)
        (of,) = await claim(provider)

        await one(provider, turn(of, b"2", first=2, timers_gone=(1, 2), set_due=True, release=True))

        store.clock.advance(TIMER_MS_MAX)
        assert await claim(provider) == ()
        assert (await provider.depths()).timers == 0
        is_a(Sent, await one(provider, note()))
        (again,) = await claim(provider)
        assert again.timers == ()

    @case("C-111", needs=DURABLE)
    async def test_c111_a_timer_that_fell_due_while_the_store_was_closed_comes(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        timer = NewTimer(1, store.clock.now + 50)
        await parked(provider, timer)
        store.clock.advance(5_000)

        provider = await store.reopen()

        (of,) = await claim(provider)
        assert of.timers == (timer,)

    @case("C-112")
    async def test_c112_timers_come_in_the_order_of_their_event_ids(self, store: Harness) -> None:
        provider = await store.open()
        now = store.clock.now
        due_ms = {5: now, 2: now, 11: now, 9: now - 1}
        await parked(provider, *(NewTimer(event_id, at) for event_id, at in due_ms.items()))

        (of,) = await claim(provider)

        assert of.timers == tuple(
            NewTimer(event_id, due_ms[event_id]) for event_id in (2, 5, 9, 11)
        )

    @case("C-101", "C-102")
    async def test_c101_an_orchestration_sleeps_at_least_as_long_as_it_asked(
        self, store: Harness
    ) -> None:
        delays_ms = [1, 40, 15, 2, 60, 7]
        async with host(store, sleeping) as runtime, time_passes(store):
            handle = await runtime.client.start_orchestration(
                sleeping, delays_ms, instance_id="i-1"
            )
            await handle.result()

            created = await recorded_of(runtime.client, "i-1", events.TimerCreated)
            fired = await recorded_of(runtime.client, "i-1", events.TimerFired)
        due_ms = {event.event_id: event.fire_at_ms for event in created}
        assert [e.fire_at_ms - e.timestamp_ms for e in created] == delays_ms
        assert {event.source_event_id for event in fired} == set(due_ms)
        assert all(e.timestamp_ms >= due_ms[e.source_event_id] for e in fired)

    @case("C-105")
    async def test_c105_a_thousand_timers_of_one_orchestration_fire_once_each(
        self, store: Harness
    ) -> None:
        async with host(store, sleeping) as runtime, time_passes(store):
            client = runtime.client
            handle = await client.start_orchestration(sleeping, [5] * 1_000, instance_id="i-1")
            woken = await handle.result()

            fired = await recorded_of(client, "i-1", events.TimerFired)
        assert woken == list(range(1_000))
        assert len({event.source_event_id for event in fired}) == len(fired) == 1_000

    @case("C-106")
    async def test_c106_a_timer_of_no_length_fires_in_a_turn_of_its_own(
        self, store: Harness
    ) -> None:
        async with host(store, pausing) as runtime:
            handle = await runtime.client.start_orchestration(pausing, instance_id="i-1")
            await handle.result()

            (created,) = await recorded_of(runtime.client, "i-1", events.TimerCreated)
            (fired,) = await recorded_of(runtime.client, "i-1", events.TimerFired)
        assert fired.fire_at_ms == created.fire_at_ms == created.timestamp_ms

    @case("C-112")
    async def test_c112_timers_that_are_due_at_once_fire_in_the_order_of_their_creation(
        self, store: Harness
    ) -> None:
        async with host(store, sleeping) as runtime, time_passes(store):
            delays_ms = [30, 10, 30, 10, 20, 10]
            handle = await runtime.client.start_orchestration(sleeping, delays_ms)

            assert await handle.result() == [1, 3, 5, 4, 0, 2]

"""External events and event queues (C-113 to C-130)."""

from __future__ import annotations

import asyncio

import pytest

from perdure.client.client import Client
from perdure.core import events
from perdure.core.context import OrchestrationContext
from perdure.errors import InstanceNotFound, InstanceTerminal, PayloadTooLarge
from perdure.limits import PAYLOAD_BYTES_MAX
from perdure.marks import orchestration
from perdure.providers.contract import (
    EVENT_IDS_KEPT,
    Committed,
    Ended,
    NotFound,
    Provider,
    SendMessage,
    Sent,
    Taken,
)
from perdure.testing.conformance.engine import client_of, host, time_passes, until, until_recorded
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    CAPS,
    DURABLE,
    MULTI_PROCESS,
    acquire,
    case,
    claim,
    continuing,
    ending,
    everything,
    is_a,
    new,
    note,
    one,
    start,
    turn,
)

NOT_APPLICABLE: dict[str, str] = {
    "C-125": "a queue has no bound at which an item would be refused or dropped",
}


def item(body: bytes, queue: str = "q", instance_id: str = "i-1", **fields: str) -> SendMessage:
    """What puts an item into an event queue."""
    return note(instance_id, body, queue=queue, external=True, **fields)


async def items(provider: Provider, key: int, queue: str = "q") -> list[bytes]:
    """The bodies of all items of a queue."""
    return [message.body for message in await provider.queue_items(key, queue, 0, 1_000_000)]


@orchestration
async def hearing(ctx: OrchestrationContext, number: int) -> list[str]:
    return await asyncio.gather(*(ctx.schedule_wait("say", str) for _ in range(number)))


@orchestration
async def hearing_again(ctx: OrchestrationContext) -> str:
    """Its first wait loses against a timer."""
    lost = ctx.schedule_wait("say", str)
    await ctx.select(lost, ctx.schedule_timer(0.005))
    return await ctx.schedule_wait("say", str)


@orchestration
async def approving(ctx: OrchestrationContext) -> str:
    """Waits for ten seconds."""
    deadline = ctx.schedule_timer(10)
    position, _ = await ctx.select(deadline, ctx.schedule_wait("approve"))
    return ("too late", "approved")[position]


async def ended(client: Client, instance_id: str = "i-1") -> bool:
    return (await client.get_instance(instance_id)).finished_ms is not None


class EventCases:
    """See the module."""

    @case("C-113")
    async def test_c113_the_items_of_a_queue_come_in_the_order_of_their_acceptance(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        key = await start(provider)
        accepted = {}
        for batch in range(5):
            await provider.commit([item(b"%d" % n) for n in range(batch * 4, batch * 4 + 4)])
            accepted[b"%d" % (batch * 4)] = store.clock.now
            store.clock.advance(10)

        found = await provider.queue_items(key, "q", 0, 100)

        assert [message.body for message in found] == [b"%d" % n for n in range(20)]
        assert [m.seq for m in found] == sorted({m.seq for m in found})
        assert {m.body: m.accepted_ms for m in found[::4]} == accepted

    @case("C-113")
    async def test_c113_a_queue_is_read_in_pages(self, store: Harness) -> None:
        provider = await store.open()
        key = await start(provider)
        await provider.commit([item(b"%d" % n) for n in range(25)])

        pages, after = [], 0
        while page := await provider.queue_items(key, "q", after, 10):
            pages.append([message.body for message in page])
            after = page[-1].seq

        assert [len(page) for page in pages] == [10, 10, 5]
        assert [body for page in pages for body in page] == [b"%d" % n for n in range(25)]
        assert await provider.queue_items(key, "q", 0, 0) == []
        assert await provider.queue_items(key + 1, "q", 0, 10) == []

    @case("C-114")
    async def test_c114_queues_and_the_inbox_are_independent_of_each_other(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await start(provider)
        await provider.commit([item(b"a1", "a"), note(body=b"mail"), item(b"b1", "b")])
        await provider.commit([item(b"a2", "a"), item(b"A1", "A")])
        (of,) = await claim(provider)
        (first, _) = await provider.queue_items(of.key, "a", 0, 9)

        await one(provider, turn(of, b"1", consumed=(first.seq,)))

        assert [message.body for message in of.messages] == [b"mail"]
        assert await items(provider, of.key, "a") == [b"a2"]
        assert await items(provider, of.key, "b") == [b"b1"]
        assert await items(provider, of.key, "A") == [b"A1"]
        assert await items(provider, of.key, "c") == []
        depths = await provider.depths()
        assert (depths.items, depths.messages) == (3, 1)

    @case("C-114")
    async def test_c114_an_item_counts_as_mail_and_is_shown_as_a_number_only(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        assert of.queued == 0

        await provider.commit([item(b"1"), item(b"2", "other"), note(body=b"mail")])

        (mail,) = (await provider.survey("n-1", CAPS, frozenset())).mail
        assert (mail.mail, mail.external, mail.queued) == (3, 2, 2)
        assert [message.body for message in mail.messages] == [b"mail"]
        await one(provider, turn(of, b"1", consumed=(mail.messages[0].seq,), mail_seen=3))
        await one(provider, item(b"3"))
        (mail,) = (await provider.survey("n-1", CAPS, frozenset())).mail
        assert (mail.queued, mail.messages) == (3, ())

    @case("C-115")
    async def test_c115_an_item_waits_for_an_instance_that_has_not_begun(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        key = await start(provider)
        await one(provider, item(b"early"))

        (of,) = await claim(provider)
        await one(provider, turn(of, b"started", version="1", set_due=True, mail_seen=of.mail))

        assert (of.queued, of.messages) == (1, ())
        assert await items(provider, key) == [b"early"]

    @case("C-115")
    async def test_c115_an_item_makes_a_parked_instance_due_now(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, b"1", set_due=True, due_ms=None, release=True))
        assert await claim(provider) == ()

        await one(provider, item(b"news"))

        (again,) = await claim(provider)
        assert again.queued == 1

    @case("C-116", needs=DURABLE)
    async def test_c116_items_and_known_event_ids_outlive_the_process(self, store: Harness) -> None:
        provider = await store.open()
        key = await start(provider)
        await provider.commit([item(b"1", event_id="e-1"), item(b"2"), item(b"3", "other")])

        provider = await store.reopen()

        assert await items(provider, key) == [b"1", b"2"]
        assert await items(provider, key, "other") == [b"3"]
        assert await one(provider, item(b"1", event_id="e-1")) == Sent(key, duplicate=True)
        (of,) = await claim(provider)
        assert of.queued == 3

    @case("C-117")
    async def test_c117_an_event_for_an_unknown_id_is_not_found_and_leaves_nothing(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        before = await everything(provider)

        outcomes = await provider.commit([note(external=True), item(b"1", event_id="e-1")])

        assert outcomes == [NotFound(), NotFound()]
        assert await everything(provider) == before
        key = await start(provider)
        assert await items(provider, key) == []
        assert await one(provider, item(b"1", event_id="e-1")) == Sent(key)

    @case("C-118")
    async def test_c118_an_event_for_an_ended_instance_is_refused_and_leaves_nothing(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, ending(of, b"1"))
        before = await everything(provider)

        outcomes = await provider.commit([note(external=True), item(b"1", event_id="e-1")])

        assert outcomes == [Ended("completed"), Ended("completed")]
        assert await everything(provider) == before

    @case("C-119", needs=MULTI_PROCESS)
    async def test_c119_an_item_that_meets_the_end_is_refused_or_counted_as_dropped(
        self, store: Harness
    ) -> None:
        provider, other = await store.open(), await store.open()
        for n in range(30):
            of = await acquire(provider, f"i-{n}")
            sending, last = one(other, item(b"x", instance_id=f"i-{n}")), one(provider, ending(of))
            order = (sending, last) if n % 2 else (last, sending)

            outcomes = await asyncio.gather(*order)

            sent, committed = outcomes if n % 2 else outcomes[::-1]
            if isinstance(sent, Sent):
                assert committed == Committed(dropped=1)
            else:
                assert (sent, committed) == (Ended("completed"), Committed())
            assert await items(provider, of.key) == []

    @case("C-120")
    async def test_c120_an_event_id_is_accepted_once(self, store: Harness) -> None:
        provider = await store.open()
        key, other = await start(provider), await start(provider, "i-2")

        outcomes = await provider.commit(
            [
                item(b"1", event_id="e-1"),
                item(b"2", event_id="e-2"),
                item(b"again", event_id="e-1"),
                item(b"elsewhere", "other", event_id="e-1"),
                item(b"not an item", instance_id="i-2", event_id="e-1"),
                item(b"3"),
                item(b"3"),
            ]
        )

        twice = Sent(key, duplicate=True)
        assert outcomes[:4] == [Sent(key), Sent(key), twice, twice]
        assert outcomes[4:] == [Sent(other), Sent(key), Sent(key)]
        assert await items(provider, key) == [b"1", b"2", b"3", b"3"]
        assert await items(provider, key, "other") == []
        (of, _) = await claim(provider)
        assert (of.mail, of.external, of.queued) == (4, 4, 4)

    @case("C-120")
    async def test_c120_a_duplicate_changes_nothing(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await provider.commit([item(b"1", event_id="e-1"), note(body=b"2", event_id="e-2")])
        await one(provider, turn(of, b"1", mail_seen=2, set_due=True, due_ms=None, release=True))
        before = await everything(provider)
        store.clock.advance(5)

        outcomes = await provider.commit(
            [item(b"1", event_id="e-1"), note(body=b"2", event_id="e-2")]
        )

        assert outcomes == [Sent(of.key, duplicate=True)] * 2
        assert await everything(provider) == before

    @case("C-120")
    async def test_c120_event_ids_are_known_across_executions(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, item(b"1", event_id="e-1"))
        await one(provider, continuing(of, b"1"))

        assert await one(provider, item(b"1", event_id="e-1")) == Sent(of.key, duplicate=True)
        assert await items(provider, of.key) == [b"1"]

    @case("C-120")
    async def test_c120_the_newest_event_ids_are_remembered(self, store: Harness) -> None:
        provider = await store.open()
        key = await start(provider)
        numbers = range(EVENT_IDS_KEPT + 1)
        await provider.commit([note(event_id=f"e-{n}", body=b"") for n in numbers])

        assert await one(provider, note(event_id="e-1")) == Sent(key, duplicate=True)
        last = f"e-{EVENT_IDS_KEPT}"
        assert await one(provider, note(event_id=last)) == Sent(key, duplicate=True)
        assert await one(provider, note(event_id="e-0")) == Sent(key)

    @case("C-121", needs=MULTI_PROCESS)
    async def test_c121_eight_senders_keep_each_its_own_order(self, store: Harness) -> None:
        provider, other = await store.open(), await store.open()
        key = await start(provider)

        async def send(number: int) -> None:
            through = (provider, other)[number % 2]
            for first in range(0, 100, 5):
                batch = [item(b"%d:%d" % (number, n)) for n in range(first, first + 5)]
                assert await through.commit(batch) == [Sent(key)] * 5

        await asyncio.gather(*(send(number) for number in range(8)))

        found = await items(provider, key)
        assert len(found) == 800
        for number in range(8):
            mine = [body for body in found if body.startswith(b"%d:" % number)]
            assert mine == [b"%d:%d" % (number, n) for n in range(100)]

    @case("C-122")
    async def test_c122_an_item_that_a_turn_does_not_take_is_there_for_the_next(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await provider.commit([item(b"1"), item(b"2")])

        await one(provider, turn(of, b"wait lost", mail_seen=2, set_due=True, release=True))

        assert await items(provider, of.key) == [b"1", b"2"]
        (first, second) = await provider.queue_items(of.key, "q", 0, 9)
        await one(provider, note())
        (again,) = await claim(provider)
        await one(provider, turn(again, b"taken", first=2, consumed=(first.seq,)))
        assert await provider.queue_items(of.key, "q", 0, 9) == [second]

    @case("C-122")
    async def test_c122_a_refused_turn_takes_nothing(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, item(b"1"))
        (first,) = await provider.queue_items(of.key, "q", 0, 9)

        await one(provider, turn(of, b"1", consumed=(first.seq,), token="lost"))
        await one(provider, turn(of, b"1", consumed=(first.seq,), external_seen=0))

        assert await items(provider, of.key) == [b"1"]

    @case("C-126")
    async def test_c126_a_start_and_its_first_events_are_there_together(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        sends = (item(b"1", event_id="e-1"), item(b"2", "other"), item(b"1", event_id="e-1"))
        key = await start(provider, sends=sends)

        assert await items(provider, key) == [b"1"]
        assert await items(provider, key, "other") == [b"2"]
        (of,) = await claim(provider)
        assert (of.queued, of.mail) == (2, 2)

    @case("C-126")
    async def test_c126_a_start_whose_id_is_taken_sends_nothing(self, store: Harness) -> None:
        provider = await store.open()
        key = await start(provider)

        outcome = await one(provider, new(incarnation="other", sends=(item(b"1"),)))

        assert is_a(Taken, outcome).instance.key == key
        assert await items(provider, key) == []
        (of,) = await claim(provider)
        assert (of.queued, of.mail) == (0, 0)

    @case("C-128")
    @pytest.mark.parametrize(
        "name",
        ["x" * 200, "a.b", "a/../b", "😀", "%_\\'\"", " ", "Q", "e\u0301", "\u00e9", "null"],
        ids=str.__repr__,
    )
    async def test_c128_names_of_queues_are_any_text(self, store: Harness, name: str) -> None:
        provider = await store.open()
        key = await start(provider)
        others = [f"{name}x", name.swapcase() + "!", "q"]
        await provider.commit([item(b"mine", name), *(item(b"other", each) for each in others)])

        assert await items(provider, key, name) == [b"mine"]

    @case("C-130")
    async def test_c130_items_that_nobody_took_are_counted_at_the_end(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await provider.commit([item(b"1"), item(b"2", "other"), note(body=b"3")])
        (first,) = await provider.queue_items(of.key, "q", 0, 9)

        assert await one(provider, ending(of, b"1", consumed=(first.seq,))) == Committed(dropped=2)
        assert await items(provider, of.key, "other") == []
        assert (await provider.depths()).items == 0

    @case("C-117", "C-118")
    async def test_c117_an_event_for_what_is_not_there_is_an_error_at_the_call(
        self, store: Harness
    ) -> None:
        async with host(store, hearing) as runtime:
            client = runtime.client
            await (await client.start_orchestration(hearing, 0, instance_id="i-1")).result()

            with pytest.raises(InstanceTerminal) as caught:
                await client.raise_event("i-1", "say", "late")
            with pytest.raises(InstanceNotFound):
                await client.raise_event("nobody", "say", "hello")

            assert caught.value.status == "completed"
            assert (await client.provider.depths()).messages == 0

    @case("C-122")
    async def test_c122_a_wait_that_lost_takes_nothing(self, store: Harness) -> None:
        async with host(store, hearing_again) as runtime, time_passes(store):
            client = runtime.client
            handle = await client.start_orchestration(hearing_again, instance_id="i-1")
            await until_recorded(client, "i-1", events.ExternalUnsubscribed)

            await client.raise_event("i-1", "say", "for the second")

            assert await handle.result() == "for the second"

    @case("C-123")
    async def test_c123_waits_for_one_name_take_events_in_the_order_of_both(
        self, store: Harness
    ) -> None:
        async with host(store, hearing) as runtime:
            handle = await runtime.client.start_orchestration(hearing, 3, instance_id="i-1")
            for text in ("a", "b", "c"):
                await runtime.client.raise_event("i-1", "say", text)

            assert await handle.result() == ["a", "b", "c"]

    @case("C-124", needs=MULTI_PROCESS)
    @pytest.mark.parametrize(("at_ms", "outcome"), [(9_999, "approved"), (10_001, "too late")])
    async def test_c124_of_a_deadline_and_an_event_the_earlier_wins_also_after_an_outage(
        self, store: Harness, at_ms: int, outcome: str
    ) -> None:
        async with client_of(store) as client:
            await client.start_orchestration(approving, instance_id="i-1")
            async with host(store, approving):
                await until_recorded(client, "i-1", events.ExternalSubscribed)
            store.clock.advance(at_ms)
            await client.raise_event("i-1", "approve")
            store.clock.advance(60_000)

            async with host(store, approving):
                await until(lambda: ended(client))

            assert (await client.get_instance("i-1")).output == outcome

    @case("C-127")
    async def test_c127_an_event_over_the_limit_is_refused_before_anything_is_written(
        self, store: Harness
    ) -> None:
        async with client_of(store) as client:
            await client.start_orchestration(hearing, 1, instance_id="i-1")
            before = await everything(client.provider)

            with pytest.raises(PayloadTooLarge):
                await client.raise_event("i-1", "say", "x" * (PAYLOAD_BYTES_MAX - 1))

            assert await everything(client.provider) == before
            await client.raise_event("i-1", "say", "x" * (PAYLOAD_BYTES_MAX - 2))
            assert (await client.provider.depths()).messages == 1

    @case("C-129")
    async def test_c129_an_event_that_nobody_waits_for_is_dropped_and_counted(
        self, store: Harness
    ) -> None:
        async with host(store, hearing) as runtime:
            client = runtime.client
            handle = await client.start_orchestration(hearing, 1, instance_id="i-1")
            await client.raise_event("i-1", "whisper", "nobody hears this")
            await client.raise_event("i-1", "say", "this one")

            assert await handle.result() == ["this one"]
            assert runtime.counters == {"no_subscription": 1}
            assert (await client.provider.depths()).messages == 0

"""Activities: claimed by one, completed once, withdrawn (C-076 to C-080, C-087 to C-100)."""

from __future__ import annotations

import asyncio

from perdure.providers.contract import (
    ActivityClaim,
    ActivityRow,
    ClaimActivities,
    ClaimedActivities,
    Committed,
    Done,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    CAPS,
    MULTI_PROCESS,
    NAMES,
    NOTHING,
    STALE,
    acquire,
    bodies,
    case,
    claim_work,
    complete,
    continuing,
    ending,
    everything,
    give_back,
    note,
    one,
    queued,
    retry,
    row,
    running,
    turn,
    waiting_for,
)

NOT_APPLICABLE = {
    "C-090": "activities have no tags: a node takes those whose names it knows",
}


def numbers(claimed: ClaimedActivities) -> list[int]:
    return [item.event_id for item in claimed.activities]


class ActivityCases:
    """See the module."""

    @case("C-076")
    async def test_c076_the_oldest_due_are_claimed_first_across_names(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        for event_id, name in ((4, "pay"), (3, "ship"), (2, "pay"), (1, "ship")):
            await one(provider, turn(of, activities=(queued(event_id, name),)))
            store.clock.advance(1)

        first = await claim_work(provider, "pay", "ship", limit=3)
        rest = await claim_work(provider, "pay", "ship", limit=3)

        assert (numbers(first), first.more) == ([4, 3, 2], True)
        assert (numbers(rest), rest.more) == ([1], False)

    @case("C-077")
    async def test_c077_each_activity_goes_to_one_of_16_claimers(self, store: Harness) -> None:
        provider = await store.open()
        await waiting_for(provider, store, *(queued(n) for n in range(1, 101)))

        claims = [claim_work(provider, node_id=f"n-{n}", limit=7) for n in range(16)]
        taken = [n for claimed in await asyncio.gather(*claims) for n in numbers(claimed)]

        assert sorted(taken) == list(range(1, 101))

    @case("C-077", needs=MULTI_PROCESS)
    async def test_c077_and_to_one_of_several_processes(self, store: Harness) -> None:
        providers = [await store.open() for _ in range(4)]
        await waiting_for(providers[0], store, *(queued(n) for n in range(1, 101)))

        claims = [
            claim_work(each, node_id=f"n-{n}", limit=7) for n, each in enumerate(providers * 4)
        ]
        taken = [n for claimed in await asyncio.gather(*claims) for n in numbers(claimed)]

        assert sorted(taken) == list(range(1, 101))

    @case("C-078")
    async def test_c078_a_claim_brings_all_that_running_it_needs(self, store: Harness) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, queued(3, "pay", b"\x00[7]", b'{"timeout":1}'))

        claimed = await claim_work(provider, node_id="n-2")

        item = ActivityClaim(
            key=of.key,
            instance_id="i-1",
            incarnation=of.incarnation,
            execution_id=1,
            event_id=3,
            name="pay",
            input=b"\x00[7]",
            attempt=1,
            claims=1,
            options=b'{"timeout":1}',
        )
        assert claimed == ClaimedActivities((item,), more=False)

    @case("C-078")
    async def test_c078_one_that_comes_claimed_is_the_first_attempt_of_its_node(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1), queued(2))
        due_ms = store.clock.now - 10

        assert numbers(await claim_work(provider, node_id="n-2")) == [2]
        assert await provider.list_activities(of.key) == [
            ActivityRow(1, 1, "pay", "n-1", 1, due_ms, None),
            ActivityRow(1, 2, "pay", "n-2", 1, due_ms, None),
        ]

    @case("C-079")
    async def test_c079_a_completion_deletes_the_activity_and_delivers_its_result(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1))

        assert await one(provider, complete(of, body=b"\x00done")) == Done()

        (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail
        (message,) = mail.messages
        assert (mail.mail, mail.external, mail.queued) == (1, 0, 0)
        assert (message.body, message.accepted_ms) == (b"\x00done", store.clock.now)
        assert (await row(provider)).due_ms == store.clock.now
        assert await provider.list_activities(of.key) == []

    @case("C-079")
    async def test_c079_completions_of_a_batch_come_in_its_order_behind_what_was_sent(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, *(running(n) for n in range(1, 31)))
        completions = [complete(of, n, body=b"%d" % n) for n in range(30, -1, -1)]

        outcomes = await provider.commit([*completions, note(body=b"sent")])

        assert outcomes[:-1] == [Done()] * 30 + [STALE]
        expected = [b"sent", *(b"%d" % n for n in range(30, 0, -1))]
        assert await bodies(provider) == expected

    @case("C-079")
    async def test_c079_a_completion_does_not_make_a_blocked_instance_due(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1))
        hold_ms = store.clock.now + 1_000
        await one(provider, give_back(of, blocked="poison", hold_ms=hold_ms))

        assert await one(provider, complete(of)) == Done()

        assert (await row(provider)).due_ms == hold_ms

    @case("C-080")
    async def test_c080_an_activity_completes_exactly_once(self, store: Harness) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1), running(2))

        assert await provider.commit([complete(of), complete(of)]) == [Done(), STALE]
        assert await one(provider, complete(of)) == STALE
        outcomes = await asyncio.gather(*(one(provider, complete(of, 2)) for _ in range(4)))
        assert sorted(outcomes, key=repr) == [Done(), STALE, STALE, STALE]

        assert await bodies(provider) == [b"done", b"done"]

    @case("C-087")
    async def test_c087_who_runs_a_withdrawn_activity_is_told_and_its_result_refused(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1), running(2), queued(3))
        await one(provider, turn(of, activities_gone=(1, 3)))

        asked = [(of.key, 1, n) for n in (3, 2, 1)] + [(of.key, 2, 2), (of.key + 9, 1, 2)]
        assert await provider.lost_activities("n-1", asked) == [asked[0], *asked[2:]]
        assert await provider.lost_activities("n-2", asked[1:2]) == asked[1:2]
        assert await provider.lost_activities("n-1", []) == []
        assert await one(provider, complete(of)) == STALE
        assert await claim_work(provider) == NOTHING
        assert await bodies(provider) == []

    @case("C-088")
    async def test_c088_the_activities_of_an_ended_instance_are_gone(self, store: Harness) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1), queued(2))
        last = ending(of, b"2", first=2, activities=(queued(3),))

        # A turn comes before a completion, wherever in the batch.
        assert await provider.commit([complete(of), last]) == [STALE, Committed()]

        assert await claim_work(provider) == NOTHING
        assert await provider.list_activities(of.key) == []
        lost = [(of.key, 1, 1)]
        assert await provider.lost_activities("n-1", lost) == lost
        assert (await provider.survey("n-1", CAPS, NAMES)).activities_due_ms is None

    @case("C-089")
    async def test_c089_those_of_an_execution_that_continued_as_new_are_gone_too(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1), queued(2))
        following = continuing(of, b"2", first=2)

        assert await provider.commit([complete(of), following]) == [STALE, Committed()]

        # The next execution may use the same number.
        await one(provider, turn(of, execution_id=2, first=2, activities=(running(1),)))
        assert await one(provider, complete(of, body=b"old")) == STALE
        assert await one(provider, complete(of, execution_id=2, body=b"new")) == Done()
        assert await bodies(provider) == [b"new"]

    @case("C-091", "C-092")
    async def test_c091_what_a_node_does_not_know_is_neither_claimed_nor_charged(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, queued(1, "pay"), queued(2, "ship"))
        before = await everything(provider)

        assert await claim_work(provider, "unknown", "Pay", "pa", "p%") == NOTHING
        empty = ClaimActivities("n-1", frozenset(), 9)
        assert await one(provider, empty) == NOTHING

        assert await everything(provider) == before
        assert numbers(await claim_work(provider, "ship", "unknown")) == [2]
        (left,) = [each for each in await provider.list_activities(of.key) if not each.owner]
        assert (left.name, left.attempt) == ("pay", 0)

    @case("C-093", "C-094")
    async def test_c093_a_claim_takes_each_once_and_no_more_than_its_limit(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await waiting_for(provider, store, *(queued(n) for n in range(1, 8)))

        assert await claim_work(provider, limit=0) == ClaimedActivities((), more=True)
        claims = [await claim_work(provider, limit=3) for _ in range(4)]

        assert [numbers(each) for each in claims] == [[1, 2, 3], [4, 5, 6], [7], []]
        assert [each.more for each in claims] == [True, True, False, False]

    @case("C-093")
    async def test_c093_two_claims_of_one_batch_do_not_take_the_same(self, store: Harness) -> None:
        provider = await store.open()
        await waiting_for(provider, store, queued(1), queued(2), queued(3))

        claims = [ClaimActivities(f"n-{n}", NAMES, 2) for n in range(3)]
        taken = await provider.commit(claims)

        found = [numbers(each) for each in taken if isinstance(each, ClaimedActivities)]
        assert found == [[1, 2], [3], []]

    @case("C-097")
    async def test_c097_a_megabyte_in_and_out(self, store: Harness) -> None:
        provider = await store.open()
        big = bytes(range(256)) * 4_096
        of = await waiting_for(provider, store, queued(1, input=big, options=big))

        (item,) = (await claim_work(provider)).activities
        await one(provider, complete(of, body=big))

        assert (item.input, item.options) == (big, big)
        assert await bodies(provider) == [big]

    @case("C-098")
    async def test_c098_what_cannot_be_claimed_does_not_hold_up_what_is_behind_it(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, *(queued(n, "unknown") for n in range(1, 301)))
        await one(provider, turn(of, activities=(queued(301, "ship"), queued(302, "pay"))))

        assert numbers(await claim_work(provider, "pay", "ship", limit=1)) == [301]
        assert numbers(await claim_work(provider, "pay", "ship", limit=1)) == [302]

    @case("C-100")
    async def test_c100_the_depths_are_what_is_there(self, store: Harness) -> None:
        provider = await store.open()
        work = (running(1), running(2), queued(3), queued(4, "ship"), queued(5, "ship"))
        of = await waiting_for(provider, store, *work)
        await one(provider, retry(of, store.clock.now + 5))

        assert (await provider.depths()).activities == {"pay": (1, 1, 1), "ship": (2, 0, 0)}
        store.clock.advance(5)
        assert (await provider.depths()).activities == {"pay": (2, 0, 1), "ship": (2, 0, 0)}
        await claim_work(provider, "ship", limit=1)
        await one(provider, complete(of, 2))
        assert (await provider.depths()).activities == {"pay": (2, 0, 0), "ship": (1, 0, 1)}
        await one(provider, ending(of, b"2", first=2))
        assert (await provider.depths()).activities == {}

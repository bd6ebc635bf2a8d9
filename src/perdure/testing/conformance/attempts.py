"""Attempts of an activity: taken over, retried, given back (C-081 to C-086, C-095 to C-099)."""

from __future__ import annotations

from typing import Any

from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import (
    Acquired,
    ActivityRow,
    ClaimedActivities,
    Done,
    Provider,
    ReleaseActivity,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    DURABLE,
    LEASE_MS,
    NAMES,
    NOTHING,
    STALE,
    bodies,
    case,
    claim,
    claim_work,
    complete,
    everything,
    one,
    queued,
    retry,
    running,
    waiting_for,
)

NOT_APPLICABLE: dict[str, str] = {}


def release(of: Acquired, event_id: int = 1, **fields: Any) -> ReleaseActivity:
    given: dict[str, Any] = {"execution_id": 1, "node_id": "n-1", "attempt": 1}
    return ReleaseActivity(of.key, event_id=event_id, **{**given, **fields})


async def die(provider: Provider, *names: str, alone: bool = False) -> None:
    """Let a node claim an activity and die over it."""
    await provider.register_node("dying", LEASE_MS)
    claimed = await claim_work(provider, *names, node_id="dying", limit=1, alone=alone)
    assert len(claimed.activities) == 1
    await provider.release_node("dying")


def numbers(claimed: ClaimedActivities) -> list[int]:
    return [item.event_id for item in claimed.activities]


class AttemptCases:
    """See the module."""

    @case("C-081", "C-085")
    async def test_c081_a_dead_nodes_activity_is_claimed_again_and_its_result_refused(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, queued(1))
        await provider.register_node("n-1", LEASE_MS)
        await claim_work(provider)
        store.clock.advance(LEASE_MS + 1)
        assert await provider.reap_nodes("n-2") == ["n-1"]
        assert await one(provider, complete(of, body=b"late")) == STALE

        (again,) = (await claim_work(provider, node_id="n-2")).activities

        assert (again.attempt, again.claims) == (2, 2)
        before = await everything(provider)
        for late in (complete(of, body=b"late"), complete(of, body=b"late", attempt=2)):
            assert await one(provider, late) == STALE
        assert await everything(provider) == before
        right = complete(of, body=b"right", node_id="n-2", attempt=2)
        assert await one(provider, right) == Done()
        (of,) = await claim(provider, "n-2")
        assert [message.body for message in of.messages] == [b"right"]

    @case("C-081")
    async def test_c081_a_completion_by_another_claim_is_stale(self, store: Harness) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1), queued(2))
        before = await everything(provider)
        wrong: list[dict[str, Any]] = [
            {"node_id": "n-2"},
            {"attempt": 2},
            {"attempt": 0},
            {"execution_id": 2},
            {"event_id": 2},
            {"event_id": 3},
        ]

        for fields in wrong:
            for operation in (
                complete(of, **fields),
                release(of, **fields),
                retry(of, store.clock.now, **fields),
            ):
                assert await one(provider, operation) == STALE

        assert await everything(provider) == before
        assert await one(provider, complete(of)) == Done()

    @case("C-082", "C-099")
    async def test_c082_a_failed_attempt_is_given_back_until_its_next_is_due(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1, options=b"3 times"))
        due_ms = store.clock.now + 100

        assert await one(provider, retry(of, due_ms, error=b"no luck")) == Done()

        assert await provider.list_activities(of.key) == [
            ActivityRow(1, 1, "pay", None, 1, due_ms, b"no luck")
        ]
        survey = await provider.survey("n-1", frozenset(), NAMES)
        assert survey.activities_due_ms == due_ms
        store.clock.advance(99)
        assert await claim_work(provider) == NOTHING
        store.clock.advance(1)
        (again,) = (await claim_work(provider)).activities
        assert (again.attempt, again.claims, again.options) == (2, 1, b"3 times")
        assert await bodies(provider) == []

    @case("C-082")
    async def test_c082_a_failed_attempt_is_reported_once(self, store: Harness) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1))
        again = retry(of, store.clock.now)

        assert await provider.commit([again, again]) == [Done(), STALE]
        assert await one(provider, complete(of)) == STALE

    @case("C-083")
    async def test_c083_what_names_an_activity_is_the_same_at_each_attempt(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, queued(1))
        seen = []

        for attempt in range(1, 6):
            (item,) = (await claim_work(provider, alone=False)).activities
            seen.append((item.incarnation, item.execution_id, item.event_id, item.attempt))
            await one(provider, retry(of, store.clock.now, attempt=attempt))

        assert seen == [(of.incarnation, 1, 1, attempt) for attempt in range(1, 6)]

    @case("C-084")
    async def test_c084_a_node_that_beats_keeps_what_it_claimed(self, store: Harness) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, queued(1))
        await provider.register_node("n-1", LEASE_MS)
        await claim_work(provider)

        for _ in range(5):
            store.clock.advance(LEASE_MS - 1)
            assert provider.beat("n-1") is True
            assert await provider.reap_nodes("n-2") == []
            assert await claim_work(provider, node_id="n-2") == NOTHING

        assert await one(provider, complete(of)) == Done()

    @case("C-086")
    async def test_c086_a_released_activity_is_uncharged_and_keeps_its_place(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, queued(1), queued(2))
        await claim_work(provider, limit=1)
        store.clock.advance(5)

        assert await provider.commit([release(of), release(of)]) == [Done(), STALE]

        assert await one(provider, complete(of)) == STALE
        first, second = (await claim_work(provider)).activities
        assert (first.event_id, first.attempt, first.claims) == (1, 1, 1)
        assert second.event_id == 2

    @case("C-086")
    async def test_c086_a_release_after_a_retry_takes_back_that_claim_only(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1))
        await one(provider, retry(of, store.clock.now))
        await claim_work(provider)

        assert await one(provider, release(of, attempt=2)) == Done()

        (again,) = (await claim_work(provider)).activities
        assert (again.attempt, again.claims) == (2, 1)

    @case("C-095")
    async def test_c095_whoever_claims_after_a_death_is_told_how_often_it_was_tried(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await waiting_for(provider, store, queued(1, options=b"once only"))
        await die(provider)

        (again,) = (await claim_work(provider)).activities

        assert (again.attempt, again.claims, again.options) == (2, 2, b"once only")

    @case("C-095")
    async def test_c095_what_was_claimed_in_vain_is_claimed_alone(self, store: Harness) -> None:
        provider = await store.open()
        await waiting_for(provider, store, *(queued(n, f"act-{n}") for n in range(1, 5)))
        names = [f"act-{n}" for n in range(1, 5)]
        assert await claim_work(provider, *names, alone=True) == NOTHING
        for number, times in ((2, CLAIMS_SHARED_MAX), (3, CLAIMS_SHARED_MAX), (4, 1)):
            for _ in range(times):
                await die(provider, f"act-{number}")

        shared = await claim_work(provider, *names)
        alone = [await claim_work(provider, *names, alone=True) for _ in range(3)]

        assert [(item.event_id, item.claims) for item in shared.activities] == [(1, 1), (4, 2)]
        assert not shared.more
        assert [numbers(each) for each in alone] == [[2], [3], []]
        assert [each.more for each in alone] == [True, False, False]
        assert alone[0].activities[0].claims == CLAIMS_SHARED_MAX + 1

    @case("C-095")
    async def test_c095_an_attempt_that_had_an_outcome_clears_the_suspicion(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, queued(1))
        for _ in range(CLAIMS_SHARED_MAX):
            await die(provider)
        (item,) = (await claim_work(provider, alone=True)).activities

        await one(provider, retry(of, store.clock.now, attempt=item.attempt))

        (again,) = (await claim_work(provider)).activities
        assert (again.attempt, again.claims) == (CLAIMS_SHARED_MAX + 2, 1)

    @case("C-096", needs=DURABLE)
    async def test_c096_attempts_errors_and_due_times_are_there_after_opening_anew(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await waiting_for(provider, store, running(1), queued(2))
        await one(provider, retry(of, store.clock.now + 50, error=b"\x00error"))
        await die(provider)
        before = await provider.list_activities(of.key)

        provider = await store.reopen()

        assert await provider.list_activities(of.key) == before
        (again,) = (await claim_work(provider)).activities
        assert (again.event_id, again.attempt, again.claims) == (2, 2, 2)
        store.clock.advance(50)
        (retried,) = (await claim_work(provider)).activities
        assert (retried.event_id, retried.attempt, retried.claims) == (1, 2, 1)

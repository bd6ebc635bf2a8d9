"""Attempts, poison, and the errors of a store (C-193 to C-202)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure.core.context import OrchestrationContext
from perdure.errors import ActivityError, ProviderError, StoreClosed, StoreUnavailable
from perdure.limits import CLAIMS_MAX, CLAIMS_SHARED_MAX
from perdure.marks import activity, orchestration
from perdure.providers.contract import (
    Done,
    NoteBlocked,
    Provider,
    ReleaseActivity,
    ReleaseInstance,
    RetryActivity,
    RowFilter,
)
from perdure.testing.conformance.engine import client_of, host, until
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    CAPS,
    DURABLE,
    LEASE_MS,
    MULTI_PROCESS,
    NAMES,
    UNSTORABLE,
    acquire,
    case,
    claim,
    claim_work,
    everything,
    new,
    one,
    queued,
    row,
    start,
    turn,
)

NOT_APPLICABLE: dict[str, str] = {
    "C-196": "attempts are counted for an instance, not for each of its messages",
    "C-200": "which errors a store's library has is its own matter: tests/providers/test_sqlite.py",
}


async def die_with_it(provider: Provider, times: int) -> None:
    """Let nodes claim whatever is due and die over it, one after the other."""
    for n in range(times):
        node_id = f"dying-{n}"
        await provider.register_node(node_id, LEASE_MS)
        assert await claim(provider, node_id) or await claim(provider, node_id, alone=True)
        await claim_work(provider, node_id=node_id)
        await claim_work(provider, node_id=node_id, alone=True)
        await provider.release_node(node_id)


@orchestration(name="order")
async def paying(ctx: OrchestrationContext) -> str:
    try:
        return await ctx.schedule_activity("pay", result_type=str)
    except ActivityError as error:
        return error.type


@activity(name="pay")
async def paid() -> str:
    return "paid"


CALLS: list[Callable[[Provider], Awaitable[object]]] = [
    lambda provider: provider.open(),
    lambda provider: one(provider, new()),
    lambda provider: provider.register_node("n-1", LEASE_MS),
    lambda provider: provider.release_node("n-1"),
    lambda provider: provider.reap_nodes("n-1"),
    lambda provider: provider.nodes(),
    lambda provider: provider.survey("n-1", CAPS, NAMES),
    lambda provider: provider.lost_activities("n-1", [(1, 1, 1)]),
    lambda provider: provider.unrunnable(CAPS, 9),
    lambda provider: provider.histories([(1, 1)]),
    lambda provider: provider.read_history("i-1"),
    lambda provider: provider.get_instances(["i-1"]),
    lambda provider: provider.get_execution(1, 1),
    lambda provider: provider.list_executions("i-1"),
    lambda provider: provider.list_instances(RowFilter()),
    lambda provider: provider.list_tree("i-1"),
    lambda provider: provider.queue_items(1, "q", 0, 9),
    lambda provider: provider.list_activities(1),
    lambda provider: provider.snapshots("i-1"),
    lambda provider: provider.count_instances(),
    lambda provider: provider.count_blocked(),
    lambda provider: provider.depths(),
]
"""Every call that a provider has, but for those that are no coroutines."""


class FailureCases:
    """See the module."""

    @case("C-193")
    async def test_c193_every_claim_counts_until_a_turn_settles(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider)
        await die_with_it(provider, 3)

        (of,) = await claim(provider, alone=True)
        assert of.attempt == 4
        await one(provider, turn(of, b"1"))
        assert (await row(provider)).attempt == 4
        await one(provider, turn(of, b"2", first=2, settle=True, release=True))

        assert (await row(provider)).attempt == 0
        (again,) = await claim(provider)
        assert again.attempt == 1

    @case("C-193", needs=DURABLE)
    async def test_c193_attempts_outlive_the_process(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, activities=(queued(1),), release=True))
        await die_with_it(provider, 2)

        provider = await store.reopen()

        (again,) = await claim(provider, alone=True)
        assert again.attempt == 4
        (work,) = (await claim_work(provider, alone=True)).activities
        assert (work.attempt, work.claims) == (3, 3)

    @case("C-193")
    async def test_c193_attempts_of_an_activity_go_on_over_retries_and_claims_begin_anew(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, activities=(queued(1),)))
        for attempt in (1, 2, 3, 4):
            (work,) = (await claim_work(provider)).activities
            assert (work.attempt, work.claims) == (attempt, 1)
            retry = RetryActivity(of.key, 1, 1, "n-1", attempt, store.clock.now, b"error")
            assert await one(provider, retry) == Done()

    @case("C-194", needs=MULTI_PROCESS)
    async def test_c194_what_its_nodes_died_over_can_be_set_aside_by_the_next(
        self, store: Harness
    ) -> None:
        provider, other = await store.open(), await store.open()
        await start(provider)
        for n in range(3):
            await other.register_node(f"dead-{n}", LEASE_MS)
            assert await claim(other, f"dead-{n}") or await claim(other, f"dead-{n}", alone=True)
            store.clock.advance(LEASE_MS + 1)
            assert await provider.reap_nodes("n-1") == [f"dead-{n}"]

        (of,) = await claim(provider, alone=True)
        verdict = ReleaseInstance(of.key, of.token, of.mail, None, blocked="poison", detail="why")

        assert of.attempt == 4
        assert await one(provider, verdict) == Done()
        assert (await row(provider)).blocked == "poison"

    @case("C-194")
    async def test_c194_what_was_claimed_in_vain_is_claimed_alone(self, store: Harness) -> None:
        provider = await store.open()
        for name in ("p-1", "p-2"):
            await start(provider, name)
        await die_with_it(provider, CLAIMS_SHARED_MAX)
        await start(provider, "healthy")

        shared = await claim(provider)
        alone = [await claim(provider, alone=True) for _ in range(3)]

        assert [of.instance_id for of in shared] == ["healthy"]
        assert [[of.instance_id for of in some] for some in alone] == [["p-1"], ["p-2"], []]

    @case("C-194")
    async def test_c194_an_activity_claimed_in_vain_is_claimed_alone(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, activities=(queued(1), queued(2)), release=True))
        await die_with_it(provider, CLAIMS_SHARED_MAX)
        (of,) = await claim(provider, alone=True)
        await one(provider, turn(of, activities=(queued(3),)))

        shared = await claim_work(provider)
        alone = [await claim_work(provider, alone=True) for _ in range(3)]

        assert [work.event_id for work in shared.activities] == [3]
        assert [[work.event_id for work in some.activities] for some in alone] == [[1], [2], []]
        assert [some.more for some in alone] == [True, False, False]

    @case("C-195")
    async def test_c195_its_own_owner_can_set_it_aside_and_its_neighbours_go_on(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        bad, good = await acquire(provider, "bad"), await acquire(provider, "good")

        outcomes = await provider.commit(
            [
                ReleaseInstance(bad.key, bad.token, 0, None, True, "poison", "why"),
                turn(good, b"1", version="1", settle=True),
            ]
        )

        assert outcomes[0] == Done()
        assert (await row(provider, "bad")).attempt == 1
        found = await row(provider, "good")
        assert (found.owner, found.blocked, found.attempt) == ("n-1", None, 0)

    @case("C-197")
    async def test_c197_what_is_given_back_uncharged_is_as_if_never_claimed(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, activities=(queued(1),)))
        for _ in range(CLAIMS_SHARED_MAX + 2):
            (work,) = (await claim_work(provider)).activities
            assert (work.attempt, work.claims) == (1, 1)
            assert await one(provider, ReleaseActivity(of.key, 1, 1, "n-1", 1)) == Done()
            given_back = ReleaseInstance(of.key, of.token, of.mail, store.clock.now)
            assert await one(provider, given_back) == Done()
            assert (await row(provider)).attempt == 0
            (of,) = await claim(provider)
            assert of.attempt == 1

    @case("C-197")
    async def test_c197_giving_back_does_not_count_below_nought(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, turn(of, b"1", settle=True))

        await one(provider, ReleaseInstance(of.key, of.token, 0, store.clock.now))

        assert (await row(provider)).attempt == 0

    @case("C-198")
    async def test_c198_a_blocked_instance_is_tried_again_when_its_hold_is_over(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        for delay_ms in (100, 1_000, 60_000):
            hold_ms = store.clock.now + delay_ms
            blocked = ReleaseInstance(
                of.key, of.token, 0, None, blocked="nondeterminism", detail="why", hold_ms=hold_ms
            )
            await one(provider, blocked)
            found = await row(provider)
            assert (found.hold_ms, found.due_ms) == (hold_ms, hold_ms)
            store.clock.advance(delay_ms - 1)
            assert await claim(provider) == ()
            store.clock.advance(1)
            (of,) = await claim(provider)

    @case("C-199")
    async def test_c199_what_is_blocked_is_listed_with_its_reason_until_a_turn_settles(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        waiting = await start(provider, "waiting")
        hold_ms = store.clock.now + 5
        blocked = ReleaseInstance(
            of.key, of.token, 0, None, blocked="poison", detail="line 1\nline 2 é", hold_ms=hold_ms
        )
        await provider.commit([blocked, NoteBlocked((waiting,), "not_registered", "no order 7")])

        rows = await provider.list_instances(RowFilter(blocked=True))
        assert [(each.instance_id, each.blocked, each.blocked_detail) for each in rows] == [
            ("i-1", "poison", "line 1\nline 2 é"),
            ("waiting", "not_registered", "no order 7"),
        ]
        assert await provider.count_blocked() == {"poison": 1, "not_registered": 1}
        store.clock.advance(5)
        for each in await claim(provider):
            await one(provider, turn(each, b"1", settle=True))
        assert await provider.list_instances(RowFilter(blocked=True)) == []
        assert await provider.count_blocked() == {}
        found = await row(provider)
        assert (found.blocked, found.blocked_detail, found.hold_ms) == (None, None, None)

    @case("C-201")
    @pytest.mark.parametrize(("field", "value"), UNSTORABLE, ids=[f for f, _ in UNSTORABLE])
    async def test_c201_a_value_that_cannot_be_stored_is_told_from_an_outage(
        self, store: Harness, field: str, value: Any
    ) -> None:
        provider = await store.open()
        await start(provider)
        before = await everything(provider)

        with pytest.raises(ProviderError) as caught:
            await provider.commit([new("good"), new("bad", **{field: value})])

        # What is unavailable is tried again for ever.
        assert not isinstance(caught.value, StoreUnavailable)
        assert await everything(provider) == before
        await start(provider, "good")

    @case("C-202")
    async def test_c202_a_closed_store_says_so_everywhere(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider)
        await provider.close()
        await provider.close()

        for call in CALLS:
            with pytest.raises(StoreClosed):
                await call(provider)
        with pytest.raises(StoreClosed):
            provider.beat("n-1")
        with pytest.raises(StoreClosed):
            provider.watch(lambda: None)
        with pytest.raises(StoreClosed):
            provider.reserve_key()

    @case("C-202")
    async def test_c202_closing_finishes_what_was_accepted(self, store: Harness) -> None:
        provider = await store.open()
        starts = [asyncio.create_task(start(provider, f"i-{n}")) for n in range(20)]
        # Each of them has handed its batch over before the store is closed.
        await asyncio.sleep(0)

        await provider.close()

        assert len(set(await asyncio.gather(*starts))) == 20

    @case("C-194", needs=MULTI_PROCESS)
    async def test_c194_an_orchestration_that_nodes_die_over_is_blocked_as_poison(
        self, store: Harness
    ) -> None:
        async with client_of(store) as client:
            await client.start_orchestration(paying, instance_id="i-1")
            await die_with_it(client.provider, CLAIMS_MAX)

            async def blocked() -> bool:
                return (await client.get_instance("i-1")).blocked == "poison"

            async with host(store, paying):
                await until(blocked)

            assert (await client.get_instance("i-1")).status == "pending"
            assert await client.read_history("i-1") == []

    @case("C-194", needs=MULTI_PROCESS)
    async def test_c194_an_activity_that_nodes_die_over_fails_as_poison(
        self, store: Harness
    ) -> None:
        async with client_of(store) as client:
            handle = await client.start_orchestration(paying, instance_id="i-1")

            async def waits() -> bool:
                return "pay" in (await client.provider.depths()).activities

            async with host(store, paying):
                await until(waits)
                for n in range(CLAIMS_MAX):
                    await client.provider.register_node(f"dying-{n}", LEASE_MS)
                    for alone in (False, True):
                        await claim_work(client.provider, node_id=f"dying-{n}", alone=alone)
                    await client.provider.release_node(f"dying-{n}")

            async with host(store, paying, paid):
                assert await handle.result() == "Poison"

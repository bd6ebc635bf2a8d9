"""Ownership: leases, giving back, and what comes in between (C-043 to C-045, C-051 to C-055)."""

from __future__ import annotations

from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import (
    Committed,
    Done,
    NoteBlocked,
    Provider,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    BEHIND,
    CAPS,
    FENCED,
    LEASE_MS,
    NAMES,
    acquire,
    bodies,
    case,
    claim,
    ending,
    everything,
    give_back,
    new,
    note,
    one,
    queued,
    row,
    running,
    start,
    turn,
)

NOT_APPLICABLE = {
    "C-045": "a lease always has the length that its node was registered with",
    "C-051": "leases are granted to nodes, not by a claim: no claim comes with a lease that ages",
}


async def charged(provider: Provider, instance_id: str, times: int) -> None:
    """Start an instance and let it be claimed that often without a commit."""
    await start(provider, instance_id)
    for _ in range(times):
        (of,) = await claim(provider) or await claim(provider, alone=True)
        await one(provider, give_back(of, of.mail, charge=True))


class LeaseCases:
    """See the module."""

    @case("C-043")
    async def test_c043_a_beat_renews_the_lease_from_now(self, store: Harness) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        of = await acquire(provider)
        for _ in range(5):
            now = store.clock.advance(LEASE_MS - 1)
            assert provider.beat("n-1") is True
            assert await provider.reap_nodes("n-2") == []

        (node,) = await provider.nodes()
        assert (node.node_id, node.lease_until_ms) == ("n-1", now + LEASE_MS)
        assert node.beat_ms == now
        assert await one(provider, turn(of, b"1")) == Committed()

    @case("C-044")
    async def test_c044_a_node_that_was_taken_over_or_is_unknown_cannot_beat(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        store.clock.advance(LEASE_MS + 1)
        await provider.reap_nodes("n-2")

        assert provider.beat("n-1") is False
        assert provider.beat("n-3") is False
        assert await provider.nodes() == []

    @case("C-052")
    async def test_c052_what_a_node_holds_is_free_when_its_lease_is_over_and_not_before(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        of = await acquire(provider)
        await one(provider, turn(of, b"1", activities=(running(1), queued(2))))
        await start(provider, "held by n-2", owner="n-2", token="t-2")
        (node,) = await provider.nodes()
        assert (node.instances, node.activities) == (1, 1)
        store.clock.advance(LEASE_MS)
        assert await provider.reap_nodes("n-2") == []

        store.clock.advance(1)

        assert await provider.reap_nodes("n-2") == ["n-1"]
        assert await provider.reap_nodes("n-2") == []
        (again,) = await claim(provider, "n-2")
        assert (again.instance_id, again.attempt) == ("i-1", 2)
        lost = [(of.key, 1, 1), (of.key, 1, 2)]
        assert await provider.lost_activities("n-1", lost) == lost

    @case("C-052")
    async def test_c052_a_node_that_is_released_frees_what_it_held_at_once(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        await provider.register_node("n-2", LEASE_MS)
        of = await acquire(provider)

        await provider.release_node("n-1")
        await provider.release_node("n-1")

        assert [node.node_id for node in await provider.nodes()] == ["n-2"]
        assert await one(provider, turn(of, b"1")) == FENCED
        (again,) = await claim(provider, "n-2")
        assert again.attempt == 2

    @case("C-052")
    async def test_c052_a_node_does_not_reap_itself(self, store: Harness) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        of = await acquire(provider)
        store.clock.advance(10 * LEASE_MS)

        assert await provider.reap_nodes("n-1") == []
        assert provider.beat("n-1") is True
        assert await one(provider, turn(of, b"1")) == Committed()

    @case("C-053")
    async def test_c053_what_is_given_back_is_claimable_when_it_is_due(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        now = store.clock.now
        await provider.commit([new(instance_id) for instance_id in ("now", "later", "parked")])
        dues = (now, now + 100, None)
        for of, due_ms in zip(await claim(provider), dues, strict=True):
            await one(provider, give_back(of, due_ms))
        assert [of.instance_id for of in await claim(provider, "n-2")] == ["now"]

        store.clock.advance(99)
        assert await claim(provider, "n-2") == ()
        store.clock.advance(1)
        assert [of.instance_id for of in await claim(provider, "n-2")] == ["later"]

    @case("C-053")
    async def test_c053_a_blocked_instance_shows_why_and_is_held(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        hold_ms = store.clock.now + 1_000
        detail = "line 1\nline 2 \u2028 \u00e9"
        held = give_back(of, blocked="nondeterminism", detail=detail, hold_ms=hold_ms)
        assert await one(provider, held) == Done()

        await provider.commit([note(), note(queue="q")])

        blocked = await row(provider)
        assert (blocked.blocked, blocked.blocked_detail) == ("nondeterminism", detail)
        assert (blocked.hold_ms, blocked.due_ms, blocked.attempt) == (hold_ms, hold_ms, 0)
        store.clock.advance(999)
        assert await claim(provider) == ()
        store.clock.advance(1)
        (again,) = await claim(provider)
        await one(provider, turn(again, b"1", settle=True))
        settled = await row(provider)
        assert (settled.blocked, settled.blocked_detail, settled.hold_ms) == (None, None, None)

    @case("C-053")
    async def test_c053_a_note_shows_why_unowned_open_instances_wait_and_no_more(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        ids = ["ended", "owned", "waiting"]
        await one(provider, ending(await acquire(provider, "ended"), b"1"))
        await acquire(provider, "owned")
        await start(provider, "waiting")
        before = await provider.get_instances(ids)
        keys = tuple(instance.key for instance in before.values())

        assert await one(provider, NoteBlocked((*keys, 999), "not_registered", "why")) == Done()

        after = await provider.get_instances(ids)
        assert [after[each] == before[each] for each in ids] == [True, True, False]
        waiting = after["waiting"]
        assert (waiting.blocked, waiting.blocked_detail) == ("not_registered", "why")
        assert (waiting.due_ms, waiting.hold_ms) == (before["waiting"].due_ms, None)
        assert len(await claim(provider)) == 1

    @case("C-054")
    async def test_c054_giving_back_uncharged_restores_the_attempt_but_never_below_zero(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, give_back(of, store.clock.now, charge=True))
        (of,) = await claim(provider)
        assert of.attempt == 2
        await one(provider, give_back(of, store.clock.now))
        assert (await row(provider)).attempt == 1

        (of,) = await claim(provider)
        await one(provider, turn(of, b"1", settle=True))
        await one(provider, give_back(of, store.clock.now))
        assert (await row(provider)).attempt == 0

    @case("C-054")
    async def test_c054_what_was_claimed_in_vain_is_claimed_alone(self, store: Harness) -> None:
        provider = await store.open()
        await charged(provider, "twice", CLAIMS_SHARED_MAX)
        await charged(provider, "more", CLAIMS_SHARED_MAX)
        await start(provider, "fresh")

        shared = await claim(provider)
        alone = [await claim(provider, alone=True) for _ in range(3)]

        assert [of.instance_id for of in shared] == ["fresh"]
        assert [[(of.instance_id, of.attempt) for of in some] for some in alone] == [
            [("twice", CLAIMS_SHARED_MAX + 1)],
            [("more", CLAIMS_SHARED_MAX + 1)],
            [],
        ]

    @case("C-055")
    async def test_c055_a_message_that_comes_while_the_instance_is_held_is_seen_by_its_owner(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await start(provider)
        await one(provider, note(body=b"before"))
        (of,) = await claim(provider)
        await one(provider, note(body=b"while"))

        seen = turn(of, b"1", consumed=(of.messages[0].seq,), set_due=True, due_ms=None)
        assert await one(provider, seen) == Committed()

        assert await bodies(provider, "n-1") == [b"while"]
        assert await bodies(provider, "n-2") == []
        assert (await row(provider)).due_ms == store.clock.now

    @case("C-055")
    async def test_c055_a_turn_that_has_not_seen_an_external_message_is_behind(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await provider.commit([note(external=False), note(external=True)])
        before = await everything(provider)

        outcome = await one(provider, ending(of, b"1", external_seen=0))

        assert outcome == BEHIND
        assert await everything(provider) == before
        assert await one(provider, turn(of, b"1", external_seen=1)) == Committed()
        assert await one(provider, turn(of, b"2", first=2, external_seen=None)) == Committed()
        lost = turn(of, b"3", first=3, external_seen=0, token="lost")
        assert await one(provider, lost) == FENCED

    @case("C-055")
    async def test_c055_the_survey_shows_what_there_is_for_a_node(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await start(provider, "free")
        due_ms = store.clock.now
        await one(provider, turn(of, b"1", activities=(queued(2),), set_due=True))
        empty = await provider.survey("n-2", frozenset(), frozenset())
        survey = await provider.survey("n-1", CAPS, NAMES)

        assert (empty.mail, empty.instances_due_ms, empty.activities_due_ms) == ((), None, None)
        assert survey.mail == ()
        assert (survey.instances_due_ms, survey.activities_due_ms) == (due_ms, due_ms)

"""Ownership: claims, tokens and fences (C-031 to C-042, C-046 to C-050)."""

from __future__ import annotations

import asyncio

import pytest

from perdure.errors import ProviderError
from perdure.providers.contract import (
    Acquired,
    Committed,
    DeleteInstance,
    Message,
    NewTimer,
    Operation,
    ReleaseInstance,
)
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    FENCED,
    LEASE_MS,
    MULTI_PROCESS,
    acquire,
    case,
    claim,
    continuing,
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

NOT_APPLICABLE: dict[str, str] = {}


def attempts_to_write(of: Acquired, token: str) -> list[Operation]:
    """Everything that takes a token, with each part that it could write."""
    return [
        turn(
            of,
            b"event",
            token=token,
            consumed=tuple(message.seq for message in of.messages),
            activities=(queued(2), running(3)),
            timers=(NewTimer(4, 5),),
            starts=(new("child"),),
            sends=(note("i-1", queue="q"),),
            version="2",
            settle=True,
            set_due=True,
            release=True,
        ),
        turn(of, token=token),
        ending(of, b"end", token=token),
        continuing(of, b"next", token=token),
        ReleaseInstance(of.key, token, of.mail, None, blocked="poison", hold_ms=5, charge=True),
    ]


class OwnershipCases:
    """See the module."""

    @case("C-031")
    async def test_c031_a_claim_brings_the_instance_with_its_mail_and_timers(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider, version=None, input=b"\x00[1]", nesting=2)
        accepted_ms = store.clock.advance(3)
        sends = [note(body=b"a", external=True), note(body=b"b"), note(body=b"item", queue="q")]
        await provider.commit(sends)
        timers = (NewTimer(2, store.clock.now + 50), NewTimer(5, store.clock.now + 20))
        await one(provider, turn(of, b"1", timers=timers, version="2", release=True))

        (again,) = await claim(provider, "n-2")

        seqs = [message.seq for message in again.messages]
        assert seqs == sorted(set(seqs))
        assert again == Acquired(
            key=of.key,
            instance_id="i-1",
            incarnation="inc of i-1",
            name="order",
            version="2",
            execution_id=1,
            token=again.token,
            attempt=2,
            input=b"\x00[1]",
            parent=None,
            nesting=2,
            mail=3,
            external=1,
            messages=(Message(seqs[0], accepted_ms, b"a"), Message(seqs[1], accepted_ms, b"b")),
            timers=timers,
            queued=1,
        )

    @case("C-031")
    async def test_c031_the_oldest_due_come_first_up_to_the_limit(self, store: Harness) -> None:
        provider = await store.open()
        late = await acquire(provider, "late")
        await one(provider, give_back(late, store.clock.now + 25))
        for n in range(6):
            name, version = (("order", "1"), ("order", "2"), ("refund", "1"))[n % 3]
            await start(provider, f"i-{n}", name=name, version=version)
            store.clock.advance(10)

        taken = [await claim(provider, limit=3) for _ in range(3)]

        assert [[each.instance_id for each in some] for some in taken] == [
            ["i-0", "i-1", "i-2"],
            ["late", "i-3", "i-4"],
            ["i-5"],
        ]
        await start(provider, "one more")
        assert await claim(provider, limit=0) == ()

    @case("C-031")
    async def test_c031_only_what_the_node_can_run_is_claimed(self, store: Harness) -> None:
        provider = await store.open()
        for instance_id, name, version in (
            ("1", "order", "1"),
            ("2", "order", "2"),
            ("3", "refund", "2"),
            ("4", "order", None),
            ("5", "other", None),
        ):
            await start(provider, instance_id, name=name, version=version)

        async def ids(*pairs: tuple[str, str]) -> list[str]:
            return [of.instance_id for of in await claim(provider, capabilities=frozenset(pairs))]

        assert await ids() == []
        assert await ids(("refund", "1"), ("order", "3")) == ["4"]
        assert await ids(("order", "2"), ("refund", "2"), ("refund", "1")) == ["2", "3"]
        assert await ids(("order", "1"), ("other", "7")) == ["1", "5"]

    @case("C-032", "C-033")
    async def test_c032_what_is_owned_is_not_claimed_again_and_the_others_are(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await acquire(provider)
        await start(provider, "i-2")

        assert [of.instance_id for of in await claim(provider, "n-1")] == ["i-2"]
        assert await claim(provider, "n-1") == await claim(provider, "n-2") == ()
        assert (await row(provider)).attempt == 1

    @case("C-032", needs=MULTI_PROCESS)
    async def test_c032_two_processes_never_claim_the_same_instance(self, store: Harness) -> None:
        providers = [await store.open(), await store.open()]
        await providers[0].commit([new(f"i-{n}") for n in range(60)])

        claims = [claim(providers[n % 2], f"n-{n % 2}", limit=5) for n in range(14)]
        taken = [of.key for some in await asyncio.gather(*claims) for of in some]

        assert len(taken) == len(set(taken)) == 60

    @case("C-034")
    async def test_c034_every_acquisition_has_a_token_of_its_own(self, store: Harness) -> None:
        provider = await store.open()
        await provider.commit([new(f"i-{n}") for n in range(250)])
        tokens: list[str] = []

        for _ in range(4):
            taken = await claim(provider, limit=250)
            tokens += [of.token for of in taken]
            await provider.commit([give_back(of, store.clock.now) for of in taken])

        assert len(set(tokens)) == len(tokens) == 1_000
        # 128 random bits, in whatever letters: fewer than 16 cannot hold them.
        assert min(len(token) for token in tokens) >= 16

    @case("C-035", "C-036")
    @pytest.mark.parametrize("token", ["0" * 32, "", " ", "x" * 10_000, "%", "' or 1=1 --"])
    async def test_c035_whatever_comes_with_another_token_is_fenced_and_changes_nothing(
        self, store: Harness, token: str
    ) -> None:
        provider = await store.open()
        await start(provider)
        await one(provider, note(external=True))
        (of,) = await claim(provider)
        before = await everything(provider)

        for operation in attempts_to_write(of, token):
            assert await one(provider, operation) == FENCED

        assert await everything(provider) == before
        assert await one(provider, turn(of, b"1")) == Committed()

    @case("C-035")
    async def test_c035_the_token_in_other_letters_is_another_token(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        for other in (of.token + "x", of.token[:-1], of.token.swapcase() + " ", f" {of.token}"):
            assert await one(provider, turn(of, b"1", token=other)) == FENCED

    @case("C-037")
    async def test_c037_the_token_of_another_instance_is_fenced(self, store: Harness) -> None:
        provider = await store.open()
        of, other = await acquire(provider), await acquire(provider, "i-2")
        before = await everything(provider)

        for operation in attempts_to_write(of, other.token):
            assert await one(provider, operation) == FENCED

        assert await everything(provider) == before

    @case("C-038")
    async def test_c038_the_token_of_an_earlier_acquisition_by_the_same_node_is_fenced(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        old = await acquire(provider)
        await one(provider, give_back(old, store.clock.now))
        (current,) = await claim(provider)
        before = await everything(provider)

        for operation in attempts_to_write(old, old.token):
            assert await one(provider, operation) == FENCED

        assert await everything(provider) == before
        assert await one(provider, turn(current, b"1")) == Committed()

    @case("C-039")
    async def test_c039_the_token_stays_good_until_the_instance_is_given_back(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        assert await one(provider, turn(of, b"1")) == Committed()
        assert await one(provider, continuing(of, b"2", first=2)) == Committed()
        assert await one(provider, turn(of, execution_id=2, first=2, release=True)) == Committed()
        before = await everything(provider)

        assert await one(provider, turn(of, b"3", execution_id=2, first=2)) == FENCED
        assert await one(provider, give_back(of)) == FENCED

        assert await everything(provider) == before

    @case("C-040")
    async def test_c040_a_commit_after_the_instance_was_taken_over_is_fenced(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        old = await acquire(provider)
        store.clock.advance(LEASE_MS + 1)
        assert await provider.reap_nodes("n-2") == ["n-1"]
        freed = await everything(provider)
        assert await one(provider, turn(old, b"1")) == FENCED
        assert await everything(provider) == freed

        (current,) = await claim(provider, "n-2")
        taken = await everything(provider)

        for operation in attempts_to_write(old, old.token):
            assert await one(provider, operation) == FENCED
        assert await everything(provider) == taken
        assert await one(provider, turn(current, b"1", node_id="n-2")) == Committed()

    @case("C-041", "C-042")
    async def test_c041_a_commit_after_the_end_of_the_lease_is_good_if_nobody_took_over(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        of = await acquire(provider)

        store.clock.advance(LEASE_MS)
        assert await one(provider, turn(of, b"1")) == Committed()
        store.clock.advance(LEASE_MS)
        assert await one(provider, turn(of, b"2", first=2)) == Committed()

    @case("C-046")
    async def test_c046_a_turn_of_another_execution_or_instance_is_fenced(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of, other = await acquire(provider), await acquire(provider, "i-2")
        before = await everything(provider)

        for wrong in ({"execution_id": 2}, {"execution_id": 0}, {"key": other.key}, {"key": 99}):
            assert await one(provider, turn(of, b"1", **wrong)) == FENCED

        assert await everything(provider) == before

    @case("C-048")
    async def test_c048_a_turn_of_a_deleted_instance_is_fenced(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, DeleteInstance("i-1", force=True))
        before = await everything(provider)

        for operation in attempts_to_write(of, of.token):
            assert await one(provider, operation) == FENCED

        assert await everything(provider) == before

    @case("C-049")
    async def test_c049_of_two_turns_that_give_the_same_acquisition_back_one_wins(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        turns = [turn(of, event, release=True) for event in (b"a", b"b")]

        outcomes = await asyncio.gather(*(one(provider, each) for each in turns))

        assert sorted(outcomes, key=lambda each: each == FENCED) == [Committed(), FENCED]
        winner = b"ab"[outcomes.index(Committed())]
        assert await provider.read_history("i-1") == [bytes([winner])]

    @case("C-049")
    async def test_c049_of_two_turns_of_one_acquisition_for_the_same_place_one_wins(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        turns = [one(provider, turn(of, event)) for event in (b"a", b"b")]

        outcomes = await asyncio.gather(*turns, return_exceptions=True)

        (lost,) = [each for each in outcomes if each != Committed()]
        assert isinstance(lost, ProviderError)
        assert len(await provider.read_history("i-1")) == 1

    @case("C-050")
    async def test_c050_who_gave_up_waiting_may_say_it_again_and_finds_out_by_reading(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        for number in range(10):
            of = await acquire(provider, f"i-{number}")
            giving_up = asyncio.ensure_future(provider.commit([turn(of, b"1", release=True)]))
            for _ in range(number % 3):
                await asyncio.sleep(0)
            giving_up.cancel()

            assert await one(provider, turn(of, b"1", release=True)) in (FENCED, Committed())

            assert await provider.histories([(of.key, 1)]) == [[b"1"]]
            assert (await row(provider, of.instance_id)).owner is None

    @case("C-050", needs=MULTI_PROCESS)
    async def test_c050_another_process_reads_what_was_committed(self, store: Harness) -> None:
        first, second = await store.open(), await store.open()
        of = await acquire(first)
        assert await one(first, turn(of, b"1", version="1")) == Committed()

        assert await second.histories([(of.key, 1)]) == [[b"1"]]
        assert await everything(second) == await everything(first)

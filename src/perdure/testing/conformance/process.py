"""Schemas, settings, processes and clocks (C-203 to C-230)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from perdure.client.client import Client
from perdure.core import events
from perdure.core.context import OrchestrationContext
from perdure.marks import activity, orchestration
from perdure.providers.contract import (
    Committed,
    Done,
    NewTimer,
    Provider,
    RowFilter,
    Started,
    Taken,
)
from perdure.runtime import intake
from perdure.runtime.runtime import Runtime
from perdure.testing.conformance.engine import host, recorded_of, until
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    DURABLE,
    LEASE_MS,
    MULTI_PROCESS,
    STALE,
    acquire,
    bodies,
    case,
    claim,
    claim_work,
    complete,
    ending,
    everything,
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

_MIGRATIONS = "which schemas a store has had, and how it changes them, is its own matter"
_ONE_STORE = "a matter of one kind of store: tests/providers/test_sqlite.py"

NOT_APPLICABLE: dict[str, str] = {
    "C-204": _MIGRATIONS,
    "C-205": "a matter of real processes: tests/providers/test_sqlite_processes.py, tests/kill",
    "C-207": "a store is always migrated at open; there is no setting",
    "C-208": _ONE_STORE,
    "C-209": "histories are replayed by the core: tests/core/test_golden.py",
    "C-212": "a store of this suite is one namespace",
    "C-213": _MIGRATIONS,
    "C-214": _MIGRATIONS,
    "C-215": _ONE_STORE,
    "C-216": "there is no setting that weakens durability",
    "C-217": "the file system under a file is not looked at",
    "C-218": _ONE_STORE,
    "C-219": _ONE_STORE,
    "C-220": _ONE_STORE,
    "C-221": _ONE_STORE,
    "C-222": "a matter of real processes: tests/providers/test_sqlite_processes.py",
    "C-227": "every view of a store of this suite has the store's clock",
}


@activity
async def double(number: int) -> int:
    return 2 * number


@orchestration
async def doubling(ctx: OrchestrationContext, number: int) -> int:
    for _ in range(3):
        number = await double(number)
    return sum(await asyncio.gather(double(number), double(number)))


class Deaf:
    """A provider that never tells of news."""

    def __init__(self, inner: Provider) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def watch(self, changed: Callable[[], None], node_id: str | None = None) -> Callable[[], None]:
        return lambda: None


def deaf(store: Harness) -> Provider:
    return cast(Provider, Deaf(store.unopened()))


class ProcessCases:
    """See the module."""

    @case("C-203")
    async def test_c203_a_new_store_is_empty_and_can_be_used_at_once(self, store: Harness) -> None:
        provider = await store.open()

        assert await provider.count_instances() == {}
        assert provider.now_ms() == store.clock.now
        of = await acquire(provider)
        assert await one(provider, ending(of, b"1")) == Committed()

    @case("C-203", needs=DURABLE)
    async def test_c203_a_store_is_opened_again_and_again_and_stays_the_same(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        work = turn(of, b"1", activities=(queued(2),), timers=(NewTimer(3, 9),), release=True)
        await provider.commit([work, note(), note(queue="q", event_id="e"), new("other")])
        before = await everything(provider)

        for _ in range(3):
            provider = await store.reopen()
            assert await everything(provider) == before

    @case("C-203", needs=DURABLE)
    async def test_c203_keys_and_numbers_of_messages_are_not_used_again(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        of = await acquire(provider)
        await one(provider, note())
        (mail,) = (await provider.survey("n-1", frozenset(), frozenset())).mail
        seq = mail.messages[0].seq
        last = ending(of, b"1", consumed=(seq,))
        await one(provider, last)

        provider = await store.reopen()

        assert await start(provider, "i-2") > of.key
        await one(provider, note("i-2"))
        (again,) = await claim(provider)
        assert again.messages[0].seq > seq

    @case("C-206", needs=MULTI_PROCESS)
    async def test_c206_ten_may_open_an_empty_store_at_once(self, store: Harness) -> None:
        providers = await asyncio.gather(*(store.open() for _ in range(10)))

        await asyncio.gather(*(start(each, f"i-{n}") for n, each in enumerate(providers)))

        for each in providers:
            assert await each.count_instances() == {"pending": 10}

    @case("C-210")
    async def test_c210_a_node_does_not_claim_what_it_cannot_run(self, store: Harness) -> None:
        provider = await store.open()
        await start(provider, "other name", name="refund", version="9")
        await start(provider, "other version", version="2")
        await start(provider, "any version", version=None)
        able = frozenset({("order", "1"), ("refund", "1")})

        claimed = await claim(provider, capabilities=able)

        assert [of.instance_id for of in claimed] == ["any version"]
        for instance_id in ("other name", "other version"):
            found = await row(provider, instance_id)
            assert (found.owner, found.attempt) == (None, 0)
        waiting = await provider.unrunnable(able, 9)
        assert [each.instance_id for each in waiting] == ["other name", "other version"]
        assert await claim(provider, capabilities=frozenset()) == ()

    @case("C-211")
    async def test_c211_versions_are_compared_as_text(self, store: Harness) -> None:
        provider = await store.open()
        versions = ["1", "1.0", "01", "1.1", "1.10", "10", "9" * 64]
        await provider.commit([new(each, version=each) for each in versions])

        for each in versions:
            (of,) = await claim(provider, capabilities=frozenset({("order", each)}))
            assert of.version == each

    @case("C-223")
    async def test_c223_sixteen_threads_may_renew_leases_beside_the_loop(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        for n in range(16):
            await provider.register_node(f"n-{n}", LEASE_MS)
        beaten: list[bool] = []

        def beat(node_id: str) -> None:
            for _ in range(10):
                beaten.append(provider.beat(node_id))

        threads = [threading.Thread(target=beat, args=(f"n-{n}",)) for n in range(16)]
        for thread in threads:
            thread.start()
        for n in range(20):
            await start(provider, f"i-{n}")
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))

        assert beaten == [True] * 160
        assert await provider.count_instances() == {"pending": 20}

    @case("C-224", needs=MULTI_PROCESS)
    async def test_c224_two_event_loops_share_a_store(self, store: Harness) -> None:
        provider = await store.open()

        async def elsewhere() -> None:
            other = store.unopened()
            await other.open()
            for n in range(20):
                await start(other, f"there-{n}")
            await other.close()

        thread = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        for n in range(20):
            await start(provider, f"here-{n}")
        await thread

        assert await provider.count_instances() == {"pending": 40}

    @case("C-225", needs=MULTI_PROCESS)
    async def test_c225_eight_nodes_share_the_work_and_none_does_it_twice(
        self, store: Harness
    ) -> None:
        providers = [await store.open() for _ in range(8)]
        await providers[0].commit([new(f"i-{n}") for n in range(200)])
        seen: list[int] = []

        async def work(provider: Provider, node_id: str) -> None:
            await provider.register_node(node_id, LEASE_MS)
            while claimed := await claim(provider, node_id, limit=7):
                seen.extend(of.key for of in claimed)
                last = [ending(of, b"by", node_id=node_id) for of in claimed]
                assert await provider.commit(last) == [Committed()] * len(claimed)

        await asyncio.gather(*(work(each, f"n-{n}") for n, each in enumerate(providers)))

        assert len(seen) == len(set(seen)) == 200
        assert await providers[0].count_instances() == {"completed": 200}
        histories = await providers[0].histories([(key, 1) for key in seen])
        assert histories == [[b"by"]] * 200

    @case("C-225", needs=MULTI_PROCESS)
    async def test_c225_of_many_starts_of_one_id_one_wins_everywhere(self, store: Harness) -> None:
        providers = [await store.open() for _ in range(8)]

        outcomes = await asyncio.gather(
            *(one(each, new(incarnation=f"by {n}")) for n, each in enumerate(providers))
        )

        (winner,) = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Started)]
        for n, outcome in enumerate(outcomes):
            if n != winner:
                assert is_a(Taken, outcome).instance.incarnation == f"by {winner}"

    @case("C-226", needs=MULTI_PROCESS)
    async def test_c226_a_start_beside_busy_writers_is_acknowledged_in_time(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        writers = [await store.open() for _ in range(4)]
        over = asyncio.Event()

        async def write(through: Provider, number: int) -> int:
            batches = 0
            while not over.is_set():
                await asyncio.sleep(0)
                await through.commit([new(f"w-{number}-{batches}-{n}") for n in range(20)])
                batches += 1
            return batches

        writing = [asyncio.create_task(write(each, n)) for n, each in enumerate(writers)]
        for n in range(20):
            async with asyncio.timeout(2):
                await start(provider, f"i-{n}")
        over.set()

        assert min(await asyncio.gather(*writing)) >= 1

    @case("C-228")
    async def test_c228_a_clock_that_jumps_back_makes_a_timer_late_and_loses_nothing(
        self, store: Harness
    ) -> None:
        provider = await store.open()
        await provider.register_node("n-1", LEASE_MS)
        of = await acquire(provider)
        due_ms = store.clock.now + 100
        parked = turn(
            of,
            b"1",
            timers=(NewTimer(1, due_ms),),
            settle=True,
            set_due=True,
            due_ms=due_ms,
            release=True,
        )
        await one(provider, parked)

        store.clock.advance(-3_600_000)

        assert await claim(provider) == ()
        assert provider.beat("n-1")
        assert await provider.reap_nodes("other") == []
        await one(provider, note(body=b"in the past"))
        (again,) = await claim(provider)
        assert [message.body for message in again.messages] == [b"in the past"]
        assert (
            await one(
                provider,
                turn(again, b"2", first=2, settle=True, set_due=True, due_ms=due_ms, release=True),
            )
            == Committed()
        )
        store.clock.advance(3_600_000 + 99)
        assert await claim(provider) == ()
        store.clock.advance(1)
        assert len(await claim(provider)) == 1

    @case("C-229", needs=MULTI_PROCESS)
    async def test_c229_a_clock_that_jumps_over_a_lease_repeats_work_and_ends_it_once(
        self, store: Harness
    ) -> None:
        provider, other = await store.open(), await store.open()
        await provider.register_node("n-1", LEASE_MS)
        await other.register_node("n-2", 10**12)
        of = await acquire(provider)
        await one(provider, turn(of, b"1", activities=(running(1),), settle=True))

        store.clock.advance(LEASE_MS + 1)
        assert await other.reap_nodes("n-2") == ["n-1"]

        (work,) = (await claim_work(other, node_id="n-2")).activities
        assert work.attempt == 2
        assert await one(provider, complete(of, body=b"late")) == STALE
        again = complete(of, node_id="n-2", attempt=2, body=b"once")
        assert await one(other, again) == Done()
        (held,) = await claim(other, "n-2")
        assert [message.body for message in held.messages] == [b"once"]
        assert await bodies(other, "n-2") == [b"once"]

    @case("C-230", needs=MULTI_PROCESS)
    async def test_c230_what_another_process_did_is_seen_without_being_told(
        self, store: Harness
    ) -> None:
        provider, other = await store.open(), await store.open()

        for n in range(20):
            of = await acquire(provider, f"i-{n}")
            assert await row(other, f"i-{n}") == await row(provider, f"i-{n}")
            await one(other, note(f"i-{n}", b"mail"))
            assert await bodies(provider) == [b"mail"]
            await one(provider, ending(of, b"1"))
            assert (await row(other, f"i-{n}")).status == "completed"
        assert len(await other.list_instances(RowFilter(status="completed"))) == 20

    @case("C-225", needs=MULTI_PROCESS)
    async def test_c225_four_runtimes_finish_what_is_started_and_record_it_once(
        self, store: Harness
    ) -> None:
        first, *others = (host(store, doubling, double) for _ in range(4))
        async with first, others[0], others[1], others[2]:
            client = first.client
            handles = [
                await runtime.client.start_orchestration(doubling, n, instance_id=f"i-{n}")
                for n, runtime in enumerate([first, *others] * 10)
            ]

            results = [await handle.result() for handle in handles]

            assert results == [32 * n for n in range(40)]
            for n in range(40):
                completed = await recorded_of(client, f"i-{n}", events.ActivityCompleted)
                assert len({event.source_event_id for event in completed}) == len(completed) == 5

    @case("C-230", needs=MULTI_PROCESS)
    async def test_c230_without_notifications_everything_happens_a_little_later(
        self, store: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake, "IDLE_POLL_S", 0.1)
        runtime = Runtime(deaf(store), [doubling, double])
        async with runtime, Client(deaf(store)) as client:
            await client.start_orchestration(doubling, 1, instance_id="i-1")

            async def has_ended() -> bool:
                return (await client.get_instance("i-1")).finished_ms is not None

            await until(has_ended)
            assert (await client.get_instance("i-1")).output == 32

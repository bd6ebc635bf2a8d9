"""The committer: groups, their order, several in flight, outages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from random import Random
from typing import Any, cast

from provider_world import new, note

from perdure.errors import ProviderError, StoreClosed, StoreUnavailable
from perdure.providers import committer as module
from perdure.providers.committer import Committer
from perdure.providers.contract import (
    ClaimActivities,
    CompleteActivity,
    DeleteInstance,
    Done,
    Operation,
    Outcome,
    Provider,
    PruneExecutions,
    Retention,
    StartInstance,
)
from perdure.providers.touched import EVERYTHING, touched


class Store:
    """A provider whose commits end when the test says so."""

    def __init__(self, batches_at_once: int) -> None:
        self.batches_at_once = batches_at_once
        self.batches: list[tuple[list[Operation], asyncio.Future[list[Outcome]]]] = []

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self.batches.append((list(batch), future))
        return future

    @property
    def seen(self) -> list[list[Operation]]:
        """The batches so far."""
        return [batch for batch, _ in self.batches]

    async def end(self, number: int, error: BaseException | None = None) -> None:
        """End a commit, and let what follows happen."""
        batch, future = self.batches[number]
        if error is None:
            future.set_result([Done() for _ in batch])
        else:
            future.set_exception(error)
        await settle()

    async def batch(self, number: int) -> list[Operation]:
        """The batch of that number, once it is there."""
        async with asyncio.timeout(20):
            while len(self.batches) <= number:
                await asyncio.sleep(0.001)
        return self.batches[number][0]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Told:
    """A committer on such a store, and the outcomes that it has told."""

    def __init__(self, batches_at_once: int = 2) -> None:
        self.store = Store(batches_at_once)
        self.committer = Committer(cast(Provider, self.store), Random(1))
        self.outcomes: dict[str, Outcome | BaseException] = {}

    async def submit(self, **operations: Operation) -> None:
        for name, operation in operations.items():
            self.committer.submit(operation, lambda found, name=name: self._tell(name, found))
        await settle()

    def _tell(self, name: str, outcome: Outcome | BaseException) -> None:
        assert name not in self.outcomes, "told twice"
        self.outcomes[name] = outcome

    @property
    def names(self) -> list[str]:
        return list(self.outcomes)


def complete(key: int) -> CompleteActivity:
    return CompleteActivity(key, 1, 1, "n-1", 1, b"")


CLAIM = ClaimActivities("n-1", frozenset({"pay"}), 9)


def run(test: Any) -> None:
    asyncio.run(test)


def test_what_comes_while_a_batch_is_committed_is_the_next_batch() -> None:
    async def script() -> None:
        told = Told(1)
        await told.submit(a=note("i-1"))
        await told.submit(b=note("i-2"))
        await told.submit(c=note("i-3"))
        assert told.store.seen == [[note("i-1")]]

        await told.store.end(0)

        assert told.names == ["a"]
        assert told.store.seen[1:] == [[note("i-2"), note("i-3")]]
        await told.store.end(1)
        assert told.names == ["a", "b", "c"]

    run(script())


def test_batches_in_flight_at_once_touch_different_instances() -> None:
    async def script() -> None:
        told = Told()
        await told.submit(a=note("i-1"))
        await told.submit(b=note("i-1", b"again"), c=note("i-2"))

        assert told.store.seen == [[note("i-1")], [note("i-2")]]
        await told.store.end(1)
        assert told.names == ["c"]
        assert len(told.store.seen) == 2
        await told.store.end(0)
        assert told.store.seen[2:] == [[note("i-1", b"again")]]
        await told.store.end(2)
        assert told.names == ["c", "a", "b"]

    run(script())


def test_what_waits_for_an_instance_keeps_its_order_with_what_waits_for_it() -> None:
    async def script() -> None:
        told = Told()
        both = new("i-2", if_taken=note("i-1"))
        await told.submit(a=note("i-1"))
        await told.submit(b=both, c=note("i-2"), d=note("i-3"))

        assert told.store.seen == [[note("i-1")], [note("i-3")]]
        await told.store.end(0)
        assert told.store.seen[2:] == [[both, note("i-2")]]

    run(script())


def test_no_more_batches_are_in_flight_than_the_store_takes() -> None:
    async def script() -> None:
        told = Told(2)
        for number in range(4):
            await told.submit(**{f"n{number}": note(f"i-{number}")})

        assert len(told.store.seen) == 2
        await told.store.end(1)
        assert told.store.seen[2:] == [[note("i-2"), note("i-3")]]

    run(script())


def test_a_deletion_is_alone_in_flight() -> None:
    async def script() -> None:
        told = Told()
        await told.submit(a=note("i-1"))
        await told.submit(b=DeleteInstance("i-9"))
        await told.submit(c=note("i-2"))
        assert len(told.store.seen) == 1

        await told.store.end(0)

        assert told.store.seen[1:] == [[DeleteInstance("i-9")]]
        await told.submit(d=note("i-3"))
        assert len(told.store.seen) == 2
        await told.store.end(1)
        assert told.store.seen[2:] == [[note("i-2"), note("i-3")]]

    run(script())


def test_while_a_batch_waits_to_be_tried_again_no_other_starts() -> None:
    async def script() -> None:
        told = Told()
        await told.submit(a=note("i-1"))
        await told.store.end(0, StoreUnavailable("away"))
        assert told.committer.degraded == "away"
        await told.submit(b=note("i-2"))

        assert await told.store.batch(1) == [note("i-1")]
        assert len(told.store.seen) == 2
        await told.store.end(1)

        assert told.committer.degraded is None
        assert told.names == ["a"]
        assert told.store.seen[2:] == [[note("i-2")]]

    run(script())


def test_a_value_that_is_refused_leaves_its_neighbours_and_other_batches_alone() -> None:
    async def script() -> None:
        told = Told()
        await told.submit(a=note("i-1"), bad=note("i-2"))
        await told.submit(c=note("i-3"))
        await told.store.end(0, ProviderError("some value"))

        assert await told.store.batch(2) == [note("i-1")]
        await told.store.end(2)
        assert await told.store.batch(3) == [note("i-2")]
        await told.store.end(3, ProviderError("this value"))
        await told.store.end(1)

        assert told.outcomes["a"] == told.outcomes["c"] == Done()
        assert str(told.outcomes["bad"]) == "this value"

    run(script())


def test_a_commit_without_an_answer_is_an_outage_until_it_has_one(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "SLOW_S", 0.02)

    async def script() -> None:
        told = Told()
        await told.submit(a=note("i-1"))
        async with asyncio.timeout(20):
            while told.committer.degraded is None:
                await asyncio.sleep(0.005)
        assert "no answer" in told.committer.degraded
        # Whoever stops does not wait for its end.
        await told.committer.drain()
        assert told.names == []

        await told.store.end(0)

        assert told.committer.degraded is None
        assert told.names == ["a"]

    run(script())


def test_closing_in_an_outage_refuses_whatever_is_left() -> None:
    async def script() -> None:
        told = Told()
        await told.submit(a=note("i-1"))
        await told.store.end(0, StoreUnavailable("away"))
        await told.submit(b=note("i-2"))

        await told.committer.close()

        assert all(isinstance(found, StoreClosed) for found in told.outcomes.values())
        assert sorted(told.names) == ["a", "b"]

    run(script())


def test_what_an_operation_touches() -> None:
    start = StartInstance("i-1", "inc", "order", "1", b"", sends=(note("i-2"),))

    assert set(touched(start)) == {"i-1", "i-2"}
    assert touched(complete(7)) == (7,)
    assert touched(CLAIM) == ()
    assert touched(PruneExecutions("i-3", Retention(1))) == ("i-3",)
    assert touched(DeleteInstance("i-4")) is EVERYTHING

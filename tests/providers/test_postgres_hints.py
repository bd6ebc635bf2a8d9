"""What processes tell each other about their commits: whom it concerns, and nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from provider_world import (
    LEASE_MS,
    World,
    acquire,
    claim_work,
    new,
    note,
    one,
    queued,
    turn,
)

from perdure.providers.contract import NewActivity, Operation
from perdure.providers.postgres.hints import Hint, decode
from perdure.testing.conformance.kit import complete, continuing, ending, give_back

EVERYTHING = Hint(everything=True)


@pytest.fixture
def store(postgres_url: str, tmp_path: Path) -> World:
    return World("postgres", tmp_path, postgres_url)


async def told(provider: Any, operation: Operation) -> Hint:
    """What others are told of one operation."""
    hints: list[Hint] = []
    provider._session.tell = hints.append
    await one(provider, operation)
    del provider._session.tell
    (hint,) = hints
    return hint


async def test_a_message_is_told_to_the_node_that_has_the_instance(store: World) -> None:
    owner, other = await store.open(), await store.open()
    await owner.register_node("n-1", LEASE_MS)
    await acquire(owner)

    assert await told(other, note()) == Hint(nodes={"n-1"})
    assert await told(owner, note()) == Hint()


async def test_a_completion_wakes_the_owner_alone(store: World) -> None:
    owner, other = await store.open(), await store.open()
    await owner.register_node("n-1", LEASE_MS)
    of = await acquire(owner)
    await one(owner, turn(of, b"1", activities=(queued(1),)))
    await claim_work(other, node_id="n-2")

    assert await told(other, complete(of, 1, node_id="n-2")) == Hint(nodes={"n-1"})


async def test_a_completion_for_an_instance_that_nobody_has_is_work_for_all(store: World) -> None:
    provider = await store.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"1", activities=(queued(1),), release=True, set_due=True))
    await claim_work(provider, node_id="n-2")

    assert await told(provider, complete(of, 1, node_id="n-2")) == Hint(work=True)


async def test_what_any_node_may_take_is_told_to_all(store: World) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    work = Hint(work=True)

    of = await acquire(provider, "i-1")
    assert await told(provider, new("i-2")) == work
    assert await told(provider, note("i-2")) == work
    assert await told(provider, turn(of, b"1", activities=(queued(1),))) == work
    assert await told(provider, give_back(of, due_ms=1)) == work


async def test_what_stays_on_its_node_is_told_to_nobody(store: World) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    of = await acquire(provider)

    local = NewActivity(1, "pay", b"[]", claimed=True)
    assert not await told(provider, turn(of, b"1", activities=(local,)))
    assert not await told(provider, new("i-2", owner="n-1", token="t"))
    assert not await told(provider, give_back(of, due_ms=None))


async def test_the_end_of_an_execution_is_told_to_clients(store: World) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    of = await acquire(provider)

    assert await told(provider, continuing(of, b"1")) == Hint(ended=True)
    assert not Hint(ended=True).concerns("n-1")


async def test_the_end_of_an_instance_is_told_to_clients(store: World) -> None:
    provider = await store.open()
    of = await acquire(provider)

    assert await told(provider, ending(of, b"1")) == Hint(ended=True)


@pytest.mark.parametrize(
    ("hint", "concerned"),
    [
        (Hint(nodes={"n-1", "n-3"}), True),
        (Hint(nodes={"n-3"}), False),
        (Hint(work=True), True),
        (Hint(ended=True), False),
        (Hint(nodes={"n-3"}, work=True, ended=True), True),
        (EVERYTHING, True),
    ],
)
def test_a_hint_arrives_as_it_was_sent(hint: Hint, concerned: bool) -> None:
    sender, arrived = decode(hint.encoded("me"))

    assert sender == "me"
    assert arrived == hint
    assert arrived.concerns("n-1") is concerned


def test_a_hint_for_more_nodes_than_fit_is_for_all() -> None:
    payload = Hint(nodes={f"{n:032x}" for n in range(1_000)}).encoded("me")

    assert len(payload) < 8_000
    assert decode(payload) == ("me", EVERYTHING)


@pytest.mark.parametrize("payload", ["", "x", "me *", "\N{SNOWMAN} ?? \N{SNOWMAN}", "me  n-1"])
def test_what_cannot_be_read_stands_for_everything(payload: str) -> None:
    assert decode(payload)[1] == EVERYTHING

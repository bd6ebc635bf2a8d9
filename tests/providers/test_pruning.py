"""Pruning: what goes, what stays, and that the current execution always does."""

from __future__ import annotations

import pytest
from provider_world import World

from perdure.providers.contract import (
    CommitTurn,
    Ending,
    NextExecution,
    NotFound,
    Provider,
    Pruned,
    PruneExecutions,
    Retention,
    Started,
    StartInstance,
)


async def generations(world: World, provider: Provider, number: int) -> CommitTurn:
    """An instance in its execution `number`; every one ended 10 ms after the one before. Returns
    the turn that would end the current one."""
    await provider.register_node("n", 10**9)
    [outcome] = await provider.commit(
        [StartInstance("a", "inc", "x", "1", b"0", owner="n", token="t")]
    )
    assert isinstance(outcome, Started)
    turn = ending(outcome.key, 1)
    for execution_id in range(1, number):
        await provider.commit([turn])
        world.clock.now += 10
        turn = ending(outcome.key, execution_id + 1)
    return turn


def ending(key: int, execution_id: int, retention: Retention | None = None) -> CommitTurn:
    return CommitTurn(
        key=key,
        token="t",
        node_id="n",
        execution_id=execution_id,
        first_event_id=2 if execution_id > 1 else 1,
        events=(b"e", b"f"),
        mail_seen=0,
        ending=Ending("continued_as_new"),
        next=NextExecution(execution_id + 1, "1", b"0", b"started"),
        retention=retention,
    )


async def left(provider: Provider) -> list[int]:
    return [row.execution_id for row in await provider.list_executions("a")]


@pytest.mark.parametrize(
    ("keep", "stay"), [(1, [5]), (2, [4, 5]), (5, [1, 2, 3, 4, 5]), (99, [1, 2, 3, 4, 5])]
)
async def test_the_newest_executions_stay(world: World, keep: int, stay: list[int]) -> None:
    provider = await world.open()
    await generations(world, provider, 5)

    [outcome] = await provider.commit([PruneExecutions("a", Retention(keep))])

    gone = [number for number in range(1, 6) if number not in stay]
    events = sum(2 if number == 1 else 3 for number in gone)
    assert outcome == Pruned(len(gone), events)
    assert await left(provider) == stay
    for number in gone:
        assert await provider.read_history("a", number) == []
    assert await provider.read_history("a") == [b"started"]


async def test_with_an_age_both_conditions_must_hold(world: World) -> None:
    provider = await world.open()
    await generations(world, provider, 5)
    ends = {row.execution_id: row.ended_ms for row in await provider.list_executions("a")}

    await provider.commit([PruneExecutions("a", Retention(4, ends[3]))])
    assert await left(provider) == [2, 3, 4, 5]
    await provider.commit([PruneExecutions("a", Retention(1, ends[3]))])
    assert await left(provider) == [3, 4, 5]


async def test_the_current_execution_stays_also_when_it_has_ended(world: World) -> None:
    provider = await world.open()
    turn = await generations(world, provider, 3)
    last = CommitTurn(
        key=turn.key,
        token="t",
        node_id="n",
        execution_id=3,
        first_event_id=2,
        events=(b"end",),
        mail_seen=0,
        ending=Ending("completed", output=b"1"),
    )
    await provider.commit([last])

    assert await provider.commit([PruneExecutions("a", Retention(1))]) == [Pruned(2, 5)]
    assert await provider.commit([PruneExecutions("a", Retention(1))]) == [Pruned(0, 0)]
    assert await provider.read_history("a", 3) == [b"started", b"end"]
    assert (await provider.get_instances(["a"]))["a"].output == b"1"


async def test_a_turn_prunes_by_its_retention_after_it_has_continued_as_new(world: World) -> None:
    provider = await world.open()
    turn = await generations(world, provider, 4)

    await provider.commit([ending(turn.key, 4, Retention(2))])

    assert await left(provider) == [4, 5]


async def test_an_unknown_instance_is_not_found(world: World) -> None:
    provider = await world.open()
    assert await provider.commit([PruneExecutions("a", Retention(1))]) == [NotFound()]


async def test_other_instances_are_not_touched(world: World) -> None:
    provider = await world.open()
    await generations(world, provider, 3)
    await provider.commit([StartInstance("b", "inc-b", "x", None, b"0")])

    outcomes = await provider.commit(
        [PruneExecutions("b", Retention(1)), PruneExecutions("a", Retention(1))]
    )

    assert outcomes == [Pruned(0, 0), Pruned(2, 5)]
    assert [row.execution_id for row in await provider.list_executions("b")] == [1]

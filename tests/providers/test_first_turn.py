"""A start that carries its first turn: both, or neither."""

from __future__ import annotations

from provider_world import World

from perdure.providers.contract import (
    Committed,
    CommitTurn,
    Ending,
    NewActivity,
    NewTimer,
    SendMessage,
    Started,
    StartInstance,
    Taken,
)


def start(key: int, turn: CommitTurn | None, instance_id: str = "a") -> StartInstance:
    return StartInstance(
        instance_id,
        f"inc-{key}",
        "x",
        None,
        b"1",
        owner="n-1",
        token=f"t-{key}",
        key=key,
        turn=turn,
    )


def first_turn(key: int, **more: object) -> CommitTurn:
    return CommitTurn(
        key=key,
        token=f"t-{key}",
        node_id="n-1",
        execution_id=1,
        first_event_id=1,
        events=(b'{"e":1}', b'{"e":2}'),
        mail_seen=0,
        version="1",
        settle=True,
        set_due=True,
        **more,  # type: ignore[arg-type]
    )


async def test_a_start_with_its_first_turn_leaves_what_the_two_would_have_left(
    world: World,
) -> None:
    provider = await world.open()
    await provider.register_node("n-1", 10_000)
    key = provider.reserve_key()
    assert key
    turn = first_turn(
        key, activities=(NewActivity(2, "act", b"2", True),), timers=(NewTimer(3, 9),)
    )

    assert await provider.commit([start(key, turn)]) == [Started(key, Committed())]

    row = (await provider.get_instances(["a"]))["a"]
    assert (row.key, row.status, row.version, row.attempt) == (key, "running", "1", 0)
    assert row.due_ms is None
    assert await provider.read_history("a") == [b'{"e":1}', b'{"e":2}']
    assert await provider.lost_activities("n-1", [(key, 1, 2)]) == []


async def test_a_taken_id_takes_nothing_of_the_first_turn(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", 10_000)
    one, other = provider.reserve_key(), provider.reserve_key()
    await provider.commit([start(one, first_turn(one))])
    turn = first_turn(
        other,
        activities=(NewActivity(2, "act", b"2", True),),
        sends=(SendMessage("a", b"m"),),
        starts=(StartInstance("child", "c", "x", None, b""),),
    )

    [outcome] = await provider.commit([start(other, turn)])

    assert isinstance(outcome, Taken)
    assert outcome.instance.key == one
    assert await provider.lost_activities("n-1", [(other, 1, 2)]) == [(other, 1, 2)]
    assert list(await provider.get_instances(["a", "child"])) == ["a"]
    assert (await provider.survey("n-1", frozenset(), frozenset())).mail == ()


async def test_what_the_first_turn_starts_and_sends_has_its_outcomes(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", 10_000)
    key = provider.reserve_key()
    turn = first_turn(
        key,
        starts=(StartInstance("child", "c", "x", None, b""),),
        sends=(SendMessage("nobody", b"m"),),
        ending=Ending("completed", output=b"3"),
    )

    [outcome] = await provider.commit([start(key, turn)])

    assert isinstance(outcome, Started)
    assert outcome.committed is not None
    assert outcome.committed.dropped == 1
    assert [type(child) for child in outcome.committed.starts] == [Started]
    assert (await provider.get_instances(["a"]))["a"].output == b"3"


async def test_keys_are_never_given_twice(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", 10_000)
    reserved = {provider.reserve_key() for _ in range(100)}
    outcomes = await provider.commit(
        [StartInstance(f"i{n}", f"{n}", "x", None, b"") for n in range(100)]
    )
    given = {outcome.key for outcome in outcomes if isinstance(outcome, Started)}
    assert len(reserved | given) == 200

"""A store in PostgreSQL does not differ from one in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from provider_world import World
from test_same import (
    Made,
    Side,
    committed,
    filters,
    next_event_ids,
    opening,
    operations,
    snapshots,
    visible,
)

from perdure.providers.contract import CommitTurn, Operation
from perdure.providers.memory import MemoryStore
from perdure.providers.postgres.connections import Database
from perdure.providers.postgres.provider import KEYS
from postgres_server import new_schema, with_schema

_NUMBERS = (
    "select case when k.is_called then k.last_value else 0 end, "
    "case when s.is_called then s.last_value else 0 end from instance_keys k, inbox_seq_seq s"
)


async def two_sides(folder: Path, url: str) -> list[Side]:
    sides = [Side("memory", folder), Side("memory", folder)]
    sides[1].world = World("postgres", folder, url)
    for side in sides:
        side.provider = await side.world.open()
        for node in ("n-1", "n-2"):
            await side.provider.register_node(node, 10**9)
        # The keys that PostgreSQL has reserved are handed out by the sides themselves.
        side.taken_out = True
    sides[0].world.memory.last_key = KEYS
    return sides


def possible(batch: list[Operation], memory: MemoryStore) -> list[Operation]:
    """The batch without what no engine does, and where the two may differ: messages consumed that
    do not exist yet, and items put in twice of an execution that ends in the same batch."""
    ends = any(isinstance(each, CommitTurn) and each.ending is not None for each in batch)
    return [
        _possible(each, memory, ends) if isinstance(each, CommitTurn) else each for each in batch
    ]


def _possible(turn: CommitTurn, memory: MemoryStore, ends: bool) -> CommitTurn:
    consumed = tuple(seq for seq in turn.consumed if seq <= memory.last_seq)
    activities, timers = turn.activities, turn.timers
    instance = memory.instances.get(turn.key)
    if ends and instance is not None:
        number = turn.execution_id
        activities = tuple(a for a in activities if (number, a.event_id) not in instance.activities)
        timers = tuple(t for t in timers if (number, t.event_id) not in instance.timers)
    return msgspec.structs.replace(turn, consumed=consumed, activities=activities, timers=timers)


async def compare(data: st.DataObject, folder: Path, url: str) -> None:
    sides = await two_sides(folder, url)
    memory, postgres = sides
    admin = await Database(url).connect()
    makers: list[Made] = [opening(instance_id) for instance_id in ("a", "b", "c")]
    try:
        for _ in range(data.draw(st.integers(2, 12))):
            store = memory.world.memory
            batches = [possible([make(side) for make in makers], store) for side in sides]
            outcomes = [await committed(*each) for each in zip(sides, batches, strict=True)]
            last_key, last_seq = await admin.fetchrow(_NUMBERS)
            if store.last_seq > last_seq:
                # A message that went in the batch in which it came had no number in PostgreSQL.
                return
            store.last_key, store.last_seq = last_key, last_seq
            assert outcomes[0] == outcomes[1], batches[0]
            freed = data.draw(st.sampled_from([None] * 9 + ["n-1"]))
            advance = data.draw(st.integers(0, 15))
            for side in sides:
                if freed is not None:
                    await side.provider.release_node(freed)
                side.world.clock.advance(advance)
            rows = data.draw(st.lists(filters(memory.world.clock.now), max_size=3))
            here, there = [await visible(side.provider, rows) for side in sides]
            assert {name: there[name] for name in here if here[name] != there[name]} == {}, (
                here,
                batches[0],
            )
            first, known = await next_event_ids(memory.provider), await snapshots(memory.provider)
            makers = data.draw(st.lists(operations(memory, first, known), min_size=1, max_size=6))
    finally:
        await admin.close()
        for side in (memory, postgres):
            await side.world.close()


@pytest.mark.slow
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_batches_have_the_same_outcomes_and_leave_the_same_rows(
    data: st.DataObject, postgres_server: Any, tmp_path: Path
) -> None:
    asyncio.run(compare(data, tmp_path, with_schema(postgres_server, new_schema())))

"""A store in a folder does not differ from one in memory, however often it is opened again."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from filesystem_world import crashed
from hypothesis import given, settings
from hypothesis import strategies as st
from provider_world import World
from test_filesystem_readable import written
from test_same import (
    Made,
    Side,
    committed,
    next_event_ids,
    opening,
    operations,
    snapshots,
    visible,
)

from perdure.providers.filesystem.tables import KEYS

NODES = ("n-1", "n-2")


async def open_side(side: Side) -> None:
    side.provider = await side.world.open()
    for node in NODES:
        await side.provider.register_node(node, 10**9)


async def reopen(memory: Side, folder: Side, crash: Path | None) -> None:
    """Open the folder again (crash: a copy made before it is closed), and let the nodes of memory
    die, too."""
    for node in NODES:
        await memory.provider.release_node(node)
        await memory.provider.register_node(node, 10**9)
    if crash is not None:
        crashed(folder.world, crash)
    await folder.world.close()
    if crash is not None:
        clock = folder.world.clock
        folder.world = World("filesystem", crash.parent)
        folder.world.path, folder.world.clock = crash, clock
    await open_side(folder)
    assert folder.world.folder is not None
    tables = folder.world.folder.tables
    # Keys that may have been given out are not given out again.
    assert 0 <= tables.last_key - memory.world.memory.last_key <= KEYS
    memory.world.memory.last_key = tables.last_key


async def compare(data: st.DataObject, path: Path) -> None:
    sides = [Side(kind, path) for kind in ("memory", "filesystem")]
    memory, folder = sides
    for side in sides:
        await open_side(side)
    makers: list[Made] = [opening(instance_id) for instance_id in ("a", "b", "c")]
    try:
        for step in range(data.draw(st.integers(2, 12))):
            batches = [[make(side) for make in makers] for side in sides]
            outcomes = [await committed(*each) for each in zip(sides, batches, strict=True)]
            assert outcomes[0] == outcomes[1], batches[0]
            advance = data.draw(st.integers(0, 15))
            for side in sides:
                side.world.clock.advance(advance)
            again = data.draw(st.sampled_from([None] * 4 + ["closed", "crashed"]))
            if again is not None:
                await reopen(memory, folder, path / f"{step}" if again == "crashed" else None)
            assert await visible(memory.provider, []) == await visible(folder.provider, [])
            first, known = await next_event_ids(memory.provider), await snapshots(memory.provider)
            makers = data.draw(st.lists(operations(memory, first, known), min_size=1, max_size=6))
        await written(folder.world, folder.provider)
    finally:
        for side in sides:
            await side.world.close()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_batches_have_the_same_outcomes_as_in_memory_also_after_an_opening(
    data: st.DataObject,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(data, Path(folder)))

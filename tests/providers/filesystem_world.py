"""What the tests of the filesystem provider share: its rows, a load of every kind, and crashes."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
from provider_world import CAPS, World, claim, claim_work, new, note, one, queued, start, turn

from perdure.providers.contract import (
    ClaimInstances,
    CompleteActivity,
    DeleteInstance,
    Ending,
    NewTimer,
    NextExecution,
    Provider,
    PruneExecutions,
    ReleaseInstance,
    Retention,
    RetryActivity,
)
from perdure.providers.filesystem import FilesystemStore
from perdure.providers.filesystem.tables import JournaledTables
from perdure.providers.memory.rows import Instance


def rows(tables: JournaledTables) -> dict[int, Instance]:
    """A copy of all rows, as they are when nobody holds anything."""
    found = {}
    for key, instance in tables.instances.items():
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(instance), type=Instance)
        copy.owner = copy.token = None
        for activity in copy.activities.values():
            activity.owner = None
        copy.queues = {name: items for name, items in copy.queues.items() if items}
        found[key] = copy
    return found


def tables_of(world: World) -> JournaledTables:
    assert world.folder is not None
    return world.folder.tables


async def rows_at(path: Path, world: World) -> dict[int, Instance]:
    """The rows of another store, opened and closed; its clock is the world's."""
    store = FilesystemStore(path, world.clock)
    await store.acquire()
    try:
        return rows(store.tables)
    finally:
        await store.release()


def crashed(world: World, path: Path) -> Path:
    """The store as it would be found if its process died now."""
    # A readable file may just go; the rest is copied all the same.
    with suppress(shutil.Error):
        shutil.copytree(world.path, path)
    return path


async def load(provider: Provider, world: World) -> AsyncIterator[None]:
    """Commits of every kind, one at each step."""
    await start(provider)
    yield
    (of,) = await claim(provider)
    yield
    await one(provider, turn(of, b'{"a":1}', b"[2]", activities=(queued(2),), version="1"))
    yield
    await one(provider, turn(of, b"[3]", first=3, timers=(NewTimer(3, world.clock.now + 5),)))
    yield
    (claimed,) = (await claim_work(provider)).activities
    yield
    place = claimed.key, claimed.execution_id, claimed.event_id, "n-1"
    await one(provider, RetryActivity(*place, 1, world.clock.now, b"error"))
    world.clock.advance(7)
    yield
    await claim_work(provider)
    yield
    await one(provider, CompleteActivity(*place, 2, b"done"))
    yield
    await provider.commit([note(queue="q", event_id="e-1"), note(external=True), new("i-2")])
    yield
    following = NextExecution(2, "2", b"in", b"[1]")
    ending = Ending("continued_as_new", b"out")
    await one(provider, turn(of, b"[4]", first=4, ending=ending, next=following))
    yield
    await one(provider, ReleaseInstance(of.key, of.token, 0, None, blocked="poison"))
    yield
    await one(provider, PruneExecutions("i-1", Retention(1)))
    yield
    await one(provider, ClaimInstances("n-2", CAPS, 10))
    yield
    await start(provider, "i-3", owner="n-1", token="t")
    yield
    await one(provider, DeleteInstance("i-2", force=True))
    yield

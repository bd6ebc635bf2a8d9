"""The readable files say what the histories say, and are never more than that."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from filesystem_world import load
from provider_world import World, acquire, is_a, new, one, turn

from perdure.errors import ProviderError
from perdure.providers.contract import (
    CommitTurn,
    DeleteInstance,
    Ending,
    Imported,
    ImportInstances,
    NextExecution,
    Provider,
    PruneExecutions,
    Retention,
    RowFilter,
    StartInstance,
)
from perdure.providers.filesystem import disk
from perdure.providers.filesystem.paths import folder_name


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World("filesystem", tmp_path)


def files(path: Path) -> dict[str, bytes]:
    """The readable files, by their paths below the store."""
    return {
        each.relative_to(path).as_posix(): each.read_bytes()
        for each in path.rglob("*")
        if each.is_file() and ".perdure" not in each.parts
    }


async def expected(provider: Provider) -> dict[str, bytes]:
    """What the files should be, by the histories."""
    found = {}
    for instance in await provider.list_instances(RowFilter(), limit=10_000):
        for execution in await provider.list_executions(instance.instance_id):
            (history,) = await provider.histories([(instance.key, execution.execution_id)])
            if history:
                name = f"{folder_name(instance.instance_id)}/{execution.execution_id}.jsonl"
                found[name] = b"".join(event + b"\n" for event in history)
    return found


async def written(world: World, provider: Provider) -> dict[str, bytes]:
    """The files after closing, having been compared with the histories."""
    wanted = await expected(provider)
    await world.close()
    found = files(world.path)
    assert found == wanted
    return found


async def test_each_execution_has_a_file_with_one_event_a_line(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider, "Order 1")
    await one(provider, turn(of, b'{"event_id":1}', b'{"event_id":2}'))
    ending = Ending("continued_as_new")
    following = NextExecution(2, "1", b"in", b'{"event_id":1,"again":true}')
    await one(provider, turn(of, b'{"event_id":3}', first=3, ending=ending, next=following))

    found = await written(world, provider)

    lines = {name: [json.loads(line) for line in found[name].splitlines()] for name in found}
    assert lines == {
        "%4frder%201/1.jsonl": [{"event_id": 1}, {"event_id": 2}, {"event_id": 3}],
        "%4frder%201/2.jsonl": [{"event_id": 1, "again": True}],
    }


async def test_a_start_with_its_first_turn_is_readable(world: World) -> None:
    provider = await world.open()
    await provider.register_node("n-1", 10_000)
    await one(provider, first_turn(provider, "i-1"))
    await one(provider, first_turn(provider, "i-2", [first_turn(provider, "i-3")]))

    assert set(await written(world, provider)) == {f"i-{n}/1.jsonl" for n in (1, 2, 3)}


def first_turn(
    provider: Provider, instance_id: str, starts: Sequence[StartInstance] = ()
) -> StartInstance:
    key = provider.reserve_key()
    carried = CommitTurn(key, "t", "n-1", 1, 1, (b"[1]", b"[2]"), 0, starts=tuple(starts))
    return new(instance_id, owner="n-1", token="t", key=key, turn=carried)


async def test_a_pruned_execution_and_a_deleted_instance_have_no_file(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    for number in (2, 3, 4):
        following = NextExecution(number, "1", b"in", b"[0]")
        ending = Ending("continued_as_new")
        fields = {"execution_id": number - 1, "ending": ending, "next": following}
        await one(provider, turn(of, b"[1]", first=1 if number == 2 else 2, **fields))
    await one(provider, PruneExecutions("i-1", Retention(2)))
    gone = await acquire(provider, "gone")
    await one(provider, turn(gone, b"[1]"))
    await one(provider, DeleteInstance("gone", force=True))
    assert "gone/1.jsonl" not in files(world.path)

    assert set(await written(world, provider)) == {"i-1/3.jsonl", "i-1/4.jsonl"}
    assert not (world.path / "gone").exists()


async def test_a_turn_that_prunes_what_it_has_ended_leaves_the_next_one_only(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    following = NextExecution(2, "1", b"in", b"[0]")
    ending = Ending("continued_as_new")
    await one(provider, turn(of, b"[1]", ending=ending, next=following, retention=Retention(1)))

    assert await written(world, provider) == {"i-1/2.jsonl": b"[0]\n"}


async def test_a_deleted_id_used_again_has_the_new_history_only(world: World) -> None:
    provider = await world.open()
    for number in range(3):
        of = await acquire(provider)
        await one(provider, turn(of, b"[%d]" % number))
        if number < 2:
            await one(provider, DeleteInstance("i-1", force=True))

    assert await written(world, provider) == {"i-1/1.jsonl": b"[2]\n"}


async def test_imported_instances_are_readable(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = World("filesystem", tmp_path / "other")
    source = await other.open()
    async for _ in load(source, other):
        pass
    snapshots = await source.snapshots("i-1")
    await other.close()
    provider = await world.open()
    is_a(Imported, await one(provider, ImportInstances(tuple(snapshots))))

    assert set(await written(world, provider)) == {"i-1/2.jsonl"}


async def test_an_instance_without_events_has_no_folder(world: World) -> None:
    await one(await world.open(), new())
    await world.close()

    assert os.listdir(world.path) == [".perdure"]


async def test_whatever_a_crash_has_left_of_the_files_is_set_right(
    world: World, tmp_path: Path
) -> None:
    provider = await world.open()
    for name in ("cut", "longer", "other", "missing", "stale execution", "right"):
        of = await acquire(provider, name)
        await one(provider, turn(of, b"[1]", b"[2]"))
    wanted = await written(world, provider)
    (world.path / "cut" / "1.jsonl").write_bytes(b"[1]\n[")
    (world.path / "longer" / "1.jsonl").write_bytes(b"[1]\n[2]\n[3]\n")
    (world.path / "other" / "1.jsonl").write_bytes(b"[1]\n[9]\n")
    (world.path / "missing" / "1.jsonl").unlink()
    (world.path / "missing").rmdir()
    (world.path / folder_name("stale execution") / "7.jsonl").write_bytes(b"[1]\n")
    (world.path / "gone").mkdir()
    (world.path / "gone" / "1.jsonl").write_bytes(b"[1]\n")
    before = (world.path / "right" / "1.jsonl").stat()

    await world.open()

    assert files(world.path) == wanted
    after = (world.path / "right" / "1.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_what_is_not_the_stores_stays(world: World) -> None:
    await world.open()
    await world.close()
    (world.path / "README.md").write_bytes(b"mine")
    (world.path / "notes").mkdir()
    (world.path / "notes" / "todo.txt").write_bytes(b"mine too")

    await world.open()

    assert files(world.path) == {"README.md": b"mine", "notes/todo.txt": b"mine too"}


@pytest.mark.parametrize("has_instance", [True, False])
async def test_a_link_in_place_of_an_instances_folder_is_refused_and_not_followed(
    world: World, tmp_path: Path, has_instance: bool
) -> None:
    provider = await world.open()
    if has_instance:
        await one(provider, turn(await acquire(provider), b"[1]"))
    await world.close()
    elsewhere = move_away(world.path / "i-1", tmp_path / "elsewhere")

    with pytest.raises(ProviderError, match=r"i-1 is a symbolic link"):
        await world.open()
    assert os.listdir(elsewhere) == []
    (world.path / "i-1").unlink()
    await world.open()


def move_away(folder: Path, elsewhere: Path) -> Path:
    """Put a link to an empty folder into the place of `folder`."""
    elsewhere.mkdir()
    if folder.exists():
        (folder / "1.jsonl").unlink()
        folder.rmdir()
    folder.symlink_to(elsewhere)
    return elsewhere


@pytest.mark.parametrize("name", ["i-1/1.jsonl", ".perdure", ".perdure/journal", ".perdure/lock"])
async def test_a_link_in_place_of_any_file_is_refused_and_not_followed(
    world: World, tmp_path: Path, name: str
) -> None:
    provider = await world.open()
    await one(provider, turn(await acquire(provider), b"[1]"))
    await world.close()
    moved = tmp_path / "moved"
    (world.path / name).rename(moved)
    (world.path / name).symlink_to(moved)
    before = moved.read_bytes() if moved.is_file() else b""

    with pytest.raises(ProviderError, match="symbolic link"):
        await world.open()
    assert not before or moved.read_bytes() == before


async def test_a_link_that_appears_while_the_store_is_open_is_not_followed(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = await world.open()
    of = await acquire(provider)
    elsewhere = move_away(world.path / "i-1", tmp_path / "elsewhere")

    await one(provider, turn(of, b"[1]"))
    assert await provider.read_history("i-1") == [b"[1]"]
    await world.close()

    assert os.listdir(elsewhere) == []
    assert "i-1 cannot be written" in caplog.text


async def test_a_file_that_could_not_be_written_is_complete_after_the_next_opening(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = await world.open()
    of = await acquire(provider)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "append", full)
        await one(provider, turn(of, b"[1]"))
        await flushed(world)
    await one(provider, turn(of, b"[2]", first=2))
    await world.close()
    assert files(world.path) == {"i-1/1.jsonl": b""}
    assert "No space left" in caplog.text

    await world.open()

    assert files(world.path) == {"i-1/1.jsonl": b"[1]\n[2]\n"}


async def flushed(world: World) -> None:
    assert world.folder is not None
    await world.folder.written_out()


async def test_the_files_follow_while_the_store_is_open(world: World) -> None:
    provider = await world.open()
    of = await acquire(provider)
    for number in range(1, 30):
        await one(provider, turn(of, b"[%d]" % number, first=number))
        if number % 10 == 0:
            await flushed(world)
            assert files(world.path) == await expected(provider)

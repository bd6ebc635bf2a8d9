"""What only the filesystem provider promises: durable before it is seen, and one folder for all."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filesystem_world import crashed, load, rows, rows_at, tables_of
from provider_world import (
    CAPS,
    LEASE_MS,
    World,
    acquire,
    claim,
    is_a,
    new,
    note,
    one,
    queued,
    row,
    start,
    turn,
)

from perdure.errors import ProviderError, StoreTooNew, StoreUnavailable
from perdure.providers.contract import (
    Deleted,
    DeleteInstance,
    Ending,
    Operation,
    Provider,
    Sent,
)
from perdure.providers.filesystem import FilesystemProvider, FilesystemStore, disk, records
from perdure.providers.filesystem import store as store_module
from perdure.providers.filesystem.journal import NEW_NAME, Journal
from perdure.providers.filesystem.store import FOLDER
from perdure.providers.memory import MemoryProvider


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World("filesystem", tmp_path)


def journal_of(world: World) -> Path:
    return world.path / FOLDER / "journal"


# What is found again.


async def test_whatever_moment_a_process_dies_at_its_commits_are_found_again(
    world: World, tmp_path: Path
) -> None:
    provider = await world.open()
    number = 0
    async for _ in load(provider, world):
        number += 1
        copy = crashed(world, tmp_path / f"crash {number}")
        assert await rows_at(copy, world) == rows(tables_of(world)), number
        # And once more, from what the recovery has left.
        assert await rows_at(copy, world) == rows(tables_of(world)), number
    assert number > 10


async def test_a_store_outlives_its_provider(world: World) -> None:
    provider = await world.open()
    async for _ in load(provider, world):
        pass
    before, history = rows(tables_of(world)), await provider.read_history("i-1")
    await world.close()

    again = await world.open()

    assert rows(tables_of(world)) == before
    assert await again.read_history("i-1") == history == [b"[1]"]


async def test_the_files_are_for_their_owner_only_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    provider = FilesystemProvider(path)
    await provider.open()
    of = await acquire(provider, "Mine")
    await one(provider, turn(of, b"[1]"))
    await provider.close()

    assert modes(tmp_path) == {
        "a": 0o700,
        "a/b": 0o700,
        "a/b/.perdure": 0o700,
        "a/b/.perdure/journal": 0o600,
        "a/b/.perdure/lock": 0o600,
        "a/b/%4dine": 0o700,
        "a/b/%4dine/1.jsonl": 0o600,
    }


def modes(path: Path) -> dict[str, int]:
    return {
        each.relative_to(path).as_posix(): stat.S_IMODE(each.stat().st_mode)
        for each in path.rglob("*")
    }


async def test_keys_that_were_reserved_are_not_given_out_again_after_a_crash(
    world: World, tmp_path: Path
) -> None:
    provider = await world.open()
    assert provider.reserve_key() == 0
    await provider.register_node("n-1", LEASE_MS)
    keys = [provider.reserve_key() for _ in range(5)]
    keys.append(await start(provider, "i-1"))
    keys += [provider.reserve_key() for _ in range(2_500)]
    # Few are left: this commit takes more out.
    keys.append(await start(provider, "i-2"))
    keys += [provider.reserve_key() for _ in range(3_000)]
    assert len(set(keys)) == len(keys)
    assert min(keys) > 0

    for attempt in range(2):
        copy = FilesystemProvider(crashed(world, tmp_path / f"copy {attempt}"))
        await copy.open()
        await copy.register_node("n-1", LEASE_MS)
        assert copy.reserve_key() > max(keys)
        assert await start(copy, "i-3") > max(keys)
        await copy.close()


async def test_a_record_that_has_another_effect_now_is_refused(world: World) -> None:
    provider = await world.open()
    await start(provider)
    tables = tables_of(world)
    _, entry = tables.perform([new("i-2")])
    await world.close()
    assert entry is not None
    append(world, records.encode(msgspec.structs.replace(entry, changes=99)))

    with pytest.raises(ProviderError, match="made 99 changes and would make"):
        await world.open()


async def test_a_record_of_an_operation_that_nobody_knows_is_refused(world: World) -> None:
    await world.open()
    await world.close()
    append(
        world, records.encode(records.Batch(0, 0, 0, [], 0, [("Explode", msgspec.Raw(b"\x90"))]))
    )

    with pytest.raises(ProviderError, match="Explode"):
        await world.open()


def append(world: World, payload: bytes) -> None:
    folder = os.open(world.path / FOLDER, os.O_RDONLY)
    journal = Journal(folder, "the journal")
    journal.load(lambda _: None)
    journal.append(payload)
    journal.close()
    os.close(folder)


# Durable before it is seen.


class Gate:
    """A probe that holds the writer before each commit, until told."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, place: str) -> None:
        if place == "before_commit":
            self.reached.set()
            assert self.go.wait(30)


async def test_no_read_shows_what_is_not_durable_yet(tmp_path: Path) -> None:
    gate = Gate()
    provider = FilesystemProvider(tmp_path / "store", probe=gate)
    await provider.open()
    started = asyncio.ensure_future(provider.commit([new()]))
    reading = asyncio.ensure_future(provider.count_instances())
    await asyncio.to_thread(gate.reached.wait, 30)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reading.done()
    assert not started.done()

    gate.go.set()

    assert await reading == {"pending": 1}
    await started
    await provider.close()


def test_every_read_waits_for_what_is_not_durable_yet() -> None:
    contract = {name for name in vars(Provider) if not name.startswith("_")}
    in_memory = {
        name
        for name in contract
        if name != "transact"  # which both refuse
        and inspect.iscoroutinefunction(getattr(MemoryProvider, name))
        and getattr(FilesystemProvider, name) is getattr(MemoryProvider, name)
    }

    assert in_memory == set()
    assert {"survey", "histories", "list_instances"} <= contract


async def test_a_read_gets_its_turn_between_commits_without_a_pause(world: World) -> None:
    provider = await world.open()
    commits = 0

    def another(_: object = None) -> None:
        nonlocal commits
        if not reading.done():
            commits += 1
            asyncio.ensure_future(provider.commit([new(f"i-{commits}")])).add_done_callback(another)

    reading = asyncio.ensure_future(provider.count_instances())
    another()
    await asyncio.wait_for(reading, 10)

    assert commits < 5


async def test_batches_given_at_once_are_applied_in_order(world: World) -> None:
    provider = await world.open()
    batches: list[list[Operation]] = [
        [new("a")],
        [note("a", b"1")],
        [note("b", b"lost"), new("c")],
        [],
        [note("a", b"2")],
    ]
    outcomes = await asyncio.gather(*map(provider.commit, batches))

    assert [len(each) for each in outcomes] == [1, 1, 2, 0, 1]
    (of, _) = await claim(provider)
    assert [message.body for message in of.messages] == [b"1", b"2"]


def failing(step: str, error: int) -> Callable[..., None]:
    """A step that does half of its work, if it can be halved, and fails; once."""
    plain, failures = getattr(disk, step), [OSError(error, os.strerror(error))]

    def fail(handle: int, *args: Any) -> None:
        if not failures:
            plain(handle, *args)
            return
        if step == "write":
            data, offset = args
            plain(handle, data[: len(data) // 2], offset)
        raise failures.pop()

    return fail


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write", "sync"])
async def test_a_commit_that_cannot_be_written_has_not_happened(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str, error: int
) -> None:
    provider = await world.open()
    of = await acquire(provider)
    before, length = rows(tables_of(world)), journal_of(world).stat().st_size
    operations: list[Operation] = [turn(of, b"[1]"), note(body=b"lost"), new("i-2")]

    with monkeypatch.context() as patch:
        patch.setattr(disk, step, failing(step, error))
        with pytest.raises(StoreUnavailable, match="cannot be written"):
            await provider.commit(operations)

    assert rows(tables_of(world)) == before
    assert journal_of(world).stat().st_size == length
    assert await rows_at(crashed(world, tmp_path / "1"), world) == before
    assert len(await provider.commit(operations)) == 3
    assert await provider.read_history("i-1") == [b"[1]"]
    assert await rows_at(crashed(world, tmp_path / "2"), world) == rows(tables_of(world))


async def test_what_a_failed_commit_was_followed_by_is_applied_without_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await world.open()
    await start(provider)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", failing("sync", errno.EIO))
        lost, kept = await asyncio.gather(
            provider.commit([note(body=b"lost")]),
            provider.commit([note(body=b"kept")]),
            return_exceptions=True,
        )

    assert isinstance(lost, StoreUnavailable)
    assert kept == [Sent(1)]
    ((message,),) = [of.messages for of in await claim(provider)]
    assert (message.seq, message.body) == (1, b"kept")


async def test_a_journal_that_cannot_be_set_right_takes_nothing_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await world.open()
    await start(provider)
    with monkeypatch.context() as patch:
        for step in ("write", "truncate"):
            patch.setattr(disk, step, failing(step, errno.EIO))
        with pytest.raises(ProviderError, match="nor set right again") as raised:
            await provider.commit([new("i-2")])
    assert not isinstance(raised.value, StoreUnavailable)

    with pytest.raises(ProviderError, match="nor set right again"):
        await provider.commit([new("i-3")])
    assert await provider.count_instances() == {"pending": 1}
    await world.close()
    assert await (await world.open()).count_instances() == {"pending": 1}


async def test_what_a_node_held_stays_held_if_that_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await world.open()
    await provider.register_node("n-1", LEASE_MS)
    await acquire(provider)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", failing("sync", errno.ENOSPC))
        with pytest.raises(StoreUnavailable):
            await provider.release_node("n-1")

    assert (await row(provider)).owner == "n-1"
    assert provider.beat("n-1")
    await provider.release_node("n-1")
    assert (await row(provider)).owner is None


async def test_a_value_that_cannot_be_read_back_is_refused_and_changes_nothing(
    world: World,
) -> None:
    provider = await world.open()
    await start(provider)
    length = journal_of(world).stat().st_size

    for bad in (note(body="text"), note("\ud800"), new("i-2", nesting=1 << 70)):  # type: ignore[arg-type]
        with pytest.raises(ProviderError, match="cannot be stored"):
            await provider.commit([note(), bad])

    assert journal_of(world).stat().st_size == length
    assert (await claim(provider))[0].messages == ()


async def test_a_commit_that_changes_nothing_costs_no_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await world.open()
    syncs = 0
    plain = disk.sync

    def counted(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        plain(handle)

    monkeypatch.setattr(disk, "sync", counted)
    await claim(provider)
    await one(provider, note("nobody"))
    await provider.release_node("nobody")
    assert syncs == 0
    await start(provider)
    assert syncs == 1


async def test_looking_for_work_costs_nothing_for_what_has_ended(world: World) -> None:
    provider = await world.open()
    for number in range(20):
        of = await acquire(provider, f"i-{number}")
        await one(provider, turn(of, b"[1]", activities=(queued(1),)))
        await one(provider, note(f"i-{number}"))
        await one(provider, turn(of, ending=Ending("completed", b"1"), first=2))
    await start(provider, "open")
    for again in (False, True):
        if again:
            await world.close()
            provider = await world.open()
        survey = await provider.survey("n-1", CAPS, frozenset({"pay"}))
        tables = tables_of(world)

        assert survey.instances_due_ms == world.clock.now
        assert (len(tables.loose), len(tables.mailed), len(tables.working)) == (1, 0, 0)


# A loss of power.


@pytest.mark.slow
async def test_a_loss_of_power_loses_no_commit_that_was_acknowledged(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of what may be on the disk: all up to the last sync, and a prefix of the rest."""
    provider = await world.open()
    base = journal_of(world).read_bytes()
    written: list[bytes] = []
    events: list[tuple[str, int]] = []
    states = [rows(tables_of(world))]
    plain_write, plain_sync = disk.write, disk.sync

    def write(handle: int, data: bytes, offset: int) -> None:
        assert offset == len(base) + len(b"".join(written))
        plain_write(handle, data, offset)
        written.append(bytes(data))
        events.append(("written", len(written)))

    def sync(handle: int) -> None:
        plain_sync(handle)
        events.append(("synced", len(written)))

    monkeypatch.setattr(disk, "write", write)
    monkeypatch.setattr(disk, "sync", sync)
    async for _ in load(provider, world):
        states.append(rows(tables_of(world)))
        events.append(("acknowledged", len(states) - 1))
    monkeypatch.undo()

    synced = acknowledged = 0
    images = set()
    for what, number in events:
        match what:
            case "synced":
                synced = number
            case "acknowledged":
                acknowledged = number
            case _:
                durable, rest = b"".join(written[:synced]), b"".join(written[synced:number])
                for cut in {0, 1, 15, 16, 17, len(rest) // 2, len(rest) - 1, len(rest)}:
                    images.add((base + durable + rest[:cut], acknowledged))
    assert len(images) > 50
    for number, (image, acknowledged) in enumerate(sorted(images)):
        folder = tmp_path / str(number) / FOLDER
        folder.mkdir(parents=True)
        (folder / "journal").write_bytes(image)
        assert await rows_at(folder.parent, world) in states[acknowledged:]


# Writing the journal anew.


async def test_a_journal_that_has_grown_is_written_anew_while_commits_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_module, "COMPACT_BYTES_MIN", 3_000)
    provider = await world.open()
    await start(provider)
    for number in range(20):
        await asyncio.gather(*(provider.commit([note(body=b"x" * 50)]) for _ in range(10)))
        assert (await provider.depths()).messages == 10 * number + 10

    assert world.folder is not None
    assert 3 <= world.folder.compactions < 50
    assert await rows_at(crashed(world, tmp_path / "copy"), world) == rows(tables_of(world))


async def test_a_journal_that_cannot_be_written_anew_goes_on_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "COMPACT_BYTES_MIN", 1)
    provider = await world.open()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write_new", full)
        for number in range(20):
            await start(provider, f"i-{number}")
    assert "cannot be written anew" in caplog.text
    assert 1 < len(caplog.records) < 10
    before = rows(tables_of(world))
    await world.close()

    await world.open()

    assert rows(tables_of(world)) == before


async def test_what_an_interrupted_writing_has_left_is_removed(world: World) -> None:
    provider = await world.open()
    await start(provider)
    await world.close()
    left = world.path / FOLDER / NEW_NAME
    left.write_bytes(b"half of it")

    await world.open()

    assert not left.exists()


def everything(path: Path) -> bytes:
    return b"".join(each.read_bytes() for each in path.rglob("*") if each.is_file())


async def secret(provider: Provider) -> None:
    """An instance that was deleted after it had told a secret."""
    of = await acquire(provider, "gone", input=b"SECRET input")
    await one(provider, turn(of, b"SECRET event"))
    await one(provider, note("gone", b"SECRET message"))
    assert is_a(Deleted, await one(provider, DeleteInstance("gone", force=True))).instances == 1


async def test_nothing_of_a_deleted_instance_is_in_any_file_after_closing(world: World) -> None:
    provider = await world.open()
    await secret(provider)
    assert not (world.path / "gone").exists()
    assert b"SECRET" in everything(world.path)

    await world.close()

    assert b"SECRET" not in everything(world.path)
    assert b"gone" not in everything(world.path)


async def test_nothing_of_a_deleted_instance_is_in_any_file_after_a_crash_and_an_opening(
    world: World, tmp_path: Path
) -> None:
    provider = await world.open()
    await secret(provider)
    copy = crashed(world, tmp_path / "copy")
    (copy / "gone").mkdir()
    (copy / "gone" / "1.jsonl").write_bytes(b"SECRET event\n")

    again = FilesystemProvider(copy)
    await again.open()

    assert b"SECRET" not in everything(copy)
    assert not (copy / "gone").exists()
    await again.close()


# Folders that are no store.


async def test_a_folder_with_other_things_in_it_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()

    with pytest.raises(ProviderError, match=r"is not a store.*'letters'"):
        await FilesystemProvider(tmp_path).open()
    assert os.listdir(tmp_path) == ["letters"]


async def test_a_store_whose_journal_is_missing_is_refused(world: World) -> None:
    of = await acquire(provider := await world.open())
    await one(provider, turn(of, b"[1]"))
    await world.close()
    journal_of(world).unlink()

    with pytest.raises(ProviderError, match="restore the journal"):
        await world.open()
    assert (world.path / "i-1" / "1.jsonl").read_bytes() == b"[1]\n"


async def test_a_newer_store_is_refused(world: World) -> None:
    await world.open()
    await world.close()
    image = bytearray(journal_of(world).read_bytes())
    image[19] += 1
    journal_of(world).write_bytes(image)

    with pytest.raises(StoreTooNew):
        await world.open()
    assert journal_of(world).read_bytes() == image


async def test_a_path_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")

    with pytest.raises(ProviderError, match=str(path)):
        await FilesystemProvider(path).open()


async def test_a_store_is_opened_once_also_within_a_process(world: World) -> None:
    await world.open()

    with pytest.raises(ProviderError, match=f"process with id {os.getpid()};"):
        await FilesystemProvider(world.path).open()


async def test_a_store_that_could_not_be_opened_leaves_no_lock(world: World) -> None:
    await world.open()
    await world.close()
    journal_of(world).rename(world.path / "aside")
    with pytest.raises(ProviderError):
        await world.open()
    (world.path / "aside").rename(journal_of(world))

    assert await (await world.open()).count_instances() == {}


async def test_a_store_that_is_shared_closes_with_the_last_provider(world: World) -> None:
    first, second = await world.open(), await world.open()
    await first.close()
    await start(second)
    await second.close()

    store = FilesystemStore(world.path, world.clock)
    await store.acquire()
    assert len(store.tables.instances) == 1
    await store.release()

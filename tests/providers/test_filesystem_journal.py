"""The journal: what is whole in it is kept, an incomplete end is cut off, and damage is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from perdure.errors import ProviderError, StoreTooNew
from perdure.providers.filesystem import disk
from perdure.providers.filesystem.journal import FORMAT, NAME, NEW_NAME, Journal, remove_new

ROWS = (b"row 1", b"", b"row " * 50)
COMMITS = (b"commit 1", b"c" * 300, b"", b"commit 4" * 5)
FORMAT_AT = 19
"""The last byte of the format in the head."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path, os.O_RDONLY)
    yield handle
    os.close(handle)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def write(folder: int, rows: Sequence[bytes] = ROWS, commits: Sequence[bytes] = COMMITS) -> int:
    """A new journal; returns its length before the last commit."""
    journal = Journal(folder, "the journal")
    journal.replace(rows)
    before = journal.size
    for commit in commits:
        before = journal.size
        journal.append(commit)
    journal.close()
    return before


def read(folder: int, then: Callable[[Journal], None] = lambda journal: None) -> list[bytes]:
    """What a journal holds, once it has been opened."""
    found: list[bytes] = []
    journal = Journal(folder, "the journal")
    try:
        assert journal.load(found.append)
        then(journal)
    finally:
        journal.close()
    return found


def test_a_journal_holds_its_rows_and_then_its_commits_in_order(folder: int) -> None:
    write(folder)

    assert read(folder) == [*ROWS, *COMMITS]
    assert read(folder, lambda journal: journal.append(b"more")) == [*ROWS, *COMMITS]
    assert read(folder) == [*ROWS, *COMMITS, b"more"]


@pytest.mark.slow
def test_an_end_torn_at_any_byte_is_cut_off_and_all_before_it_is_there(
    folder: int, path: Path
) -> None:
    before = write(folder)
    whole = path.read_bytes()

    for length in range(before, len(whole)):
        path.write_bytes(whole[:length])
        assert read(folder) == [*ROWS, *COMMITS[:-1]], length
        assert path.read_bytes() == whole[:before]


@pytest.mark.slow
def test_an_end_with_holes_is_cut_off(folder: int, path: Path) -> None:
    """A loss of power may leave the length of a file without all of its contents."""
    before = write(folder)
    whole = path.read_bytes()

    for at in range(before, len(whole) - 1):
        for image in (
            whole[:at] + bytes(len(whole) - at),
            whole[:before] + bytes(at - before) + whole[at:] if at > before else whole[:before],
            whole[:before] + bytes(at),
        ):
            path.write_bytes(image)
            assert read(folder) == [*ROWS, *COMMITS[:-1]], at
            assert path.stat().st_size == before


def test_commits_go_on_after_an_end_was_cut_off(folder: int, path: Path) -> None:
    write(folder)
    path.write_bytes(path.read_bytes()[:-1])

    read(folder, lambda journal: journal.append(b"next"))

    assert read(folder) == [*ROWS, *COMMITS[:-1], b"next"]


@pytest.mark.slow
def test_a_flipped_bit_before_the_last_record_is_refused_and_nothing_is_changed(
    folder: int, path: Path
) -> None:
    before = write(folder)
    whole = path.read_bytes()

    for at in range(before):
        image = bytearray(whole)
        image[at] ^= 1 << at % 8
        path.write_bytes(image)
        with pytest.raises(ProviderError, match="the journal"):
            read(folder)
        assert path.read_bytes() == image


def test_a_damaged_journal_is_named_with_the_place(folder: int, path: Path) -> None:
    start = write(folder, commits=[])
    write(folder)
    image = bytearray(path.read_bytes())
    image[start + 20] ^= 1
    path.write_bytes(image)

    with pytest.raises(ProviderError, match=f"the journal is damaged at byte {start}; nothing"):
        read(folder)


@pytest.mark.parametrize("cut", [1, 100])
def test_rows_that_are_cut_short_are_damage_and_no_torn_end(
    folder: int, path: Path, cut: int
) -> None:
    write(folder, commits=[])
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(ProviderError, match="damaged"):
        read(folder)


def test_a_record_within_a_payload_is_none(folder: int, path: Path) -> None:
    before = write(folder)
    copied = path.read_bytes()[before:]
    journal = Journal(folder, "the journal")
    journal.load(lambda _: None)
    journal.append(copied * 2)
    journal.append(b"and another")
    journal.close()
    whole = path.read_bytes()
    # The end of it is gone, but the copied records in it are whole.
    path.write_bytes(whole[: -len(b"and another") - 20])

    assert read(folder) == [*ROWS, *COMMITS]


def test_a_newer_format_is_refused_and_not_touched(folder: int, path: Path) -> None:
    write(folder)
    image = bytearray(path.read_bytes())
    image[FORMAT_AT] += 1
    path.write_bytes(image)

    with pytest.raises(StoreTooNew, match=f"format {FORMAT + 1}"):
        read(folder)
    assert path.read_bytes() == image


@pytest.mark.parametrize("data", [b"", b"perdure journal\n", b"not a journal at all" * 10])
def test_a_file_that_is_no_journal_is_refused_and_not_touched(
    folder: int, path: Path, data: bytes
) -> None:
    path.write_bytes(data)

    with pytest.raises(ProviderError, match="not a journal of Perdure"):
        read(folder)
    assert path.read_bytes() == data


def test_a_missing_journal_is_no_error(folder: int) -> None:
    assert Journal(folder, "the journal").load(lambda _: None) is False


def test_what_a_reader_of_records_refuses_is_named_with_the_place(folder: int) -> None:
    def refuse(_: bytes) -> None:
        raise ProviderError("not understood")

    write(folder)
    journal = Journal(folder, "the journal")
    with pytest.raises(ProviderError, match="the journal at byte 48: not understood"):
        journal.load(refuse)
    journal.close()


def test_a_journal_written_anew_holds_only_the_new_rows(folder: int, path: Path) -> None:
    write(folder)

    def anew(journal: Journal) -> None:
        journal.replace([b"fresh"])
        assert journal.base == journal.size
        journal.append(b"and on")

    read(folder, anew)

    assert read(folder) == [b"fresh", b"and on"]
    assert b"row" not in path.read_bytes()


def test_rows_longer_than_a_buffer_are_written_in_parts(
    folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    plain = disk.write

    def counted(handle: int, data: bytes, offset: int) -> None:
        sizes.append(len(data))
        plain(handle, data, offset)

    monkeypatch.setattr(disk, "write", counted)
    rows = [bytes([n]) * 300_000 for n in range(20)]
    write(folder, rows, [])

    assert read(folder) == rows
    assert max(sizes) < 2_000_000


class Interrupted(BaseException):
    """The process dies here."""


STEPS = ("write", "sync", "sync_folder", "truncate")


@pytest.mark.slow
def test_writing_anew_may_be_interrupted_at_any_step(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for fatal in range(1, 100):
        write(folder)
        if not interrupted(folder, monkeypatch, fatal):
            break
        found = read(folder)
        ends.append(found)
        assert found in ([*ROWS, *COMMITS], [b"fresh"])
        remove_new(folder)
        assert [each.name for each in tmp_path.iterdir()] == [NAME]

    # The head, the rows, their durability, the name and its durability: before and after each.
    assert len(ends) >= 8
    assert ends[0] == [*ROWS, *COMMITS]
    assert ends[-1] == [b"fresh"]


def interrupted(folder: int, monkeypatch: pytest.MonkeyPatch, fatal: int) -> bool:
    """Write anew, and die before or after the fatal call to the system; False if there are fewer
    of them."""
    calls = 0

    def mortal(plain: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise Interrupted
            result = plain(*args, **kwargs)
            calls += 1
            if calls == fatal:
                raise Interrupted
            return result

        return call

    journal = Journal(folder, "the journal")
    journal.load(lambda _: None)
    with monkeypatch.context() as patch:
        for step in STEPS:
            patch.setattr(disk, step, mortal(getattr(disk, step)))
        patch.setattr(os, "rename", mortal(os.rename))
        # A dead process does not clean up.
        patch.setattr("perdure.providers.filesystem.journal.remove_new", lambda _: None)
        try:
            journal.replace([b"fresh"])
        except Interrupted:
            return True
        finally:
            journal.close()
    return False


def test_writing_anew_that_fails_leaves_the_old_journal_in_use(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fail(journal: Journal) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write", full)
            with pytest.raises(ProviderError, match="No space left"):
                journal.replace([b"fresh"])
        journal.append(b"and on")

    read(folder, fail)

    assert read(folder) == [*ROWS, *COMMITS, b"and on"]
    assert not (tmp_path / NEW_NAME).exists()

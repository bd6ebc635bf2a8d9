"""A durable job: hash every file of a folder and write a manifest.

One activity per file, one sub-orchestration per sub-folder. Both kinds of orchestration continue
as new after a bounded piece of work, so no history grows with the folder. What is carried from
execution to execution is small too: the list of files and the partial results lie in files of the
job's work folder, written by activities that can be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from perdure import OrchestrationContext, activity, orchestration

FILES_PER_EXECUTION = 100
FOLDERS_PER_EXECUTION = 20
SKIPPED_FOLDERS = {"__pycache__", "site-packages"}
CHUNK_BYTES = 1 << 18


class Job(msgspec.Struct, frozen=True):
    """folder: what is indexed. manifest: the file to write. work: a folder for what is in between.

    ledger: a file that gets one line per hashed file, a JSON string with its path; begun anew by
    the plan and left there at the end. All are absolute paths.
    """

    folder: str
    manifest: str
    work: str
    ledger: str


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file of the manifest. error: why it could not be read; the other fields are then empty.

    path: relative to the folder, with slashes. sha256: in hex.
    """

    path: str
    size: int = 0
    lines: int = 0
    sha256: str = ""
    error: str = ""


class Batch(msgspec.Struct, frozen=True):
    """At most FILES_PER_EXECUTION paths of one sub-folder. last: no batch of it comes after."""

    paths: list[str]
    last: bool


class Summary(msgspec.Struct, frozen=True):
    """What the manifest says in all. unreadable: files of it that have an error."""

    files: int
    bytes: int
    lines: int
    unreadable: int


@orchestration
async def index_folder(
    ctx: OrchestrationContext, job: Job, first: int = 0, folders: int | None = None
) -> Summary:
    """Index a folder. first, folders: sub-folders done and in all, for the next execution."""
    if folders is None:
        folders = await plan(job)
    until = min(first + FOLDERS_PER_EXECUTION, folders)
    await asyncio.gather(*(index_subfolder(job, number) for number in range(first, until)))
    if until < folders:
        return await ctx.continue_as_new(job, until, folders)
    summary = await write_manifest(job)
    await clean_up(job)
    return summary


@orchestration
async def index_subfolder(ctx: OrchestrationContext, job: Job, number: int, batch: int = 0) -> None:
    """Index the files directly in one sub-folder, a batch per execution."""
    todo = await read_batch(job, number, batch)
    entries = await asyncio.gather(*(hash_file(job, path) for path in todo.paths))
    await save_part(job, number, batch, entries)
    if not todo.last:
        await ctx.continue_as_new(job, number, batch + 1)


@activity
def plan(job: Job) -> int:
    """Write down which files there are, in batches; return the number of sub-folders."""
    folder, plans = Path(job.folder), Path(job.work, "plan")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    _clear(job)
    Path(job.ledger).unlink(missing_ok=True)
    plans.mkdir(parents=True)
    number = -1
    for number, paths in enumerate(subfolders(folder)):
        for batch, start in enumerate(range(0, len(paths), FILES_PER_EXECUTION)):
            end = start + FILES_PER_EXECUTION
            content = Batch(paths[start:end], last=end >= len(paths))
            (plans / f"{number}-{batch}.json").write_bytes(msgspec.json.encode(content))
    Path(job.work, "parts").mkdir()
    return number + 1


@activity
def read_batch(job: Job, number: int, batch: int) -> Batch:
    return msgspec.json.decode(
        Path(job.work, "plan", f"{number}-{batch}.json").read_bytes(), type=Batch
    )


@activity
def hash_file(job: Job, path: str) -> Entry:
    """Read one file. A line in the ledger tells that it was done, each time that it is."""
    entry = entry_of(Path(job.folder), path)
    # One write of a few bytes to a file opened for appending: lines of threads do not mix.
    ledger = os.open(job.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(ledger, json.dumps(path).encode() + b"\n")
    finally:
        os.close(ledger)
    return entry


@activity
def save_part(job: Job, number: int, batch: int, entries: list[Entry]) -> None:
    write_atomically(
        Path(job.work, "parts", f"{number}-{batch}.json"), msgspec.json.encode(entries)
    )


@activity
def write_manifest(job: Job) -> Summary:
    """Put the parts together. May run again, since the parts are still there."""
    entries: list[Entry] = []
    for part in Path(job.work, "parts").iterdir():
        if part.suffix == ".json":
            entries += msgspec.json.decode(part.read_bytes(), type=list[Entry])
    write_atomically(Path(job.manifest), manifest_of(entries))
    return Summary(
        files=len(entries),
        bytes=sum(entry.size for entry in entries),
        lines=sum(entry.lines for entry in entries),
        unreadable=sum(1 for entry in entries if entry.error),
    )


@activity
def clean_up(job: Job) -> None:
    """Remove the work folder. A step of its own, after the manifest is recorded as written."""
    _clear(job)
    with contextlib.suppress(FileNotFoundError):
        Path(job.work).rmdir()


def _clear(job: Job) -> None:
    for name in ("plan", "parts"):
        shutil.rmtree(Path(job.work, name), ignore_errors=True)


def subfolders(folder: Path) -> Iterator[list[str]]:
    """The regular files of each folder that has any, as sorted relative paths with slashes.

    Left out: hidden folders, SKIPPED_FOLDERS, symbolic links. A name that is not UTF-8 comes with
    its odd bytes escaped, and is then reported as not found.
    """
    for root, names, files in os.walk(folder):
        names[:] = sorted(n for n in names if n not in SKIPPED_FOLDERS and not n.startswith("."))
        paths = (Path(root, file) for file in sorted(files))
        found = [
            os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")
            for path in paths
            if path.is_file() and not path.is_symlink()
        ]
        if found:
            yield found


def entry_of(folder: Path, path: str) -> Entry:
    """Read a file and describe it; an error of reading it is part of the description."""
    digest, size, lines = hashlib.sha256(), 0, 0
    try:
        with (folder / path).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                lines += chunk.count(b"\n")
    except OSError as error:
        return Entry(path, error=error.strerror or type(error).__name__)
    return Entry(path, size, lines, digest.hexdigest())


def manifest_of(entries: Iterable[Entry]) -> bytes:
    """The manifest: a JSON list, an entry a line, by path; the same bytes for the same entries."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    return b"[\n" + b",\n".join(msgspec.json.encode(entry) for entry in ordered) + b"\n]\n"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file in one step: a reader sees the old content or the new, never a part."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)

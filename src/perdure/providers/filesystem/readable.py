"""The readable files: `{instance}/{execution_id}.jsonl`, one event a line as the history has it.

They follow the journal: written by a thread of their own when a commit is durable, several commits
at once under load, complete when the store is closed, and set right when it is opened.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from perdure.errors import ProviderError
from perdure.providers.filesystem import disk
from perdure.providers.filesystem.paths import folder_name, is_folder_name
from perdure.providers.memory.rows import Execution, Instance

GATHER_S = 0.02
"""How long lines are gathered, so that a busy instance costs one write and not one a turn."""

_FILE = re.compile(r"([1-9][0-9]*)\.jsonl")

logger = logging.getLogger("perdure")


def file_name(execution_id: int) -> str:
    return f"{execution_id}.jsonl"


def lines_of(events: Iterable[bytes]) -> bytes:
    return b"".join(data + b"\n" for data in events)


@dataclass(slots=True)
class _Changes:
    """What is to be done in one folder: first remove all of it if `is_gone`, then keep only the
    executions of `keep` if that is given, then append `lines` by execution."""

    is_gone: bool = False
    keep: set[int] | None = None
    lines: dict[int, list[bytes]] = field(default_factory=dict)


class Scribe:
    """root: a handle of the store's folder, which is at `path`. Noted from one thread, written by
    another. What cannot be written is logged, and left for the next opening."""

    def __init__(self, root: int, path: str) -> None:
        self._root = root
        self._path = path
        self._noted: dict[str, _Changes] = {}
        self._stale: set[str] = set()
        self._changed = threading.Condition()
        self._is_writing = False
        self._urgent = 0
        self._thread = threading.Thread(target=self._run, name="perdure-readable", daemon=True)
        self._thread.start()

    def append(self, instance_id: str, execution_id: int, events: Sequence[bytes]) -> None:
        with self._changes(instance_id) as changes:
            changes.lines.setdefault(execution_id, []).extend(events)
            if changes.keep is not None:
                changes.keep.add(execution_id)

    def keep(self, instance_id: str, execution_ids: Collection[int]) -> None:
        """The other executions were pruned."""
        with self._changes(instance_id) as changes:
            changes.keep = set(execution_ids)
            changes.lines = {n: lines for n, lines in changes.lines.items() if n in execution_ids}

    def remove(self, instance_id: str) -> None:
        """The instance was deleted."""
        with self._changes(instance_id) as changes:
            changes.is_gone, changes.keep, changes.lines = True, None, {}

    @contextmanager
    def _changes(self, instance_id: str) -> Iterator[_Changes]:
        with self._changed:
            if not self._noted:
                self._changed.notify_all()
            yield self._noted.setdefault(instance_id, _Changes())

    def flush(self) -> None:
        """Wait until everything that was noted has been written."""
        with self._changed:
            self._urgent += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._noted or self._is_writing))
            self._urgent -= 1

    def close(self) -> None:
        """Write what was noted, and end the thread."""
        self.flush()
        with self._changed:
            self._root = -1
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._noted or self._root < 0)
                if not self._noted:
                    return
                self._changed.wait_for(lambda: self._urgent, GATHER_S)
                noted, self._noted = self._noted, {}
                self._is_writing = True
            for instance_id, changes in noted.items():
                self._write(instance_id, changes)

    def _write(self, instance_id: str, changes: _Changes) -> None:
        name = folder_name(instance_id)
        try:
            if changes.is_gone:
                _remove_folder(self._root, name)
                self._stale.discard(instance_id)
            if instance_id not in self._stale and (changes.lines or changes.keep is not None):
                _change_folder(self._root, name, changes)
        except OSError as error:
            # Appending to it again would leave a gap.
            self._stale.add(instance_id)
            logger.warning(
                "%s cannot be written (%s): it is out of date until the store is opened again",
                os.path.join(self._path, name),
                error.strerror,
            )


def _change_folder(root: int, name: str, changes: _Changes) -> None:
    with _closing_handle(disk.open_folder(root, name, create=True)) as folder:
        if changes.keep is not None:
            _keep_only(folder, changes.keep)
        for execution_id, events in changes.lines.items():
            if events:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                with _closing_handle(
                    disk.open_file(folder, file_name(execution_id), flags)
                ) as handle:
                    disk.append(handle, lines_of(events))


def repair(root: int, path: str, instances: Mapping[int, Instance]) -> None:
    """Make the readable files what the rows say. Raises ProviderError for a symbolic link in place
    of a folder or file, and OSError."""
    wanted = {folder_name(instance.instance_id): instance for instance in instances.values()}
    with os.scandir(root) as found:
        entries = [entry for entry in found if is_folder_name(entry.name)]
    for entry in entries:
        if entry.is_symlink():
            raise ProviderError(
                f"{os.path.join(path, entry.name)} is a symbolic link, and a store follows none; "
                "remove it"
            )
        if entry.name not in wanted and entry.is_dir(follow_symlinks=False):
            _remove_folder(root, entry.name)
    present = {entry.name for entry in entries}
    for name, instance in wanted.items():
        executions = {n: ex for n, ex in instance.executions.items() if ex.history}
        if not executions and name not in present:
            continue
        try:
            with _closing_handle(disk.open_folder(root, name, create=True)) as folder:
                _keep_only(folder, executions)
                for execution_id, execution in executions.items():
                    _repair_file(folder, file_name(execution_id), execution)
        except OSError as error:
            raise disk.explain(os.path.join(path, name), error) from error


def _repair_file(folder: int, name: str, execution: Execution) -> None:
    wanted = lines_of(data for _, data in sorted(execution.history.items()))
    with _closing_handle(disk.open_file(folder, name, os.O_RDWR | os.O_CREAT)) as handle:
        size = os.fstat(handle).st_size
        if size == len(wanted) and os.pread(handle, size, 0) == wanted:
            return
        disk.truncate(handle, 0)
        disk.write(handle, wanted, 0)


def _keep_only(folder: int, execution_ids: Collection[int]) -> None:
    for name in os.listdir(folder):
        match = _FILE.fullmatch(name)
        if match and int(match[1]) not in execution_ids:
            os.unlink(name, dir_fd=folder)


def _remove_folder(root: int, name: str) -> None:
    """Remove an instance's folder; files in it that are not ours stay, and the folder with them."""
    try:
        folder = disk.open_folder(root, name)
    except FileNotFoundError:
        return
    with _closing_handle(folder):
        _keep_only(folder, ())
        is_empty = not os.listdir(folder)
    if is_empty:
        os.rmdir(name, dir_fd=root)


@contextmanager
def _closing_handle(handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        os.close(handle)

"""The store: the journal and the tables, kept in step.

Everything is applied to the tables on the loop's thread, one batch at a time; a thread makes its
record durable; only then do its outcomes and the next batch get their turn, and so do reads that
came meanwhile. So nothing that is not durable can be seen, and what could not be written can be
undone.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from perdure.errors import ForkedStoreError, ProviderError, StoreClosed
from perdure.providers.contract import Operation, Outcome
from perdure.providers.filesystem import disk, records
from perdure.providers.filesystem.following import follow
from perdure.providers.filesystem.journal import Journal, remove_new
from perdure.providers.filesystem.lock import StoreLock
from perdure.providers.filesystem.readable import Scribe, repair
from perdure.providers.filesystem.records import Batch, Forgotten
from perdure.providers.filesystem.tables import JournaledTables
from perdure.providers.worker import Worker

FOLDER = ".perdure"
"""Where the journal is; no instance's folder begins with a dot."""

COMPACT_BYTES_MIN = 4 << 20
COMPACT_FACTOR = 4
"""The journal is written anew when it has grown over this size and to so many times its rows."""

Perform: TypeAlias = Callable[[], tuple[list[Outcome], Batch | Forgotten | None]]
"""Changes the tables; gives the outcomes and what to record, or None if nothing was changed."""

logger = logging.getLogger("perdure")


@dataclass(slots=True, eq=False)
class _Commit:
    """A change of the tables on its way. batch: what `perform` applies, if it is one."""

    perform: Perform
    batch: Sequence[Operation]
    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome] = field(default_factory=list)

    def settle(self, error: BaseException | None = None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.outcomes)
        else:
            self.future.set_exception(error)


class FilesystemStore:
    """The store in the folder `path`, which is created if it does not exist.

    now_ms: the store's clock. probe: called in the writing thread with "before_commit" and
    "after_commit"; for tests that end the process there.
    """

    def __init__(
        self,
        path: str | Path,
        now_ms: Callable[[], int],
        probe: Callable[[str], None] | None = None,
    ) -> None:
        self.path = os.path.abspath(path)
        self.tables = JournaledTables(now_ms)
        self.compactions = 0
        self._probe = probe
        self._pid = os.getpid()
        self._state = "new"
        self._users = 0
        self._loop: asyncio.AbstractEventLoop
        self._worker: Worker
        self._journal: Journal
        self._scribe: Scribe
        self._release = ExitStack()
        self._queue: deque[_Commit] = deque()
        self._is_busy = False
        self._is_committing = False
        self._readers: list[asyncio.Future[None]] = []
        self._compact_at = 0

    @property
    def is_closed(self) -> bool:
        return self._state == "closed"

    def check_process(self) -> None:
        """Raises ForkedStoreError."""
        if os.getpid() != self._pid:
            raise ForkedStoreError(
                f"{self.path} was opened by the parent of this forked process; "
                "open a new provider in the child"
            )

    # Opening and closing.

    async def acquire(self) -> None:
        """Open the store, unless it is open: read the journal, set right what a crash has left.
        Raises ProviderError, StoreTooNew."""
        if not self._users:
            await self._open_once()
        self._users += 1

    async def release(self) -> None:
        """Close the store, if nobody else has acquired it: finish what was accepted, leave no trace
        of deleted instances, let go of everything."""
        self._users -= 1
        if not self._users:
            await self._close_once()

    async def _open_once(self) -> None:
        if self._state != "new":
            raise StoreClosed(f"{self.path} was opened before; make a new store")
        self._state = "opening"
        self._loop = asyncio.get_running_loop()
        self._worker = Worker("perdure-file-writer")
        try:
            await self._worker.submit(self._open)
        except BaseException:
            self._state = "closed"
            released = self._worker.submit(self._release.close)
            self._worker.stop()
            await released
            raise
        self._state = "open"

    def _open(self) -> None:
        try:
            root = disk.open_root(self.path)
            self._release.callback(os.close, root)
            is_new = FOLDER not in os.listdir(root)
            if is_new:
                self._check_empty(root)
            folder = disk.open_folder(root, FOLDER, create=True)
            self._release.callback(os.close, folder)
            if is_new:
                disk.sync_folder(root)
            lock = StoreLock(folder, self.path)
            self._release.callback(lock.drop)
            self._load(root, folder)
            repair(root, self.path, self.tables.instances)
        except OSError as error:
            raise disk.explain(self.path, error) from error
        self._scribe = Scribe(root, self.path)
        self._release.callback(self._scribe.close)

    def _load(self, root: int, folder: int) -> None:
        path = os.path.join(self.path, FOLDER, "journal")
        self._journal = Journal(folder, path)
        self._release.callback(self._journal.close)
        if not self._journal.load(lambda data: self.tables.repeat(records.decode(data))):
            self._check_empty(root)
            self._compact()
        remove_new(folder)
        entry = self.tables.recovered()
        if entry is not None:
            self._journal.append(records.encode(entry))
        self._compact_at = self._threshold()
        if self.tables.has_traces or self._journal.size >= self._compact_at:
            self._compact_or_warn()

    def _check_empty(self, root: int) -> None:
        others = [name for name in os.listdir(root) if name != FOLDER]
        if others:
            raise ProviderError(
                f"{self.path} is not a store: it has no {FOLDER}/journal, but it has "
                f"{others[0]!r}. Use an empty folder, or restore the journal from a backup"
            )

    async def _close_once(self) -> None:
        self._state = "closed"
        while self._is_busy or self._queue:
            await self._settled_once()
        closed = self._worker.submit(self._close)
        self._worker.stop()
        await closed

    def _close(self) -> None:
        with self._release:
            if self.tables.has_traces and not self._journal.failed:
                self._compact_or_warn()

    # Writing.

    def submit(
        self, perform: Perform, batch: Sequence[Operation] = ()
    ) -> asyncio.Future[list[Outcome]]:
        """Change the tables in turn; the outcomes come when that is durable. batch: what `perform`
        applies, if it is one."""
        commit = _Commit(perform, batch, self._loop.create_future())
        self._queue.append(commit)
        if not self._is_busy:
            self._next()
        return commit.future

    def commit(self, batch: Sequence[Operation]) -> asyncio.Future[list[Outcome]]:
        return self.submit(lambda: self.tables.perform(batch), batch)

    async def reserve_keys(self) -> None:
        """Have more keys at hand for `reserve_key`."""
        await self.submit(lambda: self.tables.perform([], reserve=True))

    async def forget(self, node_ids: Collection[str]) -> None:
        """Free what these nodes hold, then forget them."""
        await self.submit(lambda: ([], self.tables.forget(node_ids)))
        for node_id in node_ids:
            self.tables.nodes.pop(node_id, None)

    async def settled(self) -> None:
        """Return when the tables show nothing that is not durable; for what is read at once."""
        while self._is_committing:
            await self._settled_once()

    async def written_out(self) -> None:
        """Return when the readable files show every commit so far."""
        await self._worker.submit(self._scribe.flush)

    async def _settled_once(self) -> None:
        reader: asyncio.Future[None] = self._loop.create_future()
        self._readers.append(reader)
        await reader

    def _next(self) -> None:
        while self._queue and not self._is_busy:
            commit = self._queue.popleft()
            try:
                with self.tables.lock:
                    commit.outcomes, entry = commit.perform()
            except ProviderError as error:
                commit.settle(error)
                continue
            if entry is None:
                # Not at once: a caller that commits in a loop must let others run.
                self._loop.call_soon(commit.settle)
                continue
            self._is_busy = self._is_committing = True
            written = self._worker.submit(partial(self._write, entry))
            written.add_done_callback(partial(self._written, commit, entry))

    def _write(self, entry: Batch | Forgotten) -> None:
        if self._probe is not None:
            self._probe("before_commit")
        self._journal.append(records.encode(entry))
        if self._probe is not None:
            self._probe("after_commit")

    def _written(
        self, commit: _Commit, entry: Batch | Forgotten, written: asyncio.Future[None]
    ) -> None:
        error = written.exception()
        if error is not None:
            with self.tables.lock:
                self.tables.revert()
            self._go_on(commit, error)
            return
        self.tables.confirm(entry)
        follow(self._scribe, self.tables, commit.batch, commit.outcomes)
        if self.tables.gone:
            # Its files go before the deletion is acknowledged.
            flushed = self._worker.submit(self._scribe.flush)
            flushed.add_done_callback(lambda _: self._go_on(commit))
        else:
            self._go_on(commit)

    def _go_on(self, commit: _Commit, error: BaseException | None = None) -> None:
        self._is_committing = False
        # Readers first: they get their turn before whoever waits for this commit makes the next.
        self._wake_readers()
        if self._journal.size >= self._compact_at and not self._journal.failed:
            self._worker.submit(self._compact_or_warn).add_done_callback(lambda _: self._free())
        elif self._queue:
            self._loop.call_soon(self._free)
        else:
            self._is_busy = False
        commit.settle(error)

    def _free(self) -> None:
        self._is_busy = False
        self._next()
        if not self._is_busy:
            self._wake_readers()

    def _wake_readers(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)

    # Writing the journal anew. Nothing changes the tables meanwhile.

    def _compact_or_warn(self) -> None:
        try:
            self._compact()
        except ProviderError as error:
            logger.warning("the journal cannot be written anew: %s", error)
            self._compact_at = 2 * self._journal.size

    def _compact(self) -> None:
        self._journal.replace(map(records.encode, self.tables.entries()))
        self.tables.has_traces = False
        self.compactions += 1
        self._compact_at = self._threshold()

    def _threshold(self) -> int:
        return max(COMPACT_BYTES_MIN, COMPACT_FACTOR * self._journal.base)

"""The PostgreSQL provider: a few connections on the loop that opened it, and one for heartbeats."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import asyncpg

from perdure.errors import ForkedStoreError, ProviderError, StoreClosed
from perdure.providers.contract import (
    ActivityRow,
    Capabilities,
    CompleteActivity,
    Depths,
    ExecutionRow,
    InstanceRow,
    Message,
    NodeRow,
    Operation,
    Outcome,
    RowFilter,
    Snapshot,
    Survey,
)
from perdure.providers.postgres import reads
from perdure.providers.postgres.batches import Applied
from perdure.providers.postgres.commits import BATCHES_AT_ONCE, Commits
from perdure.providers.postgres.connections import (
    ERRORS,
    LOST,
    VALUE,
    Connections,
    Database,
    close,
)
from perdure.providers.postgres.heart import Heart
from perdure.providers.postgres.hints import Hint
from perdure.providers.postgres.nodes import Watcher
from perdure.providers.postgres.schema import check_version, migrate
from perdure.providers.postgres.session import Session

CONNECTIONS = 4
"""For everything but the commits, the session and the heartbeats."""
STEP_MS = 1_000
"""By so much no estimate of the server's time is wrong: its clock was set back."""
KEYS = 2_000
"""How many keys a node has at hand."""
WRITERS_MS = 7 * 24 * 3_600 * 1_000
"""After which the mark of a process that has crashed goes."""

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("perdure")


class PostgresProvider:
    """A store in one schema of a database; see Database for the form of the URL.

    now_ms: a clock to use instead of the server's, for tests. probe: called with "before_commit"
    and "after_commit"; for tests that break the connection there.
    """

    batches_at_once = BATCHES_AT_ONCE
    transactional: Literal["def", "async def"] | None = "async def"

    def __init__(
        self,
        url: str,
        *,
        now_ms: Callable[[], int] | None = None,
        probe: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._database = Database(url)
        self._clock = now_ms
        self._probe = probe
        self._pid = os.getpid()
        self._state = "new"
        self._seen_ms = 0
        self._seen_at_s = 0.0
        self._told_ms = 0
        self._keys: deque[int] = deque()
        self._node_ids: set[str] = set()
        self._watcher = Watcher()
        self._watchers: list[tuple[Callable[[], None], str | None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._commits: Commits
        self._others: Connections
        self._session: Session
        self._heart: Heart

    # Opening and closing.

    async def open(self) -> None:
        self._check_process()
        if self._state != "new":
            raise StoreClosed(f"{self._database.where} was opened before; make a new provider")
        self._state = "opening"
        try:
            await self._migrate()
        except BaseException:
            self._state = "closed"
            raise
        self._loop = asyncio.get_running_loop()
        self._others = Connections(self._database, CONNECTIONS)
        self._commits = Commits(self._database, self._others, self._given_ms, self._probe)
        self._session = Session(self._database, self._tell_watchers, self._heard)
        self._heart = Heart(self._database, self._given_ms)
        self._state = "open"

    async def exists(self) -> bool:
        """Whether there is a store at this URL; nothing is created. It need not be open.

        Raises StoreTooNew, StoreUnavailable, ProviderError.
        """
        connection = await self._database.connect()
        try:
            return await check_version(connection, self._database) > 0
        except (asyncpg.PostgresError, *LOST) as error:
            raise self._database.explain(error) from error
        finally:
            await close(connection)

    async def _migrate(self) -> None:
        connection = await self._database.connect()
        try:
            await migrate(connection, self._database)
            self._note_time(await connection.fetchval(f"select {reads.NOW}", self._given_ms()))
        except (asyncpg.PostgresError, *LOST) as error:
            raise self._database.explain(error) from error
        finally:
            await close(connection)

    async def close(self) -> None:
        self._check_process()
        if self._state != "open":
            return
        self._state = "closed"
        self._watchers.clear()
        self._commits.begin_to_close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        try:
            await self._leave()
        except ProviderError as error:
            logger.info("the leases run out by themselves: %s", error)
        await asyncio.to_thread(self._heart.close)
        await self._session.close()
        await self._commits.close()
        await self._others.close()

    async def _leave(self) -> None:
        """Let others know at once that the nodes of this process are gone, and leave no mark."""
        if self._node_ids:
            query = "update nodes set lease_until_ms = 0 where node_id = any($1::text[])"
            await self._work(lambda c: c.execute(query, list(self._node_ids)))
        if self._commits.batches:
            query = "delete from writers where writer = any($1::text[]) or at_ms < $2"
            before_ms = self.now_ms() - WRITERS_MS
            await self._work(lambda c: c.execute(query, self._commits.writers, before_ms))

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedStoreError(
                f"{self._database.where} was opened in another process; "
                "make a new provider after fork"
            )

    def _check_open(self) -> None:
        self._check_process()
        if self._state != "open":
            state = "not open" if self._state in ("new", "opening") else "closed"
            raise StoreClosed(f"{self._database.where} is {state}")

    # Time.

    def now_ms(self) -> int:
        if self._clock is not None:
            return self._clock()
        estimate_ms = self._seen_ms + int((time.monotonic() - self._seen_at_s) * 1000)
        # An answer that took longer than the one before gives a lower estimate; a timer that has
        # fired must not see a time before its own. Only the server's clock itself may go back.
        if not 0 <= self._told_ms - estimate_ms < STEP_MS:
            self._told_ms = estimate_ms
        return self._told_ms

    def _given_ms(self) -> int | None:
        return None if self._clock is None else self._clock()

    def _note_time(self, now_ms: int) -> None:
        self._seen_ms, self._seen_at_s = now_ms, time.monotonic()

    # Writing.

    def reserve_key(self) -> int:
        self._check_open()
        return self._keys.popleft() if self._keys else 0

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        self._check_open()
        # A caller that gives up must not leave a transaction open.
        return asyncio.shield(self._keep(self._commit(batch)))

    async def _commit(self, batch: Sequence[Operation]) -> list[Outcome]:
        return self._note(await self._commits.commit(batch, self.now_ms(), self._keys_wanted))

    @property
    def _keys_wanted(self) -> int:
        return KEYS if self._node_ids and len(self._keys) < KEYS // 2 else 0

    def _note(self, done: Applied) -> list[Outcome]:
        if done.now_ms:
            self._seen_ms, self._seen_at_s = done.now_ms, done.seen_at_s
        self._keys.extend(done.keys)
        done.hint.leave_out(self._node_ids)
        self._session.tell(done.hint)
        return done.outcomes

    async def transact(
        self, claim: CompleteActivity, work: Callable[[Any], Any], limit_s: float | None
    ) -> Outcome:
        self._check_open()
        ending = asyncio.Event()
        task = self._keep(self._commits.transact(claim, work, limit_s, ending.set))
        try:
            done = await asyncio.shield(task)
        except asyncio.CancelledError:
            # Once its body is over it is finished, or nobody would know what became of it.
            if not ending.is_set():
                task.cancel()
            raise
        return self._note(done)[0]

    async def _work(self, work: Callable[[Any], Awaitable[T]]) -> T:
        return await self._commits.repeated(self._others, work)

    def watch(self, changed: Callable[[], None], node_id: str | None = None) -> Callable[[], None]:
        self._check_open()
        watcher = changed, node_id
        self._watchers.append(watcher)
        self._keep(self._listen())

        def end() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return end

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Retrieved, for a caller that has given up does not.
        _ = task.cancelled() or task.exception()

    async def _listen(self) -> None:
        try:
            await self._session.listen()
        except ProviderError as error:
            logger.info("no notifications for now: %s", error)

    def _tell_watchers(self) -> None:
        for changed, _ in list(self._watchers):
            changed()

    def _heard(self, hint: Hint) -> None:
        for changed, node_id in list(self._watchers):
            if node_id is None or hint.concerns(node_id):
                changed()

    # Nodes.

    async def register_node(self, node_id: str, lease_ms: int) -> None:
        self._check_open()
        await self._session.register(node_id, lease_ms, self._given_ms())
        self._node_ids.add(node_id)
        await self._commit([])

    def beat(self, node_id: str) -> bool:
        self._check_open()
        return self._heart.beat(node_id)

    async def release_node(self, node_id: str) -> None:
        self._check_open()
        await self._work(lambda c: c.fetchval("select forget($1, null)", node_id))
        self._node_ids.discard(node_id)
        await self._session.unlock(node_id)
        self._session.tell(Hint(everything=True))

    async def reap_nodes(self, node_id: str) -> list[str]:
        self._check_open()
        dead = await self._work(lambda c: self._watcher.reap(c, node_id, self._given_ms()))
        if dead:
            self._session.tell(Hint(everything=True))
        return dead

    async def nodes(self) -> list[NodeRow]:
        return await self._query(reads.nodes)

    # Reading.

    async def _query(
        self,
        read: Callable[Concatenate[Any, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._check_open()
        try:
            return await self._read_once(read, *args, **kwargs)
        except LOST as error:
            if isinstance(error, VALUE):
                raise self._database.explain(error) from error
        # The connection was of no use any more; a new one may be.
        try:
            return await self._read_once(read, *args, **kwargs)
        except LOST as error:
            raise self._database.explain(error) from error

    async def _read_once(
        self,
        read: Callable[Concatenate[Any, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            async with self._others.use() as connection:
                return await read(connection, *args, **kwargs)
        except LOST:
            raise
        except ERRORS as error:
            raise self._database.explain(error) from error

    async def survey(
        self, node_id: str, capabilities: Capabilities, activity_names: frozenset[str]
    ) -> Survey:
        found, now_ms = await self._query(
            reads.survey, node_id, capabilities, activity_names, self._given_ms()
        )
        self._note_time(now_ms)
        return found

    async def lost_activities(
        self, node_id: str, claims: Collection[tuple[int, int, int]]
    ) -> list[tuple[int, int, int]]:
        return await self._query(reads.lost_activities, node_id, claims)

    async def unrunnable(self, capabilities: Capabilities, limit: int) -> list[InstanceRow]:
        return await self._query(reads.unrunnable, capabilities, limit, self._given_ms())

    async def histories(self, wanted: Sequence[tuple[int, int]]) -> list[list[bytes]]:
        return await self._query(reads.histories, wanted)

    async def read_history(
        self, instance_id: str, execution_id: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[bytes]:
        return await self._query(reads.read_history, instance_id, execution_id, after, limit)

    async def get_instances(self, instance_ids: Collection[str]) -> dict[str, InstanceRow]:
        return await self._query(reads.get_instances, instance_ids)

    async def get_execution(self, key: int, execution_id: int) -> ExecutionRow | None:
        return await self._query(reads.get_execution, key, execution_id)

    async def list_executions(self, instance_id: str) -> list[ExecutionRow]:
        return await self._query(reads.list_executions, instance_id)

    async def list_instances(
        self, filter: RowFilter, after: int = 0, limit: int = 100
    ) -> list[InstanceRow]:
        return await self._query(reads.list_instances, filter, after, limit)

    async def list_tree(self, instance_id: str) -> list[InstanceRow]:
        return await self._query(reads.list_tree, instance_id)

    async def queue_items(self, key: int, queue: str, after: int, limit: int) -> list[Message]:
        return await self._query(reads.queue_items, key, queue, after, limit)

    async def list_activities(self, key: int) -> list[ActivityRow]:
        return await self._query(reads.list_activities, key)

    async def snapshots(self, instance_id: str) -> list[Snapshot]:
        return await self._query(reads.snapshots, instance_id)

    async def count_instances(self) -> dict[str, int]:
        return await self._query(reads.count_instances)

    async def count_blocked(self) -> dict[str, int]:
        return await self._query(reads.count_blocked)

    async def depths(self) -> Depths:
        return await self._query(reads.depths, self._given_ms())

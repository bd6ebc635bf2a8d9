"""What the writer's thread does with its connection: batches, nodes, and a look for others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apsw
import msgspec

from perdure.errors import ProviderError, TransactionRefused
from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    CompleteActivity,
    Operation,
    Outcome,
    Refused,
)
from perdure.providers.sqlite import lives, registry, triggers
from perdure.providers.sqlite.batches import (
    ROWS_MAX,
    WIDTH,
    Note,
    answers_itself,
    bucket,
    in_order,
    insert_text,
    outcomes,
    parameters,
)
from perdure.providers.sqlite.claims import claim_activities, claim_instances
from perdure.providers.sqlite.connection import Database
from perdure.providers.sqlite.schema import migrate
from perdure.providers.sqlite.transactions import CLAIMED, Guard, Transaction, claimed_by

LOOK_AT_FILE_MS = 20
KEYS = 4_000
"""How many keys a node reserves at once."""


class Writer:
    """The connection that writes. Everything here runs in the writer's thread.

    foreign: called when a commit of another connection has been seen.
    probe: called with "before_commit" and "after_commit"; for tests that end the process there.
    """

    def __init__(
        self,
        database: Database,
        now_ms: Callable[[], int],
        foreign: Callable[[], None],
        probe: Callable[[str], None] | None,
    ) -> None:
        """Open the store: create it, or bring it to the newest version."""
        self._database = database
        self._now_ms = now_ms
        self._foreign = foreign
        self._probe = probe
        self._leases: dict[str, int] = {}
        self.keys: deque[int] = deque()
        """Keys of instances to come, which no other process can get."""
        self.renewed_ms: dict[str, int] = {}
        """When the lease of each node of this process was last renewed here."""
        self._connection = database.connect(create=True)
        try:
            migrate(self._connection, database.path)
            triggers.prepare(self._connection)
        except apsw.Error as error:
            raise database.explain(error) from error
        self._guard = Guard(self._connection)
        self._identity = database.identity()
        self._looked_at_file_ms = 0
        self._version = self._connection.data_version()

    def close(self) -> None:
        self._connection.close()

    def poll(self) -> None:
        """Look whether another connection has committed since the last batch or look."""
        try:
            self._connection.execute("pragma data_version").fetchall()
        except apsw.Error:
            return
        self._note_version(0)

    def commit(self, batch: Sequence[Operation]) -> list[Outcome]:
        self._check_file()
        ordered = in_order(batch)
        claims = bool(ordered) and isinstance(ordered[-1][1], ClaimInstances | ClaimActivities)
        quiet = all(answers_itself(operation) for _, operation in ordered)
        try:
            if quiet:
                try:
                    return self._apply(batch, ordered, claims, quiet=True)
                except apsw.ConstraintError:
                    # Somebody is refused, or has something to be told: do it again, with notes.
                    self._roll_back()
            return self._apply(batch, ordered, claims, quiet=False)
        except apsw.Error as error:
            raise self._database.explain(error) from error
        except (TypeError, OverflowError, UnicodeError) as error:
            raise ProviderError(f"a value in the batch cannot be stored: {error}") from error
        finally:
            self._roll_back()

    def transact(
        self, claim: CompleteActivity, work: Callable[[Any], bytes], limit_s: float | None
    ) -> Outcome:
        """See Provider. A transaction of its own: SQLite undoes all of one when it interrupts a
        statement, and a neighbour's work must not go with it."""
        self._check_file()
        connection = self._connection
        try:
            with self._explained():
                connection.execute("begin immediate")
                if not connection.execute(CLAIMED, claimed_by(claim)).get:
                    return Refused("stale")
            with self._guard.watching(), Transaction(connection, limit_s) as transaction:
                body = work(transaction)
            if not connection.in_transaction:
                raise TransactionRefused("a statement of the activity has undone the transaction")
            with self._explained():
                done = msgspec.structs.replace(claim, body=body)
                self._insert(parameters([(0, done)], True, self._now_ms()))
                self._reached("before_commit")
                connection.execute("commit")
        finally:
            self._roll_back()
        self._reached("after_commit")
        self._note_version(1)
        return outcomes([done], ())[0]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise self._database.explain(error) from error

    def _apply(
        self,
        batch: Sequence[Operation],
        ordered: list[tuple[int, Operation]],
        claims: bool,
        quiet: bool,
    ) -> list[Outcome]:
        now = self._now_ms()
        renewals = self._due_renewals(now)
        wanted = KEYS if self._leases and len(self.keys) < KEYS // 2 else 0
        values = parameters(ordered, quiet, now)
        if quiet and not (claims or renewals or wanted or len(values) > ROWS_MAX * WIDTH):
            # A single statement is a transaction by itself.
            self._reached("before_commit")
            self._insert(values)
            results = outcomes(batch, ())
        else:
            self._connection.execute("begin immediate")
            early = lives.write(self._connection, ordered)
            self._insert(values)
            results = outcomes(batch, () if quiet else self._take_notes())
            for place, outcome in early.items():
                results[place] = outcome
            self._claim(ordered, results, now)
            for node_id in renewals:
                registry.renew(self._connection, node_id, now + self._leases[node_id])
            reserved = registry.reserve_keys(self._connection, wanted) if wanted else ()
            self._reached("before_commit")
            self._connection.execute("commit")
            self.keys.extend(reserved)
            self.renewed_ms.update(dict.fromkeys(renewals, now))
        self._reached("after_commit")
        self._note_version(1)
        return results

    def _reached(self, place: str) -> None:
        if self._probe is not None:
            self._probe(place)

    def _insert(self, values: list[Any]) -> None:
        for start in range(0, len(values), ROWS_MAX * WIDTH):
            part = values[start : start + ROWS_MAX * WIDTH]
            rows = bucket(len(part) // WIDTH)
            part += [None] * (rows * WIDTH - len(part))
            self._connection.execute(insert_text(rows), part)

    def _take_notes(self) -> list[Note]:
        text: str = self._connection.execute(
            "select json_group_array(json_array(op, sub, what, value)) from notes"
        ).get
        if text == "[]":
            return []
        self._connection.execute("delete from notes")
        notes: list[Note] = msgspec.json.decode(text)
        return notes

    def _claim(
        self, ordered: list[tuple[int, Operation]], results: list[Outcome], now: int
    ) -> None:
        for place, operation in ordered:
            match operation:
                case ClaimInstances():
                    results[place] = claim_instances(self._connection, operation, now)
                case ClaimActivities():
                    results[place] = claim_activities(self._connection, operation, now)
                case _:
                    pass

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("rollback")

    def _note_version(self, own: int) -> None:
        # SQLite counts here what this connection committed, plus one for each time that it found
        # commits of others.
        version = self._connection.data_version()
        if version - self._version > own:
            self._foreign()
        self._version = version

    def _check_file(self) -> None:
        now = self._now_ms()
        if 0 <= now - self._looked_at_file_ms < LOOK_AT_FILE_MS:
            return
        self._looked_at_file_ms = now
        if self._database.identity() != self._identity:
            raise ProviderError(
                f"{self._database.path} was deleted or replaced while in use; "
                "nothing more is written. Restore the file and restart the process"
            )

    def register(self, node_id: str, lease_ms: int) -> None:
        with self._transaction() as now:
            registry.register(self._connection, node_id, now, now + lease_ms)
            reserved = registry.reserve_keys(self._connection, KEYS)
        self.keys.extend(reserved)
        self._leases[node_id] = lease_ms
        self.renewed_ms[node_id] = now

    def release(self, node_id: str) -> None:
        self._leases.pop(node_id, None)
        self.renewed_ms.pop(node_id, None)
        with self._transaction():
            registry.forget(self._connection, node_id)

    def reap(self, unlocked: Sequence[str], others: Sequence[str]) -> list[str]:
        """Forget and free the nodes that are dead: those whose lock was found free, and the others
        if their lease is over. Returns those that were still known."""
        with self._transaction() as now:
            return [
                node_id
                for node_id in (*unlocked, *registry.expired(self._connection, others, now))
                if registry.forget(self._connection, node_id)
            ]

    @contextmanager
    def _transaction(self) -> Iterator[int]:
        self._check_file()
        try:
            self._connection.execute("begin immediate")
            yield self._now_ms()
            self._connection.execute("commit")
            self._note_version(1)
        except apsw.Error as error:
            raise self._database.explain(error) from error
        finally:
            self._roll_back()

    def _due_renewals(self, now: int) -> list[str]:
        return [
            node_id
            for node_id, lease_ms in self._leases.items()
            if not 0 <= now - self.renewed_ms[node_id] < lease_ms // 3
        ]

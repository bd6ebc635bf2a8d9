"""Residents: the instances that this node holds, with their live executions."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.core import events, work
from perdure.core.execution import Execution
from perdure.providers.contract import CommitTurn, Message, ParentLink, StartInstance


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A work item on its way into a turn.

    effective_ms: when it counts as arrived, on the store's clock. seq: its inbox row, or 0 if it
    has none. local: handed over in memory (an activity that ran here); then it comes last.
    attempt: which attempt of a local activity that was.
    """

    item: work.AnyWorkItem
    effective_ms: int
    seq: int = 0
    local: bool = False
    attempt: int = 0

    def order(self) -> tuple[bool, int, int]:
        return (self.local, self.effective_ms, self.seq)


class Resident:
    """An acquisition of an instance, from the claim until it is given back or ends.

    execution: the live coroutine, or None while its history is being loaded. pending: deliveries
    for the next turn. history: what the next turn repeats first. committing: the turn that is being
    committed (at most one). unsettled: no commit since the claim. repeated: the turn is a
    repetition (see Execution).
    """

    __slots__ = (
        "attempt",
        "committing",
        "execution",
        "execution_id",
        "external",
        "history",
        "incarnation",
        "input",
        "instance_id",
        "key",
        "last_seq",
        "loading",
        "local",
        "mail",
        "name",
        "nesting",
        "parent",
        "pending",
        "queued",
        "released",
        "repeated",
        "stored_due_ms",
        "timers",
        "token",
        "unsettled",
        "version",
    )

    def __init__(
        self,
        key: int,
        instance_id: str,
        incarnation: str,
        name: str,
        version: str | None,
        execution_id: int,
        token: str,
        input: bytes,
        parent: ParentLink | None,
        nesting: int,
    ) -> None:
        self.key = key
        self.instance_id = instance_id
        self.incarnation = incarnation
        self.name = name
        self.version = version
        self.execution_id = execution_id
        self.token = token
        self.input = input
        self.parent = parent
        self.nesting = nesting
        self.attempt = 1
        self.mail = 0
        self.external = 0
        self.last_seq = 0
        self.timers: dict[int, int] = {}
        self.local: set[int] = set()
        self.stored_due_ms: int | None = 0
        self.execution: Execution | None = None
        self.history: list[events.AnyEvent] | None = None
        self.pending: list[Delivery] = []
        self.committing: CommitTurn | None = None
        self.unsettled = True
        self.repeated = False
        self.loading = False
        self.queued = False
        self.released = False

    def receive(self, mail: int, external: int, messages: tuple[Message, ...]) -> bool:
        """Take in what the inbox holds; True if anything of it is new."""
        # Two looks at the inbox may come back in the wrong order.
        self.mail = max(self.mail, mail)
        self.external = max(self.external, external)
        fresh = [message for message in messages if message.seq > self.last_seq]
        for message in fresh:
            self.last_seq = message.seq
            item = work.decode(message.body)
            self.pending.append(Delivery(item, message.accepted_ms, message.seq))
        return bool(fresh)

    def next_due_ms(self) -> int | None:
        """The earliest timer, or None."""
        return min(self.timers.values()) if self.timers else None

    @property
    def idle(self) -> bool:
        """Nothing under way: it could be given back without losing work."""
        return not (self.pending or self.committing or self.loading or self.queued)


def resident_of(start: StartInstance, key: int) -> Resident:
    """The resident of a start that names its owner."""
    assert start.token is not None
    return Resident(
        key,
        start.instance_id,
        start.incarnation,
        start.name,
        start.version,
        1,
        start.token,
        start.input,
        start.parent,
        start.nesting,
    )


class Residents:
    """All residents of a node by key, least recently used first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_key: dict[int, Resident] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Any:
        return iter(list(self._by_key.values()))

    def get(self, key: int) -> Resident | None:
        return self._by_key.get(key)

    def add(self, resident: Resident) -> None:
        self._by_key[resident.key] = resident

    def touch(self, resident: Resident) -> None:
        """Count it as just used."""
        if self._by_key.pop(resident.key, None) is not None:
            self._by_key[resident.key] = resident

    def remove(self, resident: Resident) -> None:
        if self._by_key.get(resident.key) is resident:
            del self._by_key[resident.key]

    @property
    def over_limit(self) -> bool:
        return len(self._by_key) > self._limit

    def surplus(self) -> list[Resident]:
        """Idle residents to evict, least recently used first, so that the limit is kept.

        One that waits for an activity running here is spared: its completion would have to go
        through the store, and its next turn through a replay. (With a limit of 0 nothing is.)
        """
        over = len(self._by_key) - self._limit
        if over <= 0:
            return []
        found: list[Resident] = []
        for looked, resident in enumerate(self._by_key.values()):
            if resident.idle and not (resident.local and self._limit):
                found.append(resident)
            # Bounded, so that a node full of busy residents does not search them all every time.
            if len(found) >= over or looked >= 2 * over + 100:
                break
        return found

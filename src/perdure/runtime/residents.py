"""Residents: the instances that this node holds, with their live executions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.core import events, work
from perdure.core.execution import Execution
from perdure.core.mailbox import Mailbox
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

    @property
    def kept(self) -> bool:
        """Whether its row stays after the turn that it came into (unless that turn took it)."""
        return isinstance(self.item, work.EventEnqueued)

    def order(self) -> tuple[bool, int, int]:
        return (self.local, self.effective_ms, self.seq)


class Resident:
    """An acquisition of an instance, from the claim until it is given back or ends.

    execution: the live coroutine, or None while its history is being loaded. pending: deliveries
    for the next turn. history: what the next turn repeats first. committing: the turn that is being
    committed (at most one). mailbox: items of event queues that are at hand. queued: how many were
    ever put into them; fetched: at which such number everything of a queue was at hand. ready: it
    is in line for a turn. unsettled: no commit since the claim. repeated: the turn is a repetition
    (see Execution).
    """

    __slots__ = (
        "attempt",
        "committing",
        "execution",
        "execution_id",
        "external",
        "fetched",
        "history",
        "incarnation",
        "input",
        "instance_id",
        "key",
        "last_seq",
        "loading",
        "local",
        "mail",
        "mailbox",
        "name",
        "nesting",
        "parent",
        "pending",
        "queued",
        "ready",
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
        self.queued = 0
        self.mailbox = Mailbox()
        self.fetched: dict[str, int] = {}
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
        self.ready = False
        self.released = False

    def receive(self, mail: int, external: int, messages: tuple[Message, ...], queued: int) -> bool:
        """Take in what the inbox holds; True if anything of it is new."""
        # Two looks at the inbox may come back in the wrong order.
        self.mail = max(self.mail, mail)
        self.external = max(self.external, external)
        more = queued > self.queued
        if more:
            self.queued = queued
            # It is due by what was put in, and if nobody waits for that it must be parked anew.
            self.stored_due_ms = 0
        fresh = [message for message in messages if message.seq > self.last_seq]
        for message in fresh:
            self.last_seq = message.seq
            item = work.decode(message.body)
            self.pending.append(Delivery(item, message.accepted_ms, message.seq))
        return more or bool(fresh)

    def queues_wanted(self, deliveries: Sequence[Delivery]) -> list[str]:
        """The event queues that the code waits at and of which the store may have items, other
        than those that are about to be delivered or at hand."""
        if self.execution is None or not self.execution.requests.dequeues:
            return []
        at_hand = {d.item.name for d in deliveries if isinstance(d.item, work.EventEnqueued)}
        return [
            name
            for name in self.execution.requests.dequeues
            if self.fetched.get(name) != self.queued
            and name not in at_hand
            and not self.mailbox.has(name)
        ]

    def take_items(self, name: str, messages: Sequence[Message], queued: int, whole: bool) -> None:
        """Take in items of an event queue, as of the time when `queued` had been put into all.
        whole: there are no others."""
        for message in messages:
            item = work.decode(message.body)
            if isinstance(item, work.EventEnqueued):
                item = msgspec.structs.replace(item, seq=message.seq)
            self.pending.append(Delivery(item, message.accepted_ms, message.seq))
        if whole:
            self.fetched[name] = queued

    def forget_items(self) -> None:
        """What is at hand may have been taken by a turn that came to nothing: fetch it again."""
        self.mailbox.clear()
        self.fetched.clear()
        self.pending = [delivery for delivery in self.pending if not delivery.kept]

    def next_due_ms(self) -> int | None:
        """The earliest timer, or None."""
        return min(self.timers.values()) if self.timers else None

    @property
    def idle(self) -> bool:
        """Nothing under way: it could be given back without losing work."""
        return not (self.pending or self.committing or self.loading or self.ready)


def resident_of(start: StartInstance, key: int) -> Resident:
    """The resident of a start that names its owner."""
    assert start.token is not None
    resident = Resident(
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
    resident.mail = resident.external = resident.queued = len(start.sends)
    return resident


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

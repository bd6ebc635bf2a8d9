"""Instances as JSON Lines and back: what `export_instance` gives and `import_instances` takes.

A header line; then each instance of a tree, the root first: a line for itself, one for each of its
executions followed by the events exactly as recorded, one for each of its messages, activities,
timers and remembered event ids; and a last line with a digest of all lines from the header on.
Several such trees may follow each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, NoReturn, Union, get_args

import msgspec
from msgspec import UNSET, UnsetType

from perdure.core import events
from perdure.core.events import AnyEvent, Payload
from perdure.errors import InvalidImport, InvalidName, PayloadError
from perdure.providers.contract import (
    ActivitySnapshot,
    ExecutionSnapshot,
    ExecutionStatus,
    MessageSnapshot,
    NewTimer,
    ParentLink,
    Snapshot,
    Status,
)

FORMAT = 1
"""The number of the format."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
TIME_MAX = 253_402_300_799_999
Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MAX)]
"""Milliseconds since the epoch, up to the end of the year 9999."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    pass


class Header(Record, frozen=True, tag="perdure.export"):
    """instance_id: the root of the tree that follows."""

    format: int
    instance_id: str


class InstanceRecord(Record, frozen=True, tag="instance"):
    instance_id: str
    incarnation: str
    name: str
    version: str | None
    status: Status
    execution_id: Count
    parent: ParentRecord | None
    nesting: Count
    created_ms: Time
    finished_ms: Time | None


class ParentRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    instance_id: str
    incarnation: str
    execution_id: Count
    event_id: Count


class ExecutionRecord(Record, frozen=True, tag="execution"):
    execution_id: Count
    version: str | None
    status: ExecutionStatus
    started_ms: Time
    ended_ms: Time | None
    input: Payload
    output: Payload | UnsetType = UNSET
    error: Payload | UnsetType = UNSET


class MessageRecord(Record, frozen=True, tag="message"):
    """queue: the event queue whose item it is; None for a message of the inbox."""

    accepted_ms: Time
    queue: str | None
    body: Payload


class ActivityRecord(Record, frozen=True, tag="activity"):
    event_id: Count
    name: str
    input: Payload
    attempt: Count
    due_ms: Time
    options: Payload | UnsetType = UNSET
    error: Payload | UnsetType = UNSET


class TimerRecord(Record, frozen=True, tag="timer"):
    event_id: Count
    fire_at_ms: Time


class EventIdRecord(Record, frozen=True, tag="event_id"):
    """The id of an event that was enqueued once, so that it is not enqueued again."""

    id: str


class End(Record, frozen=True, tag="perdure.end"):
    """lines: how many come before this one, from the header on; sha256: of them."""

    lines: int
    sha256: str


AnyRecord = Union[  # noqa: UP007 - msgspec needs a runtime union of a long list
    Header,
    InstanceRecord,
    ExecutionRecord,
    MessageRecord,
    ActivityRecord,
    TimerRecord,
    EventIdRecord,
    End,
]


class _Typed(msgspec.Struct, frozen=True):
    type: str


_encode = msgspec.json.Encoder().encode
_type = msgspec.json.Decoder(_Typed)
_record = msgspec.json.Decoder(AnyRecord)
_RECORDS = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyRecord))


# Writing.


def lines_of(tree: Sequence[Snapshot]) -> list[bytes]:
    """The lines of one tree, the root first, each with its newline."""
    lines = [_encode(Header(FORMAT, tree[0].instance_id)) + b"\n"]
    for instance in tree:
        lines.extend(line + b"\n" for line in _instance_lines(instance))
    lines.append(_encode(end_of(lines)) + b"\n")
    return lines


def end_of(lines: Sequence[bytes]) -> End:
    """The last line of a tree, given all others with their newlines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return End(len(lines), digest.hexdigest())


def _instance_lines(one: Snapshot) -> Iterator[bytes]:
    parent = ParentRecord(*msgspec.structs.astuple(one.parent)) if one.parent else None
    yield _encode(
        InstanceRecord(
            one.instance_id,
            one.incarnation,
            one.name,
            one.version,
            one.status,
            one.execution_id,
            parent,
            one.nesting,
            one.created_ms,
            one.finished_ms,
        )
    )
    for ex in one.executions:
        payloads = Payload(ex.input), _raw(ex.output), _raw(ex.error)
        yield _encode(
            ExecutionRecord(
                ex.execution_id, ex.version, ex.status, ex.started_ms, ex.ended_ms, *payloads
            )
        )
        yield from ex.events
    for sent in one.messages:
        yield _encode(MessageRecord(sent.accepted_ms, sent.queue, Payload(sent.body)))
    for a in one.activities:
        yield _encode(
            ActivityRecord(
                a.event_id,
                a.name,
                Payload(a.input),
                a.attempt,
                a.due_ms,
                _raw(a.options),
                _raw(a.error),
            )
        )
    for timer in one.timers:
        yield _encode(TimerRecord(timer.event_id, timer.fire_at_ms))
    for event_id in one.event_ids:
        yield _encode(EventIdRecord(event_id))


def _raw(data: bytes | None) -> Payload | UnsetType:
    return UNSET if data is None else Payload(data)


def data_of(payload: Payload | UnsetType) -> bytes | None:
    """The bytes of a payload, None if it is not there (which is not the same as null)."""
    return bytes(payload) if isinstance(payload, Payload) else None


# Reading.


@dataclass(frozen=True, slots=True)
class ReadExecution:
    """One execution as read; `line` is that of its record, its events are on the lines after."""

    line: int
    record: ExecutionRecord
    events: list[AnyEvent] = field(default_factory=list)
    recorded: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadInstance:
    """One instance as read; what belongs to it beside its executions comes with line numbers."""

    line: int
    record: InstanceRecord
    executions: list[ReadExecution] = field(default_factory=list)
    messages: list[tuple[int, MessageRecord]] = field(default_factory=list)
    activities: list[tuple[int, ActivityRecord]] = field(default_factory=list)
    timers: list[tuple[int, TimerRecord]] = field(default_factory=list)
    event_ids: list[tuple[int, EventIdRecord]] = field(default_factory=list)


@contextmanager
def at(line: int) -> Iterator[None]:
    """What does not decode in the block, or breaks a rule for names or payloads, is InvalidImport
    of this line."""
    try:
        yield
    except (msgspec.MsgspecError, UnicodeError, InvalidName, PayloadError) as error:
        raise InvalidImport(str(error), line=line) from error
    except RecursionError as error:
        raise InvalidImport("it is nested too deep", line=line) from error


def refuse(line: int, reason: str) -> NoReturn:
    raise InvalidImport(reason, line=line)


def trees_of(lines: Iterable[bytes]) -> list[list[ReadInstance]]:
    """The trees that the lines hold. Raises InvalidImport, TypeError for what is not bytes.

    Each line is well-formed then and stands where its kind may; what it says is not checked.
    """
    reader = _Reader()
    for number, line in enumerate(lines, 1):
        if not isinstance(line, bytes):
            raise TypeError(f"lines are bytes, as of a file opened with mode 'rb', not {line!r}")
        with at(number):
            reader.take(number, line.removesuffix(b"\n") + b"\n")
    return reader.end()


class _Reader:
    """Takes one line after the other."""

    def __init__(self) -> None:
        self._trees: list[list[ReadInstance]] = []
        self._lines: list[bytes] = []
        self._number = 0
        self._is_open = False

    def take(self, number: int, line: bytes) -> None:
        self._number = number
        self._lines.append(line)
        data = line[:-1]
        # What is carried as raw JSON is not decoded on the way, and might not be text.
        data.decode()
        if _type.decode(data).type in _RECORDS:
            self._record(_record.decode(data))
        else:
            self._event(events.decode(data), data)

    def end(self) -> list[list[ReadInstance]]:
        if self._is_open or not self._trees:
            self._number += 1
            self._refuse("the export is cut off: its last line is missing")
        return self._trees

    def _refuse(self, reason: str) -> NoReturn:
        refuse(self._number, reason)

    def _record(self, record: AnyRecord) -> None:
        if isinstance(record, Header):
            self._begin(record)
            return
        if not self._is_open:
            self._refuse("an export begins with a line of type perdure.export")
        match record:
            case InstanceRecord():
                self._trees[-1].append(ReadInstance(self._number, record))
            case ExecutionRecord():
                self._instance.executions.append(ReadExecution(self._number, record))
            case MessageRecord():
                self._instance.messages.append((self._number, record))
            case ActivityRecord():
                self._instance.activities.append((self._number, record))
            case TimerRecord():
                self._instance.timers.append((self._number, record))
            case EventIdRecord():
                self._instance.event_ids.append((self._number, record))
            case End():
                self._finish(record)

    def _begin(self, header: Header) -> None:
        if self._is_open:
            self._refuse("the export before this one is cut off")
        if header.format != FORMAT:
            self._refuse(
                f"it has format {header.format}, and this Perdure knows format {FORMAT}; "
                "import it with the one that wrote it, or a newer one"
            )
        self._is_open = True
        del self._lines[:-1]
        self._trees.append([])

    @property
    def _instance(self) -> ReadInstance:
        if not self._trees[-1]:
            self._refuse("it belongs to an instance, and there is none before it")
        return self._trees[-1][-1]

    def _event(self, event: AnyEvent, data: bytes) -> None:
        if not self._is_open:
            self._refuse("an export begins with a line of type perdure.export")
        if events.encode(event) != data:
            self._refuse("it is not an event as it was recorded")
        executions = self._instance.executions
        if not executions:
            self._refuse("an event belongs to an execution, and there is none before it")
        executions[-1].events.append(event)
        executions[-1].recorded.append(data)

    def _finish(self, end: End) -> None:
        tree = self._trees[-1]
        if not tree:
            self._refuse("the export holds no instance")
        if end != end_of(self._lines[:-1]):
            self._refuse("the lines before it are not those that were exported")
        written = lines_of([snapshot_of(one, 0) for one in tree])
        first = self._number - len(self._lines) + 1
        for number, (line, expected) in enumerate(zip(self._lines, written, strict=True), first):
            if line != expected:
                refuse(number, "it is not what an export writes at this place")
        self._is_open = False


def snapshot_of(one: ReadInstance, now_ms: int) -> Snapshot:
    """The instance as a store takes it, due at once unless it has ended: when it has something to
    do next is found out in its first turn."""
    record = one.record
    return Snapshot(
        instance_id=record.instance_id,
        incarnation=record.incarnation,
        name=record.name,
        version=record.version,
        status=record.status,
        execution_id=record.execution_id,
        parent=ParentLink(*msgspec.structs.astuple(record.parent)) if record.parent else None,
        nesting=record.nesting,
        created_ms=record.created_ms,
        finished_ms=record.finished_ms,
        due_ms=now_ms if record.finished_ms is None else None,
        executions=tuple(_execution(execution) for execution in one.executions),
        messages=tuple(
            MessageSnapshot(sent.accepted_ms, bytes(sent.body), sent.queue)
            for _, sent in one.messages
        ),
        activities=tuple(_activity(item) for _, item in one.activities),
        timers=tuple(NewTimer(timer.event_id, timer.fire_at_ms) for _, timer in one.timers),
        event_ids=tuple(sent.id for _, sent in one.event_ids),
    )


def _execution(execution: ReadExecution) -> ExecutionSnapshot:
    record = execution.record
    return ExecutionSnapshot(
        record.execution_id,
        record.version,
        record.status,
        record.started_ms,
        record.ended_ms,
        bytes(record.input),
        data_of(record.output),
        data_of(record.error),
        tuple(execution.recorded),
    )


def _activity(item: ActivityRecord) -> ActivitySnapshot:
    return ActivitySnapshot(
        item.event_id,
        item.name,
        bytes(item.input),
        data_of(item.options),
        item.attempt,
        item.due_ms,
        data_of(item.error),
    )

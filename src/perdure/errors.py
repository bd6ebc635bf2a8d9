"""Every error class of Perdure, in one tree.

PerdureError
├── InvalidName                 an id or a name breaks the rules for names
├── PayloadError                a value cannot be encoded, or does not fit its declared type
│   └── PayloadTooLarge         its encoded form is over the limit
├── InvalidTimer                a duration that is NaN, infinite or too long
├── LimitExceeded               one of the numbered limits of an orchestration
│   ├── HistoryLimitExceeded    events of one execution
│   ├── TurnLimitExceeded       decisions or callbacks of one turn
│   ├── TooManyPending          activities, timers, waits and children open at once
│   └── NestingTooDeep          children of children
├── RegistrationError           what was listed for a runtime cannot be hosted
├── NotInOrchestration          a durable call outside an orchestration
├── ForbiddenOperation          a call that cannot be deterministic
├── NondeterminismError         the code no longer makes the recorded decisions
├── TransactionRefused          a transactional activity may not do this with its connection
├── TransactionTimeout          a transactional activity took too long
├── InstanceNotFound            no such instance
├── InstanceAlreadyExists       the id is taken
├── InstanceTerminal            the instance has ended
├── InstanceRunning             the instance, or one below it, has not ended
├── InstanceIsChild             the instance belongs to its parent
├── InvalidImport               what is to be imported is no valid export
├── OrchestrationFailedError    the awaited orchestration failed or was cancelled
├── RecordedFailure             a failure that arrives inside an orchestration
│   ├── ActivityError           the activity raised
│   │   ├── ActivityTimeout     its last attempt took longer than its `timeout`
│   │   └── ActivityLost        the process of its last attempt died
│   └── SubOrchestrationError   the child failed
├── ProviderError               the store refuses or cannot be reached
│   ├── StoreUnavailable        try again later; the outcome may be unknown
│   ├── StoreTooNew             written by a newer Perdure
│   ├── StoreClosed             used after close
│   └── ForkedStoreError        used in a forked child
└── InternalError               a fault of Perdure itself; please report it
"""

from __future__ import annotations


class PerdureError(Exception):
    """Base of every error that Perdure raises."""


class InvalidName(PerdureError):
    """An instance id, name or version breaks the rules; the message says which. Choose another."""


class PayloadError(PerdureError):
    """A value cannot be encoded as JSON or does not fit its declared type. Change value or type."""


class PayloadTooLarge(PayloadError):
    """An encoded value is over the limit. Store it elsewhere and pass a reference."""


class InvalidTimer(PerdureError):
    """A duration is NaN, infinite or longer than 3,650 days. Pass a finite number of seconds."""


class LimitExceeded(PerdureError):
    """A limit of the orchestration would be exceeded; raised at the call that would do it."""


class HistoryLimitExceeded(LimitExceeded):
    """This execution's history is full. Watch `ctx.history_length` and continue as new earlier."""


class TurnLimitExceeded(LimitExceeded):
    """One turn makes too many decisions or never becomes idle. Await something, or split it."""


class TooManyPending(LimitExceeded):
    """Too many activities, timers, waits and children are open. Await some of them first."""


class NestingTooDeep(LimitExceeded):
    """Sub-orchestrations are nested too deep. Start a detached orchestration instead."""


class RegistrationError(PerdureError):
    """A function cannot be hosted as listed. The message names the function and the remedy."""


class NotInOrchestration(PerdureError):
    """A durable call was made outside an orchestration. Use a client, or `.function` in tests."""


class ForbiddenOperation(PerdureError):
    """An orchestration called something that cannot be deterministic. Do it in an activity."""


class NondeterminismError(PerdureError):
    """The code no longer makes the decisions that the history records.

    The instance is blocked, nothing is lost and nothing was written: deploy code that makes the
    recorded decisions (usually the previous version), or list the change as a new version.
    """

    def __init__(
        self,
        *,
        event_id: int,
        expected: str,
        found: str,
        location: str,
        matched: tuple[str, ...] = (),
        hint: str = "",
    ) -> None:
        self.event_id = event_id
        self.expected = expected
        self.found = found
        self.location = location
        self.matched = matched
        self.hint = hint
        super().__init__(event_id, expected, found, location)

    def __str__(self) -> str:
        lines = [
            self.hint,
            f"at event {self.event_id} the history has {self.expected}",
            f"but the code made {self.found}",
            f"at {self.location}" if self.location else "",
            "last events that matched: " + ", ".join(self.matched) if self.matched else "",
            "deploy code that makes the recorded decisions, or give the change a new version",
        ]
        return "; ".join(line for line in lines if line)


class TransactionRefused(PerdureError):
    """A transactional activity's connection refuses a statement. The store begins and ends the
    transaction, and its own tables are not for writing: leave both out of the activity."""


class TransactionTimeout(PerdureError):
    """A transactional activity had its transaction open for too long. Nothing of it was written:
    do less in it, or do the slow part in an activity before it."""


class InstanceNotFound(PerdureError):
    """There is no instance of this id in the store. Check the id and the store's URL."""


class InstanceAlreadyExists(PerdureError):
    """The instance id is taken. Use `if_exists="return"` to get its handle, or another id."""

    def __init__(self, message: str, *, instance_id: str, status: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id
        self.status = status


class InstanceTerminal(PerdureError):
    """The instance has ended and takes nothing more. Read its result instead."""

    def __init__(self, message: str, *, instance_id: str, status: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id
        self.status = status


class InstanceRunning(PerdureError):
    """The instance or a sub-orchestration of it has not ended. Cancel it first, or use force.

    instance_id: the one that has not ended.
    """

    def __init__(self, message: str, *, instance_id: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id


class InstanceIsChild(PerdureError):
    """The instance is a sub-orchestration and cannot be deleted alone. Delete its parent."""

    def __init__(self, message: str, *, instance_id: str, parent: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id
        self.parent = parent


class InvalidImport(PerdureError):
    """What is to be imported is no valid export; nothing was imported. line: its number, from 1."""

    def __init__(self, reason: str, *, line: int) -> None:
        super().__init__(f"line {line}: {reason}; nothing was imported")
        self.line = line


class RecordedFailure(PerdureError):
    """A failure as the history records it.

    type: the exception class's qualified name. message: its text. traceback: its formatted
    traceback, cut at 64 KiB, or "".
    """

    def __init__(self, type: str, message: str, traceback: str = "") -> None:
        super().__init__(type, message, traceback)
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class ActivityError(RecordedFailure):
    """An activity failed. Handle it in the orchestration, or let the orchestration fail.

    attempts: how often it was tried; type, message and traceback are those of the last attempt.
    """

    attempts = 1


class ActivityTimeout(ActivityError):
    """The activity's last attempt took longer than its `timeout`. Allow more time or attempts."""


class ActivityLost(ActivityError):
    """The process of the activity's last attempt died, and `max_attempts` allows no other.

    The attempt may have had its effect: find out before it is done again.
    """


class SubOrchestrationError(RecordedFailure):
    """A sub-orchestration failed or could not be started. Handle it, or let the parent fail."""


class OrchestrationFailedError(RecordedFailure):
    """The awaited orchestration failed (`status` "failed") or was cancelled ("cancelled")."""

    def __init__(
        self,
        type: str,
        message: str,
        traceback: str = "",
        *,
        instance_id: str = "",
        status: str = "failed",
    ) -> None:
        super().__init__(type, message, traceback)
        self.instance_id = instance_id
        self.status = status

    def __str__(self) -> str:
        return f"orchestration {self.instance_id} {self.status}: {super().__str__()}"


class ProviderError(PerdureError):
    """The store refuses an operation; the message says why and what to do."""


class StoreUnavailable(ProviderError):
    """The store cannot be reached now. The runtime keeps trying; a caller may try again."""


class StoreTooNew(ProviderError):
    """The store was written by a newer Perdure. Upgrade this process; nothing was changed."""


class StoreClosed(ProviderError):
    """The provider was closed. Open a new one."""


class ForkedStoreError(ProviderError):
    """A provider was used in a forked child. Open a new one in the child."""


class InternalError(PerdureError):
    """Perdure broke one of its own rules. Please report it with the traceback."""

"""Which executions of an instance are kept when it is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """What pruning keeps. The current execution is always kept, running or not.

    keep_last: how many of the newest executions are kept, the current one included; None, 0 and 1
    mean the same: only the current one. completed_before: only executions that ended before this
    time go: an aware datetime, or a timedelta (that long ago). With both given, both must hold for
    an execution to go. Raises ValueError or TypeError for anything else.
    """

    keep_last: int | None = None
    completed_before: datetime | timedelta | None = None

    def __post_init__(self) -> None:
        keep = self.keep_last
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int)):
            raise TypeError(f"keep_last must be a whole number or None, not {keep!r}")
        if keep is not None and not 0 <= keep <= 1_000_000_000:
            raise ValueError(f"keep_last must be 0 to 1,000,000,000, not {keep}")
        before = self.completed_before
        if before is not None and not isinstance(before, datetime | timedelta):
            raise TypeError(f"completed_before must be a datetime or timedelta, not {before!r}")
        if isinstance(before, datetime) and before.tzinfo is None:
            raise ValueError(f"completed_before {before!r} has no time zone; use an aware datetime")
        if isinstance(before, timedelta) and before < timedelta(0):
            raise ValueError(f"completed_before {before!r} is negative")

    @property
    def kept(self) -> int:
        """How many of the newest executions stay, at least 1."""
        return max(1, self.keep_last or 0)

    def before_ms(self, now_ms: int) -> int | None:
        """The time before which an execution must have ended to go, or None for any time."""
        before = self.completed_before
        if before is None:
            return None
        if isinstance(before, timedelta):
            return now_ms - round(before.total_seconds() * 1000)
        return round(before.astimezone(UTC).timestamp() * 1000)


def check_policy(policy: PruneOptions | None) -> PruneOptions | None:
    """The policy itself, if it can be set on an orchestration: its age is a timedelta."""
    if policy is None:
        return None
    if not isinstance(policy, PruneOptions):
        raise TypeError(f"retention must be PruneOptions, not {policy!r}")
    if isinstance(policy.completed_before, datetime):
        raise ValueError("a retention policy needs completed_before as a timedelta")
    return policy

"""How attempts of an activity are made: how many, how far apart, and how long each may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random

import msgspec

from perdure.durations import Duration, to_ms

BACKOFF_MAX = 1_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Which failed attempts of an activity are followed by another, and when.

    max_attempts: how often it is tried at most, the first time included; None: until it succeeds.
    With 1 it is run at most once: if its process dies, it is not run again and fails with
    ActivityLost. initial_interval: the pause after the first attempt; each further one is
    `backoff` (1 to 1,000) times as long, up to max_interval; jitter (0 to 1): up to this part of
    each pause is left out, by chance. non_retryable: exception classes or their names (as in
    `ActivityError.type`) after which no other attempt is made; a class stands for its subclasses
    too. Durations are seconds or timedelta. Raises ValueError, TypeError, InvalidTimer.
    """

    max_attempts: int | None = None
    initial_interval: Duration = 1.0
    backoff: float = 2.0
    max_interval: Duration = 60.0
    jitter: float = 0.1
    non_retryable: Sequence[type[BaseException] | str] = ()

    def __post_init__(self) -> None:
        most = self.max_attempts
        if most is not None and (isinstance(most, bool) or not isinstance(most, int)):
            raise TypeError(f"max_attempts must be a whole number or None, not {most!r}")
        if most is not None and not 1 <= most <= 1_000_000_000:
            raise ValueError(f"max_attempts must be 1 to 1,000,000,000, not {most}")
        _check_number("backoff", self.backoff, 1.0, BACKOFF_MAX)
        _check_number("jitter", self.jitter, 0.0, 1.0)
        to_ms(self.initial_interval)
        to_ms(self.max_interval)
        if isinstance(self.non_retryable, str):
            raise TypeError("non_retryable must be a sequence of classes or names, not one name")
        for kind in self.non_retryable:
            if not isinstance(kind, str) and not (
                isinstance(kind, type) and issubclass(kind, BaseException)
            ):
                raise TypeError(f"non_retryable lists exception classes or names, not {kind!r}")


class Retry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A RetryPolicy as it is stored."""

    max_attempts: int | None
    initial_ms: int
    backoff: float
    max_ms: int
    jitter: float
    non_retryable: tuple[str, ...] = ()

    def allows_another(self, attempt: int) -> bool:
        """Whether one may follow the attempt of this number."""
        return self.max_attempts is None or attempt < self.max_attempts

    def is_final(self, error: BaseException) -> bool:
        """Whether no attempt may follow this error, whatever their number."""
        return any(kind.__qualname__ in self.non_retryable for kind in type(error).__mro__)

    def pause_ms(self, attempt: int, random: Random) -> int:
        """How long to wait after the attempt of this number, in whole milliseconds."""
        try:
            full = min(self.initial_ms * self.backoff ** (attempt - 1), float(self.max_ms))
        except OverflowError:
            full = float(self.max_ms)
        return math.ceil(full * (1.0 - self.jitter * random.random()))


class ActivityOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a call says of its attempts; the rest is as the activity itself is marked."""

    retry: Retry | None = None
    timeout_ms: int | None = None

    def over(self, marked: ActivityOptions) -> ActivityOptions:
        """These options, completed by those of the activity."""
        return ActivityOptions(
            self.retry if self.retry is not None else marked.retry,
            self.timeout_ms if self.timeout_ms is not None else marked.timeout_ms,
        )


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(ActivityOptions).decode


def options_of(retry: RetryPolicy | None, timeout: Duration | None) -> ActivityOptions:
    """The checked options. timeout: of each attempt, in seconds or as a timedelta, above zero.

    Raises TypeError, ValueError, InvalidTimer.
    """
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise TypeError(f"retry must be a RetryPolicy, not {retry!r}")
    timeout_ms = None if timeout is None else to_ms(timeout)
    if timeout_ms == 0:
        raise ValueError(f"timeout must be above zero, not {timeout!r}")
    return ActivityOptions(None if retry is None else _stored(retry), timeout_ms)


def _stored(policy: RetryPolicy) -> Retry:
    return Retry(
        policy.max_attempts,
        to_ms(policy.initial_interval),
        float(policy.backoff),
        to_ms(policy.max_interval),
        float(policy.jitter),
        tuple(
            kind if isinstance(kind, str) else kind.__qualname__ for kind in policy.non_retryable
        ),
    )


def _check_number(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool | timedelta) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least:g} to {most:g}, not {value!r}")

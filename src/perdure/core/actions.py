"""The actions: what an orchestration can decide in a turn. Each becomes one history event."""

from __future__ import annotations

from typing import Union

import msgspec

from perdure.core.events import Payload


class Action(msgspec.Struct, frozen=True, gc=False):
    """`id` is the event id that records the decision."""

    id: int


class CallActivity(Action, frozen=True):
    """options: how the caller wants it run (see `perdure.retries`); not part of the decision."""

    name: str
    input: Payload
    options: bytes | None = None


class CreateTimer(Action, frozen=True):
    delay_ms: int


class WaitExternal(Action, frozen=True):
    name: str


class DequeueEvent(Action, frozen=True):
    name: str


class StartSubOrchestration(Action, frozen=True):
    name: str
    instance: str
    input: Payload
    version: str | None = None


class StartOrchestrationDetached(Action, frozen=True):
    name: str
    instance: str
    input: Payload
    version: str | None = None


class ContinueAsNew(Action, frozen=True):
    input: Payload
    version: str | None = None


class Cancel(Action, frozen=True):
    """Withdraws what event `source` asked for; `kind` says which kind of request that was.

    instance: the id of the child that is asked to cancel, otherwise "".
    """

    source: int
    kind: type[Action]
    instance: str = ""


AnyAction = Union[  # noqa: UP007 - read as a closed set
    CallActivity,
    CreateTimer,
    WaitExternal,
    DequeueEvent,
    StartSubOrchestration,
    StartOrchestrationDetached,
    ContinueAsNew,
    Cancel,
]

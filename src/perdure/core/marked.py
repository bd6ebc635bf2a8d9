"""What the core knows of marked functions, and of the execution that runs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from perdure.signatures import Signature


class MarkedActivity(Protocol):
    """What the core needs to know of a marked activity."""

    name: str
    raises: tuple[type[BaseException], ...]

    @property
    def signature(self) -> Signature: ...


class MarkedOrchestration(Protocol):
    """What the core needs to know of a marked orchestration."""

    name: str
    version: str
    takes_context: bool
    function: Callable[..., Any]

    @property
    def signature(self) -> Signature: ...


Lookup = Callable[[str, str | None], MarkedOrchestration | None]
"""The registered orchestration of a name and version (None: the latest), if this node has it."""


class Info(msgspec.Struct, frozen=True):
    """What identifies the execution that runs."""

    instance_id: str
    incarnation: str
    execution_id: int
    nesting: int = 0

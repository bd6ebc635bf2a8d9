"""What a process tells others about its commits, so that who is concerned looks, and nobody else.

A hint is sent after the commit and may be lost: everything it leads to is also found by looking
now and then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

_PAYLOAD_MAX = 7_000
"""The server takes less than 8,000 bytes."""
_EVERYTHING, _WORK, _ENDED = "*", "w", "e"


@dataclass
class Hint:
    """nodes: whose instances have messages. work: something waits that any node may take. ended:
    executions have ended, or instances have gone. everything: all that, for all nodes."""

    nodes: set[str] = field(default_factory=set)
    work: bool = False
    ended: bool = False
    everything: bool = False

    def __bool__(self) -> bool:
        return bool(self.nodes) or self.work or self.ended or self.everything

    def add(self, other: Hint) -> None:
        self.nodes |= other.nodes
        self.work |= other.work
        self.ended |= other.ended
        self.everything |= other.everything

    def concerns(self, node_id: str) -> bool:
        """Whether there may be something to do for this node."""
        return self.everything or self.work or node_id in self.nodes

    def leave_out(self, own: Iterable[str]) -> None:
        """These nodes learn of it in another way."""
        self.nodes.difference_update(own)

    def encoded(self, sender: str) -> str:
        """The payload of a notification."""
        flags = _WORK * self.work + _ENDED * self.ended
        text = " ".join([sender, flags or "-", *sorted(self.nodes)])
        if self.everything or len(text.encode()) > _PAYLOAD_MAX:
            return f"{sender} {_EVERYTHING}"
        return text


def decode(payload: str) -> tuple[str, Hint]:
    """The sender and the hint. Anybody may notify: what cannot be read stands for everything."""
    sender, _, rest = payload.partition(" ")
    flags, *nodes = rest.split(" ")
    if not flags or not set(flags) <= set(_WORK + _ENDED + "-"):
        return sender, Hint(everything=True)
    return sender, Hint(set(nodes), _WORK in flags, _ENDED in flags)

"""Instance ids that the engine makes: stable at replay, and never repeated over generations."""

from __future__ import annotations

import hashlib

from perdure.core.marked import Info
from perdure.limits import INSTANCE_ID_BYTES_MAX
from perdure.names import SUB


def child_id(parent: Info, event_id: int) -> str:
    """The id of the sub-orchestration that event `event_id` of this execution starts."""
    execution = parent.execution_id
    part = f"{event_id}" if execution == 1 else f"{execution}.{event_id}"
    return _fitting(f"{parent.instance_id}{SUB}{part}")


def detached_id(parent: Info, event_id: int) -> str:
    """The id of the detached orchestration that event `event_id` of this execution starts."""
    part = f"{parent.execution_id}.{event_id}-{parent.incarnation[:8]}"
    return _fitting(f"{parent.instance_id}::detached::{part}")


def _fitting(instance_id: str) -> str:
    encoded = instance_id.encode()
    if len(encoded) <= INSTANCE_ID_BYTES_MAX:
        return instance_id
    digest = hashlib.sha256(encoded).hexdigest()[:32]
    kept = encoded[: INSTANCE_ID_BYTES_MAX - len(SUB) - len(digest)].decode("utf-8", "ignore")
    return f"{kept}{SUB}{digest}"

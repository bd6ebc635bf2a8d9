"""What the journal's records say, as bytes.

A batch is recorded as it was asked for, with everything that its effect depends on; rows are
recorded only when the journal is written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, get_args

import msgspec

from perdure.errors import ProviderError
from perdure.providers.contract import Operation
from perdure.providers.memory.rows import Instance


class Batch(msgspec.Struct, array_like=True, tag="batch", frozen=True, gc=False):
    """A batch, and what decided its outcomes. last_key: the last key given out before it. keys_to:
    keys up to here may have been given out. tokens: those it issued. changes: how many it made.
    operations: the name of each one's class, and itself."""

    now_ms: int
    last_key: int
    keys_to: int
    tokens: list[str]
    changes: int
    operations: list[tuple[str, msgspec.Raw]]


class Forgotten(msgspec.Struct, array_like=True, tag="forgotten", frozen=True):
    """Nodes whose claims were freed; None: every node's."""

    node_ids: list[str] | None
    changes: int


class Row(msgspec.Struct, array_like=True, tag="row", frozen=True):
    """An instance, with the histories of its executions left out."""

    instance: Instance


class Events(msgspec.Struct, array_like=True, tag="events", frozen=True):
    """A part of an execution's history."""

    key: int
    execution_id: int
    events: dict[int, bytes]


class Counters(msgspec.Struct, array_like=True, tag="counters", frozen=True):
    last_key: int
    last_seq: int
    keys_to: int


Entry: TypeAlias = Batch | Forgotten | Row | Events | Counters

_KINDS = {kind.__name__: kind for kind in get_args(Operation)}
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
_operations = {name: msgspec.msgpack.Decoder(kind) for name, kind in _KINDS.items()}


def encode(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def decode(data: bytes) -> Entry:
    """Raises ProviderError for what this version does not know."""
    try:
        entry: Entry = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ProviderError(f"a record is not understood ({error})") from error
    return entry


def pack(batch: Sequence[Operation]) -> list[tuple[str, msgspec.Raw]]:
    """Raises ProviderError for a value that could not be read back."""
    packed = []
    try:
        for operation in batch:
            name, data = type(operation).__name__, _encoder.encode(operation)
            _operations[name].decode(data)
            packed.append((name, msgspec.Raw(data)))
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise ProviderError(f"a value in the batch cannot be stored: {error}") from error
    return packed


def unpack(packed: Sequence[tuple[str, msgspec.Raw]]) -> list[Operation]:
    try:
        return [_operations[name].decode(data) for name, data in packed]
    except (KeyError, msgspec.MsgspecError) as error:
        raise ProviderError(f"a record is not understood ({error!r})") from error

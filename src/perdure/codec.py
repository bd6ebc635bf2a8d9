"""User values as JSON payloads and back: one `Codec` for each declared type.

What is encoded can be decoded into the declared type again, here and in another process: `encode`
proves it by decoding, and refuses everything else with `PayloadError` at the call that brought it.
The declared type decides what comes back:

- Under a declared type, what msgspec makes of the JSON: an instance of a subclass comes back as
  the declared class without its further fields, an int under `float` as a float, a datetime with
  its offset in whole minutes instead of its zone.
- Where nothing is declared (`Any`, `object`, a bare `list` or `dict`), JSON's own kinds: tuples
  and sets come back as lists, class instances as dicts, dates, UUIDs, decimals and enums as their
  text or value, bytes as base64. Dict keys must be strings (or enums with string values) there.
- A pydantic model, recognised by its methods, as what its own `model_dump(mode="json")` and
  `model_validate_json` make of it, by alias.

Dicts keep the order of their keys. A set has no order that two processes share, so one that
comes back as a list is sorted, if its members can be compared; a declared set is not, because
`same_value` compares it as a set.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import math
import re
import typing
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import inspect

from perdure.errors import PayloadError, PayloadTooLarge
from perdure.limits import INTEGER_DIGITS_MAX, PAYLOAD_BYTES_MAX, PAYLOAD_DEPTH_MAX

T = TypeVar("T")

Encoded: TypeAlias = bytes | memoryview | msgspec.Raw
"""A payload as it is stored or carried."""

NULL = b"null"

CODECS_CACHED_MAX = 1_024

# A level costs two brackets, so that nothing shorter can be too deep.
_SHALLOW_BYTES_MAX = 2 * PAYLOAD_DEPTH_MAX


class Codec(Generic[T]):
    """Encodes and decodes values of one declared type; threads may share it.

    Raises PayloadError if the type cannot be decoded from JSON.
    """

    __slots__ = ("_decode", "_encode", "_shape", "_untyped", "type")

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self._shape = _shape(type_)
        self._untyped = type_ is Any or type_ is object
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode
        self._decode = msgspec.json.Decoder(type_, dec_hook=_built).decode

    def encode(self, value: T) -> bytes:
        """The value as JSON: at most 1 MiB, 100 levels deep, finite numbers only.

        Raises PayloadTooLarge; PayloadError if decoding it would fail or lose something.
        """
        try:
            data = self._encode(value)
        except Exception as error:
            raise PayloadError(_why_not_encoded(value, error, self._encode)) from error
        if len(data) > _SHALLOW_BYTES_MAX:
            check_bounds(data)
        try:
            decoded = self._decode(data)
        except Exception as error:
            raise PayloadError(self._why_not_decoded(value, error)) from error
        shape = self._shape
        if self._untyped:
            lossless = _equal(decoded, value)
        elif shape.watched:
            lossless = False
        else:
            # A NaN is written as null: invisible wherever null would be right.
            lossless = not shape.nullable or data.find(NULL) < 0
        return data if lossless else self._settled(value, data, decoded)

    def decode(self, data: Encoded) -> T:
        """The value of a payload; raises PayloadError if it does not fit the declared type."""
        try:
            decoded: T = self._decode(data)
        except Exception as error:
            raise PayloadError(
                f"the payload does not fit its declared type {type_name(self.type)}: {error}"
            ) from error
        return decoded

    def equal(self, left: T, right: T) -> bool:
        """Whether two values of this type are the same: by `==`, else by their encoding."""
        if _equal(left, right):
            return True
        # Classes without an `==` of their own are compared by what would be stored of them.
        try:
            return bool(self._encode(left) == self._encode(right))
        except Exception:
            return False

    def _settled(self, value: T, data: bytes, decoded: T) -> bytes:
        """The data with sets in order where no type is declared, if nothing in it gets lost."""
        source, found = _builtins(value), _builtins(decoded)
        if self._shape.float_keys or not _equal(source, found):
            _refuse_non_finite(source)
            if not _keys_are_strings(value, source):
                _refuse_lost_keys(source, found)
        if self._untyped or self._shape.open:
            return _sets_in_order(value, data, decoded)
        return data

    def _why_not_decoded(self, value: T, error: Exception) -> str:
        non_finite = _non_finite(_builtins(value))
        if non_finite:
            return non_finite
        return f"the value does not fit its declared type {type_name(self.type)}: {error}"


def codec_for(type_: Any) -> Codec[Any]:
    """The codec of a type, from a bounded cache if the type can be hashed."""
    try:
        hash(type_)
    except TypeError:
        return Codec(type_)
    return _cached(type_)


@lru_cache(maxsize=CODECS_CACHED_MAX)
def _cached(type_: Any) -> Codec[Any]:
    return Codec(type_)


def same_value(codec: Codec[Any], recorded: Encoded, found: Encoded) -> bool:
    """Whether two payloads mean the same under today's type: equal bytes, or equal values."""
    if recorded == found:
        return True
    try:
        return codec.equal(codec.decode(recorded), codec.decode(found))
    except PayloadError:
        return False


def check_bounds(data: bytes) -> None:
    """Raises PayloadTooLarge over 1 MiB, PayloadError over 100 levels of nesting."""
    if len(data) > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(
            f"the value has {len(data):,} bytes as JSON, the limit is {PAYLOAD_BYTES_MAX:,}; "
            "store it elsewhere and pass a reference"
        )
    if data.count(b"[") + data.count(b"{") > PAYLOAD_DEPTH_MAX and _too_deep(data):
        raise PayloadError(_TOO_DEEP)


def type_name(type_: Any) -> str:
    """The declared type as messages show it."""
    if isinstance(type_, type) and typing.get_origin(type_) is None:
        return type_.__qualname__
    return str(type_).replace("typing.", "")


# What a declared type lets slip: read once, when its codec is made.


class _Shape(NamedTuple):
    """nullable: null fits somewhere. open: a part comes back as whatever JSON makes of it.
    float_keys: a dict is declared with float keys. watched: every value is looked at."""

    nullable: bool
    open: bool
    float_keys: bool

    @property
    def watched(self) -> bool:
        return self.open or self.float_keys


def _shape(type_: Any) -> _Shape:
    try:
        nodes = list(_nodes(inspect.type_info(type_)))
    except Exception as error:
        raise PayloadError(f"the type {type_name(type_)} cannot be used: {error}") from error
    for node in nodes:
        if isinstance(node, inspect.CustomType) and not _is_known(node.cls):
            raise PayloadError(
                f"the type {type_name(node.cls)} cannot be decoded from JSON; use a dataclass, "
                "a msgspec.Struct, a pydantic model or a concrete collection such as list[int]"
            )
    keys = [n.key_type for n in nodes if isinstance(n, inspect.DictType)]
    opens = any(_is_open(node) for node in nodes)
    return _Shape(
        nullable=opens or any(_takes_null(node) for node in nodes),
        # Of `int | str` keys, the text of an integer comes back as text.
        open=opens or any(isinstance(key, inspect.UnionType) for key in keys),
        float_keys=any(isinstance(key, inspect.FloatType) for key in keys),
    )

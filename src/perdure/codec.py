"""User values as JSON payloads and back: one `Codec` for each declared type.

What is encoded can be decoded into the declared type again, here and in another process: `encode`
proves it by decoding, and refuses everything else with `PayloadError` at the call that brought it.
The declared type decides what comes back:

- Under a declared type, what msgspec makes of the JSON: an instance of a subclass comes back as
  the declared class without its further fields, an int under `float` as a float, a date under
  `str` as its text, a datetime with its offset in whole minutes instead of its zone.
- Where nothing is declared (`Any`, `object`, a bare `list` or `dict`), JSON's own kinds: tuples
  and sets come back as lists, class instances as dicts, dates, UUIDs, decimals and enums as their
  text or value, bytes as base64. Dict keys must be strings (or enums with string values) there.
- A pydantic model, recognised by its methods, as what its own `model_dump(mode="json")` and
  `model_validate_json` make of it, by alias.

Dicts keep the order of their keys. A set has no order that two processes share, so one that
comes back as a list is sorted, if its members can be compared; a declared set is not, because
`same_value` compares it as a set. Instances of a class without an `==` of its own are the same
value only if their bytes are.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import math
import re
import reprlib
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

    __slots__ = ("_decode", "_encode", "_shape", "type")

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self._shape = _shape(type_)
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
            decoded: T = self._decode(data)
        except Exception as error:
            raise PayloadError(self._why_not_decoded(value, error)) from error
        shape = self._shape
        # NaN is written as null, which goes unnoticed wherever null would be right.
        if (shape.watched or (shape.nullable and data.find(NULL) >= 0)) and not (
            shape.comparable and equal(decoded, value)
        ):
            return self._settled(value, data, decoded)
        return data

    def decode(self, data: Encoded) -> T:
        """The value of a payload; raises PayloadError if it does not fit the declared type."""
        try:
            decoded: T = self._decode(data)
        except Exception as error:
            raise PayloadError(
                f"the payload does not fit its declared type {type_name(self.type)}: {error}"
            ) from error
        return decoded

    def _settled(self, value: T, data: bytes, decoded: T) -> bytes:
        """The data, with sets in order where no type is declared, if nothing of it gets lost."""
        source, found = _builtins(value), _builtins(decoded)
        if self._shape.float_keys or not equal(source, found):
            may_hold_nan = self._shape.float_keys or NULL in data
            problem = _non_finite(source) if may_hold_nan else None
            if problem is None and not _all_keys_are_text(value, source):
                problem = _lost_key(source, found)
            if problem is not None:
                raise PayloadError(problem)
        return _with_sets_in_order(value, data, decoded) if self._shape.open else data

    def _why_not_decoded(self, value: T, error: Exception) -> str:
        misfit = f"the value does not fit its declared type {type_name(self.type)}: {error}"
        return _non_finite(_builtins(value)) or misfit


def codec_for(type_: Any) -> Codec[Any]:
    """The codec of a type; those of hashable types are cached, up to a bound."""
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
    if bytes(recorded) == bytes(found):
        return True
    try:
        return equal(codec.decode(recorded), codec.decode(found))
    except PayloadError:
        return False


def equal(left: object, right: object) -> bool:
    """Whether `left == right`; False if comparing them fails."""
    try:
        return bool(left == right)
    except Exception:
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
    """A declared type as messages show it."""
    if isinstance(type_, type) and typing.get_origin(type_) is None:
        return type_.__qualname__
    return str(type_).replace("typing.", "")


# What may get lost under a declared type: found out once, when its codec is made.


class _Shape(NamedTuple):
    """watched: every value must be looked at for losses. nullable: null fits somewhere.
    comparable: no class of the user's is in it, so that `==` tells every difference.
    open: some part is undeclared. float_keys: some dict is declared to have float keys.
    """

    watched: bool
    nullable: bool
    comparable: bool
    open: bool
    float_keys: bool


def _shape(type_: Any) -> _Shape:
    try:
        nodes = list(_nodes(inspect.type_info(type_)))
    except Exception as error:
        raise PayloadError(f"the type {type_name(type_)} cannot be used: {error}") from error
    for node in nodes:
        if isinstance(node, inspect.CustomType) and not _is_known(node.cls):
            raise PayloadError(
                f"values of type {type_name(node.cls)} cannot be decoded from JSON; use a "
                "dataclass, a msgspec.Struct, a pydantic model or a type such as list[int]"
            )
    keys = [node.key_type for node in nodes if isinstance(node, inspect.DictType)]
    float_keys = any(isinstance(key, inspect.FloatType) for key in keys)
    # Under keys of `int | str`, the text of an integer stays text.
    open_ = any(map(_is_open, nodes)) or any(isinstance(key, inspect.UnionType) for key in keys)
    return _Shape(
        watched=open_ or float_keys,
        nullable=open_ or any(map(_takes_null, nodes)),
        comparable=not float_keys and not any(map(_is_of_a_class, nodes)),
        open=open_,
        float_keys=float_keys,
    )


def _nodes(root: inspect.Type) -> Iterator[inspect.Type]:
    """Every type that a type is made of, itself included; recursive types end."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting.extend(node)
        elif isinstance(node, inspect.Type | inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, inspect.Type):
                yield node
            waiting.extend(getattr(node, name) for name in node.__struct_fields__)


def _is_known(cls: Any) -> bool:
    return cls is object or _is_pydantic(cls)


def _is_open(node: inspect.Type) -> bool:
    return isinstance(node, inspect.AnyType) or (
        isinstance(node, inspect.CustomType) and node.cls is object
    )


def _takes_null(node: inspect.Type) -> bool:
    if isinstance(node, inspect.LiteralType):
        return None in node.values
    return isinstance(node, inspect.NoneType | inspect.CustomType)


def _is_of_a_class(node: inspect.Type) -> bool:
    if isinstance(node, inspect.CustomType):
        return node.cls is not object
    return isinstance(node, inspect.StructType | inspect.DataclassType)


# The hooks that msgspec calls for what it does not know.


def _plain(value: Any) -> Any:
    """What is encoded in place of a value that msgspec does not know."""
    if _is_pydantic(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    raise TypeError(f"objects of type {type(value).__qualname__} are not data")


def _built(type_: Any, plain: Any) -> Any:
    """The value of a type that msgspec does not know."""
    if type_ is object:
        return plain
    # As JSON, since a strict model takes text for a date, and a list for a tuple, only from there.
    return type_.model_validate_json(msgspec.json.encode(plain))


def _is_pydantic(cls: Any) -> bool:
    return (
        hasattr(cls, "__pydantic_validator__")
        and hasattr(cls, "model_dump")
        and hasattr(cls, "model_validate_json")
    )


# Depth, without a walk in Python.

_TOO_DEEP = f"the value is nested deeper than {PAYLOAD_DEPTH_MAX} levels, or contains itself"
_ESCAPE = re.compile(rb"\\.")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE = bytes.maketrans(b"{}", b"[]")


def _too_deep(data: bytes) -> bool:
    if b"\\" in data:
        data = _ESCAPE.sub(b"", data)
    outside_strings = b"".join(data.split(b'"')[::2])
    brackets = outside_strings.translate(_SQUARE, _NOT_BRACKETS)
    for _ in range(PAYLOAD_DEPTH_MAX):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


# What went wrong, and where. Paths are written as msgspec writes them: $.orders[2].price

_Link: TypeAlias = "tuple[_Link, object] | None"
_KEY_SHOWN_MAX = 60


def _why_not_encoded(value: object, error: Exception, encode: Callable[[Any], bytes]) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, MemoryError):
        return "the value does not fit into memory as JSON"
    link: _Link = None
    # The bound ends the search in an object that contains itself.
    for _ in range(PAYLOAD_DEPTH_MAX):
        failing = _first_failing(_children(value), encode)
        if failing is None:
            break
        key, value, error = failing
        link = (link, key)
    if isinstance(error, UnicodeEncodeError):
        return f"{_path(link)} has a lone surrogate, which is not text; clean the string"
    if isinstance(error, ValueError) and isinstance(value, int):
        return f"{_path(link)} is an integer of more than {INTEGER_DIGITS_MAX:,} digits"
    return f"{_path(link)} cannot be encoded as JSON: {error}"


def _first_failing(
    children: Iterable[tuple[object, object]], encode: Callable[[Any], bytes]
) -> tuple[object, object, Exception] | None:
    for key, child in children:
        try:
            encode(child)
        except Exception as error:
            return key, child, error
    return None


def _children(value: Any) -> Iterator[tuple[object, object]]:
    if isinstance(value, dict):
        yield from ((key, key) for key in value)
        yield from value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from enumerate(value)
    elif isinstance(value, msgspec.Struct):
        yield from ((name, getattr(value, name)) for name in value.__struct_fields__)
    elif dataclasses.is_dataclass(value):
        yield from ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
    elif hasattr(value, "__attrs_attrs__"):
        yield from ((f.name, getattr(value, f.name, None)) for f in value.__attrs_attrs__)


def _builtins(value: object) -> object:
    """The value as dicts with their own keys, lists, tuples and scalars."""
    try:
        return msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_plain)
    except Exception as error:
        raise PayloadError(f"the value cannot be encoded as JSON: {error}") from error


_KEPT = (
    bytes,
    bytearray,
    memoryview,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    decimal.Decimal,
)


def _non_finite(tree: object) -> str | None:
    for link, node in _walk(tree):
        if isinstance(node, float) and not math.isfinite(node):
            return f"{_path(link)} is {node}, which JSON has no number for; pass None or a string"
    return None


def _all_keys_are_text(value: object, source: object) -> bool:
    try:
        text_keys = msgspec.to_builtins(value, str_keys=True, builtin_types=_KEPT, enc_hook=_plain)
    except Exception:
        return False
    return equal(source, text_keys)


def _lost_key(source: object, found: object) -> str | None:
    """Names a key that is not a string in the source and is one in what was found of it."""
    for key in Counter(_keys_not_text(source)) - Counter(_keys_not_text(found)):
        return f"{key} is a dict key that would come back as a string; declare its type or use str"
    return None


def _keys_not_text(tree: object) -> Iterator[str]:
    for link, node in _walk(tree):
        if isinstance(node, dict):
            # Without positions, which the members of a set do not keep.
            place = _path(link, positions=False)
            yield from (f"{place}[{reprlib.repr(k)}]" for k in node if not isinstance(k, str))


def _walk(tree: object) -> Iterator[tuple[_Link, object]]:
    """The containers and floats of a tree of builtins, float keys included, with their places."""
    waiting: list[tuple[_Link, object]] = [(None, tree)]
    while waiting:
        link, node = waiting.pop()
        yield link, node
        if isinstance(node, dict):
            waiting.extend(((link, k), k) for k in node if isinstance(k, float))
            waiting.extend(((link, k), v) for k, v in node.items() if isinstance(v, _WALKED))
        elif isinstance(node, list | tuple):
            waiting.extend(((link, i), v) for i, v in enumerate(node) if isinstance(v, _WALKED))


_WALKED = (dict, list, tuple, float)


def _path(link: _Link, *, positions: bool = True) -> str:
    steps: list[str] = []
    while link is not None:
        link, key = link
        if isinstance(key, str) and key.isidentifier() and len(key) <= _KEY_SHOWN_MAX:
            steps.append(f".{key}")
        elif isinstance(key, int) and not positions:
            steps.append("[...]")
        else:
            steps.append(f"[{reprlib.repr(key)}]")
    return "$" + "".join(reversed(steps))


# Sets that come back as lists.

_encode_ordered = msgspec.json.Encoder(order="deterministic", enc_hook=_plain).encode
_decode_any = msgspec.json.Decoder().decode


def _with_sets_in_order(value: object, data: bytes, decoded: object) -> bytes:
    try:
        ordered = _encode_ordered(value)
        # What was a set and became a list is no longer sorted by the encoder.
        if ordered == _encode_ordered(decoded):
            return data
    except Exception:
        return data
    return msgspec.json.encode(_in_order_of_keys(_decode_any(data), _decode_any(ordered)))


def _in_order_of_keys(plain: object, ordered: object) -> object:
    """The ordered tree with the keys of each dict in the order of its plain twin."""
    if isinstance(plain, dict) and isinstance(ordered, dict) and plain.keys() == ordered.keys():
        return {key: _in_order_of_keys(plain[key], ordered[key]) for key in plain}
    if isinstance(plain, list) and isinstance(ordered, list) and len(plain) == len(ordered):
        return [_in_order_of_keys(*pair) for pair in zip(plain, ordered, strict=True)]
    return ordered


ANY: Codec[Any] = codec_for(Any)
"""For values of which no type is declared."""

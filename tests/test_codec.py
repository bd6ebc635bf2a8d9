from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import gc
import json
import math
import os
import subprocess
import sys
import uuid
import weakref
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.codec import ANY, CODECS_CACHED_MAX, NULL, codec_for, same_value
from perdure.errors import PayloadError, PayloadTooLarge
from perdure.limits import PAYLOAD_BYTES_MAX

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int


class Parcel(TypedDict):
    weight: float
    tags: set[str]


class Money(msgspec.Struct):
    amount: decimal.Decimal
    currency: str = "EUR"


@dataclasses.dataclass
class Order:
    id: uuid.UUID
    placed: datetime.datetime
    total: Money
    color: Color = Color.RED
    note: str | None = None
    discount: float | None = None
    lines: list[Point] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Loose:
    meta: Any
    counts: dict[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Tree:
    value: int
    children: dict[int, Tree] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


@dataclasses.dataclass(eq=False)
class NoEquality:
    item: int


@dataclasses.dataclass
class Incomparable:
    rate: float | None = dataclasses.field(compare=False)


class Model:
    """Has the methods by which a pydantic model is recognised, and its strictness from JSON."""

    __pydantic_validator__ = object()

    def __init__(self, day: datetime.date, rate: float | None = None) -> None:
        self.day = day
        self.rate = rate

    def model_dump(self, *, mode: str, by_alias: bool, round_trip: bool) -> dict[str, object]:
        assert (mode, by_alias, round_trip) == ("json", True, True)
        return {"day": self.day.isoformat(), "rate": self.rate}

    @classmethod
    def model_validate_json(cls, data: bytes) -> Model:
        fields = json.loads(data)
        return cls(datetime.date.fromisoformat(fields["day"]), fields["rate"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and (self.day, self.rate) == (other.day, other.rate)

    __hash__ = None  # type: ignore[assignment]  # as pydantic models are


@dataclasses.dataclass
class Wrapped:
    model: Model
    models: list[Model]


class Text(str):
    __slots__ = ()


class Quantity(int):
    pass


class Ratio(float):
    pass


UserId = NewType("UserId", int)
ZONE = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
ORDER = Order(
    uuid.UUID(int=7),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=ZONE),
    Money(decimal.Decimal("9.90")),
    lines=[Point(1, 2)],
)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


# Round trips.


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, 17),
        (list[int], [10**4299]),
        (float, -0.5),
        (str, 'é\x00"\\[{\U0001f600'),
        (bool, True),
        (None, None),
        (bytes, b"\x00\xff"),
        (datetime.datetime, datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)),
        (datetime.datetime, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
        (datetime.date, datetime.date(2026, 1, 2)),
        (datetime.timedelta, datetime.timedelta(days=-3, microseconds=1)),
        (uuid.UUID, uuid.UUID(int=5)),
        (decimal.Decimal, decimal.Decimal("1.10")),
        (Color, Color.BLUE),
        (Level, Level.HIGH),
        (set[int], {3, 1}),
        (frozenset[str], frozenset({"a"})),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (dict[int, str], {1: "a", -2: "b"}),
        (dict[float, str], {1.5: "a"}),
        (dict[uuid.UUID, int], {uuid.UUID(int=5): 1}),
        (dict[str, Any], {"a": [1, None, {"b": 2.5}]}),
        (Optional[int], None),  # noqa: UP045 - the old spelling is accepted too
        (Union[int, str], "a"),  # noqa: UP007 - the old spelling is accepted too
        (int | list[str] | None, ["a"]),
        (Literal["a", 1], 1),
        (UserId, UserId(4)),
        (Annotated[int, msgspec.Meta(ge=0)], 3),
        (Point, Point(1, 2)),
        (Parcel, {"weight": 1.5, "tags": {"a", "b"}}),
        (Money, Money(decimal.Decimal("1.10"), "USD")),
        (Order, ORDER),
        (list[Order], [ORDER, ORDER]),
        (Tree, Tree(1, {5: Tree(2)})),
        (Box[Point], Box(Point(1, 2))),
        (Loose, Loose({"a": [1, None]}, {1: 2})),
        (Model, Model(datetime.date(2026, 1, 2))),
        (Model | None, Model(datetime.date(2026, 1, 2))),
        (Wrapped, Wrapped(Model(datetime.date(2026, 1, 2)), [Model(datetime.date(2026, 1, 3))])),
    ],
)
def test_a_value_comes_back_as_its_declared_type(type_: Any, value: Any) -> None:
    codec = codec_for(type_)

    decoded = codec.decode(codec.encode(value))

    assert decoded == value
    assert type(decoded) is type(value)


def test_every_kind_of_buffer_is_decoded() -> None:
    assert ANY.decode(b"[1]") == [1]
    assert ANY.decode(memoryview(b"[1]")) == [1]
    assert ANY.decode(msgspec.Raw(b"[1]")) == [1]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2,)), [1, [2]]),
        ({8, 1}, [1, 8]),
        (ORDER.total, {"amount": "9.90", "currency": "EUR"}),
        (Point(1, 2), [1, 2]),
        (Color.RED, "red"),
        ({Color.RED: 1}, {"red": 1}),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (b"\x00", "AA=="),
        (Model(datetime.date(2026, 1, 2)), {"day": "2026-01-02", "rate": None}),
        (Text("a"), "a"),
        (Quantity(2), 2),
        (Ratio(0.5), 0.5),
        (msgspec.Raw(b"[1,null]"), [1, None]),
    ],
)
@pytest.mark.parametrize("type_", [Any, object])
def test_undeclared_values_come_back_as_plain_json(type_: Any, value: Any, plain: Any) -> None:
    codec = codec_for(type_)

    assert codec.decode(codec.encode(value)) == plain


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Surrogates are what UTF-8 has no bytes for.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_json_comes_back_equal_and_of_the_same_kind(value: Any) -> None:
    # The text tells 1 from True and from 1.0, which are equal.
    assert repr(ANY.decode(ANY.encode(value))) == repr(value)


class Refused(Exception):
    pass


def plain(value: Any) -> Any:
    """What an undeclared value should come back as; raises Refused if it should not be encoded."""
    match value:
        case None | bool() | uuid.UUID():
            return value if value is None or isinstance(value, bool) else str(value)
        case int() if abs(value) < 10**4300:
            return value
        case float() if math.isfinite(value):
            return value
        case str() if not any("\ud800" <= char <= "\udfff" for char in value):
            return value
        case bytes():
            return base64.b64encode(value).decode()
        case list() | tuple():
            return [plain(item) for item in value]
        case set():
            return sorted(plain(item) for item in value)
        case dict() if all(isinstance(key, str) for key in value):
            return {plain(key): plain(item) for key, item in value.items()}
    raise Refused


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**20), max_value=10**20)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.uuids()
    | st.builds(object)
    | st.just(4_400).map(lambda digits: 10**digits),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers(max_value=5), max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.dictionaries(st.integers() | st.floats() | st.none() | st.uuids(), inner, max_size=1)
    ),
    max_leaves=8,
)


@given(ODD)
def test_an_undeclared_value_comes_back_plain_or_is_a_payload_error(value: Any) -> None:
    try:
        expected = plain(value)
    except Refused:
        with pytest.raises(PayloadError):
            ANY.encode(value)
    else:
        # The text tells 1 from True and from 1.0, which are equal.
        assert repr(ANY.decode(ANY.encode(value))) == repr(expected)


@given(ODD, st.sampled_from([int, list, dict[str, Any], Loose, list[float | None], dict[int, Any]]))
def test_what_fits_a_type_comes_back_and_all_else_is_a_payload_error(
    value: Any, type_: Any
) -> None:
    codec = codec_for(type_)
    try:
        decoded = codec.decode(codec.encode(value))
    except PayloadError:
        return

    assert codec.decode(codec.encode(decoded)) == decoded


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("type_", "value", "path"),
    [
        (Any, math.nan, "$ is nan"),
        (Any, {"a": [1, -math.inf]}, "$.a[1] is -inf"),
        (Any, [None, {"b": (math.inf,)}], "$[1].b[0] is inf"),
        (Any, {math.nan}, "$[0] is nan"),
        (Any, Ratio("nan"), "$ is nan"),
        (float, math.nan, "$ is nan"),
        (float | None, math.nan, "$ is nan"),
        (int | None, math.nan, "$ is nan"),
        (Literal[None, 1], math.nan, "$ is nan"),
        (list[float | None], [None, math.nan], "$[1] is nan"),
        (Order, dataclasses.replace(ORDER, discount=math.nan), "$.discount is nan"),
        (Loose, Loose({"a": math.nan}), "$.meta.a is nan"),
        (dict[float, int], {math.inf: 1}, "$[inf] is inf"),
        (Incomparable, Incomparable(math.nan), "$.rate is nan"),
        (Model, Model(datetime.date(2026, 1, 2), math.nan), "$.rate is nan"),
    ],
)
def test_a_number_that_json_has_not_is_refused_wherever_it_is(
    type_: Any, value: Any, path: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        codec_for(type_).encode(value)

    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("type_", "value", "said"),
    [
        (Any, "\ud800", "$ has a lone surrogate"),
        (Any, {"a": ["x", "\udfff"]}, "$.a[1] has a lone surrogate"),
        (Any, {"\ud800": 1}, "$['\\ud800'] has a lone surrogate"),
        (Order, dataclasses.replace(ORDER, note="\ud800"), "$.note has a lone surrogate"),
        (Any, [10**4300], "$[0] is an integer of more than 4,300 digits"),
        (list[int], [-(10**4300)], "$[0] is an integer of more than 4,300 digits"),
        (Any, {"a": object()}, "$.a cannot be encoded as JSON: objects of type object"),
        (Any, Loose([1j]), "$.meta[0] cannot be encoded as JSON: objects of type complex"),
        (Any, [Money(1j)], "$[0].amount cannot be encoded"),  # type: ignore[arg-type]  # as users do
        (Any, Color, "objects of type EnumType"),
        (Any, {(1, 2): 3}, "$ cannot be encoded as JSON"),
        (Any, msgspec.Raw(b"{bad"), "cannot be encoded as JSON: JSON is malformed"),
        (Any, {1: "a"}, "$[1] is a dict key that would come back as a string"),
        (Any, ({"a": {2.5: "a"}},), "$[...].a[2.5] is a dict key"),
        (Any, {uuid.UUID(int=1): 1}, "is a dict key"),
        (list, [{1: 1}], "$[...][1] is a dict key"),
        (object, {1: 1}, "$[1] is a dict key"),
        (list[object], [{1: 1}], "$[...][1] is a dict key"),
        (dict[str, Any], {"a": {1: 1}}, "$.a[1] is a dict key"),
        (dict[int | str, int], {1: 1}, "$[1] is a dict key"),
        (Loose, Loose({1: 1}, {1: 1}), "$.meta[1] is a dict key"),
        (int, "a", "declared type int: Expected `int`, got `str`"),
        (int, True, "declared type int"),
        (int, None, "declared type int"),
        (None, 1, "declared type None"),
        (list[int], [1, "a"], "declared type list[int]: Expected `int`, got `str` - at `$[1]`"),
        (Optional[int], "a", "declared type Optional[int]"),  # noqa: UP045 - as users write it
        (Money, {"amount": "x"}, "declared type Money"),
        (Model, {"day": "x", "rate": None}, "declared type Model"),
        (Literal["a"], "b", "declared type Literal['a']"),
    ],
)
def test_what_cannot_be_read_back_whole_is_refused_by_name(
    type_: Any, value: Any, said: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        codec_for(type_).encode(value)

    assert said in str(caught.value)
    assert str(caught.value).encode()


def test_an_int_is_a_float_and_comes_back_as_one() -> None:
    codec = codec_for(float)

    assert repr(codec.decode(codec.encode(1))) == "1.0"


def test_a_hundred_levels_are_the_limit_whatever_the_strings_hold() -> None:
    ANY.encode(nested(100))
    ANY.encode([nested(99), *(["[{"] * 200), *(['"\\[\\"'] * 200)])
    for value in (nested(101), {"a": nested(100)}, ['"]]', nested(100)], nested(5_000)):
        with pytest.raises(PayloadError, match="deeper than 100 levels"):
            ANY.encode(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = [1]
    loop.append(loop)

    with pytest.raises(PayloadError, match="or contains itself"):
        ANY.encode(loop)


def test_one_mebibyte_is_the_limit_and_the_message_has_both_numbers() -> None:
    fits = "x" * (PAYLOAD_BYTES_MAX - 2)

    assert len(ANY.encode(fits)) == PAYLOAD_BYTES_MAX
    with pytest.raises(PayloadTooLarge, match=r"1,048,577 bytes .* limit is 1,048,576"):
        ANY.encode(fits + "x")


def test_errors_of_the_users_own_methods_become_payload_errors() -> None:
    @dataclasses.dataclass
    class Fussy:
        item: int

        def __post_init__(self) -> None:
            if self.item == 13:
                raise KeyError("unlucky")

        def __eq__(self, other: object) -> bool:
            return bool(self.item == other.item)  # type: ignore[attr-defined]  # fails on a dict

    fussy = Fussy(1)
    assert ANY.decode(ANY.encode(fussy)) == {"item": 1}
    fussy.item = 13
    with pytest.raises(PayloadError, match="unlucky"):
        codec_for(Fussy).encode(fussy)
    with pytest.raises(PayloadError, match="unlucky"):
        codec_for(Fussy).decode(b'{"item":13}')


@pytest.mark.parametrize(
    "data", [b"", b"1 2", b"{", b'"\xff"', b'"\\ud800"', b"[" * 5_000, b"1" * 5_000, b"1e999"]
)
def test_bytes_that_are_not_json_are_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError, match="does not fit its declared type Any"):
        ANY.decode(data)


def test_a_payload_of_another_type_is_named_with_its_place() -> None:
    with pytest.raises(PayloadError, match=r"declared type Order: .* at `\$.total`"):
        codec_for(Order).decode(
            ANY.encode({"id": str(ORDER.id), "placed": ORDER.placed, "total": 1})
        )


@pytest.mark.parametrize(
    "type_", [complex, list[range], int | bytes | str, Literal, 5, "Order", Wrapped | Order]
)
def test_a_type_that_nothing_can_be_decoded_into_is_refused(type_: Any) -> None:
    with pytest.raises(PayloadError):
        codec_for(type_)


# Order.


@given(st.dictionaries(st.text("abc", max_size=3), st.integers(), max_size=6))
def test_dicts_keep_the_order_of_their_keys(value: dict[str, int]) -> None:
    holder = {"of": value, "set": {"x", "y", "z"}}

    assert list(ANY.decode(ANY.encode(value))) == list(value)
    assert list(ANY.decode(ANY.encode(holder))["of"]) == list(value)
    assert list(ANY.decode(ANY.encode(holder))) == list(holder)


SETS = """
from perdure.codec import ANY
print(ANY.encode({"b": {"x", "y", "z", "w"}, "a": [({"p", "q", "r"},)]}).decode())
"""


@pytest.mark.slow
def test_undeclared_sets_have_the_same_bytes_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert outputs == {b'{"b":["w","x","y","z"],"a":[[["p","q","r"]]]}\n'}


@pytest.mark.parametrize(
    ("type_", "value", "data"),
    [
        (Loose, Loose({"b": {8, 1}, "a": 1}), b'{"meta":{"b":[1,8],"a":1},"counts":{}}'),
        (dict[str, Any], {"b": [(1, {"y", "x"})], "a": 1}, b'{"b":[[1,["x","y"]]],"a":1}'),
        (Any, [Money(decimal.Decimal(1)), {8, 1}], b'[{"amount":"1","currency":"EUR"},[1,8]]'),
    ],
)
def test_sets_in_undeclared_parts_are_sorted(type_: Any, value: Any, data: bytes) -> None:
    assert codec_for(type_).encode(value) == data


def test_a_set_whose_members_have_no_order_is_encoded_too() -> None:
    assert sorted(ANY.decode(ANY.encode({Color.RED, Color.BLUE}))) == ["blue", "red"]


# Comparison at replay.


@pytest.mark.parametrize(
    ("type_", "recorded", "found", "same"),
    [
        (Any, b'{"a":1,"b":2}', b'{"b":2,"a":1}', True),
        (Any, b'["a","b"]', b'["b","a"]', False),
        (set[str], b'["a","b"]', b'["b","a"]', True),
        (Money, b'{"amount":"1"}', b'{"amount":"1","currency":"EUR"}', True),
        (Money, b'{"amount":"1"}', b'{"amount":"1","currency":"USD"}', False),
        (NoEquality, b'{"item":1}', b'{"item":1}', True),
        (NoEquality, b'{"item":1}', b'{"item":2}', False),
        (int, b'"old"', b'"old"', True),
        (int, b'"old"', b"1", False),
        (int, b"broken", b"1", False),
        (decimal.Decimal, b'"sNaN"', b'"1"', False),
    ],
)
def test_payloads_are_the_same_if_their_bytes_or_their_values_are(
    type_: Any, recorded: bytes, found: bytes, same: bool
) -> None:
    assert same_value(codec_for(type_), recorded, found) is same
    assert same_value(codec_for(type_), msgspec.Raw(recorded), found) is same


# The cache.


def test_a_type_has_one_codec_and_an_unhashable_one_works_without() -> None:
    unhashable = Annotated[int, []]
    with pytest.raises(TypeError):
        hash(unhashable)

    assert codec_for(Order) is codec_for(Order)
    assert codec_for(unhashable).encode(1) == b"1"
    assert ANY is codec_for(Any)
    assert codec_for(Literal[True]).decode(b"true") is True
    assert repr(codec_for(Literal[1]).decode(b"1")) == "1"


@pytest.mark.slow
def test_thousands_of_local_classes_are_not_kept() -> None:
    def local() -> type:
        return dataclasses.make_dataclass("Local", [("item", int)])

    first = local()
    codec_for(first)
    gone = weakref.ref(first)
    del first
    for _ in range(CODECS_CACHED_MAX):
        codec_for(local())
    gc.collect()

    assert gone() is None


def test_null_is_none() -> None:
    assert ANY.encode(None) == NULL == codec_for(None).encode(None)

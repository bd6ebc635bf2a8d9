from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Never, NoReturn

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import PayloadError, PayloadTooLarge, RegistrationError
from perdure.limits import PAYLOAD_BYTES_MAX
from perdure.signatures import Signature

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers


@dataclasses.dataclass
class Order:
    id: int
    note: str = ""


def nothing() -> None: ...


def one(order: Order) -> int:
    return order.id


def one_with_default(count: int = 3) -> int:
    return count


def one_by_keyword(*, order: Order) -> int:
    return order.id


def undeclared(value, other=None):  # type: ignore[no-untyped-def]  # it is undeclared
    return [value, other]


def several(a: int, b: str, c: Order | None = None, *, d: float = 0.5) -> str:
    return repr((a, b, c, d))


def defaults(a: int = 1, b: str = "b") -> str:
    return repr((a, b))


def nullable(a: int | None = 5, b: int = 6) -> list[int | None]:
    return [a, b]


def with_context(ctx: OnlyForTypeCheckers, name: str) -> str:
    return name


def signature(function: Callable[..., object], **options: Any) -> Signature:
    return Signature(function, **({"skip_first": False} | options))


def call(function: Callable[..., Any], payload: bytes) -> Any:
    args, kwargs = signature(function).unbind(payload)
    return function(*args, **kwargs)


# The payload.


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "payload"),
    [
        (nothing, (), {}, b"null"),
        (one, (Order(1),), {}, b'{"id":1,"note":""}'),
        (one, (), {"order": Order(1)}, b'{"id":1,"note":""}'),
        (one_by_keyword, (), {"order": Order(1)}, b'{"id":1,"note":""}'),
        (one_with_default, (), {}, b"3"),
        (one_with_default, (4,), {}, b"4"),
        (undeclared, ([1, 2],), {}, b'{"value":[1,2]}'),
        (several, (1, "x"), {}, b'{"a":1,"b":"x"}'),
        (several, (), {"d": 2.0, "b": "x", "a": 1}, b'{"a":1,"b":"x","d":2.0}'),
        (several, (1, "x", None), {}, b'{"a":1,"b":"x","c":null}'),
        (defaults, (), {}, b"{}"),
    ],
)
def test_a_call_is_one_payload(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], payload: bytes
) -> None:
    assert signature(function).bind(args, kwargs) == payload
    assert call(function, payload) == function(*args, **kwargs)


@pytest.mark.parametrize(
    ("function", "payload", "result"),
    [
        (several, b"7", None),
        (defaults, b"7", "(7, 'b')"),
        (defaults, b"null", "(1, 'b')"),
        (defaults, b'{"b":"x"}', "(1, 'x')"),
        (one_with_default, b"null", 3),
        (nullable, b"null", [None, 6]),
        (undeclared, b'{"x":1}', [{"x": 1}, None]),
        (undeclared, b'{"other":1}', [{"other": 1}, None]),
        (undeclared, b"{}", [{}, None]),
        (undeclared, b"null", [None, None]),
        (undeclared, b'{"other":1,"value":2}', [2, 1]),
    ],
)
def test_a_payload_from_before_a_parameter_with_default_was_added_still_fits(
    function: Callable[..., Any], payload: bytes, result: Any
) -> None:
    if result is None:
        with pytest.raises(PayloadError):
            call(function, payload)
    else:
        assert call(function, payload) == result


def test_a_payload_may_be_carried_raw() -> None:
    assert signature(one).unbind(msgspec.Raw(b'{"id":1}')) == ((Order(1),), {})
    assert signature(defaults).unbind(memoryview(b'{"a":1}')) == ((), {"a": 1})
    assert signature(defaults).unbind(msgspec.Raw(b"null")) == ((), {})


def test_the_context_is_no_part_of_the_payload_and_its_type_is_not_resolved() -> None:
    method = signature(with_context, skip_first=True)

    method.resolve()

    assert method.bind(("Ada",), {}) == b'"Ada"'
    assert method.unbind(b'"Ada"') == (("Ada",), {})


NAMES = st.sampled_from(["a", "b", "c", "d", "value", "count", "order", "unknown"])
VALUES = st.sampled_from([1, "x", 2.5, None])


@given(
    st.sampled_from([nothing, one_with_default, undeclared, several, defaults]),
    st.lists(VALUES, max_size=4),
    st.dictionaries(NAMES, VALUES, max_size=3),
)
def test_a_call_through_the_payload_is_the_call_itself(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
) -> None:
    bound = functools.partial(signature(function).bind, tuple(args), kwargs)
    try:
        expected = function(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\)"):
            bound()
        return
    try:
        payload = bound()
    except PayloadError:
        return

    assert call(function, payload) == expected


# What is refused.


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "said"),
    [
        (nothing, (1,), {}, "nothing() takes 0 positional arguments but 1 were given"),
        (one, (), {}, "one() misses required arguments: 'order'"),
        (one, (1, 2), {}, "one() takes 1 positional arguments but 2 were given"),
        (one, (1,), {"order": 1}, "one() got multiple values for argument 'order'"),
        (one, (1,), {"x": 1}, "one() got an unexpected keyword argument 'x'"),
        (one_by_keyword, (1,), {}, "one_by_keyword() takes 0 positional arguments"),
        (several, (), {"c": None}, "several() misses required arguments: 'a', 'b'"),
    ],
)
def test_wrong_arguments_are_a_type_error_at_the_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(TypeError) as caught:
        signature(function).bind(args, kwargs)

    assert said in str(caught.value)
    with pytest.raises(TypeError):
        function(*args, **kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "said"),
    [
        (one, ("x",), {}, "parameter 'order' of one: the value does not fit its declared type"),
        (one, (), {"order": "x"}, "parameter 'order' of one: "),
        (several, (1, 2), {}, "parameter 'b' of several: "),
        (several, (1, "x"), {"d": float("nan")}, "parameter 'd' of several: $ is nan"),
        (undeclared, (1, object()), {}, "parameter 'other' of undeclared: "),
    ],
)
def test_a_value_that_is_refused_is_named_by_its_parameter(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    bound = signature(function)
    for _ in ("first", "resolved"):
        with pytest.raises(PayloadError) as caught:
            bound.bind(args, kwargs)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("function", "payload", "said"),
    [
        (nothing, b"1", "nothing takes no input: "),
        (one, b"1", "parameter 'order' of one: the payload does not fit its declared type Order"),
        (one_with_default, b'"x"', "parameter 'count' of one_with_default: "),
        (several, b"1", "the input of several must be an object with 'a', 'b' and nothing else"),
        (
            several,
            b'{"a":1}',
            "must be an object with 'a', 'b' and nothing else than 'a', 'b', 'c'",
        ),
        (several, b'{"a":1,"b":"x","z":1}', "must be an object with"),
        (several, b'{"a":1,"b":2}', "parameter 'b' of several: "),
        (several, b'{"a":' * 5_000, "must be an object with"),
        (several, b'{"\xff":1}', "must be an object with"),
        (defaults, b'{"z":1}', "parameter 'a' of defaults: "),
        (defaults, b'{"a":', "parameter 'a' of defaults: "),
    ],
)
def test_a_payload_that_does_not_fit_is_a_payload_error_that_names_the_parameter(
    function: Callable[..., Any], payload: bytes, said: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        signature(function).unbind(payload)

    assert said in str(caught.value)


def test_the_limit_is_on_all_arguments_together() -> None:
    half = "x" * (PAYLOAD_BYTES_MAX // 2)

    with pytest.raises(PayloadTooLarge, match="1,048,576"):
        signature(undeclared).bind((half, half), {})
    with pytest.raises(PayloadTooLarge, match="parameter 'value' of undeclared"):
        signature(undeclared).bind((half + half,), {})


def starred(*items: int) -> None: ...
def double_starred(**items: int) -> None: ...
def positional_only(item: int, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (starred, "parameter '*items' of starred cannot be sent"),
        (double_starred, "parameter '**items' of double_starred cannot be sent"),
        (positional_only, "parameter 'item' of positional_only cannot be sent"),
    ],
)
def test_parameters_that_a_payload_cannot_carry_are_refused_at_once(
    function: Callable[..., Any], said: str
) -> None:
    with pytest.raises(RegistrationError) as caught:
        signature(function)

    assert said in str(caught.value)


def test_a_context_needs_a_parameter() -> None:
    for function in (nothing, one_by_keyword, starred):
        with pytest.raises(RegistrationError, match=r"needs the context as its first parameter"):
            signature(function, skip_first=True)


# Annotations.


def unknown(order: Ordre) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - it is unknown
def unknown_result() -> Ordre: ...  # type: ignore[name-defined]  # noqa: F821 - it is unknown
def broken(order: Order[0]) -> None: ...  # type: ignore[type-arg,valid-type]  # it is broken
def hidden(order: OnlyForTypeCheckers) -> None: ...
def impossible(order: Callable[[], int]) -> None: ...
def impossible_union(order: bytes | str) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (unknown, "parameter 'order' of unknown: 'Ordre' cannot be resolved"),
        (unknown_result, "the return annotation of unknown_result: 'Ordre' cannot be resolved"),
        (broken, "parameter 'order' of broken: "),
        (hidden, "not under `if TYPE_CHECKING`"),
        (impossible, "parameter 'order' of impossible: values of type Callable cannot be decoded"),
        (impossible_union, "parameter 'order' of impossible_union: the type bytes | str cannot"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_a_registration_error_with_a_remedy(
    function: Callable[..., Any], said: str
) -> None:
    unresolved = signature(function)

    for _ in ("once", "and again"):
        with pytest.raises(RegistrationError) as caught:
            unresolved.resolve()
        assert said in str(caught.value)


def test_a_local_type_is_found_in_the_closure_or_among_the_given_names() -> None:
    @dataclasses.dataclass
    class Local:
        item: int

    def in_closure(value: Local) -> Local:
        return Local(value.item)

    def in_names(value: Local) -> None: ...

    assert signature(in_closure).unbind(b'{"item":1}') == ((Local(1),), {})
    assert signature(in_names, localns=locals()).unbind(b'{"item":1}') == ((Local(1),), {})
    with pytest.raises(RegistrationError, match="'Local' cannot be resolved"):
        signature(in_names).resolve()


def test_the_functions_own_scope_goes_before_the_given_names() -> None:
    names = {"Order": int, "int": str}

    assert signature(one, localns=names).unbind(b'{"id":1}') == ((Order(1),), {})
    assert signature(one_with_default, localns=names).unbind(b"1") == ((1,), {})


def test_a_closure_that_is_not_filled_yet_is_no_obstacle() -> None:
    def outer() -> Signature:
        def inner(value: int) -> object:
            return later

        made = signature(inner)
        made.resolve()
        later = 1
        return made

    assert outer().unbind(b"1") == ((1,), {})


def test_annotations_keep_their_metadata() -> None:
    def positive(value: Annotated[int, msgspec.Meta(gt=0)]) -> None: ...

    with pytest.raises(PayloadError, match="Expected `int` >= 1"):
        signature(positive).bind((0,), {})


def test_methods_and_wrapped_functions_have_the_signature_that_callers_see() -> None:
    class Service:
        def charge(self, order: Order, tries: int = 1) -> int:
            return order.id

    foreign: dict[str, Any] = {}
    exec("def wrapper(*args, **kwargs): ...", foreign)
    wrapped = functools.wraps(one)(foreign["wrapper"])

    assert signature(Service().charge).bind((Order(1),), {}) == b'{"order":{"id":1,"note":""}}'
    assert signature(wrapped).unbind(b'{"id":1}') == ((Order(1),), {})


def ends() -> Never:
    raise ValueError


def ends_too() -> NoReturn:
    raise ValueError


@pytest.mark.parametrize(
    ("function", "type_"),
    [(nothing, None), (one, int), (undeclared, Any), (ends, Any), (ends_too, Any)],
)
def test_the_result_has_the_type_of_the_return_annotation(
    function: Callable[..., Any], type_: Any
) -> None:
    assert signature(function).result.type in (type_, type(type_))


# Comparison at replay.


@pytest.mark.parametrize(
    ("function", "recorded", "found", "same"),
    [
        (one, b'{"id":1}', b'{"note":"","id":1}', True),
        (one, b'{"id":1}', b'{"id":2}', False),
        (one, b'"gone"', b'{"id":2}', False),
        (one, b'"gone"', b'"gone"', True),
        (defaults, b"1", b'{"a":1}', True),
        (defaults, b"{}", b'{"b":"b","a":1}', True),
        (defaults, b"{}", b'{"b":"c"}', False),
        (several, b'{"a":1,"b":"x"}', b'{"b":"x","d":0.5,"c":null,"a":1}', True),
        (several, b'{"a":1,"b":"x"}', b'{"a":1}', False),
        (one_with_default, b"null", b"3", True),
        (nothing, b"null", b"1", False),
    ],
)
def test_payloads_are_the_same_if_they_call_the_function_with_the_same_values(
    function: Callable[..., Any], recorded: bytes, found: bytes, same: bool
) -> None:
    assert signature(function).same(recorded, found) is same
    assert signature(function).same(found, msgspec.Raw(recorded)) is same

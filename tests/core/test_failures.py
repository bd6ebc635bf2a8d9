from __future__ import annotations

import asyncio
import dataclasses
import decimal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure.errors
from perdure.codec import check_bounds
from perdure.core import events
from perdure.core.failures import rebuild, record
from perdure.errors import ActivityError, PayloadTooLarge, SubOrchestrationError
from perdure.limits import ERROR_TEXT_BYTES_MAX, PAYLOAD_BYTES_MAX, TRACEBACK_BYTES_MAX


class CardDeclined(Exception):
    def __init__(self, code: str, amount: int = 0) -> None:
        super().__init__(code, amount)
        self.code = code


class ForeignCard(CardDeclined):
    pass


class Outer:
    class Inner(Exception):
        pass


class OneMore(Exception):
    """Takes fewer arguments than it hands on."""

    def __init__(self, *, code: str = "") -> None:
        super().__init__("needs", code)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: str


class Impostor(Exception):
    def __new__(cls, *args: object) -> Any:
        return "not an exception"


class Forgetful(Exception):
    def __new__(cls, *args: object, **options: object) -> Forgetful:
        return super().__new__(cls)

    def __init__(self, *, code: str) -> None:
        super().__init__(code)


class Unbuildable(Exception):
    def __new__(cls, *args: object) -> Unbuildable:
        raise OSError("no")


class Exhausting(Exception):
    def __init__(self, *args: object) -> None:
        raise RecursionError


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class NotText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # it is wrong


class Sly(str):
    __slots__ = ()

    def encode(self, *args: object) -> NoReturn:
        raise KeyboardInterrupt


class SlyText(Exception):
    def __str__(self) -> str:
        return Sly("sly")


class NoArgs(Exception):
    @property
    def args(self) -> NoReturn:  # type: ignore[override]  # it is wrong
        raise LookupError


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def roundtrip(failure: events.Failure) -> events.Failure:
    return msgspec.json.decode(msgspec.json.encode(failure), type=events.Failure)


def args_of(failure: events.Failure) -> bytes | None:
    return bytes(failure.args) if isinstance(failure.args, msgspec.Raw) else None


# Recording.


def test_a_failure_has_the_class_the_text_and_the_traceback() -> None:
    failure = roundtrip(record(raised(ValueError("bad", 3))))

    assert failure.type == "ValueError"
    assert failure.message == "('bad', 3)"
    assert failure.traceback.startswith("Traceback (most recent call last):\n")
    assert "in raised\n    raise error\n" in failure.traceback
    assert failure.traceback.endswith("ValueError: ('bad', 3)\n")
    assert not failure.truncated
    assert args_of(failure) is None


def test_a_nested_class_has_its_qualified_name() -> None:
    assert record(Outer.Inner()).type == "Outer.Inner"


def test_arguments_are_recorded_if_the_class_or_a_base_of_it_is_declared() -> None:
    args = [
        args_of(record(error, declared))
        for error in (CardDeclined("51", 9), ForeignCard("51", 9))
        for declared in ([KeyError, CardDeclined], [KeyError], ())
    ]

    assert args == [b'["51",9]', None, None] * 2


@pytest.mark.parametrize(
    "error",
    [CardDeclined("\ud800"), CardDeclined("x", 1j), NoArgs("x")],  # type: ignore[arg-type]  # as users do
)
def test_arguments_that_cannot_be_encoded_are_left_out(error: BaseException) -> None:
    assert args_of(roundtrip(record(error, [Exception]))) is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Mute(), "<its __str__ raised SystemExit>"),
        (NotText(), "<its __str__ raised TypeError>"),
        (SlyText(), "sly"),
        (ValueError("a\ud800\x00"), "a\\ud800\x00"),
        (asyncio.CancelledError(), ""),
        (KeyboardInterrupt("x"), "x"),
    ],
)
def test_recording_never_fails(error: BaseException, message: str) -> None:
    failure = roundtrip(record(raised(error)))

    assert failure.message == message
    assert failure.traceback


def test_an_exception_that_breaks_the_formatting_is_recorded_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object) -> NoReturn:
        raise LookupError

    monkeypatch.setattr(traceback, "format_exception", broken)

    failure = record(ValueError("bad"))

    assert failure.message == "bad"
    assert failure.traceback == "<formatting its traceback raised LookupError>"


@given(st.text("aé\u20ac\U0001f600\ud800", min_size=1, max_size=3), st.integers(-2, 2))
def test_texts_are_cut_on_a_code_point_to_their_limits(unit: str, more: int) -> None:
    encoded = len(unit.encode(errors="backslashreplace"))
    text = unit * (ERROR_TEXT_BYTES_MAX // encoded + more)
    whole = text.encode(errors="backslashreplace")

    failure = roundtrip(record(ValueError(text)))

    kept = failure.message.encode()
    assert whole.startswith(kept)
    assert failure.truncated is (len(whole) > ERROR_TEXT_BYTES_MAX)
    assert len(kept) == len(whole) or ERROR_TEXT_BYTES_MAX - 3 <= len(kept) <= ERROR_TEXT_BYTES_MAX


def test_a_long_traceback_keeps_both_ends() -> None:
    text = "é" * TRACEBACK_BYTES_MAX

    failure = roundtrip(record(raised(ValueError(f"{text}the end"))))

    assert failure.truncated
    assert failure.traceback.startswith("Traceback (most recent call last):\n")
    assert "in raised" in failure.traceback
    assert failure.traceback.endswith("the end\n")
    assert TRACEBACK_BYTES_MAX - 4 <= len(failure.traceback.encode()) <= TRACEBACK_BYTES_MAX


def calling(function: Callable[[], object], filename: str) -> Callable[[], object]:
    """A function of another file that calls the given one."""
    names: dict[str, Any] = {"function": function}
    exec(compile("def call(): return function()", filename, "exec"), names)
    call: Callable[[], object] = names["call"]
    return call


def fails() -> NoReturn:
    raise ValueError


def test_frames_of_perdure_are_left_out_above_user_code_only() -> None:
    package = Path(perdure.errors.__file__).parent
    engine, deep = str(package / "engine.py"), str(package / "core" / "deep.py")

    def trace(*filenames: str) -> str:
        function: Callable[[], object] = fails
        for filename in reversed(filenames):
            function = calling(function, filename)
        try:
            function()
        except ValueError as error:
            # Without the frame of this test.
            return record(error.with_traceback(error.__traceback__.tb_next)).traceback  # type: ignore[union-attr]  # it was raised
        raise AssertionError

    assert "engine.py" not in trace(engine, deep)
    assert "deep.py" not in trace(engine, deep)
    assert "in fails" in trace(engine, deep)
    assert "engine.py" in trace("user.py", engine)
    assert "lookalike.py" in trace(f"{package}_lookalike.py", engine)


def test_a_failure_within_perdure_keeps_its_traceback() -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        check_bounds(bytes(PAYLOAD_BYTES_MAX + 1))
    trace = caught.value.__traceback__
    assert trace is not None

    failure = record(caught.value.with_traceback(trace.tb_next))

    assert "codec.py" in failure.traceback


def test_a_group_shows_its_members() -> None:
    failure = record(raised(ExceptionGroup("both", [ValueError("one"), KeyError("two")])))

    assert (failure.type, failure.message) == ("ExceptionGroup", "both (2 sub-exceptions)")
    assert "ValueError: one" in failure.traceback
    assert "KeyError: 'two'" in failure.traceback


# Arriving.


def test_an_undeclared_failure_arrives_as_the_fallback() -> None:
    failure = roundtrip(record(raised(ValueError("bad")), ()))

    error = rebuild(failure, SubOrchestrationError, [KeyError])

    assert type(error) is SubOrchestrationError
    assert (error.type, error.message) == ("ValueError", "bad")
    assert error.traceback == failure.traceback
    assert str(error) == "ValueError: bad"


def test_a_declared_failure_arrives_as_itself() -> None:
    failure = roundtrip(record(raised(CardDeclined("51", 9)), [CardDeclined]))

    error = rebuild(failure, ActivityError, [KeyError, CardDeclined])

    assert type(error) is CardDeclined
    assert error.args == ("51", 9)
    assert error.code == "51"
    assert str(error) == failure.message


def test_the_recorded_traceback_is_shown_with_the_one_of_the_orchestration() -> None:
    failure = record(raised(ValueError("bad")))

    for declared in ((), (ValueError,)):
        again = record(raised(rebuild(failure, ActivityError, declared)))
        assert failure.traceback in again.traceback


def test_a_failure_that_propagates_keeps_its_own_class_and_text() -> None:
    error = rebuild(record(ValueError("bad")), ActivityError)

    again = record(raised(error))

    assert (again.type, again.message) == ("ActivityError", "ValueError: bad")


@pytest.mark.parametrize(
    ("error", "args"),
    [
        (OneMore(code="x"), ("needs", "x")),
        (Frozen("x"), ("x",)),
        (Forgetful(code="x"), ("x",)),
        (CardDeclined("x", decimal.Decimal(2)), ("x", "2")),  # type: ignore[arg-type]  # as users do
        (CardDeclined("x", 1j), ("('x', 1j)",)),  # type: ignore[arg-type]  # as users do
        (FileNotFoundError(2, "gone"), (2, "gone")),
    ],
)
def test_a_declared_class_arrives_with_what_could_be_recorded_of_its_arguments(
    error: BaseException, args: tuple[object, ...]
) -> None:
    declared = [type(error)]

    rebuilt = rebuild(roundtrip(record(raised(error), declared)), ActivityError, declared)

    assert type(rebuilt) is type(error)
    assert rebuilt.args == args


@pytest.mark.parametrize(
    "cls",
    [Impostor, Unbuildable, ExceptionGroup, SystemExit, asyncio.CancelledError, StopIteration],
)
def test_a_class_that_cannot_arrive_arrives_as_the_fallback(cls: type[BaseException]) -> None:
    bare = events.Failure(type=cls.__qualname__, message="x")
    recorded = [b'["x"]', b"5", b"broken"]

    for failure in (bare, *(msgspec.structs.replace(bare, args=msgspec.Raw(a)) for a in recorded)):
        error = rebuild(failure, ActivityError, [cls])

        assert type(error) is ActivityError
        assert error.type == cls.__qualname__


@pytest.mark.parametrize("args", [b"5", b'"ab"', b"broken"])
def test_a_declared_class_arrives_with_the_message_if_its_arguments_are_unreadable(
    args: bytes,
) -> None:
    failure = events.Failure(type="CardDeclined", message="x", args=msgspec.Raw(args))

    error = rebuild(failure, ActivityError, [CardDeclined])

    assert type(error) is CardDeclined
    assert error.args == ("x",)


def test_a_lack_of_stack_or_memory_does_not_decide_the_class() -> None:
    failure = events.Failure(type="Exhausting", message="x", args=msgspec.Raw(b'["x"]'))

    with pytest.raises(RecursionError):
        rebuild(failure, ActivityError, [Exhausting])


def test_a_class_derived_from_a_declared_one_arrives_as_the_fallback() -> None:
    failure = record(ForeignCard("51"), [CardDeclined])

    assert type(rebuild(failure, ActivityError, [CardDeclined])) is ActivityError
    assert type(rebuild(failure, ActivityError, [CardDeclined, ForeignCard])) is ForeignCard


@given(
    st.lists(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
        max_size=4,
    )
)
def test_declared_exceptions_come_back_with_equal_arguments(args: list[Any]) -> None:
    failure = roundtrip(record(Outer.Inner(*args), [Outer.Inner]))

    error = rebuild(failure, ActivityError, [Outer.Inner])

    assert type(error) is Outer.Inner
    assert repr(error) == repr(Outer.Inner(*args))

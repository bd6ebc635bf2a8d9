"""How the arguments of a marked function become one payload, and a payload its arguments.

No parameter is `null`; one parameter is its value; several are an object of the arguments given,
in the order of the declaration. Defaults are filled in where the function runs; only a single
parameter that is left out is sent as its default, since nothing would tell it from a value.

Parameters with defaults can be added to a function later: a payload that is not an object of its
parameters is the first one's value, and `null` that does not fit the first one is no argument.
"""

from __future__ import annotations

import builtins
import inspect
import types
import typing
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Never, NoReturn

import msgspec

from perdure.codec import NULL, Codec, Encoded, check_bounds, codec_for, equal
from perdure.errors import PayloadError, RegistrationError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# What evaluating the text of a wrong annotation ends in.
_UNRESOLVED = (NameError, AttributeError, TypeError, SyntaxError, ValueError, LookupError)

_members_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Signature:
    """The parameters of one function, but for its context if `skip_first`.

    localns: further names for annotations, used if the function's own scope has none such.
    Raises RegistrationError for parameters that a payload cannot carry. Annotations are resolved
    by `resolve()`, or at first use; a parameter without one takes anything.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *,
        skip_first: bool,
        localns: Mapping[str, object] | None = None,
    ) -> None:
        self._name = getattr(function, "__qualname__", None) or repr(function)
        declared = inspect.signature(function)
        parameters = list(declared.parameters.values())
        if skip_first:
            if not parameters or parameters[0].kind not in _POSITIONAL:
                raise RegistrationError(f"{self._name} needs the context as its first parameter")
            del parameters[0]
        for parameter in parameters:
            _check_kind(parameter, self._name)
        self._function = function
        self._localns = localns
        self._annotations = {p.name: p.annotation for p in parameters}
        self._returns = declared.return_annotation
        self._positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._required = [p.name for p in parameters if p.default is p.empty]
        self._keys = {p.name: f'"{p.name}":'.encode() for p in parameters}
        self._codecs: dict[str, Codec[Any]] = {}
        self._result: Codec[Any] | None = None
        # The one parameter's codec, once resolved, if there is one and a position for it.
        self._sole: Codec[Any] | None = None

    def resolve(self) -> None:
        """Resolve the annotations; a second call does nothing.

        Raises RegistrationError, naming parameter and remedy, if one of them cannot be resolved
        or stands for a type that nothing can be decoded into.
        """
        if self._result is not None:
            return
        scope = _scope(self._function, self._localns)
        self._codecs = {
            name: self._codec(annotation, f"parameter {name!r}", scope)
            for name, annotation in self._annotations.items()
        }
        if len(self._codecs) == len(self._positional) == 1:
            self._sole = self._codecs[self._positional[0]]
        self._result = self._codec(self._returns, "the return annotation", scope)

    @property
    def result(self) -> Codec[Any]:
        """The codec of what the function returns; of anything, if that is not annotated."""
        self.resolve()
        assert self._result is not None
        return self._result

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The payload of a call with these arguments.

        Raises TypeError where the call itself would; PayloadError, naming the parameter, for a
        value that is refused.
        """
        if self._sole is not None and len(args) == 1 and not kwargs:
            try:
                return self._sole.encode(args[0])
            except PayloadError as error:
                raise self._located(error, self._positional[0]) from error
        self.resolve()
        given = self._given(args, kwargs)
        if not self._codecs:
            return NULL
        if len(self._codecs) == 1:
            ((name, value),) = (given or self._defaults).items()
            return self._encoded(name, value)
        members = [self._keys[name] + self._encoded(name, given[name]) for name in given]
        payload = b"{%b}" % b",".join(members)
        check_bounds(payload)
        return payload

    def unbind(self, payload: Encoded) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments to call the function with.

        Raises PayloadError, naming the parameter, if the payload does not fit.
        """
        self.resolve()
        if self._sole is not None:
            try:
                return (self._sole.decode(payload),), {}
            except PayloadError:
                return (), self._arguments(payload)
        return (), self._arguments(payload)

    def same(self, recorded: Encoded, found: Encoded) -> bool:
        """Whether two payloads give the same arguments: equal bytes, or equal values."""
        if bytes(recorded) == bytes(found):
            return True
        try:
            left, right = self._arguments(recorded), self._arguments(found)
        except PayloadError:
            return False
        return equal(self._defaults | left, self._defaults | right)

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, in the order of the declaration; TypeError if they are wrong."""
        if len(args) > len(self._positional):
            raise TypeError(
                f"{self._name}() takes {len(self._positional)} positional arguments "
                f"but {len(args)} were given"
            )
        given = dict(zip(self._positional, args, strict=False))
        for name in kwargs:
            if name in given:
                raise TypeError(f"{self._name}() got multiple values for argument {name!r}")
            if name not in self._codecs:
                raise TypeError(f"{self._name}() got an unexpected keyword argument {name!r}")
        if kwargs:
            given.update((name, kwargs[name]) for name in self._codecs if name in kwargs)
        missing = [name for name in self._required if name not in given]
        if missing:
            raise TypeError(f"{self._name}() misses required arguments: {_listed(missing)}")
        return given

    def _arguments(self, payload: Encoded) -> dict[str, Any]:
        """The arguments that a payload holds, by name."""
        self.resolve()
        if not self._codecs:
            self._check_no_input(payload)
            return {}
        first, *others = self._codecs
        if others:
            members = self._members(payload)
            if members is not None:
                return {name: self._decoded(name, value) for name, value in members.items()}
            if not self._defaults.keys() >= set(others):
                raise PayloadError(
                    f"the input of {self._name} must be an object with {_listed(self._required)} "
                    f"and nothing else than {_listed(self._codecs)}"
                )
        if first in self._defaults and bytes(payload) == NULL and not self._takes_null(first):
            return {}
        return {first: self._decoded(first, payload)}

    def _members(self, payload: Encoded) -> dict[str, msgspec.Raw] | None:
        """The values of an object that has every required parameter and no strange name."""
        try:
            members = _members_of(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        known = members.keys() <= self._codecs.keys()
        complete = all(name in members for name in self._required)
        return members if known and complete else None

    def _check_no_input(self, payload: Encoded) -> None:
        try:
            codec_for(None).decode(payload)
        except PayloadError as error:
            raise PayloadError(f"{self._name} takes no input: {error}") from error

    def _takes_null(self, name: str) -> bool:
        try:
            self._codecs[name].decode(NULL)
        except PayloadError:
            return False
        return True

    def _encoded(self, name: str, value: object) -> bytes:
        try:
            return self._codecs[name].encode(value)
        except PayloadError as error:
            raise self._located(error, name) from error

    def _decoded(self, name: str, payload: Encoded) -> Any:
        try:
            return self._codecs[name].decode(payload)
        except PayloadError as error:
            raise self._located(error, name) from error

    def _located(self, error: PayloadError, name: str) -> PayloadError:
        return type(error)(f"parameter {name!r} of {self._name}: {error}")

    def _codec(self, annotation: Any, what: str, scope: Mapping[str, object]) -> Codec[Any]:
        if annotation is inspect.Signature.empty:
            return codec_for(Any)
        try:
            type_ = _evaluated(annotation, scope)
        except _UNRESOLVED as error:
            raise RegistrationError(
                f"{what} of {self._name}: {annotation!r} cannot be resolved ({error}); define or "
                "import the type at the top of the module, not under `if TYPE_CHECKING`"
            ) from error
        if type_ is Never or type_ is NoReturn:
            return codec_for(Any)
        try:
            return codec_for(type_)
        except PayloadError as error:
            raise RegistrationError(f"{what} of {self._name}: {error}") from error


def _check_kind(parameter: inspect.Parameter, function: str) -> None:
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL:
            shown, remedy = f"*{parameter.name}", "take one parameter of type list"
        case inspect.Parameter.VAR_KEYWORD:
            shown, remedy = f"**{parameter.name}", "take one parameter of type dict"
        case inspect.Parameter.POSITIONAL_ONLY:
            shown, remedy = parameter.name, "remove the `/` behind it"
        case _:
            return
    raise RegistrationError(
        f"parameter {shown!r} of {function} cannot be sent, since inputs are sent by name; {remedy}"
    )


def _scope(
    function: Callable[..., object], localns: Mapping[str, object] | None
) -> Mapping[str, object]:
    """The names that an annotation of the function may use, the nearest first."""
    inner: Any = inspect.unwrap(function)
    code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None) or ()
    closure: dict[str, object] = {p.__name__: p for p in getattr(inner, "__type_params__", ())}
    for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
        try:
            closure[name] = cell.cell_contents
        except ValueError:
            # The enclosing function has not assigned it yet.
            continue
    own: dict[str, object] = getattr(inner, "__globals__", {})
    return ChainMap(closure, own, dict(vars(builtins)), dict(localns or {}))


def _evaluated(annotation: Any, scope: Mapping[str, object]) -> Any:
    # One annotation at a time: the context's may be importable to type checkers only.
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, globalns={}, localns=scope, include_extras=True)["it"]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no name"

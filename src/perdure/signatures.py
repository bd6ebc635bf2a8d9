"""How the arguments of a marked function become one payload, and a payload its arguments.

No parameter is `null`; one parameter is its value; several are an object of the arguments given,
in the order of the declaration. Defaults are filled in where the function runs, except that a
single parameter left out is its default. So that parameters with defaults can be added to a
function later, a payload that is not an object of its parameters is the first one's value.
"""

from __future__ import annotations

import builtins
import inspect
import types
import typing
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, Never, NoReturn

import msgspec

from perdure.codec import ANY, NULL, Codec, Encoded, check_bounds, codec_for, equal, same_value
from perdure.errors import PayloadError, RegistrationError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

_object_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Signature:
    """The parameters of one function.

    skip_first: the first parameter is the context and no input. localns: names to resolve
    annotations with when the function's own scope does not have them.
    Raises RegistrationError for *args, **kwargs and positional-only parameters. Annotations are
    resolved by `resolve()`, or at first use.
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
                raise RegistrationError(
                    f"{self._name} takes no context: declare it as its first parameter"
                )
            del parameters[0]
        for parameter in parameters:
            self._refuse_variadic(parameter)
        self._function = function
        self._localns = localns
        self._parameters = parameters
        self._returns = declared.return_annotation
        self._positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        self._defaults = {
            p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty
        }
        self._codecs: dict[str, Codec[Any]] = {}
        self._result: Codec[Any] | None = None
        # Set once resolved, if there is exactly one parameter and it may be given by position.
        self._sole: Codec[Any] | None = None

    def resolve(self) -> None:
        """Resolve the annotations; a second call does nothing.

        Raises RegistrationError for one that cannot be resolved or no value can be decoded into.
        """
        if self._result is not None:
            return
        scope = _scope(self._function, self._localns)
        self._codecs = {
            p.name: self._codec(p.annotation, f"parameter {p.name!r}", scope)
            for p in self._parameters
        }
        result = self._codec(self._returns, "the result", scope)
        if len(self._positional) == len(self._parameters) == 1:
            self._sole = self._codecs[self._positional[0]]
        # A function's locals may hold anything; they are not needed any more.
        self._localns = None
        self._result = result

    @property
    def result(self) -> Codec[Any]:
        """The codec of what the function returns: of anything, if that is not annotated."""
        if self._result is None:
            self.resolve()
        assert self._result is not None
        return self._result

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The payload of a call with these arguments.

        Raises TypeError as the call itself would; PayloadError, naming the parameter, for an
        argument that its codec refuses.
        """
        if self._sole is not None and len(args) == 1 and not kwargs:
            try:
                return self._sole.encode(args[0])
            except PayloadError as error:
                raise self._located(error, self._positional[0]) from error
        if self._result is None:
            self.resolve()
        given = self._given(args, kwargs)
        if not self._codecs:
            return NULL
        if len(self._codecs) == 1:
            ((name, _),) = self._codecs.items()
            return self._encoded(name, given.get(name, self._defaults.get(name)))
        members = [b'"%b":%b' % (n.encode(), self._encoded(n, v)) for n, v in given.items()]
        payload = b"{" + b",".join(members) + b"}"
        check_bounds(payload)
        return payload

    def unbind(self, payload: Encoded) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments to call the function with.

        Raises PayloadError, naming the parameter, if the payload does not fit.
        """
        if self._sole is not None:
            try:
                return (self._sole.decode(payload),), {}
            except PayloadError:
                if payload != NULL or not self._defaults:
                    ...
        return (), self._arguments(payload)

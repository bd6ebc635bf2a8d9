"""The decorators: they mark functions as activities and orchestrations, and register nothing.

A marked function keeps its own signature. Inside an orchestration calling it schedules it; outside
an activity just runs, and an orchestration says what to use instead.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from perdure.core.context import OrchestrationContext
from perdure.core.futures import DurableFuture
from perdure.durations import Duration
from perdure.errors import NotInOrchestration, RegistrationError
from perdure.names import check_instance_id, check_name, check_version
from perdure.retention import PruneOptions, check_policy
from perdure.retries import ActivityOptions, RetryPolicy, encode, options_of
from perdure.signatures import Signature

P = ParamSpec("P")
R = TypeVar("R")


def current() -> OrchestrationContext | None:
    """The context of the orchestration that is running on this thread, if one is."""
    context: OrchestrationContext | None = getattr(
        asyncio._get_running_loop(), "orchestration", None
    )
    return context


def context() -> OrchestrationContext:
    """The context of the orchestration that calls this; raises NotInOrchestration elsewhere."""
    found = current()
    if found is None:
        raise NotInOrchestration(
            "perdure.context() is for orchestrations; an activity uses perdure.activity_context()"
        )
    return found


class Activity(Generic[P, R]):
    """A function marked with `@activity`.

    function: the bare function. name: what histories call it. raises: exception classes that
    arrive in the orchestration as themselves. attempts: its retries and time-out. transactional:
    it runs inside a transaction of the store. is_async: `async def`, run on the host loop;
    otherwise run in a thread.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        raises: tuple[type[BaseException], ...],
        attempts: ActivityOptions,
        names: Mapping[str, Any] | None,
        transactional: bool = False,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name
        self.raises = raises
        self.attempts = attempts
        self.transactional = transactional
        self.is_async = inspect.iscoroutinefunction(function)
        self.signature = Signature(function, skip_first=False, localns=names)
        self._names = names

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> DurableFuture[R]:
        """Schedule the activity (inside an orchestration), or just run it (elsewhere)."""
        found = getattr(asyncio._get_running_loop(), "orchestration", None)
        if found is not None:
            return cast("DurableFuture[R]", found.call_activity(self, args, kwargs))
        if self.is_async:
            return cast("DurableFuture[R]", self.function(*args, **kwargs))
        return cast("DurableFuture[R]", asyncio.to_thread(self.function, *args, **kwargs))

    def options(
        self, *, retry: RetryPolicy | None = None, timeout: Duration | None = None
    ) -> Callable[P, DurableFuture[R]]:
        """The same call with other retries or another time-out of each attempt:
        `charge.options(timeout=5)(order)`. What is not given is as the activity is marked."""
        options = encode(options_of(retry, timeout))

        def call(*args: P.args, **kwargs: P.kwargs) -> DurableFuture[R]:
            found = getattr(asyncio._get_running_loop(), "orchestration", None)
            if found is None:
                return self(*args, **kwargs)
            return cast("DurableFuture[R]", found.call_activity(self, args, kwargs, options))

        return call

    def __get__(self, instance: object, owner: type | None = None) -> Activity[..., R]:
        if instance is None:
            return self
        bound = self.function.__get__(instance, owner)
        return Activity(
            bound, self.name, self.raises, self.attempts, self._names, self.transactional
        )

    def __repr__(self) -> str:
        return f"<activity {self.name}>"


class Orchestration(Generic[P, R]):
    """A function marked with `@orchestration`.

    function: the bare function. retention: which executions it keeps. takes_context: its first
    parameter is the OrchestrationContext.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        version: str,
        retention: PruneOptions | None,
        names: Mapping[str, Any] | None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name
        self.version = version
        self.retention = retention
        self.takes_context = _takes_context(function, names)
        self.signature = Signature(function, skip_first=self.takes_context, localns=names)
        self._names = names

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> DurableFuture[R]:
        """Start the orchestration as a child of the one that calls it."""
        return self._call(args, kwargs, None, None)

    def options(
        self, *, instance_id: str | None = None, version: str | None = None
    ) -> Callable[P, DurableFuture[R]]:
        """The same call with a given child id or version: `child.options(version="2")(x)`."""
        if instance_id is not None:
            check_instance_id(instance_id)
        if version is not None:
            check_version(version)

        def call(*args: P.args, **kwargs: P.kwargs) -> DurableFuture[R]:
            return self._call(args, kwargs, instance_id, version)

        return call

    def _call(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        instance_id: str | None,
        version: str | None,
    ) -> DurableFuture[R]:
        found = current()
        if found is None:
            raise NotInOrchestration(
                f"{self.name} is an orchestration: start it with client.start_orchestration or "
                f"perdure.run, or call {self.name}.function to run the bare function in a test"
            )
        return found.call_orchestration(self, args, kwargs, instance_id, version)

    def __get__(self, instance: object, owner: type | None = None) -> Orchestration[..., R]:
        if instance is None:
            return self
        bound = self.function.__get__(instance, owner)
        return Orchestration(bound, self.name, self.version, self.retention, self._names)

    def __repr__(self) -> str:
        return f"<orchestration {self.name} version {self.version}>"


@overload
def activity(function: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...
@overload
def activity(function: Callable[P, R], /) -> Activity[P, R]: ...
@overload
def activity(
    *,
    name: str | None = None,
    raises: Sequence[type[BaseException]] = (),
    retry: RetryPolicy | None = None,
    timeout: Duration | None = None,
    transactional: bool = False,
) -> _ActivityMark: ...
def activity(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    raises: Sequence[type[BaseException]] = (),
    retry: RetryPolicy | None = None,
    timeout: Duration | None = None,
    transactional: bool = False,
) -> Any:
    """Mark a function as an activity: code with side effects, run at least once.

    name: what histories call it (default: the function's name). raises: exception classes that
    arrive in the orchestration as themselves, rebuilt from their encoded arguments. retry: what
    happens after a failed attempt; without it the first failure is the activity's. timeout: how
    long each attempt may take, in seconds or as a timedelta; a plain function is told through its
    context and keeps its thread until it returns. transactional: it runs inside a transaction of
    the store, and what it writes through `perdure.activity_context().connection` is committed
    together with its completion, or not at all. For short bodies: a plain function on SQLite,
    which every other write waits for, and an `async def` on PostgreSQL.
    Raises RegistrationError for `*args`, `**kwargs` and positional-only parameters.
    """
    names = _names_around()
    attempts = options_of(retry, timeout)

    def mark(function: Callable[..., Any]) -> Activity[..., Any]:
        _check_function(function, "activity")
        return Activity(
            function,
            check_name(name or function.__name__, "activity name"),
            tuple(raises),
            attempts,
            names,
            transactional,
        )

    return mark if function is None else mark(function)


class _ActivityMark:
    """For type checkers: what `@activity(…)` with options returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Activity[P, R]: ...
    def __call__(self, function: Any, /) -> Any: ...


class _OrchestrationMark:
    """For type checkers: what `@orchestration(…)` with options returns."""

    @overload
    def __call__(
        self,
        function: Callable[Concatenate[OrchestrationContext, P], Coroutine[Any, Any, R]],
        /,
    ) -> Orchestration[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Orchestration[P, R]: ...
    def __call__(self, function: Any, /) -> Any: ...


@overload
def orchestration(
    function: Callable[Concatenate[OrchestrationContext, P], Coroutine[Any, Any, R]], /
) -> Orchestration[P, R]: ...
@overload
def orchestration(function: Callable[P, Coroutine[Any, Any, R]], /) -> Orchestration[P, R]: ...
@overload
def orchestration(
    *, name: str | None = None, version: str = "1", retention: PruneOptions | None = None
) -> _OrchestrationMark: ...
def orchestration(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: str = "1",
    retention: PruneOptions | None = None,
) -> Any:
    """Mark an `async def` as an orchestration: deterministic code that survives its process.

    name: what histories call it (default: the function's name). version: dotted integers; an
    execution keeps the version it started with. retention: applied each time that an execution
    continues as new, in the same commit.
    """
    policy = check_policy(retention)
    names = _names_around()

    def mark(function: Callable[..., Any]) -> Orchestration[..., Any]:
        _check_function(function, "orchestration")
        if not inspect.iscoroutinefunction(function):
            raise RegistrationError(
                f"orchestration {function.__qualname__} must be an `async def`; "
                "a plain function can be an activity"
            )
        return Orchestration(
            function,
            check_name(name or function.__name__, "orchestration name"),
            check_version(version),
            policy,
            names,
        )

    return mark if function is None else mark(function)


def _check_function(function: object, what: str) -> None:
    if not callable(function) or not hasattr(function, "__name__"):
        raise RegistrationError(f"@{what} marks functions, not {function!r}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise RegistrationError(f"{what} {function.__name__} must not be a generator function")


def _names_around() -> Mapping[str, Any] | None:
    """The local names where a decorator stands, so that annotations written as text can be
    resolved inside a function too; None at module level, where the globals have them."""
    frame = sys._getframe(2)
    return frame.f_locals if frame.f_locals is not frame.f_globals else None


def _takes_context(function: Callable[..., Any], names: Mapping[str, Any] | None) -> bool:
    """Whether the first parameter is typed as the context, by whatever name that was imported."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    annotation = first.annotation if first else None
    if not isinstance(annotation, str):
        return annotation is OrchestrationContext
    text = annotation.strip("'\"")
    if text.rsplit(".", 1)[-1] == OrchestrationContext.__name__:
        # Also when the import is for type checkers only.
        return True
    scope = {**getattr(inspect.unwrap(function), "__globals__", {}), **(names or {})}
    return scope.get(text) is OrchestrationContext

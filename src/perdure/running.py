"""`perdure.run`: one call hosts, starts or attaches, waits and returns."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, TypeVarTuple

from perdure.client.client import Client
from perdure.core.futures import DurableFuture
from perdure.errors import InstanceAlreadyExists, PerdureError
from perdure.marks import Orchestration
from perdure.names import check_instance_id
from perdure.registry import Listed, marked_in
from perdure.runtime.runtime import Runtime

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


def run(
    store: str,
    orchestration: Callable[[*Ts], DurableFuture[R]],
    *inputs: *Ts,
    instance_id: str | None = None,
    host: Iterable[Listed] = (),
) -> R:
    """Run an orchestration to its end, in this process, and return its final result.

    Hosts the marked functions of the orchestration's module, and `host`. An instance of this id
    that exists already is attached to: same id, same answer. Without an id one is made and printed
    to stderr. Raises OrchestrationFailedError; InstanceAlreadyExists if the existing instance has
    another orchestration or input; PerdureError inside a running event loop. Ctrl-C stops cleanly:
    run it again with the same id to go on.
    """
    if not isinstance(orchestration, Orchestration):
        raise TypeError(
            f"{orchestration!r} is not an orchestration: mark it with @perdure.orchestration"
        )
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise PerdureError(
            "perdure.run was called inside a running event loop; there, use "
            "`async with perdure.Runtime(…)` and `await client.start_orchestration(…)`"
        )
    payload = orchestration.signature.bind(inputs, {})
    if instance_id is None:
        instance_id = f"{orchestration.name}-{secrets.token_hex(4)}"
        note(f"instance {instance_id}")
    check_instance_id(instance_id)
    work = _run(store, orchestration, inputs, payload, instance_id, host)
    try:
        result: R = asyncio.run(work)
    except asyncio.CancelledError:
        # SIGTERM: the same clean stop as Ctrl-C, and the same exception.
        raise KeyboardInterrupt from None
    return result


def note(text: str) -> None:
    """Say something to the person at the terminal; stdout is for results."""
    # In one piece: print() writes the end of the line by itself, and the lines of several processes
    # at one terminal then run into each other.
    sys.stderr.write(f"perdure: {text}\n")
    sys.stderr.flush()


async def _run(
    store: str,
    orchestration: Orchestration[..., Any],
    inputs: tuple[Any, ...],
    payload: bytes,
    instance_id: str,
    host: Iterable[Listed],
) -> Any:
    module = sys.modules.get(orchestration.function.__module__)
    hosted: dict[int, Listed] = {id(item): item for item in (orchestration, *host)}
    if module is not None:
        hosted.update({id(item): item for item in marked_in(module)})
    async with Runtime(store, hosted.values()) as runtime:
        handle = await runtime.client.start_orchestration(
            orchestration, *inputs, instance_id=instance_id, if_exists="return"
        )
        if not handle.created:
            await _check_same(runtime.client, instance_id, orchestration, payload)
        with _terminate_as_interrupt():
            return await handle.final_result()


async def _check_same(
    client: Client, instance_id: str, orchestration: Orchestration[..., Any], payload: bytes
) -> None:
    row = (await client.provider.get_instances([instance_id]))[instance_id]
    first = await client.provider.get_execution(row.key, 1)
    same_input = first is None or orchestration.signature.same(first.input, payload)
    if row.name != orchestration.name or not same_input:
        what = "input" if row.name == orchestration.name else f"orchestration ({row.name})"
        raise InstanceAlreadyExists(
            f"instance {instance_id!r} exists with another {what}; use another id",
            instance_id=instance_id,
            status=row.status,
        )
    if row.status in ("pending", "running"):
        length = len(await client.read_history(instance_id))
        note(f"resuming {instance_id} at event {length}")


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM stops as cleanly as Ctrl-C does."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    try:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    except (RuntimeError, ValueError, NotImplementedError):
        # Not on the main thread: whoever owns it decides.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)

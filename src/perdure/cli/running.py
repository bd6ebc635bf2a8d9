"""`perdure run`: `perdure.run` with the input as JSON, progress on stderr, and a time limit."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import inspect
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console
from rich.text import Text

import perdure
from perdure.cli.loading import load_orchestration
from perdure.cli.outcome import USAGE, Refusal
from perdure.cli.settings import store_to_run_on
from perdure.cli.tables import printable
from perdure.client.models import Instance
from perdure.errors import InstanceNotFound, ProviderError
from perdure.marks import Orchestration
from perdure.names import check_instance_id

LOOK_S = 0.2


def run(
    target: str,
    input_json: str | None,
    instance_id: str | None,
    timeout: float | None,
    store: str | None,
) -> None:
    orchestration = load_orchestration(target)
    inputs = inputs_of(orchestration, input_json)
    if instance_id is not None:
        check_instance_id(instance_id)
    url = store_to_run_on(store)
    if instance_id is None:
        instance_id = f"{orchestration.name}-{secrets.token_hex(4)}"
        click.echo(f"perdure: instance {instance_id}", err=True)
    result = _run(url, orchestration, inputs, instance_id, timeout)
    click.echo(orchestration.signature.result.encode(result))


def inputs_of(orchestration: Orchestration[..., Any], input_json: str | None) -> tuple[Any, ...]:
    """The positional inputs that a JSON text stands for. Raises PayloadError if it does not fit."""
    payload = b"null" if input_json is None else input_json.encode()
    args, kwargs = orchestration.signature.unbind(payload)
    context = (None,) if orchestration.takes_context else ()
    bound = inspect.signature(orchestration.function).bind(*context, *args, **kwargs)
    bound.apply_defaults()
    if bound.kwargs:
        raise Refusal(USAGE, f"{orchestration.name} has keyword-only parameters", "use a script")
    return bound.args[len(context) :]


def _run(
    url: str,
    orchestration: Orchestration[..., Any],
    inputs: tuple[Any, ...],
    instance_id: str,
    timeout: float | None,
) -> Any:
    watcher = Watcher(url, instance_id, timeout)
    try:
        with watcher.watching():
            return perdure.run(url, orchestration, *inputs, instance_id=instance_id)
    except (KeyboardInterrupt, asyncio.CancelledError):
        if watcher.timed_out:
            raise TimeoutError(f"{instance_id} is not over after {timeout:g} s") from None
        raise KeyboardInterrupt(f"{instance_id} is stopped; run it again to go on") from None


class Watcher:
    """Looks at the instance from a thread: shows how it is, and interrupts it when time is up."""

    def __init__(self, url: str, instance_id: str, timeout: float | None) -> None:
        self._url = url
        self._instance_id = instance_id
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._over = threading.Event()
        self._console = Console(stderr=True)
        self._blocked: str | None = None
        self.timed_out = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch during the block."""
        thread = threading.Thread(target=self._watch, name="perdure-watcher", daemon=True)
        with self._console.status(Text(self._instance_id)) as status:
            self._status = status
            thread.start()
            try:
                yield
            finally:
                self._over.set()
                thread.join()

    def _watch(self) -> None:
        with contextlib.ExitStack() as stack:
            client: perdure.SyncClient | None = None
            while not self._over.wait(LOOK_S):
                if self._ends is not None and time.monotonic() > self._ends:
                    self.timed_out = True
                    _thread.interrupt_main()
                    return
                # What lives in memory is not to be seen through another client.
                if self._url.startswith("memory:"):
                    continue
                with contextlib.suppress(InstanceNotFound, ProviderError):
                    client = client or stack.enter_context(perdure.SyncClient(self._url))
                    self._show(client.get_instance(self._instance_id))

    def _show(self, instance: Instance) -> None:
        state = f"{instance.status}, execution {instance.execution_id}"
        self._status.update(Text(printable(f"{instance.instance_id}: {state}")))
        if instance.blocked != self._blocked:
            self._blocked = instance.blocked
            if instance.blocked:
                why = f"{instance.instance_id} is blocked: {instance.blocked}"
                detail = printable(f"perdure: {why}: {instance.blocked_detail}")
                self._console.print(Text(detail), soft_wrap=True)

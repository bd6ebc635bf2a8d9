"""`perdure raise`, `perdure enqueue` and `perdure cancel`: durable once they return."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from perdure.cli.settings import store_to_look_at
from perdure.client.client import Client
from perdure.codec import ANY

T = TypeVar("T")


def raise_event(store: str | None, instance_id: str, event: str, data: str) -> None:
    value = ANY.decode(data.encode())
    _send(store, lambda client: client.raise_event(instance_id, event, value))
    click.echo(f"perdure: raised {event} for {instance_id}", err=True)


def enqueue_event(
    store: str | None, instance_id: str, queue: str, data: str, event_id: str | None
) -> None:
    value = ANY.decode(data.encode())
    is_new = _send(
        store, lambda client: client.enqueue_event(instance_id, queue, value, event_id=event_id)
    )
    what = f"put into {queue} of {instance_id}" if is_new else f"{event_id} was there already"
    click.echo(f"perdure: {what}", err=True)


def cancel_instance(store: str | None, instance_id: str, reason: str) -> None:
    _send(store, lambda client: client.cancel_instance(instance_id, reason))
    click.echo(f"perdure: asked {instance_id} to stop", err=True)


def _send(store: str | None, call: Callable[[Client], Awaitable[T]]) -> T:
    url = store_to_look_at(store)

    async def send() -> T:
        async with Client(url) as client:
            return await call(client)

    return asyncio.run(send())

"""`perdure list` and `perdure show`: they need the store only, and change nothing in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from perdure.cli.settings import store_to_look_at
from perdure.cli.tables import moment, print_facts, print_table
from perdure.client.client import Client
from perdure.client.models import Instance
from perdure.core import events
from perdure.providers.contract import Status

SCHEMA = "perdure/v1"
NOT_SHOWN = {"event_id", "timestamp_ms", "source_event_id", "name", "incarnation", "engine"}


def list_instances(store: str | None, status: Status | None, limit: int, as_json: bool) -> None:
    instances = asyncio.run(_list(store_to_look_at(store), status, limit))
    if len(instances) == limit:
        click.echo(f"perdure: the first {limit}; --limit shows more", err=True)
    if as_json:
        _print_json({"schema": SCHEMA, "instances": instances})
        return
    heading = ("INSTANCE", "ORCHESTRATION", "STATUS", "EXECUTION", "CREATED", "FINISHED")
    rows = [
        (
            instance.instance_id,
            _runs(instance),
            instance.status + (f" ({instance.blocked})" if instance.blocked else ""),
            str(instance.execution_id),
            moment(instance.created_ms),
            moment(instance.finished_ms),
        )
        for instance in instances
    ]
    print_table([heading, *rows])


def show_instance(store: str | None, instance_id: str, as_json: bool) -> None:
    instance, history = asyncio.run(_read(store_to_look_at(store), instance_id))
    if as_json:
        _print_json({"schema": SCHEMA, "instance": instance, "history": history})
        return
    print_facts(facts(instance, history))
    click.echo()
    names = {event.event_id: getattr(event, "name", "") for event in history}
    print_table(
        [("ID", "TIME", "EVENT", "OF", "DETAIL"), *(_row(event, names) for event in history)]
    )


def facts(instance: Instance, history: Sequence[events.AnyEvent]) -> list[tuple[str, str]]:
    """What is known of an instance beside its history, as labels and texts."""
    error = instance.error
    return [
        ("instance", instance.instance_id),
        ("runs", f"{_runs(instance)}, execution {instance.execution_id}"),
        ("parent", instance.parent_instance or ""),
        ("status", instance.status),
        ("blocked", f"{instance.blocked}: {instance.blocked_detail}" if instance.blocked else ""),
        ("next try", moment(instance.retry_ms)),
        ("waits for", ", ".join(waits(history)) if instance.finished_ms is None else ""),
        ("created", moment(instance.created_ms)),
        ("finished", moment(instance.finished_ms)),
        ("output", _text(instance.output) if instance.status == "completed" else ""),
        ("error", f"{error.type}: {error.message}" if error else ""),
    ]


def waits(history: Sequence[events.AnyEvent]) -> list[str]:
    """What was asked for and has not come: activities, timers, external events, children."""
    over = {getattr(event, "source_event_id", None) for event in history}
    found = []
    for event in history:
        if event.event_id in over:
            continue
        match event:
            case events.ActivityScheduled(name=name):
                found.append(f"activity {name} (event {event.event_id})")
            case events.TimerCreated(fire_at_ms=fire_at_ms):
                found.append(f"timer at {moment(fire_at_ms)} (event {event.event_id})")
            case events.ExternalSubscribed(name=name):
                found.append(f"external event {name} (event {event.event_id})")
            case events.SubOrchestrationScheduled(instance=child):
                found.append(f"sub-orchestration {child} (event {event.event_id})")
    return found


def _row(event: events.AnyEvent, names: dict[int, str]) -> tuple[str, str, str, str, str]:
    source = getattr(event, "source_event_id", None)
    parts = [names[event.event_id] or names.get(source or 0, "")]
    for field in event.__struct_fields__:
        value = getattr(event, field)
        if field not in NOT_SHOWN and value not in (None, "", 0):
            parts.append(f"{field.removesuffix('_ms')} {_detail(field, value)}")
    return (
        str(event.event_id),
        moment(event.timestamp_ms),
        type(event).__name__,
        str(source or ""),
        ", ".join(part for part in parts if part),
    )


def _detail(field: str, value: Any) -> str:
    if field.endswith("_ms"):
        return moment(value)
    if isinstance(value, events.Failure):
        return f"{value.type}: {value.message}"
    return value if isinstance(value, str) else _text(value)


def _runs(instance: Instance) -> str:
    return instance.name + (f" {instance.version}" if instance.version else "")


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _print_json(document: dict[str, Any]) -> None:
    click.echo(_text(document))


async def _list(url: str, status: Status | None, limit: int) -> list[Instance]:
    async with Client(url) as client:
        return await client.list_instances(status=status, limit=limit)


async def _read(url: str, instance_id: str) -> tuple[Instance, list[events.AnyEvent]]:
    async with Client(url) as client:
        instance = await client.get_instance(instance_id)
        return instance, await client.read_history(instance_id, instance.execution_id)

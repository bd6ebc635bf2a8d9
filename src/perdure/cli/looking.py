"""The commands that look: they need the store only, and change nothing in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
import msgspec

from perdure.cli.options import Wanted
from perdure.cli.outcome import NOT_FOUND, USAGE, Refusal
from perdure.cli.settings import store_to_look_at
from perdure.cli.tables import moment, print_facts, print_json, print_table
from perdure.client.client import Client
from perdure.client.filters import InstanceFilter, key_of
from perdure.client.models import Instance, InstanceTree, Metrics, NodeInfo, QueueDepths
from perdure.client.waits import Wait
from perdure.core import events

T = TypeVar("T")

NOT_SHOWN = {"event_id", "timestamp_ms", "source_event_id", "name", "incarnation", "engine"}
HEADING = ("INSTANCE", "ORCHESTRATION", "STATUS", "EXECUTION", "CREATED", "FINISHED")


def filter_of(wanted: Wanted) -> InstanceFilter:
    """What the options mean, as of now."""
    age = wanted.finished_before
    return InstanceFilter(
        status=wanted.status,
        name=wanted.name,
        id_prefix=wanted.id_prefix,
        parent=wanted.parent,
        blocked=wanted.blocked,
        finished_before=None if age is None else datetime.now(UTC) - age,
    )


def list_instances(
    store: str | None, wanted: Wanted, limit: int, cursor: str | None, as_json: bool
) -> None:
    filter = filter_of(wanted)
    try:
        key_of(cursor)
    except ValueError:
        raise Refusal(USAGE, f"{cursor} is no cursor", "a list that goes on prints one") from None
    page = _read(store, lambda client: client.list_instances(filter, cursor=cursor, limit=limit))
    if as_json:
        print_json({"instances": page.instances, "cursor": page.cursor})
    else:
        print_table([HEADING, *(_columns(instance) for instance in page)])
    if page.cursor is not None:
        click.echo(
            f"perdure: the first {limit}; --limit shows more, --cursor {page.cursor} goes on",
            err=True,
        )


def show_instance(store: str | None, instance_id: str, as_json: bool) -> None:
    instance, history, waits = _read(store, lambda client: _whole(client, instance_id))
    if as_json:
        print_json({"instance": instance, "waiting_for": waits, "history": history})
        return
    print_facts(facts(instance, waits))
    click.echo()
    _print_history(history)


def list_executions(store: str | None, instance_id: str, as_json: bool) -> None:
    found = _read(store, lambda client: client.list_executions(instance_id))
    if as_json:
        print_json({"executions": found})
        return
    heading = ("EXECUTION", "VERSION", "STATUS", "STARTED", "ENDED")
    rows = [
        (
            str(one.execution_id),
            one.version or "",
            one.status,
            moment(one.started_ms),
            moment(one.ended_ms),
        )
        for one in found
    ]
    print_table([heading, *rows])


def show_history(store: str | None, instance_id: str, execution: int | None, as_json: bool) -> None:
    lines = _read(store, lambda client: _recorded(client, instance_id, execution))
    if as_json:
        click.echo(b"".join(line + b"\n" for line in lines), nl=False)
    else:
        _print_history([events.decode(line) for line in lines])


def show_tree(store: str | None, instance_id: str, as_json: bool) -> None:
    tree = _read(store, lambda client: client.get_instance_tree(instance_id))
    if as_json:
        print_json({"tree": tree})
    else:
        print_table([HEADING, *_branch(tree, 0)])


def show_stats(store: str | None, as_json: bool) -> None:
    metrics, depths = _read(store, _numbers)
    if as_json:
        print_json({"metrics": metrics, "depths": depths})
        return
    print_facts(_stats(metrics, depths))
    if depths.activities:
        click.echo()
        heading = ("ACTIVITY", "WAITING", "LATER", "RUNNING")
        rows = [
            (name, str(depth.waiting), str(depth.later), str(depth.running))
            for name, depth in depths.activities.items()
        ]
        print_table([heading, *rows])


def list_nodes(store: str | None, as_json: bool) -> None:
    nodes, now_ms = _read(store, _nodes)
    if as_json:
        print_json({"nodes": nodes, "now_ms": now_ms})
        return
    heading = ("NODE", "HOST", "PROCESS", "INSTANCES", "ACTIVITIES", "HEARTBEAT", "STARTED")
    rows = [
        (
            node.node_id,
            node.host,
            str(node.pid),
            f"{node.instances:,}",
            f"{node.activities:,}",
            f"{max(0, now_ms - node.beat_ms) / 1000:,.1f} s ago",
            moment(node.started_ms),
            moment(node.lease_until_ms) + (" (over)" if node.lease_until_ms < now_ms else ""),
        )
        for node in nodes
    ]
    print_table([(*heading, "LEASE UNTIL"), *rows])


def facts(instance: Instance, waits: Sequence[Wait]) -> list[tuple[str, str]]:
    """What is known of an instance beside its history, as labels and texts."""
    error = instance.error
    return [
        ("instance", instance.instance_id),
        ("runs", f"{_runs(instance)}, execution {instance.execution_id}"),
        ("parent", instance.parent_instance or ""),
        ("status", instance.status),
        ("blocked", f"{instance.blocked}: {instance.blocked_detail}" if instance.blocked else ""),
        ("next try", moment(instance.retry_ms)),
        *(("waits for", wait_text(wait)) for wait in waits),
        ("created", moment(instance.created_ms)),
        ("finished", moment(instance.finished_ms)),
        ("output", _text(instance.output) if instance.status == "completed" else ""),
        ("error", f"{error.type}: {error.message}" if error else ""),
    ]


def wait_text(wait: Wait) -> str:
    """One thing that an instance waits for, in words."""
    match wait.kind:
        case "activity":
            what = f"activity {wait.name}"
        case "timer":
            what = f"timer at {moment(wait.due_ms)}"
        case "event":
            what = f"external event {wait.name}"
        case "queue":
            what = f"an item of the queue {wait.name}"
        case "child":
            what = f"sub-orchestration {wait.instance_id}"
    return f"{what} (event {wait.event_id}){_attempt_text(wait)}"


def _attempt_text(wait: Wait) -> str:
    if wait.attempt is None:
        return ""
    running = f", attempt {wait.attempt} runs on {wait.running_on}" if wait.running_on else ""
    queued = f", {wait.attempt} attempts so far, next from {moment(wait.due_ms)}"
    failed = f", the last failed: {wait.error.type}: {wait.error.message}" if wait.error else ""
    return (running or queued) + failed


def _print_history(history: Sequence[events.AnyEvent]) -> None:
    names = {event.event_id: getattr(event, "name", "") for event in history}
    print_table(
        [("ID", "TIME", "EVENT", "OF", "DETAIL"), *(_row(event, names) for event in history)]
    )


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


def _columns(instance: Instance, indent: str = "") -> tuple[str, ...]:
    return (
        indent + instance.instance_id,
        _runs(instance),
        instance.status + (f" ({instance.blocked})" if instance.blocked else ""),
        str(instance.execution_id),
        moment(instance.created_ms),
        moment(instance.finished_ms),
    )


def _branch(tree: InstanceTree, depth: int) -> Iterator[tuple[str, ...]]:
    # Lines, since a table drops the spaces at the edge of a cell.
    yield _columns(tree.instance, "└" + "─" * (2 * depth - 1) + " " if depth else "")
    for child in tree.children:
        yield from _branch(child, depth + 1)


def _stats(metrics: Metrics, depths: QueueDepths) -> list[tuple[str, str]]:
    return [
        ("instances", _counts(metrics.instances) or "none"),
        ("blocked", _counts(metrics.blocked)),
        ("nodes", ", ".join(f"{node.host} (process {node.pid})" for node in metrics.nodes)),
        ("due", f"{depths.instances:,} instances that no node holds"),
        ("messages", f"{depths.messages:,}"),
        ("items", f"{depths.items:,} in event queues"),
        ("timers", f"{depths.timers:,}"),
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in sorted(counts.items()))


def _runs(instance: Instance) -> str:
    return instance.name + (f" {instance.version}" if instance.version else "")


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _read(store: str | None, ask: Callable[[Client], Awaitable[T]]) -> T:
    url = store_to_look_at(store)

    async def read() -> T:
        async with Client(url) as client:
            return await ask(client)

    return asyncio.run(read())


async def _whole(
    client: Client, instance_id: str
) -> tuple[Instance, list[events.AnyEvent], list[Wait]]:
    instance = await client.get_instance(instance_id)
    history = await client.read_history(instance_id, instance.execution_id)
    return instance, history, await client.waiting_for(instance_id)


async def _recorded(client: Client, instance_id: str, execution: int | None) -> list[bytes]:
    instance = await client.get_instance(instance_id)
    number = instance.execution_id if execution is None else execution
    lines: list[bytes] = []
    while page := await client.provider.read_history(instance_id, number, len(lines)):
        lines += page
    if execution is not None and not lines:
        raise Refusal(
            NOT_FOUND,
            f"{instance_id} has no execution {execution}, or it was pruned",
            f"`perdure executions {instance_id}` shows those it has",
        )
    return lines


async def outermost(client: Client, instance_ids: Sequence[str]) -> tuple[list[str], set[str]]:
    """The ids without those that go with another of them, and the ids of all that go with them.

    Raises InstanceNotFound.
    """
    trees = [await client.get_instance_tree(one) for one in dict.fromkeys(instance_ids)]
    below = set[str]().union(*(_ids(child) for tree in trees for child in tree.children))
    roots = [tree.instance.instance_id for tree in trees]
    return [one for one in roots if one not in below], below.union(roots)


def _ids(tree: InstanceTree) -> set[str]:
    return {tree.instance.instance_id}.union(*map(_ids, tree.children))


async def _nodes(client: Client) -> tuple[list[NodeInfo], int]:
    nodes = await client.nodes()
    return nodes, client.provider.now_ms()


async def _numbers(client: Client) -> tuple[Metrics, QueueDepths]:
    return await client.get_metrics(), await client.get_queue_depths()

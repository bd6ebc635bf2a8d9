"""The commands that tell instances something, remove them, or move them."""

from __future__ import annotations

from datetime import timedelta
from typing import BinaryIO

import click

from perdure.cli.options import (
    Wanted,
    age_option,
    all_option,
    data_option,
    filter_options,
    json_option,
    store_option,
    yes_option,
)


@click.command(name="raise")
@click.argument("instance_id", metavar="ID")
@click.argument("event")
@data_option
@store_option
def raise_(instance_id: str, event: str, data: str, store: str | None) -> None:
    """Send an external event to an instance.

    Example: perdure raise order-7 approved --data true --store sqlite:///shop.db
    """
    from perdure.cli import sending

    sending.raise_event(store, instance_id, event, data)


@click.command()
@click.argument("instance_id", metavar="ID")
@click.argument("queue")
@data_option
@click.option("--event-id", metavar="TEXT", help="Sent again with the same id, it is not doubled.")
@store_option
def enqueue(
    instance_id: str, queue: str, data: str, event_id: str | None, store: str | None
) -> None:
    """Put an event into an event queue of an instance.

    Example: perdure enqueue chat-1 messages --data '"hello"' --store sqlite:///shop.db
    """
    from perdure.cli import sending

    sending.enqueue_event(store, instance_id, queue, data, event_id)


@click.command()
@click.argument("instance_id", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="What its code is told.")
@store_option
def cancel(instance_id: str, reason: str, store: str | None) -> None:
    """Ask an instance to stop.

    Example: perdure cancel order-7 --reason "sold out" --store sqlite:///shop.db
    """
    from perdure.cli import sending

    sending.cancel_instance(store, instance_id, reason)


@click.command()
@click.argument("instance_id", metavar="[ID]", required=False)
@all_option
@filter_options
@click.option(
    "--keep-last",
    type=click.IntRange(0, 1_000_000_000),
    metavar="N",
    help="How many of the newest executions stay; 0 and 1 mean the current one.",
)
@age_option("--completed-before", "Only what ended so long ago: 30d.")
@yes_option
@json_option
@store_option
def prune(
    instance_id: str | None,
    everything: bool,
    wanted: Wanted,
    keep_last: int | None,
    completed_before: timedelta | None,
    yes: bool,
    as_json: bool,
    store: str | None,
) -> None:
    """Delete old executions with their histories.

    Of the instance ID, or of all that the options name. The current execution of an instance
    always stays. Example: perdure prune --all --completed-before 30d --store sqlite:///shop.db
    """
    from perdure.cli import removing

    chosen = removing.Chosen((instance_id,) if instance_id else (), wanted, everything)
    removing.prune(store, chosen, keep_last, completed_before, yes, as_json)


@click.command()
@click.argument("instance_ids", metavar="[ID]...", nargs=-1)
@all_option
@filter_options
@click.option("--force", is_flag=True, help="Also what has not ended; what it does is lost.")
@yes_option
@json_option
@store_option
def delete(
    instance_ids: tuple[str, ...],
    everything: bool,
    wanted: Wanted,
    force: bool,
    yes: bool,
    as_json: bool,
    store: str | None,
) -> None:
    """Delete instances with their sub-orchestrations.

    Those named, or all that the options name; of the latter, what has not ended is passed over.
    Example: perdure delete order-7 order-8 --store sqlite:///shop.db
    """
    from perdure.cli import removing

    chosen = removing.Chosen(instance_ids, wanted, everything)
    removing.delete(store, chosen, force, yes, as_json)


@click.command()
@click.argument("instance_ids", metavar="ID...", nargs=-1, required=True)
@click.option("-o", "--output", metavar="FILE", help="Default: stdout.")
@store_option
def export(instance_ids: tuple[str, ...], output: str | None, store: str | None) -> None:
    """Write instances with all that belongs to them as JSON Lines.

    They stay in the store. Example: perdure export order-7 -o order-7.jsonl --store
    sqlite:///shop.db
    """
    from perdure.cli import moving

    moving.export_instances(store, instance_ids, output)


@click.command(name="import")
@click.argument("file", type=click.File("rb"))
@json_option
@store_option
def import_(file: BinaryIO, as_json: bool, store: str | None) -> None:
    """Store the instances that an export holds, all of them or none.

    FILE may be -, for stdin. What has not ended goes on in this store, so delete the original.
    Example: perdure import order-7.jsonl --store sqlite:///other.db
    """
    from perdure.cli import moving

    moving.import_instances(store, file, as_json)

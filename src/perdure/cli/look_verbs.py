"""The commands that look at a store and change nothing in it."""

from __future__ import annotations

import click

from perdure.cli.options import Wanted, filter_options, json_option, store_option


@click.command(name="list")
@filter_options
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--cursor", metavar="TEXT", help="Go on where a list before ended.")
@json_option
@store_option
def list_(wanted: Wanted, limit: int, cursor: str | None, as_json: bool, store: str | None) -> None:
    """List instances, oldest first.

    Example: perdure list --status failed --name checkout --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.list_instances(store, wanted, limit, cursor, as_json)


@click.command()
@click.argument("instance_id", metavar="ID")
@json_option
@store_option
def show(instance_id: str, as_json: bool, store: str | None) -> None:
    """Show an instance: how it is, what it waits for, its history.

    Example: perdure show checkout-o-1 --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.show_instance(store, instance_id, as_json)


@click.command()
@click.argument("instance_id", metavar="ID")
@json_option
@store_option
def executions(instance_id: str, as_json: bool, store: str | None) -> None:
    """List the executions of an instance, oldest first.

    Example: perdure executions poller --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.list_executions(store, instance_id, as_json)


@click.command()
@click.argument("instance_id", metavar="ID")
@click.option(
    "--execution", type=click.IntRange(min=1), metavar="N", help="Default: the current one."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the events as recorded, a line of JSON each."
)
@store_option
def history(instance_id: str, execution: int | None, as_json: bool, store: str | None) -> None:
    """Show the history of an execution.

    Example: perdure history poller --execution 2 --json --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.show_history(store, instance_id, execution, as_json)


@click.command()
@click.argument("instance_id", metavar="ID")
@json_option
@store_option
def tree(instance_id: str, as_json: bool, store: str | None) -> None:
    """Show an instance with its sub-orchestrations and theirs.

    Example: perdure tree order-7 --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.show_tree(store, instance_id, as_json)


@click.command()
@json_option
@store_option
def stats(as_json: bool, store: str | None) -> None:
    """Show how much is in the store, and what waits in it.

    Example: perdure stats --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.show_stats(store, as_json)


@click.command()
@json_option
@store_option
def nodes(as_json: bool, store: str | None) -> None:
    """List the nodes that work on a store, with what they hold and when they last gave a sign.

    Example: perdure nodes --store postgresql://app@db.internal/app
    """
    from perdure.cli import looking

    looking.list_nodes(store, as_json)

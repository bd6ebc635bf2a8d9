"""The command `perdure`. Data goes to stdout, notes and errors to stderr.

What a command needs is imported when it runs, so that `perdure --version` and `--help` are quick.
"""

from __future__ import annotations

from typing import Any, get_args

import click

from perdure.cli.outcome import reported
from perdure.providers.contract import Status

store_option = click.option(
    "--store",
    metavar="URL",
    help="The store, such as sqlite:///jobs.db. Default: PERDURE_STORE, then [tool.perdure] store "
    "in pyproject.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class Commands(click.Group):
    """Every error becomes one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        with reported(debug=ctx.params["debug"]):
            return super().invoke(ctx)


@click.group(cls=Commands)
@click.version_option(package_name="perdure")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Durable orchestration: run orchestrations and look at them.

    \b
    Exit codes: 0 done, 1 unexpected error, 2 usage, 3 not found, 4 wrong state,
    5 the orchestration failed, 6 it was cancelled, 7 timed out, 8 no usable store,
    130 interrupted.
    """


@main.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False))
def demo(folder: str | None) -> None:
    """Kill a job in the middle, run it again, compare.

    Indexes FOLDER (default: Python's standard library). Example: perdure demo ~/documents
    """
    from perdure.demo import story

    raise SystemExit(story.tell(folder))


@main.command()
@click.argument("target", metavar="MODULE:FUNCTION")
@click.option(
    "--input", "input_json", metavar="JSON", help="The input; several parameters: an object."
)
@click.option(
    "--id", "instance_id", metavar="ID", help="The instance's id; without it one is made."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop waiting then."
)
@store_option
def run(
    target: str,
    input_json: str | None,
    instance_id: str | None,
    timeout: float | None,
    store: str | None,
) -> None:
    """Run an orchestration and print its result as JSON.

    Hosts what the module defines, starts the instance or goes on with it, and waits for its end.
    MODULE may be a path. Without a store it uses ./.perdure/dev.db. Interrupted, it can be run
    again. Example: perdure run shop.py:checkout --input '"o-1"' --id checkout-o-1
    """
    from perdure.cli import running

    running.run(target, input_json, instance_id, timeout, store)


@main.command(name="list")
@click.option(
    "--status", type=click.Choice(get_args(Status)), help="Only instances with this status."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@json_option
@store_option
def list_(status: Status | None, limit: int, as_json: bool, store: str | None) -> None:
    """List instances, oldest first.

    Example: perdure list --status failed --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.list_instances(store, status, limit, as_json)


@main.command()
@click.argument("instance_id", metavar="ID")
@json_option
@store_option
def show(instance_id: str, as_json: bool, store: str | None) -> None:
    """Show an instance: how it is, what it waits for, its history.

    Example: perdure show checkout-o-1 --store sqlite:///shop.db
    """
    from perdure.cli import looking

    looking.show_instance(store, instance_id, as_json)

"""The command `perdure`. Data goes to stdout, notes and errors to stderr.

What a command needs is imported when it runs, so that `perdure --version` and `--help` are quick.
"""

from __future__ import annotations

from typing import Any

import click

from perdure.cli import act_verbs, look_verbs
from perdure.cli.options import store_option
from perdure.cli.outcome import reported


class Commands(click.Group):
    """Every error becomes one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        with reported(debug=ctx.params["debug"]):
            return super().invoke(ctx)


@click.group(cls=Commands)
@click.version_option(package_name="perdure")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Durable orchestration: run orchestrations, look at them, and tidy up.

    \b
    Exit codes: 0 done, 1 unexpected error, 2 usage, 3 not found, 4 wrong state,
    5 the orchestration failed, 6 it was cancelled, 7 timed out, 8 no usable store,
    9 what is to be imported is not valid, 130 interrupted.
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


@main.command()
@click.argument("modules", metavar="MODULE...", nargs=-1, required=True)
@click.option(
    "--processes", type=click.IntRange(1, 1000), default=1, metavar="N", help="Default: 1."
)
@store_option
def worker(modules: tuple[str, ...], processes: int, store: str | None) -> None:
    """Run what modules define, until SIGTERM or SIGINT.

    Hosts their orchestrations and activities on the store, in this process or in N of its own,
    which are replaced when they die. A MODULE may be a path.
    Example: perdure worker shop.py billing.py --processes 4 --store postgresql://app@db/app
    """
    from perdure.cli import workers

    workers.work(modules, processes, store)


for command in (
    look_verbs.list_,
    look_verbs.show,
    look_verbs.executions,
    look_verbs.history,
    look_verbs.tree,
    look_verbs.stats,
    look_verbs.nodes,
    act_verbs.raise_,
    act_verbs.enqueue,
    act_verbs.cancel,
    act_verbs.prune,
    act_verbs.delete,
    act_verbs.export,
    act_verbs.import_,
):
    main.add_command(command)

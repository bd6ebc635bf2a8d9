"""`perdure prune` and `perdure delete`: they say how much it is, and ask, before they remove it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import click

from perdure.cli.looking import filter_of, outermost
from perdure.cli.options import Wanted
from perdure.cli.outcome import INTERRUPTED, USAGE, Refusal
from perdure.cli.settings import store_to_look_at
from perdure.cli.tables import print_json
from perdure.client.client import Client
from perdure.client.models import PruneResult
from perdure.errors import PerdureError
from perdure.retention import PruneOptions

PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """The instances that a command is to work on: named, or by filter, or all of them."""

    instance_ids: tuple[str, ...]
    wanted: Wanted
    everything: bool

    def check(self) -> None:
        """Raises Refusal unless there is exactly one way in which they are chosen."""
        ways = [bool(self.instance_ids), self.wanted.is_filter, self.everything]
        if sum(ways) != 1:
            raise Refusal(
                USAGE,
                "which instances is not clear",
                "give ids, or options such as --status, or --all; one of the three",
            )


def prune(
    store: str | None,
    chosen: Chosen,
    keep_last: int | None,
    completed_before: timedelta | None,
    yes: bool,
    as_json: bool,
) -> None:
    chosen.check()
    url = store_to_look_at(store)
    options = PruneOptions(keep_last=keep_last, completed_before=completed_before)
    if keep_last is None and completed_before is None:
        click.echo("perdure: only the current execution of each is kept", err=True)

    def confirm(number: int) -> None:
        _confirm(f"Prune the executions of {_instances(number)} in {url}?", yes)

    result = asyncio.run(_prune(url, chosen, options, confirm))
    if as_json:
        print_json({"pruned": result})
    else:
        click.echo(
            f"pruned {_number(result.executions, 'execution')} "
            f"({_number(result.events, 'event')}) of {_instances(result.instances)}"
        )


def delete(store: str | None, chosen: Chosen, force: bool, yes: bool, as_json: bool) -> None:
    chosen.check()
    url = store_to_look_at(store)

    def confirm(number: int) -> None:
        what = _instances(number)
        if not chosen.instance_ids:
            what += " that match, with their sub-orchestrations" + (
                "" if force else "; what has not ended stays"
            )
        _confirm(f"Delete {what} in {url}?", yes)

    number = asyncio.run(_delete(url, chosen, force, confirm))
    if as_json:
        print_json({"deleted": number})
    else:
        click.echo(f"deleted {_instances(number)}")


def has_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not has_terminal():
        raise Refusal(USAGE, "there is no terminal to ask at; nothing was removed", "pass --yes")
    if not click.confirm(question, err=True):
        raise Refusal(INTERRUPTED, "nothing was removed")


async def _prune(
    url: str, chosen: Chosen, options: PruneOptions, confirm: Callable[[int], None]
) -> PruneResult:
    async with Client(url) as client:
        if chosen.instance_ids:
            (instance_id,) = chosen.instance_ids
            await client.get_instance(instance_id)
            confirm(1)
            return await client.prune_executions(instance_id, options)
        confirm(await _count(client, chosen.wanted))
        return await client.prune_executions_bulk(filter_of(chosen.wanted), options)


async def _delete(url: str, chosen: Chosen, force: bool, confirm: Callable[[int], None]) -> int:
    async with Client(url) as client:
        if chosen.instance_ids:
            roots, going = await outermost(client, chosen.instance_ids)
            confirm(len(going))
            return await _delete_each(client, roots, force)
        confirm(await _count(client, chosen.wanted))
        return await client.delete_instances_bulk(filter_of(chosen.wanted), force)


async def _delete_each(client: Client, instance_ids: list[str], force: bool) -> int:
    deleted = 0
    for instance_id in instance_ids:
        try:
            deleted += await client.delete_instance(instance_id, force)
        except PerdureError:
            if deleted:
                click.echo(f"perdure: {_instances(deleted)} went before this error:", err=True)
            raise
    return deleted


async def _count(client: Client, wanted: Wanted) -> int:
    number = 0
    cursor = None
    while True:
        page = await client.list_instances(filter_of(wanted), cursor=cursor, limit=PAGE)
        number += len(page)
        cursor = page.cursor
        if cursor is None:
            return number


def _instances(number: int) -> str:
    return _number(number, "instance")


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"

"""`perdure export` and `perdure import`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import click

from perdure.cli.looking import outermost
from perdure.cli.outcome import UNEXPECTED, Refusal
from perdure.cli.settings import store_to_look_at, store_to_write_to
from perdure.cli.tables import print_json
from perdure.client.client import Client


def export_instances(store: str | None, instance_ids: tuple[str, ...], output: str | None) -> None:
    lines = asyncio.run(_export(store_to_look_at(store), instance_ids))
    data = b"".join(lines)
    if output is None or output == "-":
        click.echo(data, nl=False)
        return
    try:
        Path(output).write_bytes(data)
    except OSError as error:
        raise Refusal(UNEXPECTED, f"cannot write {output}: {error.strerror}") from error
    click.echo(f"perdure: wrote {len(lines):,} lines to {output}", err=True)


def import_instances(store: str | None, lines: Iterable[bytes], as_json: bool) -> None:
    imported = asyncio.run(_import(store_to_write_to(store), lines))
    if as_json:
        print_json({"imported": imported})
        return
    for instance_id in imported:
        click.echo(instance_id)


async def _export(url: str, instance_ids: tuple[str, ...]) -> list[bytes]:
    async with Client(url) as client:
        found: list[bytes] = []
        for instance_id in (await outermost(client, instance_ids))[0]:
            found += await client.export_instance(instance_id)
        return found


async def _import(url: str, lines: Iterable[bytes]) -> list[str]:
    async with Client(url) as client:
        return await client.import_instances(lines)

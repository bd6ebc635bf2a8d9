"""Reads what a run has left in its store, and counts what the ledger tells of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import apsw
from kill_checker import Effects, Execution, Instance, Seen
from kill_ledger import Line

from perdure import Client
from perdure.providers.contract import RowFilter
from perdure.providers.filesystem import FilesystemProvider
from perdure.providers.filesystem.paths import folder_name
from perdure.providers.filesystem.readable import lines_of
from perdure.providers.postgres.connections import Database

PAGE = 500

_LEFTOVERS = {
    "activities": "select count(*) from activities",
    "timers": "select count(*) from timers",
    "inbox": "select count(*) from inbox",
    "event ids": "select count(*) from event_ids",
    "nodes": "select count(*) from nodes",
    "claimed instances": "select count(*) from instances where owner is not null",
    "open instances": "select count(*) from instances where finished_ms is null",
    "due instances": "select count(*) from instances where due_ms is not null",
    "blocked instances": "select count(*) from instances where blocked is not null",
    "executions without instance": "select count(*) from executions where key not in "
    "(select key from instances)",
    "events without execution": "select count(*) from history where (key, execution_id) not in "
    "(select key, execution_id from executions)",
}


async def look(store: Path | str, lines: Sequence[Line]) -> Seen:
    """Everything that there is to check. Nothing else may use the store any more."""
    if isinstance(store, str):
        return await _look_at_postgres(store, lines)
    if not store.suffix:
        return await _look_at_folder(store, lines)
    async with Client(f"sqlite:///{store}") as client:
        instances = await _instances(client)
    connection = apsw.Connection(str(store))
    try:
        leftovers = {what: connection.execute(count).get for what, count in _LEFTOVERS.items()}
        integrity = connection.execute("pragma integrity_check").get
    finally:
        connection.close()
    leftovers["locks of nodes"] = len(os.listdir(f"{store}-nodes"))
    return Seen(list(lines), instances, leftovers, integrity)


async def _look_at_postgres(url: str, lines: Sequence[Line]) -> Seen:
    async with Client(url) as client:
        instances = await _instances(client)
    connection = await Database(url).connect()
    try:
        leftovers = {what: await connection.fetchval(count) for what, count in _LEFTOVERS.items()}
    finally:
        await connection.close()
    return Seen(list(lines), instances, leftovers, "ok")


async def _look_at_folder(store: Path, lines: Sequence[Line]) -> Seen:
    files = _readable_files(store)
    provider = FilesystemProvider(store)
    async with Client(provider) as client:
        instances = await _instances(client)
        rows = list(provider.store.tables.instances.values())
        leftovers = {
            "activities": sum(len(row.activities) for row in rows),
            "timers": sum(len(row.timers) for row in rows),
            "inbox": sum(len(row.inbox) for row in rows),
            "nodes": len(await provider.nodes()),
            "claimed instances": sum(row.owner is not None for row in rows),
            "open instances": sum(row.finished_ms is None for row in rows),
            "due instances": sum(row.due_ms is not None for row in rows),
            "blocked instances": sum(row.blocked is not None for row in rows),
        }
    histories = {
        Path(folder_name(row.instance_id), f"{number}.jsonl"): lines_of(execution.history.values())
        for row in rows
        for number, execution in row.executions.items()
    }
    integrity = "ok" if files == histories else "the readable files are not the histories"
    return Seen(list(lines), instances, leftovers, integrity)


def _readable_files(store: Path) -> dict[Path, bytes]:
    return {path.relative_to(store): path.read_bytes() for path in store.glob("*/*.jsonl")}


async def _instances(client: Client) -> list[Instance]:
    found: list[Instance] = []
    after = 0
    while rows := await client.provider.list_instances(RowFilter(), after, PAGE):
        for row in rows:
            executions = [
                Execution(
                    execution.execution_id,
                    execution.status,
                    await client.read_history(row.instance_id, execution.execution_id),
                )
                for execution in await client.list_executions(row.instance_id)
            ]
            found.append(
                Instance(row.instance_id, row.name, row.incarnation, row.status, executions)
            )
        after = rows[-1].key
    return found


def hard_kills(lines: Sequence[Line]) -> int:
    """Kills of a worker that was in the middle of an activity."""
    running: dict[int, set[str]] = {}
    for line in lines:
        if line.word == "begin":
            running.setdefault(line.pid, set()).add(line.args[2])
        elif line.word == "end":
            running[line.pid].discard(line.args[1])
    return sum(bool(running.get(int(line.args[0]))) for line in lines if line.word == "kill")


def recovery_ms(lines: Sequence[Line]) -> list[int]:
    """Of each worker after the first: from its start to its first activity."""
    spawned_ms: dict[int, int] = {}
    found: dict[int, int] = {}
    for line in lines:
        if line.word == "spawn":
            spawned_ms[int(line.args[0])] = line.at_ms
        elif line.word == "begin" and line.pid not in found:
            found[line.pid] = line.at_ms - spawned_ms[line.pid]
    return list(found.values())[1:]


def takeover_ms(lines: Sequence[Line]) -> list[int]:
    """Of each worker that was killed, or stopped, in the middle of activities: from then until one
    of these begins again."""
    running: dict[int, set[str]] = {}
    lost: dict[str, Line] = {}
    found: dict[int, int] = {}
    for line in lines:
        if line.word == "begin":
            running.setdefault(line.pid, set()).add(line.args[0])
            if line.args[0] in lost:
                end = lost.pop(line.args[0])
                found.setdefault(end.place, line.at_ms - end.at_ms)
        elif line.word == "end":
            running.get(line.pid, set()).discard(line.args[0])
        elif line.word in ("kill", "pause"):
            lost |= dict.fromkeys(running.pop(int(line.args[0]), ()), line)
    return list(found.values())


def longest_pause_ms(lines: Sequence[Line]) -> int:
    """The longest time in which nothing at all was noted."""
    return max(after.at_ms - before.at_ms for before, after in itertools.pairwise(lines))


def summary(seen: Seen) -> str:
    """A run in one line."""
    effects = Effects(seen.lines)
    kills = sum(line.word == "kill" for line in seen.lines)
    recoveries = recovery_ms(seen.lines)
    return (
        f"{kills} kills ({hard_kills(seen.lines)} hard), {len(seen.instances)} instances, "
        f"{len(effects.begins)} activities ({effects.repeated} repeated), "
        f"median recovery {median(recoveries) if recoveries else 0:.0f} ms, "
        f"longest pause {longest_pause_ms(seen.lines)} ms"
    )

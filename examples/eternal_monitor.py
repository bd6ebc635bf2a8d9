"""Watch a folder for ever, and put a new version of the watcher in place while it runs.

    python examples/eternal_monitor.py FOLDER [--store URL] [--every SECONDS] [--rounds N]

Each round looks at the folder, waits on a timer, and continues as new with what it has seen: the
history never grows, and the retention policy keeps the last three executions. Half of the rounds
are made by version 1; then a runtime with version 2 takes over, which also keeps the largest file,
and the next round is its first. An orchestration like this has no end of its own: after N rounds
it is told to stop through its event queue. Kill it and run it again: it goes on with the next
round. Run it once more when it has stopped, and it only says what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from perdure import Client, OrchestrationContext, PruneOptions, Runtime, activity, orchestration

KEPT = PruneOptions(keep_last=3)


@dataclass
class Look:
    files: int
    bytes: int
    largest: str = ""


@dataclass
class Watch:
    """What one round hands to the next. `largest` came with version 2: state that version 1 has
    written decodes with the default."""

    folder: str
    every_s: float
    rounds: int = 0
    changes: int = 0
    last: Look | None = None
    versions: list[str] = field(default_factory=list)
    largest: str = ""


@activity
def look_at(folder: str) -> Look:
    sizes = {path: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}
    largest = max(sizes, key=lambda path: (sizes[path], str(path)), default=None)
    return Look(len(sizes), sum(sizes.values()), largest.name if largest else "")


@orchestration(name="monitor", version="1", retention=KEPT)
async def monitor_1(ctx: OrchestrationContext, watch: Watch) -> Watch:
    look = await look_at(watch.folder)
    return await next_round(ctx, watch, replace(look, largest=""))


@orchestration(name="monitor", version="2", retention=KEPT)
async def monitor_2(ctx: OrchestrationContext, watch: Watch) -> Watch:
    look = await look_at(watch.folder)
    return await next_round(ctx, replace(watch, largest=look.largest), replace(look, largest=""))


async def next_round(ctx: OrchestrationContext, watch: Watch, look: Look) -> Watch:
    watch = replace(
        watch,
        rounds=watch.rounds + 1,
        changes=watch.changes + (watch.last is not None and look != watch.last),
        last=look,
        versions=list(dict.fromkeys([*watch.versions, ctx.version])),
    )
    ctx.logger.info("round %d, version %s: %s", watch.rounds, ctx.version, look)
    stop = ctx.dequeue_event("commands", str)
    told, _ = await ctx.select(ctx.schedule_timer(watch.every_s), stop)
    if told == 1:
        return watch
    return await ctx.continue_as_new(watch)


async def rounds_until(client: Client, instance_id: str, number: int) -> None:
    """Wait until the instance is in its execution `number`, or has ended."""
    while True:
        instance = await client.get_instance(instance_id)
        if instance.execution_id >= number or instance.finished_ms is not None:
            return
        print(f"round {instance.execution_id}, version {instance.version}", file=sys.stderr)
        await (await client.get_handle(instance_id, instance.execution_id)).result()


async def main() -> None:
    parser = argparse.ArgumentParser(description="Watch a folder, durably.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", default="sqlite:///monitor.db", metavar="URL")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--rounds", type=int, default=8, metavar="N")
    options = parser.parse_args()
    folder = str(options.folder.resolve())
    instance_id = f"monitor {folder}"

    async with Runtime(options.store, [look_at, monitor_1]) as old:
        await old.client.start_orchestration(
            monitor_1, Watch(folder, options.every), instance_id=instance_id, if_exists="return"
        )
        await rounds_until(old.client, instance_id, 1 + options.rounds // 2)

    async with Runtime(options.store, [look_at, monitor_1, monitor_2]) as new:
        client = new.client
        await rounds_until(client, instance_id, options.rounds)
        if (await client.get_instance(instance_id)).finished_ms is None:
            await client.enqueue_event(instance_id, "commands", "stop", event_id="stop")
        handle = await client.get_handle(instance_id, result_type=Watch)
        seen = await handle.final_result()
        kept = await client.list_executions(instance_id)

    versions = " and ".join(seen.versions)
    print(
        f"{seen.last.files} files, {seen.last.bytes} bytes, the largest is {seen.largest}; "
        f"{seen.changes} changes in {seen.rounds} rounds of versions {versions}; "
        f"executions {kept[0].execution_id} to {kept[-1].execution_id} kept"
    )


if __name__ == "__main__":
    asyncio.run(main())

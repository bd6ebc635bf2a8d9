"""Several processes on one PostgreSQL: `waits` and `saturation`, and the process that they start.

    python bench/nodes.py URL SLOTS NUMBER

is one node. It says "ready", waits for a line on its stdin, starts NUMBER instances of its own and
waits for their ends; after another line (or its end) it prints what it has done, and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stores import PostgresStores
from workloads import act, sequence

from perdure import Client, Options, OrchestrationContext, Runtime, activity, orchestration

WAIT_S = 0.01
STEPS = 5
WAITING = {2: 100, 50: 400}
"""By the slots of a node, how many instances for each node. With two slots it spends its time
waiting; with fifty, four nodes and their server may need more than the processors can give."""
SATURATING_STEPS = 20
SATURATING_EACH = 1_000
"""Instances of a node, as many as it has slots."""

RAN = {"activities": 0}


@activity
async def wait_a_little(x: int) -> int:
    RAN["activities"] += 1
    await asyncio.sleep(WAIT_S)
    return x


@orchestration
async def waiting(ctx: OrchestrationContext, n: int) -> int:
    for i in range(n):
        await ctx.schedule_activity(wait_a_little, i)
    return n


@dataclass
class Node:
    """A process that hosts a runtime."""

    process: subprocess.Popen[str]

    def told(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def _running(url: str, number: int, slots: int, instances: int) -> Iterator[list[Node]]:
    command = [sys.executable, __file__, url, str(slots), str(instances)]
    pipe = subprocess.PIPE
    nodes = [
        Node(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) for _ in range(number)
    ]
    try:
        for node in nodes:
            assert node.told() == "ready"
        yield nodes
    finally:
        for node in nodes:
            with node.process:
                node.process.kill()


def waits(stores: PostgresStores, number: int, slots: int) -> dict[str, Any]:
    """Activities that wait 10 ms on so many nodes; a client outside starts their instances."""
    instances = WAITING[slots] * number
    with stores.fresh() as url:
        asyncio.run(_started(url, 0))
        with _running(url, number, slots, 0) as nodes:
            before = stores.cpu_s()
            took = asyncio.run(_started(url, instances))
            after = stores.cpu_s()
            reports = _reports(nodes)
    line = {
        "nodes": number,
        "activities_per_s": round(STEPS * instances / took),
        "spread": sorted(report["activities"] for report in reports),
        "node_cpu": sum(report["cpu_s"] for report in reports) / took / number,
    }
    return _with_server(line, before, after, took)


async def _started(url: str, instances: int) -> float:
    """Start so many, and wait until all have ended; how long that took, in seconds."""
    async with Client(url) as client:
        began = time.perf_counter()
        await asyncio.gather(
            *(
                client.start_orchestration(waiting, STEPS, instance_id=f"w{number}")
                for number in range(instances)
            )
        )
        while (await client.provider.count_instances()).get("completed", 0) < instances:
            await asyncio.sleep(0.02)
        return time.perf_counter() - began


def saturation(stores: PostgresStores, number: int) -> dict[str, Any]:
    """So many nodes that have as much to do as they can, each with instances of its own."""
    with stores.fresh() as url, _running(url, number, SATURATING_EACH, SATURATING_EACH) as nodes:
        before, began = stores.cpu_s(), time.perf_counter()
        for node in nodes:
            node.tell()
        for node in nodes:
            assert node.told() == "done"
        took, after = time.perf_counter() - began, stores.cpu_s()
        reports = _reports(nodes)
    line = {
        "nodes": number,
        "activities_per_s": round(SATURATING_STEPS * SATURATING_EACH * number / took),
        "node_cpu": sum(report["cpu_s"] for report in reports) / took / number,
    }
    return _with_server(line, before, after, took)


def _reports(nodes: list[Node]) -> list[dict[str, Any]]:
    for node in nodes:
        node.tell()
    return [json.loads(node.told()) for node in nodes]


def _with_server(
    line: dict[str, Any], before: float | None, after: float | None, took: float
) -> dict[str, Any]:
    if before is not None and after is not None:
        line["server_cpu"] = (after - before) / took
    return line


async def _node(url: str, slots: int, instances: int) -> None:
    options = Options(max_activities=slots)
    async with Runtime(url, [wait_a_little, waiting, act, sequence], options=options) as runtime:
        client = runtime.client
        print("ready", flush=True)
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.to_thread(sys.stdin.readline)
        if instances:
            handles = await asyncio.gather(
                *(client.start_orchestration(sequence, SATURATING_STEPS) for _ in range(instances))
            )
            await asyncio.gather(*(handle.result() for handle in handles))
            print("done", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({**RAN, "cpu_s": used}), flush=True)


if __name__ == "__main__":
    asyncio.run(_node(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

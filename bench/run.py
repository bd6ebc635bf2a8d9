"""The benchmark: every workload beside the limit program, one JSON line each, and then tables.

    python bench/run.py [WORKLOAD …] [--store sqlite|postgres] [--reps N]

Each repetition is a fresh process on a fresh store, and the limit program is measured right after
it, so that a ratio compares the same machine at the same moment. Medians are printed. PostgreSQL is
the server that comes with the development tools, or PERDURE_BENCH_POSTGRES=url.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import delay
import footprint
import limit
import nodes
import stores
import tables
import workloads

STORES = ("sqlite", "postgres")
REPS = {"parked": 1, "restart": 1, "idle": 1, "timers": 2}
FAR = ("throughput", "sequential_1000", "latency")
"""What is measured again with FAR_MS added to each round trip."""
FAR_MS = 1.0
NODES = (1, 2, 4)
POSTGRES_ONLY = ("far", "nodes", "footprint")

Stores = stores.SqliteStores | stores.PostgresStores
Line = dict[str, Any]


async def one(name: str, url: str, limit_url: str) -> Line:
    """One repetition in this process: the workload, then its limit."""
    figures = await workloads.WORKLOADS[name](url)
    if "turns_per_s" in figures:
        bare = await limit.turns_per_second(limit_url, max(1, figures["turns_a_commit"]))
        figures["limit_turns_per_s"] = round(bare)
        figures["share_of_limit"] = figures["turns_per_s"] / bare
    for key, ratio, bare_ms in (
        ("ms_per_activity", "bare_commits_each", limit.bare_commit_ms),
        ("p50_ms", "bare_commits", limit.bare_commit_ms),
        ("ms_per_execution", "bare_commits_each", limit.bare_renewal_ms),
    ):
        if key in figures:
            figures["bare_commit_ms"] = await bare_ms(limit_url)
            figures[ratio] = figures[key] / figures["bare_commit_ms"]
    return figures


BUDGETS: dict[str, dict[str, tuple[str, float]]] = {
    "throughput": {"share_of_limit": (">=", 0.2), "activities_per_s": (">=", 10_000)},
    "sequential_1000": {"bare_commits_each": ("<=", 1.6)},
    "sequential_3000": {"of_100": ("<=", 1.1)},
    "latency": {"bare_commits": ("<=", 5)},
    "fan_out": {"total_ms": ("<=", 60)},
    "continue_as_new": {"bare_commits_each": ("<=", 2.5)},
    "timers": {"p95_late_ms": ("<=", 50), "early": ("<=", 0)},
    "parked": {"bytes_each": ("<=", 1_024)},
    "restart": {"all_done_s": ("<=", 2)},
    "idle": {"percent_of_a_core": ("<=", 0.5)},
}


def measured(where: Stores, name: str, reps: int) -> Line:
    """Medians over the repetitions, each in a process of its own."""
    runs = []
    for _ in range(min(reps, REPS.get(name, reps))):
        with where.fresh() as url, where.fresh() as limit_url:
            command = [sys.executable, __file__, name, "--one", url, limit_url]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(ran.stdout.splitlines()[-1]))
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {"workload": name, "reps": len(runs), **figures}


def judge(line: Line) -> None:
    """Put each budget beside its figure."""
    for key, (sense, bound) in BUDGETS.get(line["workload"], {}).items():
        if key in line:
            met = line[key] >= bound if sense == ">=" else line[key] <= bound
            verdict = f"{sense} {bound:g}: {'met' if met else 'MISSED'}"
            line.setdefault("budgets", {})[key] = verdict


def lines(where: Stores, names: Iterable[str], reps: int) -> Iterator[Line]:
    """The workloads that every store has."""
    first_ms = None
    for name in names:
        line = measured(where, name, reps)
        if name == "sequential_100":
            first_ms = line["ms_per_activity"]
        elif name == "sequential_3000" and first_ms is not None:
            line["of_100"] = line["ms_per_activity"] / first_ms
        judge(line)
        yield line


def postgres_lines(where: stores.PostgresStores, names: Iterable[str]) -> Iterator[Line]:
    """What only PostgreSQL has."""
    if "far" in names:
        with delay.farther(where, FAR_MS) as (far, added_ms):
            for line in lines(far, FAR, 1):
                yield {**line, "workload": f"far_{line['workload']}", "added_ms": added_ms}
    for number in NODES if "nodes" in names else ():
        for slots in nodes.WAITING:
            line = nodes.waits(where, number, slots)
            yield {"workload": f"nodes_{slots}_slots_{number}", **line}
        yield {"workload": f"nodes_saturated_{number}", **nodes.saturation(where, number)}
    if "footprint" in names:
        yield {"workload": "footprint", **footprint.footprint(where)}


def run(store: str, names: list[str], reps: int) -> dict[str, Line]:
    """Measure on one store, and print each line when it is there."""
    found: dict[str, Line] = {}
    common = [name for name in names if name not in POSTGRES_ONLY]
    with contextlib.ExitStack() as stack:
        where: Stores = stores.SqliteStores()
        more: Iterator[Line] = iter(())
        if store == "postgres":
            where = stack.enter_context(stores.postgres())
            more = postgres_lines(where, names)
        for part in (lines(where, common, reps), more):
            for line in part:
                found[line["workload"]] = line
                print(json.dumps({"store": store, **_rounded(line)}), flush=True)
    return found


def _rounded(line: Line) -> Line:
    return {k: round(value, 3) if isinstance(value, float) else value for k, value in line.items()}


def main() -> None:
    every = [*workloads.WORKLOADS, *POSTGRES_ONLY]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", nargs="*", choices=[*every, []])
    parser.add_argument("--store", choices=STORES, help="only this one")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--one", nargs=2, help="one repetition, in this process: on two stores")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asyncio.run(one(options.workload[0], *options.one))))
        return
    # Ended from outside, it takes its processes and its server along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = options.workload or every
    for store in [options.store] if options.store else STORES:
        found = run(store, names, options.reps)
        print("\n" + "\n".join(tables.of(store, found)) + "\n", flush=True)


if __name__ == "__main__":
    main()

"""The benchmark: every workload beside the limit program, one JSON line each.

    python bench/run.py [WORKLOAD …] [--reps N]

Each repetition is a fresh process on a fresh store, and the limit program is measured right after
it, so that a ratio compares the same machine at the same moment. Medians are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import limit
import workloads

REPS = {"parked": 1, "restart": 1, "idle": 1, "timers": 3}


def one(name: str) -> dict[str, Any]:
    """One repetition in this process: the workload, then its limit."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as text:
        folder = Path(text)
        figures = asyncio.run(workloads.WORKLOADS[name](folder))
        if "turns_per_s" in figures:
            bare = limit.turns_per_second(folder, max(1, figures["turns_a_commit"]))
            figures["limit_turns_per_s"] = round(bare)
            figures["share_of_limit"] = figures["turns_per_s"] / bare
        for key, ratio, bare_ms in (
            ("ms_per_activity", "bare_commits_each", limit.bare_commit_ms),
            ("p50_ms", "bare_commits", limit.bare_commit_ms),
            ("ms_per_execution", "bare_commits_each", limit.bare_renewal_ms),
        ):
            if key in figures:
                figures["bare_commit_ms"] = bare_ms(folder)
                figures[ratio] = figures[key] / figures["bare_commit_ms"]
        return figures


BUDGETS: dict[str, dict[str, tuple[str, float]]] = {
    "throughput": {"share_of_limit": (">=", 0.2), "activities_per_s": (">=", 10_000)},
    "throughput_busy_loop": {},
    "sequential_1000": {"bare_commits_each": ("<=", 1.6)},
    "latency": {"bare_commits": ("<=", 5)},
    "fan_out": {"total_ms": ("<=", 60)},
    "continue_as_new": {"bare_commits_each": ("<=", 2.5)},
    "timers": {"p95_late_ms": ("<=", 50), "early": ("<=", 0)},
    "parked": {"bytes_each": ("<=", 1_024)},
    "restart": {"all_done_s": ("<=", 2)},
    "idle": {"percent_of_a_core": ("<=", 0.5)},
}


def judged(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions, each budget beside its figure."""
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    line: dict[str, Any] = {"workload": name, "reps": len(runs)}
    line.update({key: round(value, 3) for key, value in figures.items()})
    for key, (sense, bound) in BUDGETS.get(name, {}).items():
        met = figures[key] >= bound if sense == ">=" else figures[key] <= bound
        line.setdefault("budgets", {})[key] = f"{sense} {bound:g}: {'met' if met else 'MISSED'}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", nargs="*", choices=[*workloads.WORKLOADS, []])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--one", action="store_true", help="one repetition, in this process")
    options = parser.parse_args()
    names = options.workload or list(workloads.WORKLOADS)
    if options.one:
        print(json.dumps(one(names[0])))
        return
    for name in names:
        runs = []
        for _ in range(min(options.reps, REPS.get(name, options.reps))):
            command = [sys.executable, __file__, name, "--one"]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(ran.stdout.splitlines()[-1]))
        print(json.dumps(judged(name, runs)), flush=True)


if __name__ == "__main__":
    main()

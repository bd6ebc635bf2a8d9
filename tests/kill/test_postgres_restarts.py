"""A PostgreSQL server is restarted under the load of several nodes, as if it had crashed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from kill_checker import Effects, Seen
from kill_field import WITHOUT_END, Field, Worker
from kill_sight import look, summary
from test_kills import check

from perdure import Client
from postgres_server import Server, new_schema, with_schema

pytestmark = pytest.mark.slow

NODES = 3
RESTARTS = 2
OUTAGE_S = 1.5
CPU_SHARE_MAX = 0.5
"""Of one core, by a node that waits for its server: one that spins takes all of it."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


async def restart_under_load(server: Server, folder: Path, seed: int) -> tuple[Seen, str]:
    url = with_schema(server.url, new_schema())
    async with Field(folder, seed, url) as field, Client(url) as client:
        workers = [field.spawn(WITHOUT_END) for _ in range(NODES)]
        for worker in workers:
            await worker.busy(3)
        nodes = await node_ids(client)
        for number in range(RESTARTS):
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            if number == 0:
                await waits_quietly(workers)
            await asyncio.to_thread(server.start)
            for worker in workers:
                await worker.busy(3)
            assert await node_ids(client) == nodes
        field.enough()
        for worker in workers:
            await worker.finished()
    return await look(url, field.lines), field.log


async def waits_quietly(workers: list[Worker]) -> None:
    """Let the nodes be without their server for a while; none ends, and none is busy with that."""
    began_s, used_s = time.monotonic(), [cpu_s(worker) for worker in workers]
    await asyncio.sleep(OUTAGE_S)
    limit_s = CPU_SHARE_MAX * (time.monotonic() - began_s)
    for worker, before_s in zip(workers, used_s, strict=True):
        assert cpu_s(worker) - before_s < limit_s


def cpu_s(worker: Worker) -> float:
    """The processor time that a worker has used so far."""
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / TICKS_PER_S


async def node_ids(client: Client) -> list[str]:
    return [row.node_id for row in await client.provider.nodes()]


def test_nodes_go_on_by_themselves_after_restarts_of_their_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    try:
        seen, log = asyncio.run(restart_under_load(server, tmp_path, seed=1))
    finally:
        server.close()

    # What the server says while it starts has two lines.
    check(seen, log.replace("\nDETAIL: ", " "))
    assert Effects(seen.lines).repeated == 0
    assert [line for line in seen.lines if line.word == "back"] == []
    assert "took over" not in log
    assert log.count("perdure: degraded: ") >= RESTARTS
    with capsys.disabled():
        print(f"\n{RESTARTS} restarts of PostgreSQL: {summary(seen)}")

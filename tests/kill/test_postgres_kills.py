"""The same on PostgreSQL, with four nodes at a time: what one leaves the others take up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from statistics import median

import pytest
from kill_checker import Seen
from kill_field import WITHOUT_END, Field, Worker
from kill_sight import hard_kills, look, summary, takeover_ms
from test_kills import check

from perdure import Client
from perdure.providers.contract import NodeRow

pytestmark = pytest.mark.slow

Place = tuple[str, str, int]

NODES = 4
DEAD_AT_ONCE = 2
KILLS_OF_EACH = (2, 2, 1, 1)
UNDER_LOAD_S = (0.1, 0.8)
HARD_KILLS_MIN = 2
SEEN_LEASE_S = 6
"""Long enough for a death to be seen by the missing lock well before the lease is over; after the
start of its server a store counts only leases for as long."""
SHORT_LEASE_S = 4
LOOK_S = 0.02
PATIENCE_S = 60.0
HELD_MS_MAX = 20_000
"""One that is stopped inside a transaction holds its rows until the server ends its session."""
LOST = "ERROR perdure: this node was taken over by others; it starts again as a new node"

PLACES: tuple[tuple[Place, ...], ...] = (
    (("end", "any", 5), ("before_commit", "claim", 2)),
    (("after_commit", "start", 3), ("before_commit", "completed", 2)),
    (("before_commit", "any", 60), ("after_commit", "completed", 2)),
    (("after_commit", "continued_as_new", 2), ("end", "any", 20)),
)
"""Where the workers kill themselves, one after the other in each of four places."""


class Nodes:
    """Watches the nodes of a store. by_lock: the processes whose nodes were taken over before their
    leases were over: the locks of their sessions were missing."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[int, NodeRow] = {}
        self.by_lock: set[int] = set()

    async def known(self) -> dict[int, NodeRow]:
        """The nodes by the ids of their processes."""
        provider = self._client.provider
        known = {row.pid: row for row in await provider.nodes()}
        now_ms = provider.now_ms()
        gone = self._known.keys() - known.keys()
        self.by_lock |= {pid for pid in gone if self._known[pid].lease_until_ms > now_ms}
        self._known = known
        return known

    async def until_taken_over(self, worker: Worker) -> None:
        """Wait until the others have forgotten the node of a worker."""
        async with asyncio.timeout(PATIENCE_S):
            while worker.pid in await self.known():
                await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def on(
    url: str, folder: Path, seed: int, lease_s: float
) -> AsyncIterator[tuple[Field, Nodes]]:
    async with Field(folder, seed, url, lease_s) as field, Client(url) as client:
        yield field, Nodes(client)


async def kill_at_random(url: str, folder: Path, seed: int) -> tuple[Seen, str, int]:
    """Four nodes, of which some are always dead for as long as it takes the others to see it and to
    take up what they had."""
    dead_at_once = asyncio.Semaphore(DEAD_AT_ONCE)

    async def one_after_the_other(number: int) -> Worker:
        random = Random(NODES * seed + number)
        for _ in range(KILLS_OF_EACH[number]):
            worker = field.spawn(WITHOUT_END)
            await worker.busy(3)
            async with dead_at_once:
                await asyncio.sleep(random.uniform(*UNDER_LOAD_S))
                await worker.in_the_middle()
                worker.kill()
                await nodes.until_taken_over(worker)
        return field.spawn(WITHOUT_END)

    async with on(url, folder, seed, SEEN_LEASE_S) as (field, nodes):
        last = await asyncio.gather(*(one_after_the_other(number) for number in range(NODES)))
        field.enough()
        for worker in last:
            await worker.finished()
    return await look(url, field.lines), field.log, len(nodes.by_lock)


async def kill_at_places(url: str, folder: Path, seed: int) -> tuple[Seen, str]:
    """Four workers at a time, each of which kills itself at the next of its places."""

    async def one_after_the_other(places: Sequence[Place]) -> None:
        for place in places:
            await field.spawn(WITHOUT_END, *place).killed_itself()

    async with on(url, folder, seed, SEEN_LEASE_S) as (field, _):
        await asyncio.gather(*map(one_after_the_other, PLACES))
        await field.spawn(0).finished()
    return await look(url, field.lines), field.log


def test_kills_of_four_nodes_at_random_moments_break_no_promise(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, log, by_lock = asyncio.run(kill_at_random(postgres_url, tmp_path, seed=1))

    check(seen, log)
    assert sum(line.word == "kill" for line in seen.lines) == sum(KILLS_OF_EACH)
    assert hard_kills(seen.lines) >= HARD_KILLS_MIN
    assert by_lock > 0
    with capsys.disabled():
        print(f"\nfour nodes on PostgreSQL: {report(seen)}, {by_lock} by missing locks")


def test_kills_of_four_nodes_at_chosen_places_break_no_promise(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, log = asyncio.run(kill_at_places(postgres_url, tmp_path, seed=1))

    check(seen, log)
    assert sum(line.word == "kill" for line in seen.lines) == sum(map(len, PLACES))
    with capsys.disabled():
        print(f"\nat places on PostgreSQL: {report(seen)}")


def report(seen: Seen) -> str:
    takeovers = takeover_ms(seen.lines)
    return f"{summary(seen)}, median takeover {median(takeovers) if takeovers else 0:.0f} ms"


async def stop_and_go_on(url: str, folder: Path, seed: int) -> tuple[Seen, str]:
    """One of four nodes is stopped until the others have taken it over, and goes on."""
    async with on(url, folder, seed, SHORT_LEASE_S) as (field, nodes):
        workers = [field.spawn(WITHOUT_END) for _ in range(NODES)]
        for worker in workers:
            await worker.busy(3)
        workers[0].pause()
        await nodes.until_taken_over(workers[0])
        workers[0].go_on()
        await workers[0].busy(3)
        field.enough()
        for worker in workers:
            await worker.finished()
    return await look(url, field.lines), field.log


def test_a_node_that_was_stopped_for_longer_than_its_lease_comes_back_as_another(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, log = asyncio.run(stop_and_go_on(postgres_url, tmp_path, seed=1))

    paused = [int(line.args[0]) for line in seen.lines if line.word == "pause"]
    back = [line.pid for line in seen.lines if line.word == "back"]
    assert back == paused
    # When it goes on, all time limits are over: what the driver says to that is of no interest.
    assert [line for line in log.splitlines() if line.startswith("ERROR perdure")] == [LOST]
    assert "Traceback" not in log
    check(seen, "", HELD_MS_MAX)
    with capsys.disabled():
        print(f"\nstopped on PostgreSQL: {report(seen)}")

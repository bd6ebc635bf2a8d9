"""SIGKILL among transactional activities: what each writes is written exactly once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import apsw
import asyncpg
import pytest
from pay_worker import ORDERS, ROUNDS

from perdure import SyncClient

WORKER = Path(__file__).with_name("pay_worker.py")
KILLS = 3
PATIENCE_S = 90

pytestmark = pytest.mark.slow


async def on_postgres(url: str, *statements: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url.partition("?")[0])
    try:
        rows = [await connection.fetch(statement) for statement in statements]
        return [tuple(row) for row in rows[-1]]
    finally:
        await connection.close()


def run(store: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements as a user of the database does; the rows of the last one."""
    if store.startswith("postgres"):
        return asyncio.run(on_postgres(store, *statements))
    connection = apsw.Connection(store.removeprefix("sqlite:///"))
    try:
        connection.execute("pragma busy_timeout = 30000")
        return [list(connection.execute(statement)) for statement in statements][-1]
    finally:
        connection.close()


def lines(folder: Path) -> int:
    begun = folder / "begun"
    return begun.stat().st_size if begun.exists() else 0


def kill_among_bodies(store: str, folder: Path, random: Random) -> bool:
    """Run the worker until some more bodies have begun, and kill it; True if it ended before."""
    worker = subprocess.Popen([sys.executable, str(WORKER), store, str(folder)])
    try:
        until = lines(folder) + random.randint(1, ORDERS * ROUNDS // (KILLS + 2))
        ends = time.monotonic() + PATIENCE_S
        while worker.poll() is None and lines(folder) < until:
            assert time.monotonic() < ends, "it does nothing"
            time.sleep(0.0005)
        return worker.poll() is not None
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_each_body_has_its_effect_exactly_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    public = ""
    if kind == "postgres":
        store, public = request.getfixturevalue("postgres_store"), "public."
    with SyncClient(store):
        # The store's tables are there before the user's.
        pass
    run(
        store,
        f"drop table if exists {public}paid",
        f"drop table if exists {public}total",
        f"create table {public}paid (id text primary key)",
        f"create table {public}total (amount integer)",
        f"insert into {public}total values (0) returning 1",
    )
    random = Random(kind)

    for _ in range(KILLS):
        assert not kill_among_bodies(store, tmp_path, random), "ended before it was killed"
    last = [sys.executable, str(WORKER), store, str(tmp_path)]
    subprocess.run(last, check=True, timeout=PATIENCE_S)

    paid = {name for (name,) in run(store, f"select id from {public}paid")}
    assert paid == {f"{number}-{round}" for number in range(ORDERS) for round in range(ROUNDS)}
    assert run(store, f"select amount from {public}total") == [(ORDERS * ROUNDS,)]

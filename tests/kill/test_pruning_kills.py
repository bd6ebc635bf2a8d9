"""Pruning from two processes while the instance continues as new at full speed, with kills."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from prune_worker import INSTANCE

from perdure import Client
from perdure.core import events
from perdure.providers.contract import Snapshot

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("prune_worker.py")
KILLS = 12
KILL_EVERY_S = 0.4
EXECUTIONS = 60
SAMPLES = 60
PATIENCE_S = 60.0


class Processes:
    """The one that runs the instance and the two that prune it; killed and started again."""

    def __init__(self, store: str, seed: int) -> None:
        self._store = store
        self._random = Random(seed)
        self._roles = [("renew",), ("prune", str(seed)), ("prune", str(seed + 1))]
        self._running = [self._start(role) for role in self._roles]
        self.kills = 0

    def _start(self, role: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(WORKER), self._store, *role])

    def kill_one(self) -> None:
        chosen = self._random.randrange(3)
        self._end(self._running[chosen])
        self.kills += 1
        self._running[chosen] = self._start(self._roles[chosen])

    def end(self) -> None:
        for process in self._running:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()


def check(seen: Snapshot) -> None:
    """The current execution is there and complete, and whatever else is there is whole too."""
    kept = {execution.execution_id: execution for execution in seen.executions}
    assert seen.execution_id == max(kept)
    for number, execution in kept.items():
        history = [events.decode(line) for line in execution.events]
        if number == 1 and not history:
            assert execution.status == "pending"
            continue
        assert [event.event_id for event in history] == list(range(1, len(history) + 1))
        assert isinstance(history[0], events.OrchestrationStarted)
        ended = isinstance(history[-1], events.OrchestrationContinuedAsNew)
        assert ended == (number < seen.execution_id)


def test_at_every_sample_the_current_execution_is_there_and_complete(tmp_path: Path) -> None:
    asyncio.run(sample_and_kill(tmp_path))


async def sample_and_kill(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    processes = Processes(store, seed=7)
    samples = reached = kept = 0
    killed = time.monotonic()
    try:
        async with Client(store) as client, asyncio.timeout(PATIENCE_S):
            while processes.kills < KILLS or reached < EXECUTIONS or samples < SAMPLES:
                for snapshot in await client.provider.snapshots(INSTANCE):
                    check(snapshot)
                    samples += 1
                    reached, kept = snapshot.execution_id, len(snapshot.executions)
                if time.monotonic() - killed > KILL_EVERY_S:
                    killed = time.monotonic()
                    await asyncio.to_thread(processes.kill_one)
    finally:
        processes.end()

    assert kept < reached

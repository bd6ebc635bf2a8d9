"""Several real processes on one file, and what is left of those that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from provider_world import LEASE_MS, World, claim, row

from perdure.providers.sqlite import SqliteProvider

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("sqlite_process.py")
Process = subprocess.Popen[str]


class Processes:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._started: list[Process] = []

    def start(self, command: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self._path), command],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def processes(store: World) -> Iterator[Processes]:
    started = Processes(store.path)
    yield started
    started.end()


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_a_killed_process_is_dead_at_once(store: World, processes: Processes) -> None:
    process = processes.start("hold")
    assert line(process) == "ready"
    provider = SqliteProvider(store.path)
    await provider.open()
    await provider.register_node("n-2", LEASE_MS)
    assert await provider.reap_nodes("n-2") == []
    assert (await row(provider)).owner == "n-1"

    process.kill()
    process.wait(30)

    assert await provider.reap_nodes("n-2") == ["n-1"]
    (again,) = await claim(provider, "n-2")
    assert again.attempt == 2
    assert sorted(os.listdir(f"{store.path}-nodes")) == ["n-2.lock"]
    await provider.close()


async def test_a_forked_child_does_not_keep_its_parents_node_alive(
    store: World, processes: Processes
) -> None:
    process = processes.start("fork")
    lines = sorted([line(process), line(process)])
    assert lines[1] == "refused 2"
    child = int(lines[0].split()[1])
    provider = SqliteProvider(store.path)
    await provider.open()
    try:
        assert await provider.reap_nodes("n-2") == []
        process.kill()
        process.wait(30)

        assert await provider.reap_nodes("n-2") == ["n-1"]
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        await provider.close()


async def test_a_process_killed_before_its_commit_has_done_nothing(
    store: World, processes: Processes
) -> None:
    process = processes.start("before_commit")
    assert process.wait(30) == -signal.SIGKILL

    provider = await store.open()
    store.clock.now *= 2
    assert set(await provider.get_instances(["i-1", "i-2"])) == {"i-1"}
    (of,) = await claim(provider)
    assert of.mail == 0


async def test_a_process_killed_after_its_commit_has_done_all_of_it(
    store: World, processes: Processes
) -> None:
    process = processes.start("after_commit")
    assert process.wait(30) == -signal.SIGKILL

    provider = await store.open()
    store.clock.now *= 2
    assert set(await provider.get_instances(["i-1", "i-2"])) == {"i-1", "i-2"}
    messages = {of.instance_id: of.messages for of in await claim(provider)}
    assert [message.body for message in messages["i-1"]] == [b"acknowledged"]


async def test_many_processes_may_open_an_empty_file_at_once(
    store: World, processes: Processes
) -> None:
    started = [processes.start("start") for _ in range(6)]

    keys = [int(line(process)) for process in started]

    assert sorted(keys) == [1, 2, 3, 4, 5, 6]
    assert [process.wait(30) for process in started] == [0] * 6

"""One process at a time has a store in a folder, and what is left of one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from provider_world import World, claim, row

from perdure.errors import ProviderError

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("filesystem_process.py")
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
def world(tmp_path: Path) -> World:
    return World("filesystem", tmp_path)


@pytest.fixture
def processes(world: World) -> Iterator[Processes]:
    started = Processes(world.path)
    yield started
    started.end()


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_a_second_process_is_refused_and_told_who_has_the_store(
    world: World, processes: Processes
) -> None:
    process = processes.start("hold")
    assert line(process) == "ready"

    with pytest.raises(ProviderError, match=f"process with id {process.pid};"):
        await world.open()

    process.kill()
    process.wait(30)
    provider = await world.open()
    assert (await row(provider)).owner is None
    world.clock.now *= 2
    (again,) = await claim(provider, "n-2")
    assert again.attempt == 2


async def test_a_forked_child_does_not_keep_the_store(world: World, processes: Processes) -> None:
    process = processes.start("fork")
    lines = sorted([line(process), line(process)])
    assert lines[1] == "refused 2"
    child = int(lines[0].split()[1])
    try:
        with pytest.raises(ProviderError, match=f"process with id {process.pid};"):
            await world.open()
        process.kill()
        process.wait(30)

        assert (await row(await world.open())).attempt == 0
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_process_killed_before_its_commit_has_done_nothing(
    world: World, processes: Processes
) -> None:
    process = processes.start("before_commit")
    assert process.wait(30) == -signal.SIGKILL

    provider = await world.open()
    world.clock.now *= 2
    assert set(await provider.get_instances(["i-1", "i-2"])) == {"i-1"}
    (of,) = await claim(provider)
    assert of.mail == 0


async def test_a_process_killed_after_its_commit_has_done_all_of_it(
    world: World, processes: Processes
) -> None:
    process = processes.start("after_commit")
    assert process.wait(30) == -signal.SIGKILL

    provider = await world.open()
    world.clock.now *= 2
    assert set(await provider.get_instances(["i-1", "i-2"])) == {"i-1", "i-2"}
    messages = {of.instance_id: of.messages for of in await claim(provider)}
    assert [message.body for message in messages["i-1"]] == [b"acknowledged"]

"""Workers are killed with SIGKILL under load, and nothing that was promised is broken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
from kill_checker import Effects, Instance, Seen, faults
from kill_field import WITHOUT_END, Field
from kill_ledger import Line
from kill_sight import hard_kills, longest_pause_ms, look, summary

from perdure.core import events

pytestmark = pytest.mark.slow

KILLS = 30
KILLS_OF_EACH = 8
HARD_KILLS_MIN = 20
UNDER_LOAD_S = (0.05, 0.6)
AT_START_EVERY = 5
AT_START_S = (0.15, 0.5)
"""One worker in five is followed by one that is killed while it starts and takes work up."""
PAUSE_MS_MAX = 8_000
"""Generous to slow machines, but less than the time after which a worker stops waiting for
others that should have finished."""

PLACES = (
    ("before_commit", "any", 1),
    ("after_commit", "any", 1),
    ("before_commit", "start", 2),
    ("after_commit", "start", 3),
    ("end", "any", 1),
    ("before_commit", "claim", 1),
    ("after_commit", "claim", 1),
    ("before_commit", "completed", 1),
    ("after_commit", "completed", 1),
    ("before_commit", "continued_as_new", 1),
    ("after_commit", "continued_as_new", 1),
    ("end", "any", 7),
    ("before_commit", "children", 1),
    ("after_commit", "children", 1),
    ("before_commit", "cancelled", 1),
    ("after_commit", "cancelled", 1),
    ("before_commit", "continued_as_new", 6),
    ("after_commit", "continued_as_new", 7),
    ("before_commit", "completed", 12),
    ("after_commit", "completed", 13),
    ("before_commit", "any", 40),
    ("after_commit", "any", 41),
    ("end", "any", 60),
)
"""Where each worker kills itself: place, kind of batch, and at the how-manyth such moment."""


async def kill_at_random(folder: Path, seed: int) -> tuple[Seen, str]:
    """30 kills under load, and a few of workers that have only just begun."""
    random = Random(seed)
    async with Field(folder, seed) as field:
        for number in range(KILLS):
            await kill_under_load(field, random)
            if number % AT_START_EVERY == 0:
                worker = field.spawn(WITHOUT_END)
                await asyncio.sleep(random.uniform(*AT_START_S))
                worker.kill()
        await field.spawn(0).finished()
    return await look(field.store, field.lines), field.log


async def kill_one_of_two(folder: Path, seed: int) -> tuple[Seen, str]:
    """Two workers at a time on one store: what one leaves, the other takes up."""

    async def one_after_the_other(number: int) -> None:
        random = Random(2 * seed + number)
        for _ in range(KILLS_OF_EACH):
            await kill_under_load(field, random)

    async with Field(folder, seed) as field:
        await asyncio.gather(one_after_the_other(0), one_after_the_other(1))
        await field.spawn(0).finished()
    return await look(field.store, field.lines), field.log


async def kill_under_load(field: Field, random: Random) -> None:
    worker = field.spawn(WITHOUT_END)
    await worker.busy(3)
    await asyncio.sleep(random.uniform(*UNDER_LOAD_S))
    worker.kill()


async def kill_at_places(folder: Path, seed: int) -> tuple[Seen, str]:
    """Workers on one store, each of which kills itself at the next of the places."""
    async with Field(folder, seed) as field:
        for place in PLACES:
            await field.spawn(WITHOUT_END, *place).killed_itself()
        await field.spawn(0).finished()
    return await look(field.store, field.lines), field.log


def check(seen: Seen, log: str, pause_ms_max: int = PAUSE_MS_MAX) -> None:
    assert faults(seen) == []
    assert longest_pause_ms(seen.lines) < pause_ms_max
    assert [line for line in log.splitlines() if not line.startswith("WARNING ")] == []


def test_thirty_kills_at_random_moments_break_no_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, log = asyncio.run(kill_at_random(tmp_path, seed=1))

    check(seen, log)
    assert sum(line.word == "kill" for line in seen.lines) >= KILLS
    assert hard_kills(seen.lines) >= HARD_KILLS_MIN
    with capsys.disabled():
        print(f"\nat random: {summary(seen)}")


def test_kills_of_one_of_two_workers_break_no_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, log = asyncio.run(kill_one_of_two(tmp_path, seed=1))

    check(seen, log)
    assert hard_kills(seen.lines) >= KILLS_OF_EACH
    with capsys.disabled():
        print(f"\none of two: {summary(seen)}")


def test_kills_at_chosen_places_break_no_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, log = asyncio.run(kill_at_places(tmp_path, seed=1))

    check(seen, log)
    begins, taken_back = Effects(seen.lines).begins, withdrawn(seen.instances)
    for key in killed_after_effect(seen.lines):
        assert len(begins[key]) > 1 or key in taken_back
    with capsys.disabled():
        print(f"\nat places: {summary(seen)}")


def killed_after_effect(lines: list[Line]) -> list[str]:
    """The activities whose process died as soon as they had had their effect."""
    kills = [line for line in lines if line.word == "kill"]
    found = []
    for (place, _, _), kill in zip(PLACES, kills, strict=True):
        if place == "end":
            own = [line for line in lines if line.word == "end" and str(line.pid) == kill.args[0]]
            found.append(own[-1].args[0])
    return found


def withdrawn(instances: list[Instance]) -> set[str]:
    """The activities that their orchestrations have cancelled."""
    return {
        f"{instance.incarnation}/{execution.execution_id}/{event.source_event_id}"
        for instance in instances
        for execution in instance.executions
        for event in execution.history
        if isinstance(event, events.ActivityCancelled)
    }

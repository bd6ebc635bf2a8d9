"""The same on a store in a folder: what is killed under load leaves no promise broken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
from kill_checker import Seen
from kill_field import WITHOUT_END, Field
from kill_sight import hard_kills, look, summary
from test_kills import check, kill_under_load

pytestmark = pytest.mark.slow

KILLS = 6
HARD_KILLS_MIN = 4
PLACES = (
    ("before_commit", "start", 2),
    ("after_commit", "any", 30),
    ("before_commit", "continued_as_new", 2),
    ("after_commit", "completed", 3),
)


async def kill(folder: Path, seed: int) -> tuple[Seen, str]:
    """Kills at random moments, and at chosen places of the writing thread."""
    random = Random(seed)
    async with Field(folder, seed, "store") as field:
        for _ in range(KILLS):
            await kill_under_load(field, random)
        for place in PLACES:
            await field.spawn(WITHOUT_END, *place).killed_itself()
        await field.spawn(0).finished()
    return await look(field.store, field.lines), field.log


def test_kills_of_the_process_of_a_folder_break_no_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, log = asyncio.run(kill(tmp_path, seed=1))

    check(seen, log)
    assert sum(line.word == "kill" for line in seen.lines) == KILLS + len(PLACES)
    assert hard_kills(seen.lines) >= HARD_KILLS_MIN
    with capsys.disabled():
        print(f"\nin a folder: {summary(seen)}")

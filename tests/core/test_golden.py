"""Histories that were made once still replay, and are made again in the same way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from constructs import EXPECTED
from driver import World
from golden.generate import FOLDER, golden, made

from perdure.core import events
from perdure.marks import Orchestration

every_construct = pytest.mark.parametrize(
    "construct", EXPECTED, ids=lambda construct: construct.name
)


@every_construct
def test_a_golden_history_replays(construct: Orchestration[..., Any]) -> None:
    recorded = golden(construct.name).read_bytes().splitlines()
    execution = World(construct).fresh()
    execution.replay([events.decode(line) for line in recorded])

    assert execution.ended
    assert execution.close() == 0


@every_construct
def test_a_golden_history_is_made_again_byte_for_byte(construct: Orchestration[..., Any]) -> None:
    assert made(construct.name) == golden(construct.name).read_text()


def test_every_golden_history_has_its_construct() -> None:
    assert {path.stem for path in FOLDER.rglob("*.jsonl")} == {found.name for found in EXPECTED}


ELSEWHERE = """
from constructs import EXPECTED
from golden.generate import made
kept = [object() for _ in range({garbage})]
del kept[::2]
for construct in EXPECTED:
    print(construct.name, made(construct.name), end="")
"""


@pytest.mark.slow
def test_other_processes_with_other_hashes_make_the_same_histories() -> None:
    outputs = set()
    for seed in (0, 1, 2):
        ran = subprocess.run(
            [sys.executable, "-c", ELSEWHERE.format(garbage=seed * 1_000)],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(ran.stdout)

    assert len(outputs) == 1
    assert outputs.pop() == "".join(f"{found.name} {made(found.name)}" for found in EXPECTED)

"""What the workers of these tests host: activities that note in a ledger what they do."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import perdure


def begin(ledger: str) -> None:
    with Path(ledger).open("a") as file:
        file.write(f"{os.getpid()}\n")


def has_leave(ledger: str) -> bool:
    return Path(f"{ledger}.leave").exists()


def stay() -> None:
    while True:
        time.sleep(0.005)


@perdure.activity
async def wait_for_leave(ledger: str) -> int:
    """Note the process, wait until it may go on, return the process."""
    begin(ledger)
    while not has_leave(ledger):
        await asyncio.sleep(0.005)
    return os.getpid()


@perdure.activity
async def block(ledger: str) -> None:
    """Keep the event loop of the process for ever."""
    begin(ledger)
    stay()


@perdure.orchestration
async def waiting_work(ledger: str) -> int:
    return await wait_for_leave(ledger)


@perdure.orchestration
async def blocking_work(ledger: str) -> None:
    await block(ledger)

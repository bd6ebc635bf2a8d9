"""A process that hosts poison. Arguments: the store's URL, and until which instances have ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from perdure import ActivityError, OrchestrationContext, Runtime, activity, orchestration


@activity
async def echo(number: int) -> int:
    return number


@activity
async def deadly() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@orchestration
async def healthy(ctx: OrchestrationContext, number: int) -> int:
    for _ in range(3):
        number = await echo(number)
    return number


@orchestration
async def deadly_turn(ctx: OrchestrationContext) -> None:
    await echo(1)
    os.kill(os.getpid(), signal.SIGKILL)


@orchestration
async def deadly_call(ctx: OrchestrationContext) -> str:
    try:
        await deadly()
    except ActivityError as error:
        return f"{error.type}: {error.message}"
    return "survived"


HOSTED = (echo, deadly, healthy, deadly_turn, deadly_call)


async def main(url: str, ids: list[str]) -> None:
    async with Runtime(url, HOSTED) as runtime:
        for instance_id in ids:
            while True:
                row = await runtime.client.get_instance(instance_id)
                if row.finished_ms is not None or row.blocked == "poison":
                    break
                await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))

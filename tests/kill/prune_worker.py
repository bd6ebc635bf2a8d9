"""A process of the pruning test: prune_worker.py STORE renew | prune SEED.

`renew` hosts an instance that continues as new without a pause; `prune` prunes it without a pause.
Both go on until they are killed.
"""

from __future__ import annotations

import asyncio
import sys
from random import Random

from perdure import (
    Client,
    InstanceNotFound,
    OrchestrationContext,
    PruneOptions,
    Runtime,
    activity,
    orchestration,
)

INSTANCE = "eternal"


@activity
async def step(number: int) -> int:
    return number + 1


@orchestration
async def eternal(ctx: OrchestrationContext, number: int) -> int:
    number = await step(number)
    return await ctx.continue_as_new(number)


async def renew(store: str) -> None:
    async with Runtime(store, [step, eternal]) as runtime:
        handle = await runtime.client.start_orchestration(
            eternal, 0, instance_id=INSTANCE, if_exists="return"
        )
        await handle.final_result()


async def prune(store: str, seed: int) -> None:
    random = Random(seed)
    async with Client(store) as client:
        while True:
            options = PruneOptions(keep_last=random.choice([None, 1, 2, 5]))
            try:
                await client.prune_executions(INSTANCE, options)
            except InstanceNotFound:
                await asyncio.sleep(0.01)


if __name__ == "__main__":
    if sys.argv[2] == "renew":
        asyncio.run(renew(sys.argv[1]))
    else:
        asyncio.run(prune(sys.argv[1], int(sys.argv[3])))

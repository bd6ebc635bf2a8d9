"""A program as a user writes one. Arguments: store URL, instance id, what to do."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import perdure
from perdure import OrchestrationContext

SLEEPING = threading.Event()


@perdure.activity
async def charge(order: str) -> str:
    print(f"charging {order}", flush=True)
    return f"paid {order}"


@perdure.activity
def sleep_in_thread() -> None:
    print("sleeping", flush=True)
    SLEEPING.set()
    time.sleep(60)


@perdure.orchestration
async def checkout(ctx: OrchestrationContext, order: str, wait: bool = False) -> str:
    receipt = await charge(order)
    if wait:
        await ctx.schedule_timer(1.5)
    return receipt


@perdure.orchestration
async def sleepy() -> None:
    await sleep_in_thread()


async def stop_at_once(url: str) -> None:
    runtime = perdure.Runtime(url, [sleepy, sleep_in_thread])
    await runtime.start()
    await runtime.client.start_orchestration(sleepy, instance_id="sleepy")
    await asyncio.to_thread(SLEEPING.wait)
    await runtime.stop(0)
    print("stopped", flush=True)


if __name__ == "__main__":
    _, url, instance_id, what = sys.argv
    if what == "sleepy":
        asyncio.run(stop_at_once(url))
    else:
        print(perdure.run(url, checkout, "o-1", what == "wait", instance_id=instance_id))

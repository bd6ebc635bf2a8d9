"""What the commands run in these tests."""

from __future__ import annotations

import asyncio
import sys

import perdure


@perdure.activity
async def charge(order: str) -> str:
    print(f"charging {order}", file=sys.stderr, flush=True)
    return f"paid {order}"


@perdure.orchestration
async def checkout(ctx: perdure.OrchestrationContext, order: str, copies: int = 1) -> list[str]:
    return [await charge(order)] * copies


@perdure.orchestration
async def refused(order: str) -> None:
    raise ValueError(f"no {order}\nat all")


@perdure.orchestration
async def no_input() -> None:
    await asyncio.sleep(0)


@perdure.orchestration
async def for_ever(order: str) -> str:
    receipt = await charge(order)
    approval = perdure.context().schedule_wait("approved")
    print("waiting for approval", file=sys.stderr, flush=True)
    await approval
    return receipt


@perdure.orchestration
async def keyword_only(*, order: str) -> str:
    return order

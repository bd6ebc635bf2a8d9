"""What type checkers must reject: every line that ends in `# error`, and no other. Never run."""

from __future__ import annotations

import perdure
from perdure import Client, InstanceFilter, OrchestrationContext, activity, orchestration


@activity
async def charge(order: str, amount: int = 1) -> str:
    return f"paid {order} {amount}"


@orchestration
async def checkout(ctx: OrchestrationContext, order: str) -> str:
    return order


@orchestration
async def calls(ctx: OrchestrationContext) -> int:
    await charge(1)  # error
    await charge()  # error
    await charge("o-1", amount="much")  # error
    await charge("o-1", price=1)  # error
    await checkout(ctx, "o-1")  # error
    await checkout(1)  # error
    wrong: int = await charge("o-1")  # error
    return wrong


@orchestration
async def verbs(ctx: OrchestrationContext) -> int:
    await ctx.schedule_activity(charge, 1, 1)  # error
    await ctx.schedule_activity(charge, "o-1", 1, retry=3)  # error
    await ctx.schedule_timer("soon")  # error
    await ctx.schedule_sub_orchestration(checkout, 1)  # error
    await ctx.start_orchestration(checkout, "o-1")  # error
    wrong: int = await ctx.schedule_wait("approved", bool | None)  # error
    return wrong


@orchestration
async def returns(ctx: OrchestrationContext) -> int:
    return await ctx.schedule_activity(charge, "o-1", 1)  # error


async def client_calls(client: Client) -> None:
    await client.start_orchestration(checkout, 1)  # error
    await client.start_orchestration(checkout, "o-1", if_exists="maybe")  # error
    handle = await client.start_orchestration(checkout, "o-1")
    wrong: int = await handle.final_result()  # error
    print(wrong, await client.list_instances(InstanceFilter(status="lost")))  # error
    await client.list_instances("failed")  # error
    await client.list_instances(limit="5")  # error
    await client.delete_instances_bulk()  # error
    await client.import_instances("text")  # error


def script() -> None:
    perdure.run("sqlite:///a.db", checkout, 1)  # error
    wrong: int = perdure.run("sqlite:///a.db", checkout, "o-1")  # error
    print(wrong)

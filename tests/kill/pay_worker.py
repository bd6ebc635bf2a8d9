"""The process that is killed: pays orders, each in a transactional activity.

    pay_worker.py STORE FOLDER

It begins with the orders that are not there yet, and says in FOLDER/begun each time that a body
has run, so that whoever kills it can do so among them. It ends when all orders have been paid.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from perdure import (
    Options,
    OrchestrationContext,
    Runtime,
    activity,
    activity_context,
    orchestration,
)

ORDERS = 40
ROUNDS = 3

folder = Path()


def begun() -> None:
    file = os.open(folder / "begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b".")
    os.close(file)


async def on_postgres(order: str) -> None:
    paid = activity_context().connection
    await paid.execute("insert into public.paid values ($1)", order)
    begun()
    await paid.execute("update public.total set amount = amount + 1")


def on_sqlite(order: str) -> None:
    paid = activity_context().connection
    paid.execute("insert into paid values (?)", (order,))
    begun()
    paid.execute("update total set amount = amount + 1")


def hosted(store: str) -> tuple[Any, Any]:
    """The orchestration and its activity, for this kind of store."""
    form = on_postgres if store.startswith("postgres") else on_sqlite
    pay = activity(name="pay", transactional=True)(form)

    @orchestration
    async def buy(ctx: OrchestrationContext, number: int) -> int:
        for round in range(ROUNDS):
            await pay(f"{number}-{round}")
        return number

    return buy, pay


async def main(store: str) -> None:
    buy, pay = hosted(store)
    async with Runtime(store, [buy, pay], options=Options(lease_s=2)) as runtime:
        handles = [
            await runtime.client.start_orchestration(
                buy, number, instance_id=f"order-{number}", if_exists="return"
            )
            for number in range(ORDERS)
        ]
        for number, handle in enumerate(handles):
            assert await handle.result() == number


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    asyncio.run(main(sys.argv[1]))

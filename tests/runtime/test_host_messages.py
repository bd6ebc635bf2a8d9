"""Messages: to the wrong address, too late, twice, of a foreign kind, unreadable."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from kit import World, history, kinds, until, until_recorded, until_status

from perdure import (
    Client,
    InstanceNotFound,
    InstanceTerminal,
    OrchestrationContext,
    activity,
    orchestration,
)
from perdure.core import events, work
from perdure.providers.contract import SendMessage, Sent


@activity
async def echo(text: str) -> str:
    return text


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@orchestration
async def finished() -> str:
    return "over"


@orchestration
async def patient(ctx: OrchestrationContext) -> list[str]:
    """Answers each event with an activity, until it is told to stop."""
    said = []
    while (text := await ctx.schedule_wait("say", str)) != "stop":
        said.append(await echo(text))
    return said


async def inject(client: Client, instance_id: str, item: work.AnyWorkItem | bytes) -> None:
    """Put a message into an inbox as a broken or an older neighbour might."""
    body = item if isinstance(item, bytes) else work.encode(item)
    outcome = await client.committer.write(SendMessage(instance_id, body))
    assert isinstance(outcome, Sent)


async def test_an_event_for_an_unknown_instance_is_an_error_and_leaves_nothing(
    world: World,
) -> None:
    async with world.runtime(waiting) as runtime:
        client = runtime.client
        with pytest.raises(InstanceNotFound):
            await client.raise_event("nobody", "go", "x")
        with pytest.raises(InstanceNotFound):
            await client.cancel_instance("nobody")

        handle = await client.start_orchestration(waiting, instance_id="nobody")
        await until_status(client, "nobody", "running")
        await client.raise_event("nobody", "go", "mine")

        assert await handle.result() == "mine"
        assert not runtime.counters


async def test_an_event_for_a_finished_instance_is_an_error(world: World) -> None:
    async with world.runtime(finished, waiting) as runtime:
        client = runtime.client
        await (await client.start_orchestration(finished, instance_id="f")).result()

        with pytest.raises(InstanceTerminal) as ended:
            await client.raise_event("f", "go", "x")
        assert ended.value.status == "completed"
        with pytest.raises(InstanceTerminal):
            await client.cancel_instance("f", "too late")

        assert (await client.get_instance("f")).status == "completed"
        assert kinds(await history(client, "f"))[-1] == "OrchestrationCompleted"


async def test_bad_messages_in_one_inbox_are_dropped_alone_and_counted(world: World) -> None:
    async with world.runtime(patient, echo, waiting) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(patient, instance_id="p")
        await client.raise_event("p", "say", "one")
        await until_recorded(client, "p", number=6)
        null = events.Payload(b"null")

        await inject(client, "p", b"\xff\x00 no message")
        await inject(client, "p", b'{"type":"FromTheFuture","x":1}')
        await inject(client, "p", work.ActivityCompleted(1, 3, null))
        await inject(client, "p", work.ActivityCompleted(1, 3, null))
        await inject(client, "p", work.ActivityCompleted(7, 2, null))
        await inject(client, "p", work.ActivityCompleted(1, 99, null))
        open_wait = next(
            event.event_id
            for event in reversed(await history(client, "p"))
            if isinstance(event, events.ExternalSubscribed)
        )
        await inject(client, "p", work.TimerFired(1, open_wait, 0))
        await inject(client, "p", work.SubOrchCompleted(1, open_wait, null))
        await client.raise_event("p", "say", "two")
        await until_recorded(client, "p", number=10)
        await client.raise_event("p", "say", "stop")
        other = await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        await client.raise_event("w", "go", "free")

        assert await handle.result() == ["one", "two"]
        assert await other.result() == "free"
        assert runtime.counters == {
            "unreadable": 2,
            "late_completion": 3,
            "stale_execution": 1,
            "unexpected_kind": 2,
        }


async def test_messages_left_unread_at_the_end_are_counted(world: World) -> None:
    async with world.client() as client:
        await client.start_orchestration(waiting, instance_id="w")
        for text in ("first", "second", "third"):
            await client.raise_event("w", "go", text)

        async with world.runtime(waiting) as runtime:
            assert (await client.wait_for_orchestration("w")).output == "first"
            assert runtime.counters == {"unread_at_end": 2}


async def test_an_event_in_flight_when_its_instance_ends_is_counted(world: World) -> None:
    async with world.runtime(waiting) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        raised = [client.raise_event("w", "go", str(number)) for number in range(20)]
        refused = [
            error
            for error in await asyncio.gather(*raised, return_exceptions=True)
            if error is not None
        ]

        assert await handle.result() == "0"
        assert all(isinstance(error, InstanceTerminal) for error in refused)
        print(len(refused), runtime.counters)
        dropped = 20 - 1 - len(refused)
        await until(lambda: sum(runtime.counters.values()) == dropped)
        assert set(runtime.counters) <= {"unread_at_end", "target_gone"}


async def test_a_payload_survives_as_it_was_sent(world: World) -> None:
    text = 'quotes " and \\ and \u2028 and \U0001f600 and \x7f' + "x" * 10_000
    async with world.runtime(waiting, patient, echo) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(patient, instance_id="p")
        await client.raise_event("p", "say", text)
        await until_recorded(client, "p", number=6)
        await client.raise_event("p", "say", "stop")

        assert await handle.result() == [text]
        lines = await client.provider.read_history("p")
        assert all(b"\n" not in line and msgspec.json.decode(line) for line in lines)

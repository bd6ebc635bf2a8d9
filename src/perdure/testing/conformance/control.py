"""Cancelling, and what acts on instances from outside (C-143 to C-152)."""

from __future__ import annotations

import asyncio

import pytest

from perdure.core import events
from perdure.core.context import OrchestrationContext
from perdure.errors import InstanceNotFound, InstanceTerminal
from perdure.marks import orchestration
from perdure.providers.contract import Committed, Ended, Sent
from perdure.testing.conformance.engine import client_of, host, recorded_of, until_recorded
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    BEHIND,
    MULTI_PROCESS,
    acquire,
    bodies,
    case,
    ending,
    note,
    one,
    row,
)

NOT_APPLICABLE: dict[str, str] = {
    "C-148": "there is no terminate; a deletion by force takes everything (C-163)",
    "C-150": "instances cannot be suspended yet",
    "C-151": "instances cannot be suspended yet",
    "C-152": "instances cannot be suspended yet",
}


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@orchestration
async def running_on(ctx: OrchestrationContext) -> str:
    """Notes its cancellation and goes on."""
    try:
        await ctx.schedule_wait("never")
    except asyncio.CancelledError:
        return await ctx.schedule_wait("go", str)
    return "not reached"


@orchestration
async def calling(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_sub_orchestration(waiting)


@orchestration
async def returning(ctx: OrchestrationContext) -> str:
    return "done"


class ControlCases:
    """See the module."""

    @case("C-147", needs=MULTI_PROCESS)
    async def test_c147_a_request_and_the_end_that_has_not_seen_it_exclude_each_other(
        self, store: Harness
    ) -> None:
        provider, other = await store.open(), await store.open()
        for n in range(100):
            of = await acquire(provider, f"i-{n}")
            request = one(other, note(f"i-{n}", b"cancel", external=True))
            last = one(provider, ending(of, b"1", external_seen=0))
            order = (request, last) if n % 2 else (last, request)

            outcomes = await asyncio.gather(*order)

            sent, committed = outcomes if n % 2 else outcomes[::-1]
            if isinstance(sent, Sent):
                assert committed == BEHIND
                assert (await row(provider, f"i-{n}")).status == "pending"
                seen = one(provider, ending(of, b"1", external_seen=1))
                assert await seen == Committed(dropped=1)
            else:
                assert (sent, committed) == (Ended("completed"), Committed())

    @case("C-147")
    async def test_c147_a_refused_end_leaves_the_request_to_be_seen(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)

        outcomes = await provider.commit([note(body=b"cancel", external=True)])
        assert outcomes == [Sent(of.key)]
        assert await one(provider, ending(of, b"1", external_seen=0)) == BEHIND

        assert await bodies(provider) == [b"cancel"]
        assert await provider.read_history("i-1") == []

    @case("C-143", needs=MULTI_PROCESS)
    async def test_c143_what_is_cancelled_before_its_first_turn_ends_cancelled(
        self, store: Harness
    ) -> None:
        async with client_of(store) as client:
            await client.start_orchestration(waiting, instance_id="i-1")
            await client.cancel_instance("i-1", "early")

            async with host(store, waiting):
                ended = await client.wait_for_orchestration("i-1")

            assert (ended.status, ended.error and ended.error.message) == ("cancelled", "early")

    @case("C-144")
    async def test_c144_a_running_instance_is_told_in_its_next_turn(self, store: Harness) -> None:
        async with host(store, waiting) as runtime:
            client = runtime.client
            await client.start_orchestration(waiting, instance_id="i-1")
            await until_recorded(client, "i-1", events.ExternalSubscribed)

            await client.cancel_instance("i-1", "not needed")

            assert (await client.wait_for_orchestration("i-1")).status == "cancelled"
            (request,) = await recorded_of(client, "i-1", events.CancelRequested)
            (end,) = await recorded_of(client, "i-1", events.OrchestrationCancelled)
            assert request.reason == end.reason == "not needed"
            execution = await client.list_executions("i-1")
            assert [each.status for each in execution] == ["cancelled"]

    @case("C-145")
    async def test_c145_a_second_request_has_no_further_effect(self, store: Harness) -> None:
        async with host(store, running_on) as runtime:
            client = runtime.client
            handle = await client.start_orchestration(running_on, instance_id="i-1")
            await until_recorded(client, "i-1", events.ExternalSubscribed)
            await client.cancel_instance("i-1", "one")
            await client.cancel_instance("i-1", "two")
            await client.raise_event("i-1", "go", "on")

            assert await handle.result() == "on"
            requests = await recorded_of(client, "i-1", events.CancelRequested)
            assert [request.reason for request in requests] == ["one"]
            assert runtime.counters == {"duplicate_cancel": 1}

    @case("C-146")
    async def test_c146_what_has_ended_is_not_cancelled_and_says_how_it_ended(
        self, store: Harness
    ) -> None:
        async with host(store, returning) as runtime:
            client = runtime.client
            handle = await client.start_orchestration(returning, instance_id="i-1")
            assert await handle.result() == "done"
            before = await client.get_instance("i-1")

            with pytest.raises(InstanceTerminal) as caught:
                await client.cancel_instance("i-1")
            with pytest.raises(InstanceNotFound):
                await client.cancel_instance("nobody")

            assert caught.value.status == "completed"
            assert await client.get_instance("i-1") == before

    @case("C-149")
    async def test_c149_a_cancelled_parent_cancels_its_child(self, store: Harness) -> None:
        async with host(store, calling, waiting) as runtime:
            client = runtime.client
            await client.start_orchestration(calling, instance_id="p")
            await until_recorded(client, "p", events.SubOrchestrationScheduled)

            await client.cancel_instance("p", "all of it")

            assert (await client.wait_for_orchestration("p")).status == "cancelled"
            ended = await client.wait_for_orchestration("p::sub::2")
            assert ended.status == "cancelled"

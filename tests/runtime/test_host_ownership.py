"""One writer per instance: fences, causality, eviction, and several nodes on one store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import pytest
from kit import (
    Gate,
    Through,
    World,
    history,
    kinds,
    until,
    until_async,
    until_execution,
    until_status,
)
from mixed import CLIENTS, HOSTED, add, expected, run_mixed, sequence

from perdure import (
    OrchestrationContext,
    OrchestrationHandle,
    Runtime,
    activity,
    activity_context,
    orchestration,
)
from perdure.errors import StoreUnavailable
from perdure.providers.contract import (
    ClaimActivities,
    Claimed,
    ClaimInstances,
    Done,
    Operation,
    Provider,
    ReleaseInstance,
)
from perdure.runtime import watchdog

GATES: dict[str, Gate] = {}
RAN: list[str] = []


@activity
async def gated(name: str) -> str:
    RAN.append(name)
    await GATES[name].wait()
    return name


@activity
async def noting(text: str) -> str:
    RAN.append(text)
    return text


@activity
async def telling(client: str, number: int) -> int:
    await CLIENTS[client].raise_event(activity_context().instance_id, "note", number)
    return number


@orchestration
async def told_first(ctx: OrchestrationContext, client: str, rounds: int) -> list[int]:
    first = []
    for number in range(rounds):
        note = ctx.schedule_wait("note", int)
        returned = telling(client, number)
        await asyncio.wait([returned, note], return_when=asyncio.FIRST_COMPLETED)
        first.append(1 if note.done() else 0)
        await asyncio.wait([note, returned])
    return first


@pytest.mark.parametrize("residents", [1000, 0])
async def test_an_event_that_an_activity_raised_is_seen_before_its_completion(
    world: World, residents: int
) -> None:
    async with (
        world.runtime(told_first, telling, max_residents=residents) as runtime,
        world.client() as other,
    ):
        CLIENTS["causality"] = other
        handles = [
            await runtime.client.start_orchestration(
                told_first, "causality", 10, instance_id=f"t{number}"
            )
            for number in range(10)
        ]
        for handle in handles:
            assert await handle.result() == [1] * 10
        for number in range(10):
            order = [
                kind
                for kind in kinds(await history(runtime.client, f"t{number}"))
                if kind in ("ExternalEvent", "ActivityCompleted")
            ]
            assert order[0::2] == ["ExternalEvent"] * 10


@orchestration
async def behind(ctx: OrchestrationContext) -> list[str]:
    note = ctx.schedule_wait("note", str)
    done = await gated("behind")
    return [done, await note if note.done() else "not seen"]


async def test_a_turn_that_missed_an_accepted_event_is_refused_and_run_again(
    world: World,
) -> None:
    gate = GATES["behind"] = Gate()
    async with world.runtime(behind, gated) as runtime, world.client() as other:
        handle = await runtime.client.start_orchestration(behind, instance_id="b")
        await gate.has(1)
        # The node learns of it only by looking into the store.
        runtime._parts._intake.news = lambda: None  # type: ignore[union-attr, method-assign]
        runtime._parts._intake._news.clear()  # type: ignore[union-attr]
        await other.raise_event("b", "note", "seen")
        gate.open()

        assert await handle.result() == ["behind", "seen"]
        assert kinds(await history(runtime.client, "b")).count("ActivityCompleted") == 1


@orchestration
async def stolen(ctx: OrchestrationContext) -> list[str]:
    first = await gated("stolen")
    return [first, *(await asyncio.gather(noting("a"), noting("b"), noting("c")))]


async def steal(runtime: Runtime, thief: Provider, instance_id: str) -> Claimed:
    """Take an instance from its owner as if that had been declared dead."""
    assert runtime._parts is not None
    (held,) = [
        resident
        for resident in runtime._parts.node.residents
        if resident.instance_id == instance_id
    ]
    await thief.register_node("thief", 3_600_000)
    released, claimed = await thief.commit(
        [
            ReleaseInstance(held.key, held.token, held.mail, thief.now_ms()),
            ClaimInstances("thief", frozenset({("stolen", "1")}), 10),
        ]
    )
    assert isinstance(released, Done)
    assert isinstance(claimed, Claimed)
    assert len(claimed.instances) == 1
    return claimed


async def test_a_refused_commit_has_no_effect_and_the_work_goes_on_at_the_new_owner(
    world: World,
) -> None:
    RAN.clear()
    gate = GATES["stolen"] = Gate()
    thief = world.provider()
    await thief.open()
    async with world.runtime(
        stolen, gated, noting, sequence, add, *HOSTED[1:2], max_activities=3
    ) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(stolen, instance_id="s")
        await gate.has(1)
        (taken,) = (await steal(runtime, thief, "s")).instances
        before = await client.read_history("s")
        gate.open()
        await until(lambda: runtime.counters.get("refused_fenced") == 1)

        assert await client.read_history("s") == before
        assert RAN == ["stolen"], "an activity of the refused turn was started"
        fine = [await client.start_orchestration(sequence, seed) for seed in range(5)]
        assert [await one.result() for one in fine] == [11, 12, 13, 14, 15]

        # The completion behind the refused turn has become a message for the new owner.
        async def stored() -> bool:
            found = await thief.survey("thief", frozenset({("stolen", "1")}), frozenset())
            return bool(found.mail)

        await until_async(stored)
        await thief.release_node("thief")
        runtime._parts._intake.news()  # type: ignore[union-attr]
        assert taken.instance_id == "s"
        assert await handle.result() == ["stolen", "a", "b", "c"]
        assert sorted(RAN) == ["a", "b", "c", "stolen"]
        assert kinds(await history(client, "s")).count("ActivityCompleted") == 4
    await thief.close()


@pytest.mark.parametrize("residents", [5000, 0, 2])
async def test_eviction_changes_no_result(world: World, residents: int) -> None:
    async with world.runtime(*HOSTED, max_residents=residents) as runtime:
        name = f"{world.kind}-{residents}"

        assert await run_mixed(runtime.client, name, range(3)) == expected(range(3))
        for instance in await runtime.client.list_instances(limit=1000):
            await history(runtime.client, instance.instance_id)


async def test_few_slots_change_no_result(world: World) -> None:
    async with world.runtime(*HOSTED, max_activities=1, max_threads=1) as runtime:
        assert await run_mixed(runtime.client, f"{world.kind} slots", range(3)) == expected(
            range(3)
        )


@orchestration
async def parked(ctx: OrchestrationContext) -> str:
    text = await ctx.schedule_wait("go", str)
    await ctx.schedule_timer(0.005)
    return text


async def test_an_evicted_instance_wakes_for_events_and_timers(world: World) -> None:
    async with world.runtime(parked, max_residents=0) as runtime:
        client = runtime.client
        for number in range(10):
            handle = await client.start_orchestration(parked, instance_id=f"p{number}")
            await until_status(client, f"p{number}", "running")
            await client.raise_event(f"p{number}", "go", "on")
            async with asyncio.timeout(2):
                assert await handle.result() == "on"


async def test_an_event_that_meets_an_eviction_is_not_late(world: World) -> None:
    async with world.runtime(parked, max_residents=0) as runtime, world.client() as other:
        handles = []
        for number in range(60):
            client = other if number % 2 else runtime.client
            handles.append(await client.start_orchestration(parked, instance_id=f"p{number}"))
            await client.raise_event(f"p{number}", "go", "on")
        async with asyncio.timeout(4):
            assert [await handle.result() for handle in handles] == ["on"] * 60


@orchestration
async def evicted_while_busy(ctx: OrchestrationContext) -> list[str]:
    return await asyncio.gather(*(gated("evicted") for _ in range(5)))


async def test_completions_of_an_evicted_instance_reach_it(world: World) -> None:
    RAN.clear()
    gate = GATES["evicted"] = Gate()
    async with world.runtime(evicted_while_busy, gated, max_residents=0) as runtime:
        handle = await runtime.client.start_orchestration(evicted_while_busy, instance_id="e")
        await gate.has(5)
        await until(lambda: not len(runtime._parts.node.residents))  # type: ignore[union-attr]
        gate.open()

        assert await handle.result() == ["evicted"] * 5
        assert len(RAN) == 5


@orchestration
async def ticking(ctx: OrchestrationContext) -> int:
    """Keeps a slot busy until the others are done."""
    ticks = 0
    while not DRAINED.is_set():
        await ticking_on()
        ticks += 1
    return ticks


DRAINED = asyncio.Event()


@activity
async def ticking_on() -> None:
    BUSY.append(1)
    MOST.append(len(BUSY))
    await asyncio.sleep(0.001)
    BUSY.pop()


BUSY: list[int] = []
MOST: list[int] = []


@orchestration
async def wide(ctx: OrchestrationContext) -> int:
    return len(await asyncio.gather(*(noting(str(number)) for number in range(40))))


async def test_the_queue_drains_while_sequential_instances_keep_the_slots_busy(
    world: World,
) -> None:
    global DRAINED
    DRAINED = asyncio.Event()
    async with world.runtime(ticking, ticking_on, wide, noting, max_activities=2) as runtime:
        client = runtime.client
        busy = [await client.start_orchestration(ticking) for _ in range(4)]
        await asyncio.sleep(0.01)
        handle = await client.start_orchestration(wide)

        async with asyncio.timeout(10):
            assert await handle.result() == 40
        DRAINED.set()
        assert all([(await one.result() or 0) > 0 for one in busy])
        assert max(MOST) <= 2


async def test_two_runtimes_share_one_store(world: World) -> None:
    async with (
        world.runtime(*HOSTED, max_residents=3, max_activities=4) as one,
        world.runtime(*HOSTED) as two,
        world.client() as client,
    ):
        found = await run_mixed(client, f"{world.kind} shared", range(4))

        assert found == expected(range(4))
        assert {row.node_id for row in await client.provider.nodes()} == {one.node_id, two.node_id}


async def test_activities_go_to_the_node_that_has_them(world: World) -> None:
    orchestrations = [item for item in HOSTED if item not in HOSTED[:5]]
    async with (
        world.runtime(*orchestrations) as runtime,
        world.runtime(*HOSTED[:5]),
    ):
        found = await run_mixed(runtime.client, f"{world.kind} split", range(2))

        assert found == expected(range(2))


async def test_a_client_elsewhere_gets_results(world: World) -> None:
    async with world.runtime(sequence, *HOSTED[:2]), world.client() as client:
        handles = [await client.start_orchestration(sequence, seed) for seed in range(10)]

        assert [await handle.result() for handle in handles] == [seed + 11 for seed in range(10)]


async def test_a_node_that_was_declared_dead_starts_again_as_a_new_one(
    either: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.02)
    RAN.clear()
    gate = GATES["lost"] = Gate()
    async with (
        either.runtime(waiting_on, gated, noting, lease_s=1) as runtime,
        either.client() as other,
    ):
        client = runtime.client
        first_node = runtime.node_id
        handle = await client.start_orchestration(waiting_on, instance_id="w")
        await gate.has(1)
        await other.provider.release_node(first_node)
        await until(lambda: runtime._parts is not None and runtime.node_id != first_node)
        gate.open()

        assert await handle.result() == ["lost", "after"]
        late = await client.start_orchestration(waiting_on, instance_id="late")
        assert await late.result() == ["lost", "after"]
        assert [row.node_id for row in await other.provider.nodes()] == [runtime.node_id]
        assert kinds(await history(client, "w")).count("ActivityCompleted") == 2


@orchestration
async def waiting_on(ctx: OrchestrationContext) -> list[str]:
    return [await gated("lost"), await noting("after")]


async def test_a_node_that_cannot_come_back_at_once_keeps_trying(
    either: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.02)
    gate = GATES["lost"] = Gate()
    gate.open()
    provider = either.provider()
    register, failures = provider.register_node, [None, None]

    async def failing(node_id: str, lease_ms: int) -> None:
        if failures and provider.registered:  # type: ignore[attr-defined]
            failures.pop()
            raise StoreUnavailable("for a moment")
        provider.registered = True  # type: ignore[attr-defined]
        await register(node_id, lease_ms)

    provider.registered = False  # type: ignore[attr-defined]
    monkeypatch.setattr(provider, "register_node", failing)
    monkeypatch.setattr("perdure.runtime.runtime.RETRY_S", 0.01)
    async with (
        either.runtime(waiting_on, gated, noting, provider=provider, lease_s=1) as runtime,
        either.client() as other,
    ):
        first_node = runtime.node_id
        await other.provider.release_node(first_node)
        await until(lambda: runtime._parts is not None and runtime.node_id != first_node)
        handle = await runtime.client.start_orchestration(waiting_on)
        assert await handle.result() == ["lost", "after"]
        assert not failures


async def test_stopping_while_the_node_is_being_replaced_leaves_nothing(
    either: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.02)
    provider = either.provider()
    register, replacing, go_on = provider.register_node, asyncio.Event(), asyncio.Event()

    async def slowly(node_id: str, lease_ms: int) -> None:
        if await provider.nodes() == [] and runtime._guard is not None:
            replacing.set()
            await go_on.wait()
        await register(node_id, lease_ms)

    monkeypatch.setattr(provider, "register_node", slowly)
    async with either.client() as other:
        runtime = either.runtime(waiting_on, gated, noting, provider=provider, lease_s=1)
        await runtime.start()
        await other.provider.release_node(runtime.node_id)
        await replacing.wait()
        stopping = asyncio.create_task(runtime.stop())
        await asyncio.sleep(0)
        go_on.set()
        await stopping
        assert await other.provider.nodes() == []


@orchestration
async def crowding(ctx: OrchestrationContext) -> int:
    return len(await asyncio.gather(*(gated("crowd") for _ in range(6))))


@activity
def idle_thread() -> None:
    """Gives the nodes a second lane, in which nothing ever waits."""


async def test_nodes_do_not_wake_each_other_without_end_while_their_slots_are_full(
    memory: World,
) -> None:
    gate = GATES["crowd"] = Gate()
    through = [Through(memory.provider()) for _ in range(2)]
    commits = 0

    def count(batch: Sequence[Operation]) -> None:
        nonlocal commits
        commits += 1

    for one in through:
        one.before = count
    hosted = (crowding, gated, idle_thread)
    async with (
        memory.runtime(*hosted, provider=through[0], max_activities=1) as runtime,
        memory.runtime(*hosted, provider=through[1], max_activities=1),
    ):
        handle = await runtime.client.start_orchestration(crowding)
        await gate.has(2)
        await asyncio.sleep(0.1)
        commits = 0
        await asyncio.sleep(5)
        assert commits < 20
        gate.open()
        assert await handle.result() == 6


TOLD: list[int] = []


@activity
async def listening() -> None:
    context = activity_context()
    await context.cancelled()
    TOLD.append(context.execution_id)


@orchestration
async def coming_back(ctx: OrchestrationContext, again: bool = True) -> None:
    if again:
        listening()
    await ctx.schedule_wait("on")
    if again:
        await ctx.continue_as_new(False)


async def test_an_activity_of_an_instance_that_came_back_is_told_of_its_end(
    world: World,
) -> None:
    TOLD.clear()
    async with world.runtime(coming_back, listening, max_residents=1) as runtime:
        client = runtime.client
        node = runtime._parts.node  # type: ignore[union-attr]
        limit, node.residents._limit = node.residents._limit, 0
        await client.start_orchestration(coming_back, instance_id="c")
        await until(lambda: not len(node.residents))
        node.residents._limit = limit
        await client.raise_event("c", "on")
        await until_execution(client, "c", 2)

        await until(lambda: TOLD == [1], patience_s=0.5)
        await client.raise_event("c", "on")
        assert (await client.wait_for_orchestration("c")).status == "completed"


@orchestration
async def calling(ctx: OrchestrationContext, name: str) -> str:
    return await gated(name)


async def test_an_activity_queued_while_a_claim_is_under_way_does_not_wait_for_the_next_look(
    world: World,
) -> None:
    GATES["first"], GATES["second"], GATES["third"] = Gate(), Gate(), Gate()
    through = Through(world.provider())
    starting: list[asyncio.Task[OrchestrationHandle[str]]] = []

    async def start_meanwhile() -> None:
        starting.append(asyncio.create_task(start("third")))
        await asyncio.sleep(0.01)

    def look(batch: Sequence[Operation]) -> Awaitable[None] | None:
        claims = any(isinstance(op, ClaimActivities) for op in batch)
        return start_meanwhile() if claims and not starting and opened else None

    opened = False
    through.before = look
    async with world.runtime(calling, gated, provider=through, max_activities=1) as runtime:

        async def start(name: str) -> OrchestrationHandle[str]:
            return await runtime.client.start_orchestration(calling, name)

        handles = [await start("first"), await start("second")]
        await GATES["first"].has(1)
        opened = True
        for gate in ("first", "second", "third"):
            GATES[gate].open()
        async with asyncio.timeout(2):
            assert [await handle.result() for handle in handles] == ["first", "second"]
            assert await (await starting[0]).result() == "third"

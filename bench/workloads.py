"""The workloads of the benchmark, each a coroutine that returns its figures.

Each takes the URL of a fresh store and runs in a fresh process (see run.py). Times are wall clock,
in milliseconds unless the name says otherwise.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from perdure import (
    Options,
    OrchestrationContext,
    PruneOptions,
    Runtime,
    activity,
    orchestration,
)
from perdure.providers.contract import CommitTurn, Operation, Outcome
from perdure.providers.urls import open_provider

LATE_MS: dict[int, float] = {}


@activity
async def act(x: dict[str, int]) -> dict[str, int]:
    return x


@orchestration
async def sequence(ctx: OrchestrationContext, n: int) -> int:
    for i in range(n):
        await ctx.schedule_activity(act, {"i": i})
    return n


@orchestration
async def fan(ctx: OrchestrationContext, n: int) -> int:
    return len(await asyncio.gather(*(ctx.schedule_activity(act, {"i": i}) for i in range(n))))


@orchestration(retention=PruneOptions(keep_last=3))
async def generations(ctx: OrchestrationContext, left: int) -> str:
    if left:
        return await ctx.continue_as_new(left - 1)
    return "done"


@orchestration
async def sleep_until(ctx: OrchestrationContext, number: int, at_ms: int) -> int:
    await ctx.schedule_timer((at_ms - ctx.now().timestamp() * 1000) / 1000)
    LATE_MS[number] = time.time() * 1000 - at_ms
    return number


@orchestration
async def parked(ctx: OrchestrationContext, number: int) -> int:
    return await ctx.schedule_wait("go", int)


HOSTED = (act, sequence, fan, generations, sleep_until, parked)


class Counting:
    """A provider that counts batches and turns on the way through."""

    def __init__(self, url: str) -> None:
        self._inner = open_provider(url)
        self.batches = 0
        self.turns = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def commit(self, batch: list[Operation]) -> Awaitable[list[Outcome]]:
        self.batches += 1
        self.turns += sum(type(operation) is CommitTurn for operation in batch)
        return self._inner.commit(batch)


def hosting(url: str, options: Options | None = None) -> tuple[Runtime, Counting]:
    provider = Counting(url)
    return Runtime(provider, HOSTED, options=options), provider  # type: ignore[arg-type]


async def throughput(url: str, instances: int = 1_000, busy: bool = False) -> dict[str, Any]:
    """Many instances of five sequential activities each, started as fast as possible."""
    runtime, counting = hosting(url)
    async with runtime:
        client = runtime.client
        await (await client.start_orchestration(sequence, 5)).result()
        stop = asyncio.Event()
        user = asyncio.create_task(_busy(stop)) if busy else None
        counting.batches = counting.turns = 0
        began = time.perf_counter()

        async def one(number: int) -> None:
            handle = await client.start_orchestration(sequence, 5, instance_id=f"i{number}")
            assert await handle.result() == 5

        await asyncio.gather(*(one(number) for number in range(instances)))
        took = time.perf_counter() - began
        stop.set()
        if user is not None:
            await user
        return {
            "activities_per_s": round(5 * instances / took),
            "turns_per_s": round(counting.turns / took),
            "turns_a_commit": round(counting.turns / max(1, counting.batches)),
            "starts": instances,
        }


async def _busy(stop: asyncio.Event) -> None:
    """User code on the host loop that takes half of its time, a millisecond at once."""
    while not stop.is_set():
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(0.001)


async def sequential(url: str, n: int = 1_000) -> dict[str, Any]:
    """One instance, n activities one after the other."""
    runtime, _ = hosting(url)
    async with runtime:
        await (await runtime.client.start_orchestration(sequence, 20)).result()
        began = time.perf_counter()
        await (await runtime.client.start_orchestration(sequence, n)).result()
        return {"ms_per_activity": (time.perf_counter() - began) / n * 1000}


async def latency(url: str, rounds: int = 300) -> dict[str, Any]:
    """Start to result of an instance with one activity, on an idle system."""
    runtime, _ = hosting(url)
    async with runtime:
        times = []
        for number in range(rounds + 10):
            began = time.perf_counter()
            handle = await runtime.client.start_orchestration(sequence, 1, instance_id=f"i{number}")
            await handle.result()
            times.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.001)
        times = sorted(times[10:])
        return {"p50_ms": statistics.median(times), "p95_ms": times[int(len(times) * 0.95)]}


async def fan_out(url: str, n: int = 1_000) -> dict[str, Any]:
    """One instance that starts n activities at once and awaits all; median of five."""
    runtime, _ = hosting(url)
    async with runtime:
        await (await runtime.client.start_orchestration(fan, 10)).result()
        times = []
        for _ in range(5):
            began = time.perf_counter()
            assert await (await runtime.client.start_orchestration(fan, n)).result() == n
            times.append((time.perf_counter() - began) * 1000)
        return {"total_ms": statistics.median(times)}


async def continue_as_new(url: str, n: int = 1_000) -> dict[str, Any]:
    """One instance that continues as new n times and is pruned to three executions."""
    runtime, _ = hosting(url)
    async with runtime:
        began = time.perf_counter()
        handle = await runtime.client.start_orchestration(generations, n)
        assert await handle.final_result() == "done"
        return {"ms_per_execution": (time.perf_counter() - began) / n * 1000}


async def timers(url: str, n: int = 1_000) -> dict[str, Any]:
    """n instances whose timers are all due at the same moment."""
    runtime, _ = hosting(url)
    async with runtime:
        at_ms = int(time.time() * 1000) + 3_000
        handles = await asyncio.gather(
            *(runtime.client.start_orchestration(sleep_until, i, at_ms) for i in range(n))
        )
        await asyncio.gather(*(handle.result() for handle in handles))
        late = sorted(LATE_MS.values())
        return {
            "p50_late_ms": statistics.median(late),
            "p95_late_ms": late[int(n * 0.95)],
            "max_late_ms": late[-1],
            "early": sum(value < 0 for value in late),
        }


def _memory_kib() -> int:
    gc.collect()
    with open(f"/proc/{os.getpid()}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


async def parking(url: str, n: int = 100_000) -> dict[str, Any]:
    """n instances that wait for an event, evicted; what each costs, and what the others notice."""
    runtime, _ = hosting(url, Options(max_residents=100))
    async with runtime:
        client = runtime.client
        # The first ones also grow the heap to what a burst of starts needs; not counted.
        await _park(runtime, range(n, n + 5_000))
        before_rate = await _rate(runtime, "before")
        before = _memory_kib()
        for start in range(0, n, 5_000):
            await _park(runtime, range(start, start + 5_000))
        await asyncio.sleep(1)
        after = _memory_kib()
        after_rate = await _rate(runtime, "after")
        began = time.perf_counter()
        await client.raise_event(f"p{n // 2}", "go", 7)
        assert (await client.wait_for_orchestration(f"p{n // 2}")).output == 7
        return {
            "bytes_each": round((after - before) * 1024 / n),
            "activities_per_s_before": before_rate,
            "activities_per_s_after": after_rate,
            "wake_ms": (time.perf_counter() - began) * 1000,
        }


async def _park(runtime: Runtime, numbers: range) -> None:
    client = runtime.client
    await asyncio.gather(
        *(client.start_orchestration(parked, i, instance_id=f"p{i}") for i in numbers)
    )
    await _until(runtime, lambda counts: not counts.get("pending"))


async def _until(runtime: Runtime, reached: Callable[[dict[str, int]], bool]) -> None:
    """Look at the store until the numbers of instances by status are as wanted."""
    reader = runtime.client.provider
    counts = await reader.count_instances()
    while not reached(counts):
        await asyncio.sleep(0.02)
        counts = await reader.count_instances()


async def _rate(runtime: Runtime, prefix: str, instances: int = 1_000) -> int:
    began = time.perf_counter()
    handles = await asyncio.gather(
        *(
            runtime.client.start_orchestration(sequence, 5, instance_id=f"{prefix}{i}")
            for i in range(instances)
        )
    )
    await asyncio.gather(*(handle.result() for handle in handles))
    return round(5 * instances / (time.perf_counter() - began))


@activity(name="slow")
async def slow(x: int) -> int:
    await asyncio.sleep(3_600)
    return x


@activity(name="slow")
async def quick(x: int) -> int:
    return x


@orchestration(name="waits")
async def waits(ctx: OrchestrationContext, number: int) -> int:
    return await ctx.schedule_activity("slow", number, result_type=int)


async def restart(url: str, n: int = 10_000) -> dict[str, Any]:
    """n unfinished instances in a store whose process is gone: until all of them have finished
    their interrupted activity, and until the first has."""
    first = Runtime(url, [slow, waits])
    await first.start()
    for start in range(0, n, 2_000):
        await asyncio.gather(
            *(
                first.client.start_orchestration(waits, i, instance_id=f"w{i}")
                for i in range(start, start + 2_000)
            )
        )
    await _until(first, lambda counts: not counts.get("pending"))
    await first.stop(0)
    began = time.perf_counter()
    async with Runtime(url, [quick, waits]) as second:
        await _until(second, lambda counts: counts.get("completed", 0) > 0)
        first_s = time.perf_counter() - began
        await _until(second, lambda counts: counts.get("completed", 0) == n)
        return {"first_done_s": first_s, "all_done_s": time.perf_counter() - began}


async def idle(url: str, seconds: float = 10) -> dict[str, Any]:
    """CPU of a runtime that has nothing to do, in percent of one core."""
    runtime, _ = hosting(url)
    async with runtime:
        await (await runtime.client.start_orchestration(sequence, 5)).result()
        await asyncio.sleep(1)
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(seconds)
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"percent_of_a_core": used / seconds * 100}


WORKLOADS: dict[str, Callable[[str], Awaitable[dict[str, Any]]]] = {
    "throughput": throughput,
    "throughput_more_than_slots": lambda url: throughput(url, instances=2_000),
    "throughput_busy_loop": lambda url: throughput(url, busy=True),
    "sequential_100": lambda url: sequential(url, 100),
    "sequential_1000": sequential,
    "sequential_3000": lambda url: sequential(url, 3_000),
    "latency": latency,
    "fan_out": fan_out,
    "continue_as_new": continue_as_new,
    "timers": timers,
    "parked": parking,
    "restart": restart,
    "idle": idle,
}

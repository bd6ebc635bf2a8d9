"""Instances that move: what was exported goes on elsewhere, and what cannot be is refused whole."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import (
    Through,
    World,
    run_quietly,
    until,
    until_execution,
    until_recorded,
    until_status,
)
from mixed import CLIENTS, HOSTED, expected, start_mixed

from perdure import (
    Client,
    InstanceAlreadyExists,
    InstanceNotFound,
    InvalidImport,
    OrchestrationContext,
    OrchestrationFailedError,
    Runtime,
    StoreClosed,
    activity,
    orchestration,
)
from perdure.client.transfer_format import end_of
from perdure.core import work
from perdure.core.events import Payload
from perdure.providers.contract import (
    ClaimActivities,
    ClaimedActivities,
    Provider,
    RetryActivity,
    SendMessage,
    Sent,
)
from perdure.providers.filesystem import FilesystemProvider
from perdure.providers.memory.provider import MemoryProvider
from perdure.providers.memory.store import MemoryStore
from perdure.providers.sqlite.provider import SqliteProvider


@activity
async def weigh(item: str) -> int:
    return len(item)


@activity
async def pack(item: str) -> str:
    return f"packed {item}"


class Loud(Exception):
    pass


@activity(raises=[Loud])
async def fail(text: str) -> str:
    raise Loud(text)


@orchestration
async def courier(ctx: OrchestrationContext, place: str) -> str:
    return place + await ctx.schedule_wait("arrived", str)


@orchestration
async def inform(ctx: OrchestrationContext, whom: str) -> str:
    if whom == "nobody":
        raise LookupError(whom)
    return whom


@orchestration
async def ship(ctx: OrchestrationContext, item: str, tries: int = 1) -> dict[str, Any]:
    if tries:
        await inform("customer")
        return await ctx.continue_as_new(item, tries - 1)
    weight = await weigh(item)
    await ctx.schedule_timer(0)
    lost = ctx.schedule_wait("lost")
    lost.cancel()
    ctx.start_orchestration(inform, "press", instance_id="press")
    signature = ctx.schedule_wait("signed")
    packed, order, place, _ = await asyncio.gather(
        ctx.schedule_activity(pack, item),
        ctx.dequeue_event("orders"),
        courier("Rome "),
        ctx.schedule_timer(1),
    )
    notes = [await ctx.dequeue_event("notes") for _ in range(2)]
    return {
        "weight": weight,
        "packed": packed,
        "order": order,
        "place": place,
        "notes": notes,
        "signed": await signature,
    }


SOURCE = (weigh, courier, inform, ship)
"""Without `pack`: it stays in the queue there."""
COURIER = "s::sub::2.12"


def opened(kind: str, folder: Path, name: str) -> Provider:
    if kind == "sqlite":
        return SqliteProvider(folder / f"{name}.db")
    if kind == "filesystem":
        return FilesystemProvider(folder / name)
    return MemoryProvider(MemoryStore(lambda: time.time_ns() // 1_000_000))


def item(queue: str, data: object, event_id: str | None = None) -> SendMessage:
    body = work.encode(work.EventEnqueued(queue, Payload(json.dumps(data).encode())))
    return SendMessage("s", body, external=True, queue=queue, event_id=event_id)


async def shipment(client: Client) -> list[bytes]:
    """Let a shipment come to where it waits for everything at once, and export it."""
    await client.start_orchestration(ship, "vase", instance_id="s")
    await until_execution(client, "s", 2)
    await until_recorded(client, "s", "TimerCreated", 2)
    await until_recorded(client, COURIER, "ExternalSubscribed")
    await client.provider.commit([item("notes", "fragile", "n-1"), item("notes", "heavy", "n-2")])
    await client.provider.register_node("packer", 60_000)
    claim = ClaimActivities("packer", frozenset({"pack"}), 1)
    (claimed,) = await client.provider.commit([claim])
    assert isinstance(claimed, ClaimedActivities)
    one = claimed.activities[0]
    error = b'{"type":"OSError","message":"no tape"}'
    place = (one.key, one.execution_id, one.event_id)
    await client.provider.commit([RetryActivity(*place, "packer", 1, 0, error)])
    return await client.export_instance("s")


async def finish(runtime: Runtime) -> dict[str, Any]:
    """Give a shipment all that it still waits for."""
    client = runtime.client
    await client.raise_event("s", "signed", "by Ada")
    await client.provider.commit([item("orders", 7)])
    await client.raise_event(COURIER, "arrived", "at noon")
    ended = await client.wait_for_orchestration("s", timeout=20)
    assert ended.status == "completed", ended
    found: dict[str, Any] = ended.output
    return found


RESULT = {
    "weight": 4,
    "packed": "packed vase",
    "order": 7,
    "place": "Rome at noon",
    "notes": ["fragile", "heavy"],
    "signed": "by Ada",
}


# From one store to another


@pytest.mark.slow
@pytest.mark.parametrize("source", ["memory", "sqlite", "filesystem"])
@pytest.mark.parametrize("target", ["memory", "sqlite", "filesystem"])
async def test_an_instance_goes_on_in_another_store(
    tmp_path: Path, source: str, target: str
) -> None:
    async with Runtime(opened(source, tmp_path, "a"), SOURCE) as runtime:
        lines = await shipment(runtime.client)

    async with Client(opened(target, tmp_path, "b")) as client:
        assert await client.import_instances(lines) == ["s", "s::sub::2", COURIER]
        assert await client.export_instance("s") == lines
        (waiting,) = [wait for wait in await client.waiting_for("s") if wait.kind == "activity"]
        assert (waiting.name, waiting.attempt) == ("pack", 1)
        assert waiting.error is not None
        assert waiting.error.message == "no tape"

    async with Runtime(opened("memory", tmp_path, "c"), (*SOURCE, pack)) as runtime:
        await runtime.client.import_instances(lines)
        (again,) = await runtime.client.provider.commit([item("notes", "fragile", "n-1")])
        assert isinstance(again, Sent)
        assert again.duplicate

        assert await finish(runtime) == RESULT


@pytest.mark.slow
async def test_a_file_in_sqlite_goes_on_after_the_import(tmp_path: Path) -> None:
    async with Runtime(opened("sqlite", tmp_path, "a"), SOURCE) as runtime:
        lines = await shipment(runtime.client)
    (tmp_path / "s.jsonl").write_bytes(b"".join(lines))

    async with Runtime(opened("sqlite", tmp_path, "b"), (*SOURCE, pack)) as runtime:
        with (tmp_path / "s.jsonl").open("rb") as file:
            await runtime.client.import_instances(file)

        assert await finish(runtime) == RESULT


async def test_an_ended_instance_moves_with_its_whole_past(tmp_path: Path) -> None:
    @orchestration
    async def family(ctx: OrchestrationContext) -> str:
        try:
            await inform("nobody")
        except Exception as error:
            return f"{type(error).__name__}: {await inform('police')}"
        return ""

    async with Runtime(opened("memory", tmp_path, "a"), [family, inform]) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(family, instance_id="f")
        await handle.result()
        await client.start_orchestration(inform, "nobody", instance_id="n")
        await client.wait_for_orchestration("n")
        await client.start_orchestration("family", instance_id="c")
        lines = await client.export_instance("f") + await client.export_instance("n")
        before = await client.get_instance_tree("f")
        history = await client.read_history("f")

    async with Client(opened("sqlite", tmp_path, "b")) as client:
        assert await client.import_instances(lines) == ["f", "f::sub::2", "f::sub::4", "n"]
        assert await client.get_instance_tree("f") == before
        assert await client.read_history("f") == history
        assert await (await client.get_handle("f")).result() == "SubOrchestrationError: police"
        with pytest.raises(OrchestrationFailedError, match="LookupError"):
            await (await client.get_handle("n")).result()


async def test_the_largest_failures_move_too(tmp_path: Path) -> None:
    @orchestration
    async def loud(ctx: OrchestrationContext) -> str:
        return await fail("x" * 1_000_000)

    async with Runtime(opened("memory", tmp_path, "a"), [loud, fail, courier]) as runtime:
        client = runtime.client
        await client.start_orchestration(loud, instance_id="l")
        await client.wait_for_orchestration("l")
        await client.start_orchestration(courier, "Lyon", instance_id="c")
        await client.cancel_instance("c", "x" * ((1 << 20) - 2))
        await client.wait_for_orchestration("c")
        failed, cancelled = [await client.export_instance(one) for one in ("l", "c")]

    assert await imported(failed) == failed
    assert await imported(cancelled) == cancelled


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_never_began_and_what_was_cancelled_moves_too(tmp_path: Path, kind: str) -> None:
    async with Runtime(opened(kind, tmp_path, "a"), [courier]) as runtime:
        client = runtime.client
        await client.start_orchestration("inform", "press", instance_id="p", version="1")
        await client.start_orchestration(courier, "Oslo", instance_id="c")
        await until_status(client, "c", "running")
        await client.cancel_instance("c", "snow")
        await client.wait_for_orchestration("c")
        lines = await client.export_instance("p") + await client.export_instance("c")

    async with Runtime(opened(kind, tmp_path, "b"), [courier, inform]) as runtime:
        client = runtime.client
        await client.import_instances(lines)
        assert await (await client.get_handle("p")).result(timeout=10) == "press"
        cancelled = await client.get_instance("c")
        assert cancelled.status == "cancelled"
        assert cancelled.error is not None
        assert cancelled.error.message == "snow"


async def test_an_unread_message_moves_with_its_instance(tmp_path: Path) -> None:
    provider = opened("memory", tmp_path, "a")
    assert isinstance(provider, MemoryProvider)
    async with Runtime(provider, [courier]) as runtime:
        await runtime.client.start_orchestration(courier, "Bonn ", instance_id="c")
        await until_recorded(runtime.client, "c", "ExternalSubscribed")
    async with Client(MemoryProvider(provider._store)) as client:
        await client.raise_event("c", "arrived", "late")
        lines = await client.export_instance("c")

    async with Runtime(opened("sqlite", tmp_path, "b"), [courier]) as runtime:
        await runtime.client.import_instances(lines)
        assert await (await runtime.client.get_handle("c")).result(timeout=10) == "Bonn late"


async def test_a_child_moves_without_its_parent(tmp_path: Path) -> None:
    async with Runtime(opened("memory", tmp_path, "a"), SOURCE) as runtime:
        await shipment(runtime.client)
        lines = await runtime.client.export_instance(COURIER)

    async with Runtime(opened("sqlite", tmp_path, "b"), SOURCE) as runtime:
        assert await runtime.client.import_instances(lines) == [COURIER]
        await runtime.client.raise_event(COURIER, "arrived", "alone")
        handle = await runtime.client.get_handle(COURIER)
        assert await handle.result(timeout=10) == "Rome alone"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_nothing_is_imported_if_one_id_is_taken(tmp_path: Path, kind: str) -> None:
    async with Runtime(opened(kind, tmp_path, "a"), [courier]) as runtime:
        client = runtime.client
        for instance_id in ("a", "b"):
            await client.start_orchestration(courier, "Riga", instance_id=instance_id)
            await until_recorded(client, instance_id, "ExternalSubscribed")
        lines = await client.export_instance("a") + await client.export_instance("b")

    async with Client(opened(kind, tmp_path, "b")) as client:
        await client.start_orchestration("courier", "Kyiv", instance_id="b")
        with pytest.raises(InstanceAlreadyExists, match="nothing was imported") as taken:
            await client.import_instances(lines)
        assert (taken.value.instance_id, taken.value.status) == ("b", "pending")
        assert [row.instance_id for row in await client.list_instances()] == ["b"]


async def test_what_is_not_there_is_not_exported(tmp_path: Path) -> None:
    client = Client(opened("memory", tmp_path, "a"))
    with pytest.raises(StoreClosed):
        await client.export_instance("x")
    with pytest.raises(StoreClosed):
        await client.import_instances([])
    async with client:
        for nobody in ("nobody", "", "\ud800"):
            with pytest.raises(InstanceNotFound):
                await client.export_instance(nobody)


@pytest.mark.parametrize("residents", [0, 2_000])
@pytest.mark.parametrize("commits", [0, 1, 3, 5, 8, 12])
async def test_whatever_instances_are_doing_they_can_move_and_end_right(
    memory: World, tmp_path: Path, residents: int, commits: int
) -> None:
    seeds = range(3)
    provider = Through(memory.provider())
    async with memory.runtime(*HOSTED, provider=provider, max_residents=residents) as runtime:
        client = runtime.client
        seen: list[int] = []
        provider.after = lambda batch, _: seen.append(len(batch))
        await start_mixed(client, "source", seeds)
        stopped = len(seen) + commits
        await until(lambda: len(seen) >= stopped)
        # What a client does from now on is not seen by the copies.
        CLIENTS["source"] = Client("memory://")
        roots = [
            one.instance_id for one in await client.list_instances() if not one.parent_instance
        ]
        lines = [line for root in roots for line in await client.export_instance(root)]

    other = World("memory", tmp_path)
    async with other.runtime(*HOSTED, max_residents=residents) as runtime:
        CLIENTS["source"] = runtime.client
        await runtime.client.import_instances(lines)
        ended = {
            root: (await runtime.client.wait_for_orchestration(root, timeout=600)).output
            for root in roots
        }
    assert ended == expected(seeds)


# What is refused


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A shipment that waits for everything at once."""

    async def export() -> list[bytes]:
        provider = opened("memory", tmp_path_factory.mktemp("source"), "a")
        async with Runtime(provider, SOURCE) as runtime:
            return await shipment(runtime.client)

    return run_quietly(export)


def sealed(lines: list[bytes]) -> list[bytes]:
    """The lines with a last one that fits them."""
    end = end_of(lines[:-1])
    return [*lines[:-1], compact({"type": "perdure.end", "lines": end.lines, "sha256": end.sha256})]


def compact(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


async def imported(lines: list[bytes]) -> list[bytes]:
    """What a store exports after it has imported the lines."""
    async with Client(MemoryProvider(MemoryStore(lambda: 1_800_000_000_000))) as client:
        try:
            ids = await client.import_instances(lines)
        except InvalidImport:
            assert len(await client.list_instances()) == 0
            raise
        return await client.export_instance(ids[0])


async def test_an_export_put_in_again_is_the_same(exported: list[bytes]) -> None:
    assert await imported(exported) == exported
    assert sealed(exported) == exported
    assert await imported([line.rstrip(b"\n") for line in exported]) == exported


Edit = Callable[[random.Random, list[bytes]], list[bytes]]


def drop(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(lines))
    return lines[:place] + lines[place + 1 :]


def swap(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    one, other = chance.sample(range(len(lines)), 2)
    found = list(lines)
    found[one], found[other] = found[other], found[one]
    return found


def double(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    line = chance.choice(lines)
    place = chance.randrange(len(lines) + 1)
    return [*lines[:place], line, *lines[place:]]


def truncate(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(lines))
    line = lines[place]
    return [*lines[:place], line[: chance.randrange(len(line))], *lines[place + 1 :]]


def retype(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    types = [json.loads(line)["type"] for line in lines] + ["TimerCancelled", "QueueEvent", ""]
    place = chance.randrange(len(lines))
    document = json.loads(lines[place])
    document["type"] = chance.choice(types)
    return [*lines[:place], compact(document), *lines[place + 1 :]]


def revalue(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(lines))
    document = json.loads(lines[place])
    field = chance.choice(list(document))
    old = document[field]
    numbers = [old + 1, old - 1, 0, 1 << 70] if isinstance(old, int) else []
    document[field] = chance.choice(
        [None, "", "x", "x" * 300, "a::sub::9", 3, -1, 1.5, [], {}, True, *numbers * 3]
    )
    return [*lines[:place], compact(document), *lines[place + 1 :]]


def refield(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(lines))
    document = json.loads(lines[place])
    if chance.random() < 0.5:
        document.pop(chance.choice(list(document)))
    else:
        document["surprise"] = 1
    return [*lines[:place], compact(document), *lines[place + 1 :]]


def garble(chance: random.Random, lines: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(lines))
    line = bytearray(lines[place])
    line[chance.randrange(len(line))] = chance.randrange(256)
    return [*lines[:place], bytes(line), *lines[place + 1 :]]


EDITS: list[Edit] = [drop, swap, double, truncate, retype, revalue, refield, garble]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
async def test_an_edited_export_is_refused_or_gives_the_same_instance(
    exported: list[bytes], edit: Edit
) -> None:
    chance = random.Random(f"raw {edit.__name__}")
    lines_named = []
    for _ in range(150):
        try:
            assert await imported(edit(chance, exported)) == exported
        except InvalidImport as error:
            lines_named.append(error.line)
    assert len(lines_named) >= 120
    assert set(lines_named) <= set(range(1, len(exported) + 3))


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
async def test_a_forged_export_is_refused_or_stored_as_it_says(
    exported: list[bytes], edit: Edit
) -> None:
    chance = random.Random(f"forged {edit.__name__}")
    refused = 0
    for _ in range(250):
        forged = sealed([*edit(chance, exported[:-1]), exported[-1]])
        try:
            assert await imported(forged) == forged
        except InvalidImport:
            refused += 1
    assert refused >= 100


Document = dict[str, Any]


def of(documents: list[Document], kind: str, number: int = 0) -> Document:
    return [document for document in documents if document["type"] == kind][number]


def put(kind: str, number: int = 0, **fields: Any) -> Callable[[list[Document]], None]:
    """Change fields of one line of a type."""
    return lambda documents: of(documents, kind, number).update(fields)


def remove(kind: str, number: int = 0) -> Callable[[list[Document]], None]:
    return lambda documents: documents.remove(of(documents, kind, number))


def repeat(kind: str, number: int = 0) -> Callable[[list[Document]], None]:
    def edit(documents: list[Document]) -> None:
        line = of(documents, kind, number)
        documents.insert(documents.index(line), line)

    return edit


def lie(kind: str, number: int = 0, **fields: Any) -> Callable[[list[Document]], None]:
    """Change fields in the payload of a line."""
    return lambda documents: of(documents, kind, number)["body"].update(fields)


def options_of_no_kind(documents: list[Document]) -> None:
    line = of(documents, "activity")
    del line["error"]
    line["options"] = 3


# In the file: s with executions 1 and 2, s::sub::2 (ended), the courier (waits).
FORGERIES: list[tuple[Callable[[list[Document]], None], str]] = [
    (put("perdure.export", format=2), "format 2"),
    (put("perdure.export", instance_id="t"), "not what an export writes"),
    (put("instance", instance_id="t"), "event 2 .* starts nothing|parent|what an export writes"),
    (put("instance", 1, instance_id="a::sub::5"), "not the id of this sub-orchestration"),
    (put("instance", 1, instance_id="x" * 256), "bytes"),
    (put("instance", name=""), "orchestration name"),
    (put("instance", name="sail"), "name, version, incarnation or nesting"),
    (put("instance", incarnation="0" * 32), "name, version, incarnation or nesting"),
    (put("instance", version="2"), "version 2"),
    (put("instance", status="pending"), "it is pending, its current execution is running"),
    (put("instance", status="completed"), "it is completed, its current execution is running"),
    (put("instance", finished_ms=5), "time of its end"),
    (put("instance", 1, finished_ms=None), "time of its end"),
    (put("instance", nesting=1), "nesting 1"),
    (put("instance", 1, nesting=33), "nesting 33"),
    (put("instance", 1, parent=None), "no parent"),
    (put("instance", execution_id=1 << 53), "its executions are not the last ones"),
    (put("instance", execution_id=3), "its executions are not the last ones"),
    (put("instance", created_ms=-1), "created_ms"),
    (remove("instance"), "not before it|an event|it belongs"),
    (remove("execution"), "belongs to an execution"),
    (repeat("execution"), "its executions are not the last ones"),
    (put("execution", status="running"), "its status is running"),
    (put("execution", ended_ms=None), "time of its end"),
    (put("execution", 1, ended_ms=5), "time of its end"),
    (put("execution", 1, input=1), "the input differs"),
    (put("execution", 2, output=1), "output or error differs"),
    (put("execution", 1, error={"type": "E", "message": ""}), "output or error differs"),
    (put("execution", 1, version="1.x"), "dotted integers"),
    (put("OrchestrationStarted", 1, input=1), "the input differs"),
    (put("OrchestrationStarted", 2, parent_id=3), "the parent differs"),
    (put("OrchestrationContinuedAsNew", input=1), "with which the execution before it went on"),
    (put("OrchestrationContinuedAsNew", version="7"), "version 7 was asked for"),
    (put("OrchestrationContinuedAsNew", timestamp_ms=1 << 50), "its time|starts before"),
    (put("OrchestrationCompleted", output="other"), "output or error differs"),
    (remove("OrchestrationCompleted"), "does not end as one that is completed"),
    (remove("OrchestrationContinuedAsNew"), "does not end as one that is continued_as_new"),
    (put("ActivityScheduled", event_id=9), "event id 9 in the place of 2"),
    (put("ActivityScheduled", timestamp_ms=0), "its time is before"),
    (put("ActivityScheduled", name="a\nb"), "contains the character"),
    (put("ActivityScheduled", 1, name="steal"), "not the activity that event"),
    (put("ActivityScheduled", 1, input="ring"), "not the activity that event"),
    (put("ActivityCompleted", source_event_id=1), "event 1 is nothing that it could settle"),
    (put("ActivityCompleted", source_event_id=99), "event 99 is nothing"),
    (put("ActivityCompleted", type="SubOrchestrationCompleted"), "event 2 is nothing"),
    (put("ActivityCompleted", result="x" * (1 << 20)), "1,048,57"),
    (put("ActivityCompleted", result=json.loads("[" * 150 + "]" * 150)), "deeper than 100"),
    (put("TimerFired", fire_at_ms=5), "is nothing that it could settle"),
    (put("TimerCreated", 1, fire_at_ms=1), "fires before it was made"),
    (put("TimerCreated", 1, fire_at_ms=1 << 50), "3,650 days"),
    (put("OrchestrationChained", instance="s::sub::77"), "has no parent"),
    (put("OrchestrationChained", version="new"), "dotted integers"),
    (put("SubOrchestrationScheduled", instance="other"), "starts another one"),
    (put("SubOrchestrationScheduled", name="other"), "starts another one"),
    (put("SubOrchestrationScheduled", input="other"), "with another input"),
    (put("SubOrchestrationScheduled", 1, instance="s::sub::9"), "not the id of this"),
    (put("timer", fire_at_ms=5), "not the timer that event"),
    (put("timer", event_id=2), "event 2 is no open timer"),
    (repeat("timer"), "or is there twice"),
    (remove("timer"), "nothing will ever answer it"),
    (put("activity", event_id=2), "event 2 is no open activity"),
    (options_of_no_kind, "Expected `object`"),
    (put("activity", error=3), "Expected `object`"),
    (put("activity", attempt=-1), "attempt"),
    (repeat("activity"), "or is there twice"),
    (remove("activity"), "nothing will ever answer it"),
    (put("message", queue=None), "its queue is not the one"),
    (put("message", queue="other"), "its queue is not the one"),
    (lie("message", type="Nonsense"), "no work item"),
    (lie("message", surprise=1), "no work item"),
    (put("event_id", id=""), "event id"),
    (repeat("event_id"), "is there twice"),
]


@pytest.mark.parametrize(("edit", "why"), FORGERIES, ids=range(len(FORGERIES)))
async def test_what_cannot_be_is_refused_with_the_reason(
    exported: list[bytes], edit: Callable[[list[Document]], None], why: str
) -> None:
    documents = [json.loads(line) for line in exported]
    edit(documents)
    forged = sealed([compact(document) for document in documents])
    assert forged != exported

    with pytest.raises(InvalidImport, match=rf"line \d+: .*({why}).*nothing was imported"):
        await imported(forged)


async def test_an_ended_instance_has_nothing_open(exported: list[bytes]) -> None:
    documents = [json.loads(line) for line in exported]
    ended = next(at for at, line in enumerate(documents) if line["type"] == "instance" and at > 1)
    last = next(
        at for at, line in enumerate(documents) if line["type"] == "instance" and at > ended
    )
    for kind in ("message", "timer", "activity", "event_id"):
        forged = [*documents[:last], of(documents, kind), *documents[last:]]
        with pytest.raises(InvalidImport, match="has ended waits for nothing"):
            await imported(sealed([compact(document) for document in forged]))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "line 1: .*cut off"),
        ([b""], "line 1: "),
        ([b"{}"], "line 1: "),
        ([b"[1]"], "line 1: "),
        ([b"[" * 100_000], "line 1: "),
        ([b'{"type":"timer","event_id":1,"fire_at_ms":1}'], "line 1: an export begins with"),
        ([b'{"type":"TimerCancelled","event_id":1,"timestamp_ms":1,"source_event_id":1}'], "begin"),
        ([b'{"type":"perdure.export","format":1,"instance_id":"a"}'], "line 2: .*cut off"),
    ],
    ids=range(8),
)
async def test_what_is_no_export_is_refused(lines: list[bytes], why: str) -> None:
    with pytest.raises(InvalidImport, match=why):
        await imported(lines)


async def test_lines_of_another_type_are_a_mistake_of_the_caller() -> None:
    anything: Any = ["text"]
    with pytest.raises(TypeError, match="mode 'rb'"):
        await imported(anything)


async def test_the_same_instance_twice_is_refused(exported: list[bytes]) -> None:
    with pytest.raises(InvalidImport, match="'s' is there twice"):
        await imported(exported + exported)

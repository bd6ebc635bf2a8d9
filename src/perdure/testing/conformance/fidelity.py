"""What is written comes back byte for byte (C-177 to C-192)."""

from __future__ import annotations

import math
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure.client.client import Client
from perdure.codec import ANY
from perdure.core.context import OrchestrationContext
from perdure.errors import ActivityError, OrchestrationFailedError, PayloadError, PayloadTooLarge
from perdure.limits import PAYLOAD_BYTES_MAX, PAYLOAD_DEPTH_MAX
from perdure.marks import activity, orchestration
from perdure.providers.contract import (
    Ending,
    NewActivity,
    NextExecution,
    NoteBlocked,
    Provider,
    ReleaseInstance,
    RetryActivity,
    RowFilter,
    Sent,
    Started,
)
from perdure.testing.conformance.engine import client_of, host
from perdure.testing.conformance.harness import Harness
from perdure.testing.conformance.kit import (
    DURABLE,
    acquire,
    case,
    claim,
    claim_work,
    ending,
    everything,
    is_a,
    new,
    note,
    one,
    queued,
    row,
    start,
    turn,
)

NOT_APPLICABLE: dict[str, str] = {
    "C-189": "bytes, sets and times are encoded, not refused: tests/test_codec.py",
}

ALL_BYTES = bytes(range(256)) + b"\xff\xfe\x00"
BMP = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
ASTRAL = [chr(code) for code in range(0x10000, 0x110000, 0x101)]
LIKE_CODE = [
    "'; DROP TABLE instances; --",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "C:\\con\\..\\nul",
    "{0} {x!r} %s %(x)s $x ${x} {{7*7}}",
    "cos\nsystem\n(S'echo'\ntR.",
    "%_*?[a-z]\\",
    "\u202eright to left\u2028line\u2029paragraph",
    "\r\nheader: injected\x1b[31m",
    "null",
    "0x41 1e5 -0 NaN",
]


async def kept(store: Harness, value: Any, durable: bool = False) -> list[Any]:
    """A value encoded, written in every place that a payload has, read again, and decoded.
    durable: after the store was closed and opened again."""
    data = ANY.encode(value)
    provider = await store.open()
    of = await acquire(provider, input=data)
    work = NewActivity(3, "pay", data, claimed=False, options=data)
    await one(provider, turn(of, b"1", data, activities=(work,)))
    await provider.commit([note(body=data), note(body=data, queue="q")])
    of_ended = await acquire(provider, "ended")
    await one(provider, turn(of_ended, ending=Ending("failed", data, data)))
    if durable:
        provider = await store.reopen()
    found = await everywhere(provider, of.key)
    assert set(found) == {data}
    return [ANY.decode(each) for each in found]


async def everywhere(provider: Provider, key: int) -> list[bytes]:
    """The payloads that `kept` wrote."""
    (snapshot,) = await provider.snapshots("i-1")
    mail, item = snapshot.messages
    (activity,) = snapshot.activities
    (message,) = await provider.queue_items(key, "q", 0, 9)
    (work,) = (await claim_work(provider)).activities
    executed = await provider.get_execution(key, 1)
    ended = await row(provider, "ended")
    assert executed is not None
    found = [
        (await row(provider)).input,
        executed.input,
        (await provider.read_history("i-1"))[1],
        (await provider.histories([(key, 1)]))[0][1],
        message.body,
        mail.body,
        item.body,
        activity.input,
        activity.options,
        work.input,
        work.options,
        ended.output,
        ended.error,
    ]
    assert None not in found
    return [each for each in found if each is not None]


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


REFUSED: dict[str, tuple[Any, str]] = {
    "C-179": ({"a": ["\ud800"]}, "$.a[0] has a lone surrogate"),
    "C-180 nan": ([math.nan], "$[0] is nan"),
    "C-180 inf": ({"a": -math.inf}, "$.a is -inf"),
    "C-186": (nested(PAYLOAD_DEPTH_MAX + 1), "deeper than 100 levels"),
    "C-187": ("é" * (PAYLOAD_BYTES_MAX // 2), "1,048,578 bytes"),
    "C-188": ({1: "a"}, "$[1] is a dict key"),
    "C-189": ([object()], "$[0] cannot be encoded as JSON"),
}
"""Values that are refused at the call, and what is said."""

SENDING: dict[str, Callable[[Client, Any], Awaitable[object]]] = {
    "start": lambda client, value: client.start_orchestration("x", value, instance_id="new"),
    "event": lambda client, value: client.raise_event("i-1", "say", value),
}


@activity
async def giving(what: str) -> Any:
    """Gives what cannot be encoded."""
    return {"object": object(), "nan": math.nan}[what]


@orchestration
async def taking(ctx: OrchestrationContext, what: str) -> str:
    try:
        await giving(what)
    except ActivityError as error:
        return error.type
    return "nothing was wrong"


@orchestration
async def passing_on(ctx: OrchestrationContext, value: Any) -> Any:
    """Sends its input through an activity and back."""
    return await echo(value)


@activity
async def echo(value: Any) -> Any:
    return value


@orchestration
async def ending_badly(ctx: OrchestrationContext) -> Any:
    return object()


class FidelityCases:
    """See the module."""

    @case("C-177")
    async def test_c177_nul_in_text_is_kept(self, store: Harness) -> None:
        text = "a\x00b\x00"

        assert set(await kept(store, text)) == {text}

    @case("C-178", needs=DURABLE)
    async def test_c178_every_character_is_kept(self, store: Harness) -> None:
        text = "".join(BMP + ASTRAL)

        assert set(await kept(store, text, durable=True)) == {text}

    @case("C-178")
    async def test_c178_every_character_is_kept_in_ids_and_names(self, store: Harness) -> None:
        provider = await store.open()
        characters = BMP[1:] + ASTRAL
        texts = ["".join(characters[at : at + 50]) for at in range(0, len(characters), 50)]
        await provider.commit([new(each, name=each, version=each) for each in texts])

        found = await provider.get_instances(texts)

        assert set(found) == set(texts)
        for text, each in found.items():
            assert (each.instance_id, each.name, each.version) == (text, text, text)
            assert each.incarnation == f"inc of {text}"

    @case("C-181")
    async def test_c181_whole_numbers_are_kept_whatever_their_size(self, store: Harness) -> None:
        numbers = [2**53 + 1, -(2**63), 2**64, 10**300, -(10**4_000), 0, 2**31]

        for found in await kept(store, numbers):
            assert found == numbers
            assert {type(each) for each in found} == {int}

    @case("C-182")
    async def test_c182_floats_are_kept_to_the_bit(self, store: Harness) -> None:
        numbers = [-0.0, 0.0, 1e-320, 5e-324, 1.7e308, 0.1, 1 / 3, math.pi, 1e16, 123456789.125]

        for found in await kept(store, numbers):
            assert [struct.pack("d", each) for each in found] == [
                struct.pack("d", each) for each in numbers
            ]

    @case("C-183")
    async def test_c183_empty_values_are_kept_apart(self, store: Harness) -> None:
        value: list[Any] = ["", [], {}, None, 0, False, {"a": None}, [[]], [None], {"": ""}]

        for found in await kept(store, value):
            assert found == value
            assert [type(each) for each in found] == [type(each) for each in value]

    @case("C-183")
    async def test_c183_null_and_empty_bytes_are_not_absent(self, store: Harness) -> None:
        provider = await store.open()
        endings = {"absent": None, "null": b"null", "empty": b""}
        for instance_id, data in endings.items():
            of = await acquire(provider, instance_id, input=b"")
            await one(provider, turn(of, b"", ending=Ending("completed", data, data)))

        for instance_id, data in endings.items():
            found = await row(provider, instance_id)
            assert (found.output, found.error, found.input) == (data, data, b"")
            (execution,) = await provider.list_executions(instance_id)
            assert (execution.output, execution.error) == (data, data)
            assert await provider.read_history(instance_id) == [b""]

    @case("C-183")
    async def test_c183_absent_options_are_not_empty_ones(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider)
        options = (None, b"", b"null")
        work = tuple(queued(n, options=each) for n, each in enumerate(options, 1))
        await one(provider, turn(of, activities=work))

        claimed = (await claim_work(provider)).activities

        assert tuple(each.options for each in claimed) == options

    @case("C-184")
    async def test_c184_the_order_of_keys_is_kept(self, store: Harness) -> None:
        value = {key: n for n, key in enumerate(["z", "a", "10", "9", "B", "é", "b", "_"])}

        for found in await kept(store, value):
            assert list(found.items()) == list(value.items())

    @case("C-185")
    async def test_c185_any_text_is_a_key(self, store: Harness) -> None:
        value = {
            key: key for key in ["__proto__", "$", ".", "", " ", "constructor", "a.b[0]", "\x00"]
        }

        assert all(found == value for found in await kept(store, value))

    @case("C-186")
    async def test_c186_the_deepest_value_is_kept(self, store: Harness) -> None:
        value: list[Any] = []
        for _ in range(PAYLOAD_DEPTH_MAX - 1):
            value = [value]

        assert all(found == value for found in await kept(store, value))

    @case("C-187", needs=DURABLE)
    async def test_c187_the_largest_payload_is_kept(self, store: Harness) -> None:
        text = "é" * (PAYLOAD_BYTES_MAX // 2 - 1)
        assert len(ANY.encode(text)) == PAYLOAD_BYTES_MAX

        assert set(await kept(store, text, durable=True)) == {text}

    @case("C-190")
    async def test_c190_text_that_looks_like_code_is_text(self, store: Harness) -> None:
        assert all(found == LIKE_CODE for found in await kept(store, LIKE_CODE))

    @case("C-190")
    @pytest.mark.parametrize("text", LIKE_CODE, ids=str.__repr__)
    async def test_c190_ids_names_and_reasons_that_look_like_code_are_text(
        self, store: Harness, text: str
    ) -> None:
        provider = await store.open()
        sends = (note(text, queue=text, event_id=text),)
        key = await start(provider, text, name=text, version=text, incarnation=text, sends=sends)
        await start(provider, "neighbour")

        await one(provider, NoteBlocked((key,), text, text))

        found = (await provider.get_instances([text]))[text]
        assert (found.instance_id, found.name, found.version) == (text, text, text)
        assert (found.incarnation, found.blocked, found.blocked_detail) == (text, text, text)
        assert await provider.count_blocked() == {text: 1}
        assert await one(provider, note(text, event_id=text)) == Sent(key, duplicate=True)
        capabilities = frozenset({(text, text)})
        (of,) = await claim(provider, text, capabilities=capabilities)
        assert of.queued == 1
        await one(provider, turn(of, activities=(queued(1, text),)))
        (work,) = (await claim_work(provider, text, node_id=text)).activities
        assert (work.name, work.instance_id) == (text, text)
        assert len(await provider.list_instances(RowFilter())) == 2

    @case("C-191", needs=DURABLE)
    async def test_c191_bytes_are_stored_as_they_are_given(self, store: Harness) -> None:
        provider = await store.open()
        of = await acquire(provider, input=ALL_BYTES)
        following = NextExecution(2, "1", ALL_BYTES, ALL_BYTES)
        last = turn(
            of, ALL_BYTES, ending=Ending("continued_as_new", ALL_BYTES, ALL_BYTES), next=following
        )
        work = NewActivity(2, "pay", ALL_BYTES, claimed=True, options=ALL_BYTES)
        await one(provider, last)
        await one(provider, turn(of, first=2, execution_id=2, activities=(work,)))
        retry = RetryActivity(of.key, 2, 2, "n-1", 1, 0, ALL_BYTES)
        await provider.commit([retry, note(body=ALL_BYTES), note(body=ALL_BYTES, queue="q")])
        await one(provider, ReleaseInstance(of.key, of.token, 2, None))

        provider = await store.reopen()

        (snapshot,) = await provider.snapshots("i-1")
        first, second = snapshot.executions
        assert (first.input, first.output, first.error) == (ALL_BYTES,) * 3
        assert (first.events, second.events) == ((ALL_BYTES,), (ALL_BYTES,))
        assert (second.input, second.output) == (ALL_BYTES, None)
        assert {message.body for message in snapshot.messages} == {ALL_BYTES}
        (activity,) = snapshot.activities
        assert (activity.input, activity.options, activity.error) == (ALL_BYTES,) * 3

    @case("C-191")
    async def test_c191_each_kind_of_number_is_kept_exactly(self, store: Harness) -> None:
        provider = await store.open()
        big = 2**53 + 1
        of = await acquire(provider)
        await one(provider, turn(of, set_due=True, due_ms=big, release=True))
        assert (await row(provider)).due_ms == big

        outcome = await one(provider, new("nested", nesting=2**31))

        key = is_a(Started, outcome).key
        (acquired,) = await claim(provider)
        assert (acquired.key, acquired.nesting) == (key, 2**31)
        await one(provider, ending(acquired, first=1))

    @case("C-179", "C-180", "C-186", "C-187", "C-188")
    @pytest.mark.parametrize("how", SENDING)
    @pytest.mark.parametrize("what", REFUSED)
    async def test_c179_what_cannot_be_kept_is_refused_at_the_call_and_leaves_nothing(
        self, store: Harness, what: str, how: str
    ) -> None:
        value, said = REFUSED[what]
        async with client_of(store) as client:
            await start(client.provider)
            before = await everything(client.provider)

            with pytest.raises(PayloadError) as caught:
                await SENDING[how](client, value)

            assert said in str(caught.value)
            assert isinstance(caught.value, PayloadTooLarge) == (what == "C-187")
            assert await everything(client.provider) == before

    @case("C-190", "C-182", "C-183")
    async def test_c190_values_come_through_an_orchestration_as_they_were(
        self, store: Harness
    ) -> None:
        value = [*LIKE_CODE, "a\x00b", -0.0, 2**64, {"": None}, [], "\U0001f600"]
        async with host(store, passing_on, echo) as runtime:
            handle = await runtime.client.start_orchestration(passing_on, value)

            assert repr(await handle.result()) == repr(value)

    @case("C-192")
    @pytest.mark.parametrize("what", ["object", "nan"])
    async def test_c192_a_result_that_cannot_be_encoded_is_a_failure_of_the_activity(
        self, store: Harness, what: str
    ) -> None:
        async with host(store, taking, giving) as runtime:
            handle = await runtime.client.start_orchestration(taking, what)

            assert await handle.result() == "PayloadError"

    @case("C-192")
    async def test_c192_a_result_that_cannot_be_encoded_fails_the_orchestration(
        self, store: Harness
    ) -> None:
        async with host(store, ending_badly) as runtime:
            handle = await runtime.client.start_orchestration(ending_badly)

            with pytest.raises(OrchestrationFailedError) as caught:
                await handle.result()
            assert (caught.value.status, caught.value.type) == ("failed", "PayloadError")

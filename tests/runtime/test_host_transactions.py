"""Transactional activities: what they write and their completion are committed together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest
from kit import World, history, kinds, until_recorded

from perdure import (
    ActivityError,
    OrchestrationContext,
    PerdureError,
    RetryPolicy,
    activity,
    activity_context,
    orchestration,
)
from perdure.errors import RegistrationError, StoreUnavailable, TransactionRefused
from perdure.marks import Activity
from perdure.providers.contract import CompleteActivity, Outcome
from perdure.providers.postgres.transactions import Transaction, first_word
from perdure.providers.sqlite.transactions import OWN

CALLS: list[str] = []
"""What bodies say that they have done, also those whose effects were undone."""


@pytest.fixture(autouse=True)
def no_calls_yet() -> None:
    CALLS.clear()


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    needs_server = request.param == "postgres"
    url = request.getfixturevalue("postgres_store") if needs_server else ""
    return World(request.param, tmp_path, url)


@pytest.fixture
def postgres(tmp_path: Path, postgres_store: str) -> World:
    return World("postgres", tmp_path, postgres_store)


class Paid:
    """The connection that a body has, in one form for both stores."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._is_postgres = isinstance(connection, Transaction)

    async def insert(self, order: str) -> str:
        """Note an order as paid."""
        if self._is_postgres:
            await self.connection.execute("insert into public.paid values ($1)", order)
        else:
            self.connection.execute("insert into paid values (?)", (order,))
        return "ok"

    async def execute(self, statement: str) -> None:
        done = self.connection.execute(statement)
        if self._is_postgres:
            await done

    async def never_end(self) -> None:
        """One statement that takes for ever."""
        await self.execute("select pg_sleep(3600)" if self._is_postgres else ENDLESS)


ENDLESS = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(x) from n"
Body = Callable[[Paid, str], Coroutine[Any, Any, str]]


def pay_with(world: World, body: Body, **options: Any) -> Activity[..., str]:
    """The activity `pay`, in the form that the store takes."""

    async def pay(order: str) -> str:
        CALLS.append(order)
        return await body(Paid(activity_context().connection), order)

    def pay_plainly(order: str) -> str:
        return at_once(pay(order))

    form = pay if world.kind == "postgres" else pay_plainly
    return activity(name="pay", transactional=True, **options)(form)


def at_once(coroutine: Coroutine[Any, Any, str]) -> str:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return str(ended.value)
    raise AssertionError("it waits")


async def insert(paid: Paid, order: str) -> str:
    return await paid.insert(order)


def shop(pay: Activity[..., str]) -> Any:
    @orchestration
    async def buy(ctx: OrchestrationContext, order: str) -> str:
        try:
            return await pay(order)
        except ActivityError as error:
            return f"{type(error).__name__} {error.type} after {error.attempts}"

    return buy


class Books:
    """The user's own table, seen from outside."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def _query(self, statement: str) -> list[str]:
        if self._world.kind == "postgres":
            connection = await asyncpg.connect(self._world.url.partition("?")[0])
            try:
                return [row[0] for row in await connection.fetch(statement)]
            finally:
                await connection.close()
        connection = apsw.Connection(str(self._world.path))
        connection.set_busy_timeout(10_000)
        try:
            return [row[0] for row in connection.execute(statement)]
        finally:
            connection.close()

    async def open(self) -> None:
        public = "public." if self._world.kind == "postgres" else ""
        await self._query(f"drop table if exists {public}paid")
        await self._query(f"create table {public}paid (order_id text primary key)")

    async def paid(self) -> list[str]:
        public = "public." if self._world.kind == "postgres" else ""
        return await self._query(f"select order_id from {public}paid order by 1")


async def bought(world: World, pay: Activity[..., str], order: str = "o-1") -> str:
    """Run one `buy`; what it returns."""
    buy = shop(pay)
    async with world.runtime(buy, pay) as runtime:
        await Books(world).open()
        handle = await runtime.client.start_orchestration(buy, order, instance_id="i-1")
        return str(await handle.result())


async def test_what_an_activity_writes_is_there_with_its_result(either: World) -> None:
    assert await bought(either, pay_with(either, insert)) == "ok"
    assert await Books(either).paid() == ["o-1"]
    async with either.client() as client:
        assert kinds(await history(client, "i-1")) == [
            "OrchestrationStarted",
            "ActivityScheduled",
            "ActivityCompleted",
            "OrchestrationCompleted",
        ]


async def test_of_a_body_that_raises_nothing_is_written(either: World) -> None:
    async def fails(paid: Paid, order: str) -> str:
        await paid.insert(order)
        raise ValueError("no")

    assert await bought(either, pay_with(either, fails)) == "ActivityError ValueError after 1"
    assert await Books(either).paid() == []


async def test_a_failed_attempt_is_retried_in_a_new_transaction(either: World) -> None:
    policy = RetryPolicy(max_attempts=3, initial_interval=0.01)

    async def works_at_the_third(paid: Paid, order: str) -> str:
        await paid.insert(order)
        if len(CALLS) < 3:
            raise ConnectionError
        return "ok"

    assert await bought(either, pay_with(either, works_at_the_third, retry=policy)) == "ok"
    assert len(CALLS) == 3
    assert await Books(either).paid() == ["o-1"]


async def test_an_error_of_the_database_is_one_of_the_body(either: World) -> None:
    async def twice(paid: Paid, order: str) -> str:
        await paid.insert(order)
        return await paid.insert(order)

    kind = "UniqueViolationError" if either.kind == "postgres" else ("ConstraintError")
    assert await bought(either, pay_with(either, twice)) == f"ActivityError {kind} after 1"
    assert await Books(either).paid() == []


async def test_a_swallowed_error_of_the_database_undoes_no_more_than_it_must(
    either: World,
) -> None:
    async def twice(paid: Paid, order: str) -> str:
        await paid.insert(order)
        with contextlib.suppress(apsw.ConstraintError, asyncpg.UniqueViolationError):
            await paid.insert(order)
        return "ok"

    outcome = await bought(either, pay_with(either, twice))
    if either.kind == "postgres":
        # It takes no other statement after one has failed, and so not the completion either.
        assert outcome == "ActivityError TransactionRefused after 1"
        assert await Books(either).paid() == []
    else:
        assert outcome == "ok"
        assert await Books(either).paid() == ["o-1"]


class Deaf:
    """A provider whose answers to completed transactions are lost, the first time."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def transact(
        self, claim: CompleteActivity, work: Callable[[Any], Any], limit_s: float | None
    ) -> Outcome:
        outcome: Outcome = await self._inner.transact(claim, work, limit_s)
        if not self.lost:
            self.lost += 1
            raise StoreUnavailable("the answer is lost")
        return outcome


async def test_a_body_is_not_run_again_once_its_effect_is_there(either: World) -> None:
    pay = pay_with(either, insert)
    buy = shop(pay)
    deaf: Any = Deaf(either.provider())
    async with either.runtime(buy, pay, provider=deaf) as runtime:
        await Books(either).open()
        handle = await runtime.client.start_orchestration(buy, "o-1", instance_id="i-1")
        assert await handle.result() == "ok"
    assert deaf.lost == 1
    assert CALLS == ["o-1"]


@pytest.mark.parametrize(
    "statement",
    [
        "commit",
        "COMMIT",
        "  -- now\n rollback",
        "/* x */ ; begin",
        "savepoint a",
        "release a",
        "end",
        "begin immediate",
    ],
)
async def test_statements_about_the_transaction_are_refused(either: World, statement: str) -> None:
    async def body(paid: Paid, order: str) -> str:
        await paid.insert(order)
        await paid.execute(statement)
        return "ok"

    outcome = await bought(either, pay_with(either, body))
    assert outcome == "ActivityError TransactionRefused after 1"
    assert await Books(either).paid() == []


async def test_a_commit_cannot_hide_behind_another_statement(either: World) -> None:
    async def body(paid: Paid, order: str) -> str:
        await paid.execute("select 1; commit")
        return "ok"

    assert (await bought(either, pay_with(either, body))).startswith("ActivityError")


@pytest.mark.parametrize("table", sorted(OWN))
async def test_on_sqlite_the_stores_own_tables_are_not_written(sqlite: World, table: str) -> None:
    async def body(paid: Paid, order: str) -> str:
        await paid.insert(order)
        await paid.execute(f"insert into {table} default values")
        return "ok"

    outcome = await bought(sqlite, pay_with(sqlite, body))
    assert outcome == "ActivityError TransactionRefused after 1"
    assert await Books(sqlite).paid() == []


async def test_the_list_of_the_stores_own_tables_is_whole(sqlite: World) -> None:
    async with sqlite.client():
        pass
    connection = apsw.Connection(str(sqlite.path))
    query = "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'"
    assert {name for (name,) in connection.execute(query)} <= OWN
    connection.close()


async def test_a_statement_that_takes_too_long_is_interrupted(either: World) -> None:
    async def body(paid: Paid, order: str) -> str:
        await paid.insert(order)
        await paid.never_end()
        return "ok"

    outcome = await bought(either, pay_with(either, body, timeout=0.05))
    assert outcome == "ActivityTimeout ActivityTimeout after 1"
    assert await Books(either).paid() == []


async def test_without_a_time_out_of_its_own_it_is_interrupted_too(sqlite: World) -> None:
    async def body(paid: Paid, order: str) -> str:
        await paid.never_end()
        return "ok"

    assert await bought(sqlite, pay_with(sqlite, body)) == "ActivityTimeout ActivityTimeout after 1"


async def test_on_sqlite_the_next_statement_after_the_limit_is_refused(sqlite: World) -> None:
    async def body(paid: Paid, order: str) -> str:
        ends = time.monotonic() + 0.02
        while time.monotonic() < ends:
            pass
        with contextlib.suppress(PerdureError):
            await paid.insert(order)
        return "hidden"

    outcome = await bought(sqlite, pay_with(sqlite, body, timeout=0.01))
    assert outcome == "ActivityTimeout ActivityTimeout after 1"
    assert await Books(sqlite).paid() == []


async def test_an_instance_goes_on_while_a_body_has_its_transaction_open(
    postgres: World,
) -> None:
    opened, go_on = asyncio.Event(), asyncio.Event()

    async def waits(paid: Paid, order: str) -> str:
        await paid.insert(order)
        opened.set()
        await go_on.wait()
        return "ok"

    pay = pay_with(postgres, waits)

    @orchestration
    async def buy_and_hear(ctx: OrchestrationContext) -> list[str]:
        paying = ctx.schedule_activity(pay, "o-1")
        heard = await ctx.schedule_wait("word", str)
        return [heard, await paying]

    async with postgres.runtime(buy_and_hear, pay) as runtime:
        await Books(postgres).open()
        handle = await runtime.client.start_orchestration(buy_and_hear, instance_id="i-1")
        await opened.wait()
        await runtime.client.raise_event("i-1", "word", "hello")
        await until_recorded(runtime.client, "i-1", "ExternalEvent")
        go_on.set()
        assert await handle.result() == ["hello", "ok"]


async def test_the_connection_is_of_no_use_after_the_body(either: World) -> None:
    kept: list[Paid] = []

    async def body(paid: Paid, order: str) -> str:
        kept.append(paid)
        return await paid.insert(order)

    assert await bought(either, pay_with(either, body)) == "ok"
    with pytest.raises(TransactionRefused, match="over"):
        await kept[0].execute("select 1")


async def test_other_activities_have_no_connection(either: World) -> None:
    @activity(name="pay")
    async def pay(order: str) -> str:
        return str(activity_context().connection)

    assert "PerdureError" in await bought(either, pay)


async def test_a_stop_in_the_middle_undoes_the_body_and_the_next_node_does_it(
    postgres: World,
) -> None:
    began = asyncio.Event()

    async def waits_the_first_time(paid: Paid, order: str) -> str:
        await paid.insert(order)
        if len(CALLS) == 1:
            began.set()
            await asyncio.sleep(3600)
        return "ok"

    pay = pay_with(postgres, waits_the_first_time)
    buy = shop(pay)
    runtime = postgres.runtime(buy, pay)
    await runtime.start()
    await Books(postgres).open()
    await runtime.client.start_orchestration(buy, "o-1", instance_id="i-1")
    await began.wait()
    await runtime.stop(0)
    assert await Books(postgres).paid() == []

    async with postgres.runtime(buy, pay) as runtime:
        assert await (await runtime.client.get_handle("i-1")).result() == "ok"
    assert await Books(postgres).paid() == ["o-1"]


async def test_many_at_once_are_each_done_once(either: World) -> None:
    pay = pay_with(either, insert)
    buy = shop(pay)
    async with either.runtime(buy, pay) as runtime, either.runtime(buy, pay):
        await Books(either).open()
        starts = [
            runtime.client.start_orchestration(buy, f"o-{n:02}", instance_id=f"i-{n}")
            for n in range(40)
        ]
        handles = await asyncio.gather(*starts)
        assert await asyncio.gather(*(handle.result() for handle in handles)) == ["ok"] * 40
    assert await Books(either).paid() == sorted(f"o-{n:02}" for n in range(40))


async def test_an_activity_in_the_wrong_form_is_refused_at_the_start(either: World) -> None:
    form = "async def" if either.kind == "postgres" else "def"

    async def coroutine() -> None: ...

    def function() -> None: ...

    wrong = activity(transactional=True)(function if form == "async def" else coroutine)
    with pytest.raises(RegistrationError, match=f"it must be {form}"):
        await either.runtime(wrong).start()


def len_of(text: str) -> int:
    return len(text)


async def test_a_store_without_transactions_refuses_them_at_the_start(memory: World) -> None:
    wrong = activity(transactional=True)(len_of)
    with pytest.raises(RegistrationError, match="sqlite:/// or postgresql://"):
        await memory.runtime(wrong).start()


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("select 1", "select"),
        ("\n\t COMMIT;", "commit"),
        ("-- a\n--b\nRollback", "rollback"),
        ("/* a /* b */ c */ begin", "begin"),
        ("; ; end", "end"),
        ("", ""),
        ("(select 1)", ""),
    ],
)
def test_the_first_word_of_a_statement_is_found(statement: str, word: str) -> None:
    assert first_word(statement) == word

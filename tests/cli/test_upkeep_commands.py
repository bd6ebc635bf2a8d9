"""The commands that inspect, remove, move and tell, as a shell sees them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import perdure
from perdure.cli import main, removing
from perdure.providers.contract import StartInstance
from perdure.providers.sqlite import SqliteProvider

STORE = "sqlite:///shop.db"


@perdure.orchestration
async def waiting(ctx: perdure.OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@perdure.orchestration
async def queueing(ctx: perdure.OrchestrationContext) -> list[Any]:
    return [await ctx.dequeue_event("mail") for _ in range(2)]


@perdure.orchestration
async def parent(ctx: perdure.OrchestrationContext) -> str:
    return await waiting()


@perdure.orchestration
async def counting(ctx: perdure.OrchestrationContext, left: int) -> str:
    return await ctx.continue_as_new(left - 1) if left else "done"


FUNCTIONS = (waiting, queueing, parent, counting)


async def settle(client: perdure.Client, *waiters: str) -> None:
    """Wait until each of these waits for something."""
    async with asyncio.timeout(10):
        for instance_id in waiters:
            while not await client.waiting_for(instance_id):
                await asyncio.sleep(0.002)


async def fill(url: str) -> None:
    """p with a child that waits; c1 and c2 with three executions each; w waits, u is unknown."""
    async with perdure.Runtime(url, FUNCTIONS) as runtime:
        client = runtime.client
        for number in (1, 2):
            started = await client.start_orchestration(counting, 2, instance_id=f"c{number}")
            await started.final_result()
        await client.start_orchestration(parent, instance_id="p")
        await client.start_orchestration(waiting, instance_id="w")
        await settle(client, "p", "p::sub::2", "w")
        await client.start_orchestration("unknown", instance_id="u")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("filled") / "shop.db"
    asyncio.run(fill(f"sqlite:///{path}"))
    return path.read_bytes()


@pytest.fixture(autouse=True)
def folder(filled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_STORE", STORE)
    (tmp_path / "shop.db").write_bytes(filled)
    return tmp_path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sits there to answer."""
    monkeypatch.setattr(removing, "has_terminal", lambda: True)


def perdure_(*arguments: str, input: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=input)


def document(*arguments: str) -> Any:
    found = json.loads(perdure_(*arguments, "--json").stdout)
    assert found["schema"] == "perdure/v1"
    return found


def ids(*options: str) -> list[str]:
    return [instance["instance_id"] for instance in document("list", *options)["instances"]]


def refused(result: Result, code: int) -> str:
    """The one line on stderr of a command that did not do what was asked."""
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert line.startswith("perdure: ")
    return line


# Looking


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], {"c1", "c2", "p", "p::sub::2", "w", "u"}),
        (["--status", "completed"], {"c1", "c2"}),
        (["--name", "waiting"], {"p::sub::2", "w"}),
        (["--id-prefix", "p"], {"p", "p::sub::2"}),
        (["--parent", "p"], {"p::sub::2"}),
        (["--status", "running", "--not-blocked"], {"p", "p::sub::2", "w"}),
        (["--name", "waiting", "--blocked"], set()),
        (["--finished-before", "1d"], set()),
        (["--finished-before", "0s"], {"c1", "c2"}),
    ],
)
def test_list_is_narrowed_by_each_option(options: list[str], found: set[str]) -> None:
    assert set(ids(*options)) == found


def test_list_goes_on_at_a_cursor() -> None:
    first = perdure_("list", "--limit", "4")
    cursor = document("list", "--limit", "4")["cursor"]

    assert f"--cursor {cursor}" in first.stderr
    assert ids("--limit", "4") + ids("--cursor", cursor) == ids()
    assert document("list", "--cursor", cursor)["cursor"] is None
    assert "is no cursor" in refused(perdure_("list", "--cursor", "next"), 2)


def test_executions_are_listed_with_how_they_ended() -> None:
    heading, *rows = perdure_("executions", "c1").stdout.splitlines()

    assert heading.split() == ["EXECUTION", "VERSION", "STATUS", "STARTED", "ENDED"]
    assert [row.split()[2] for row in rows] == ["continued_as_new"] * 2 + ["completed"]
    assert [one["execution_id"] for one in document("executions", "c1")["executions"]] == [1, 2, 3]


def test_history_shows_the_current_or_the_given_execution() -> None:
    assert "OrchestrationCompleted" in perdure_("history", "c1").stdout
    older = perdure_("history", "c1", "--execution", "1").stdout
    assert "OrchestrationContinuedAsNew" in older
    assert "OrchestrationCompleted" not in older
    missing = refused(perdure_("history", "c1", "--execution", "7"), 3)
    assert "perdure executions c1" in missing


def test_history_as_json_is_the_events_as_recorded() -> None:
    lines = perdure_("history", "p", "--json").stdout.splitlines()

    async def recorded() -> list[bytes]:
        async with perdure.Client(STORE) as client:
            return await client.provider.read_history("p")

    assert [line.encode() for line in lines] == asyncio.run(recorded())
    assert json.loads(lines[1])["type"] == "SubOrchestrationScheduled"


def test_tree_shows_children_below_their_parents() -> None:
    _, root, child = perdure_("tree", "p").stdout.splitlines()

    assert root.startswith("p ")
    assert child.startswith("└─ p::sub::2")
    tree = document("tree", "p")["tree"]
    assert tree["instance"]["instance_id"] == "p"
    assert [one["instance"]["instance_id"] for one in tree["children"]] == ["p::sub::2"]


def test_show_tells_what_is_waited_for() -> None:
    assert "waits for   sub-orchestration p::sub::2 (event 2)" in perdure_("show", "p").stdout
    (wait,) = document("show", "w")["waiting_for"]
    assert (wait["kind"], wait["name"], wait["event_id"]) == ("event", "go", 2)


def test_stats_count_what_is_there() -> None:
    assert "2 completed, 1 pending, 3 running" in perdure_("stats").stdout
    found = document("stats")
    assert found["metrics"]["instances"] == {"pending": 1, "running": 3, "completed": 2}
    assert found["depths"]["activities"] == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nobody"),
        ("executions", "nobody"),
        ("history", "nobody"),
        ("tree", "nobody"),
        ("raise", "nobody", "go"),
        ("enqueue", "nobody", "mail"),
        ("cancel", "nobody"),
        ("prune", "nobody", "--yes", "--keep-last", "1"),
        ("delete", "nobody", "--yes"),
        ("export", "nobody"),
    ],
)
def test_an_unknown_instance_is_3(arguments: tuple[str, ...]) -> None:
    assert "nobody" in refused(perdure_(*arguments), 3)


# Telling


def test_raise_cancel_and_enqueue_are_durable_and_say_so_on_stderr() -> None:
    raised = perdure_("raise", "w", "go", "--data", '"on"')
    assert (raised.exit_code, raised.stdout) == (0, "")
    assert perdure_("cancel", "p", "--reason", "sold out").exit_code == 0
    with perdure.SyncClient(STORE) as client:
        client.start_orchestration("queueing", instance_id="q")
    assert "put into mail" in perdure_("enqueue", "q", "mail", "--event-id", "m-1").stderr
    assert "m-1 was there" in perdure_("enqueue", "q", "mail", "--event-id", "m-1").stderr
    assert perdure_("enqueue", "q", "mail", "--data", '{"a": [1]}').exit_code == 0

    async def ended() -> list[Any]:
        async with perdure.Runtime(STORE, FUNCTIONS) as runtime:
            wait = runtime.client.wait_for_orchestration
            return [await wait(one, timeout=10) for one in ("w", "p", "q")]

    told, cancelled, queued = asyncio.run(ended())
    assert told.output == "on"
    assert (cancelled.status, cancelled.error.message) == ("cancelled", "sold out")
    assert queued.output == [None, {"a": [1]}]


@pytest.mark.parametrize("arguments", [("raise", "w", "go"), ("enqueue", "w", "mail")])
def test_what_is_sent_must_be_json(arguments: tuple[str, ...]) -> None:
    for data in ("{", "NaN", "on", "", "[1"):
        refused(perdure_(*arguments, "--data", data), 2)
    refused(perdure_(arguments[0], "w", "", "--data", "1"), 2)


@pytest.mark.parametrize(
    "arguments", [("raise", "c1", "go"), ("enqueue", "c1", "mail"), ("cancel", "c1")]
)
def test_an_ended_instance_takes_nothing_which_is_4(arguments: tuple[str, ...]) -> None:
    assert "has ended (completed)" in refused(perdure_(*arguments), 4)


# Removing


@pytest.mark.parametrize(
    "arguments",
    [
        ("delete", "c1"),
        ("delete", "--status", "completed"),
        ("delete", "--all", "--force"),
        ("prune", "c1", "--keep-last", "1"),
        ("prune", "--all", "--keep-last", "1"),
    ],
)
def test_without_a_terminal_nothing_is_removed_unless_told_so(
    filled: bytes, folder: Path, arguments: tuple[str, ...]
) -> None:
    line = refused(perdure_(*arguments, input="y\n"), 2)

    assert "nothing was removed" in line
    assert "--yes" in line
    assert (folder / "shop.db").read_bytes() == filled


@pytest.mark.parametrize("command", ["delete", "prune"])
@pytest.mark.parametrize(
    "choice", [(), ("c1", "--all"), ("c1", "--status", "failed"), ("--all", "--name", "x")]
)
def test_what_is_to_be_removed_must_be_said_in_one_way(
    command: str, choice: tuple[str, ...]
) -> None:
    assert "not clear" in refused(perdure_(command, *choice, "--yes", "--json"), 2)
    assert len(ids()) == 6


def test_delete_asks_and_says_how_many(terminal: None) -> None:
    kept = perdure_("delete", "c1", "c2", "c1", input="n\n")
    assert "Delete 2 instances in sqlite:///shop.db?" in kept.stderr
    assert kept.exit_code == 130
    assert "nothing was removed" in kept.stderr
    assert {"c1", "c2"} < set(ids())

    gone = perdure_("delete", "c1", "c2", input="y\n")
    assert (gone.exit_code, gone.stdout) == (0, "deleted 2 instances\n")
    assert set(ids()) == {"p", "p::sub::2", "w", "u"}


def test_a_prompt_that_is_broken_off_removes_nothing(terminal: None) -> None:
    assert perdure_("delete", "c1", input="").exit_code == 130
    assert "c1" in ids()


def test_delete_by_filter_passes_over_what_has_not_ended(terminal: None) -> None:
    asked = perdure_("delete", "--all", input="y\n")

    assert "Delete 6 instances that match" in asked.stderr
    assert "what has not ended stays" in asked.stderr
    assert asked.stdout == "deleted 2 instances\n"
    assert document("delete", "--all", "--force", "--yes")["deleted"] == 4
    assert ids() == []


def test_what_runs_and_what_is_a_child_is_not_deleted_which_is_4() -> None:
    assert "delete it with force" in refused(perdure_("delete", "w", "--yes"), 4)
    assert "'p'" in refused(perdure_("delete", "p::sub::2", "--yes", "--force"), 4)
    assert len(ids()) == 6

    assert document("delete", "p::sub::2", "p", "--yes", "--force")["deleted"] == 2


def test_an_error_in_the_middle_tells_what_is_gone_already() -> None:
    ended = perdure_("delete", "c1", "w", "c2", "--yes")

    note, error = ended.stderr.splitlines()
    assert ended.exit_code == 4
    assert "1 instance went before" in note
    assert "'w' cannot be deleted while it runs" in error
    assert "c1" not in ids()
    assert "c2" in ids()


def test_prune_removes_old_executions_only(terminal: None) -> None:
    pruned = perdure_("prune", "c1", "--keep-last", "2", input="y\n")
    assert "Prune the executions of 1 instance in" in pruned.stderr
    assert pruned.stdout == "pruned 1 execution (2 events) of 1 instance\n"
    assert document("prune", "--all", "--completed-before", "1d", "--yes")["pruned"] == {
        "executions": 0,
        "events": 0,
        "instances": 0,
    }
    everything = document("prune", "--status", "completed", "--completed-before", "0s", "--yes")
    assert everything["pruned"] == {"executions": 3, "events": 6, "instances": 2}
    assert [one["execution_id"] for one in document("executions", "c2")["executions"]] == [3]


def test_prune_without_options_says_first_what_stays(terminal: None) -> None:
    asked = perdure_("prune", "--all", input="n\n")

    assert asked.stderr.startswith("perdure: only the current execution of each is kept\n")
    assert len(document("executions", "c1")["executions"]) == 3


@pytest.mark.parametrize("age", ["", "30", "d", "-1d", "1y", "1.5d", "99999d", "9999999999s"])
def test_an_age_is_a_number_and_a_unit(age: str) -> None:
    for command in (
        ("prune", "--all", "--yes", "--completed-before"),
        ("list", "--finished-before"),
    ):
        ended = perdure_(*command, age)
        assert ended.exit_code == 2
        assert "30d" in ended.stderr


# Moving


def test_an_export_is_imported_elsewhere(folder: Path) -> None:
    written = perdure_("export", "p", "c1", "-o", "both.jsonl")
    assert (written.exit_code, written.stdout) == (0, "")
    printed = perdure_("export", "p", "c1", "p::sub::2", "p")
    assert printed.stdout_bytes == (folder / "both.jsonl").read_bytes()

    there = perdure_("import", "both.jsonl", "--store", "sqlite:///other.db")
    assert there.stdout.split() == ["p", "p::sub::2", "c1"]
    same = ["--store", "sqlite:///other.db", "--json"]
    tree = json.loads(perdure_("tree", "p", *same).stdout)["tree"]
    assert tree == document("tree", "p")["tree"]
    assert perdure_("history", "c1", *same).stdout == perdure_("history", "c1", "--json").stdout


def test_an_import_reads_stdin_and_lists_what_came() -> None:
    data = perdure_("export", "c1").stdout_bytes

    arguments = ["import", "-", "--store", "sqlite:///other.db", "--json"]
    assert json.loads(perdure_(*arguments, input=data).stdout)["imported"] == ["c1"]


def test_an_import_of_what_exists_is_4_and_changes_nothing() -> None:
    data = perdure_("export", "c1").stdout_bytes + perdure_("export", "w").stdout_bytes
    assert perdure_("delete", "c1", "--yes").exit_code == 0

    assert "nothing was imported" in refused(perdure_("import", "-", input=data), 4)
    assert "c1" not in ids()


def test_an_import_that_is_not_valid_is_9_with_the_line(folder: Path) -> None:
    data = perdure_("export", "w").stdout_bytes.replace(b'"event_id":2', b'"event_id":3')
    (folder / "broken.jsonl").write_bytes(data)

    line = refused(perdure_("import", "broken.jsonl", "--store", "sqlite:///other.db"), 9)
    assert "line 6: " in line
    assert "nothing was imported" in line


def test_files_that_cannot_be_used_are_told_apart(folder: Path) -> None:
    assert perdure_("import", "missing.jsonl").exit_code == 2
    assert "cannot write" in refused(perdure_("export", "w", "-o", "no/such/folder"), 1)
    assert "memory" in refused(perdure_("import", "-", "--store", "memory://", input=b""), 2)
    assert not (folder / "no").exists()


# Nodes


async def leave_nodes(*lease_ms: int) -> None:
    """Let processes that were nodes end without releasing them."""
    provider = SqliteProvider("shop.db")
    await provider.open()
    for number, each in enumerate(lease_ms):
        await provider.register_node(f"n-{number}", each)
    await provider.commit([StartInstance("x", "i", "a", None, b"null", owner="n-0", token="t")])
    await provider.close()


def test_nodes_are_listed_with_what_they_hold_and_their_heartbeat() -> None:
    asyncio.run(leave_nodes(3_600_000, 0))

    heading, first, second = perdure_("nodes").stdout.splitlines()

    here = [socket.gethostname(), str(os.getpid())]
    assert heading.split()[:5] == ["NODE", "HOST", "PROCESS", "INSTANCES", "ACTIVITIES"]
    assert first.split()[:5] == ["n-0", *here, "1", "0"]
    assert second.split()[:5] == ["n-1", *here, "0", "0"]
    assert [line.count(" s ago") for line in (first, second)] == [1, 1]
    assert [line.endswith("(over)") for line in (first, second)] == [False, True]


def test_nodes_as_json_have_their_times_and_the_stores_time() -> None:
    assert document("nodes")["nodes"] == []
    asyncio.run(leave_nodes(3_600_000))

    found = document("nodes")

    (node,) = found["nodes"]
    assert (node["node_id"], node["instances"], node["activities"]) == ("n-0", 1, 0)
    assert node["lease_until_ms"] - 3_600_000 == node["beat_ms"] == node["started_ms"]
    assert node["beat_ms"] <= found["now_ms"]


# The rest


def test_every_command_is_on_its_page_with_an_example() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()

    for name in main.commands:
        assert f"\n## `perdure {name}" in page, name
        assert f"$ perdure {name}" in page, name
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130):
        assert f"\n| {code} |" in page, code


def test_looking_leaves_the_store_as_it_is(filled: bytes, folder: Path) -> None:
    for arguments in (["stats"], ["nodes"], ["tree", "p"], ["history", "p"], ["executions", "p"]):
        assert perdure_(*arguments).exit_code == 0
    assert perdure_("export", "p").exit_code == 0

    assert (folder / "shop.db").read_bytes() == filled
    assert [path.name for path in folder.iterdir()] == ["shop.db"]

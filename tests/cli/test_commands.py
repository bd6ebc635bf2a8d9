"""The commands as a shell sees them: stdout, stderr, exit codes, signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.cli import main

pytestmark = pytest.mark.slow

SHOP = str(Path(__file__).with_name("shop.py"))
STORE = "sqlite:///shop.db"
TIMEOUT_S = 30


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERDURE_STORE", raising=False)
    return tmp_path


def perdure_(*arguments: str, store: str = STORE) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "perdure", *arguments, "--store", store],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "perdure", "run", *arguments, "--store", STORE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[str]]:
    """A `perdure run` of the instance w, which has charged and waits for an event."""
    with started(f"{SHOP}:for_ever", "--input", '"o-1"', "--id", "w") as child:
        assert child.stderr is not None
        assert any("waiting for approval" in line for line in child.stderr)
        yield child
        child.kill()


def document(*arguments: str) -> Any:
    return json.loads(perdure_(*arguments, "--json").stdout)


# run


def test_run_prints_the_result_as_json_and_nothing_else() -> None:
    ended = perdure_("run", f"{SHOP}:checkout", "--input", '"o-1"', "--id", "c-1")

    assert ended.stdout == '["paid o-1"]\n'
    assert ended.returncode == 0


def test_run_takes_an_object_for_several_parameters() -> None:
    ended = perdure_("run", f"{SHOP}:checkout", "--input", '{"order": "o-1", "copies": 2}')

    assert json.loads(ended.stdout) == ["paid o-1", "paid o-1"]


def test_run_without_an_id_makes_one_and_says_it() -> None:
    ended = perdure_("run", f"{SHOP}:no_input")

    (instance,) = document("list")["instances"]
    assert ended.stdout == "null\n"
    assert f"instance {instance['instance_id']}" in ended.stderr


def test_run_without_a_store_uses_one_below_the_current_folder(folder: Path) -> None:
    command = [sys.executable, "-m", "perdure", "run", f"{SHOP}:no_input"]

    assert subprocess.run(command, capture_output=True, timeout=TIMEOUT_S).returncode == 0
    assert (folder / ".perdure" / "dev.db").is_file()


def test_run_again_gives_the_same_answer_without_doing_it_again() -> None:
    command = ("run", f"{SHOP}:checkout", "--input", '"o-1"', "--id", "c-1")
    first, second = perdure_(*command), perdure_(*command)

    assert "charging" in first.stderr
    assert "charging" not in second.stderr
    assert second.stdout == first.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "shop"),
        ("run", "nowhere:checkout"),
        ("run", f"{SHOP}:checkout", "--input", "{"),
        ("run", f"{SHOP}:checkout", "--input", "3"),
        ("run", f"{SHOP}:checkout"),
        ("run", f"{SHOP}:keyword_only", "--input", '"o-1"'),
        ("run", f"{SHOP}:no_input", "--id", "a::sub::1"),
        ("list", "--status", "lost"),
        ("frobnicate",),
    ],
)
def test_wrong_usage_is_2_and_leaves_no_store(folder: Path, arguments: tuple[str, ...]) -> None:
    ended = perdure_(*arguments)

    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert not (folder / "shop.db").exists()


def test_the_same_id_with_another_input_is_4() -> None:
    command = ("run", f"{SHOP}:checkout", "--id", "c-1", "--input")
    perdure_(*command, '"o-1"')

    ended = perdure_(*command, '"o-2"')

    assert ended.returncode == 4
    assert "c-1" in ended.stderr


def test_a_failed_orchestration_is_5_in_one_line() -> None:
    ended = perdure_("run", f"{SHOP}:refused", "--input", '"o-1"', "--id", "r-1")

    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 5
    assert "ValueError: no o-1 at all" in line
    assert "perdure show r-1" in line


def test_a_cancelled_orchestration_is_6(waiting: subprocess.Popen[str]) -> None:
    with perdure.SyncClient(STORE) as client:
        client.cancel_instance("w", "changed my mind")

    assert waiting.wait(TIMEOUT_S) == 6


def test_no_end_in_time_is_7_and_the_instance_goes_on() -> None:
    command = ("run", f"{SHOP}:for_ever", "--input", '"o-1"', "--id", "w", "--timeout", "0.5")

    assert perdure_(*command).returncode == 7
    assert document("show", "w")["instance"]["status"] == "running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_130_and_the_same_command_goes_on(
    waiting: subprocess.Popen[str], number: signal.Signals
) -> None:
    os.kill(waiting.pid, number)
    assert waiting.wait(TIMEOUT_S) == 130

    with started(f"{SHOP}:for_ever", "--input", '"o-1"', "--id", "w") as again:
        with perdure.SyncClient(STORE) as client:
            client.raise_event("w", "approved")
        output, notes = again.communicate(timeout=TIMEOUT_S)

    assert (again.returncode, output) == (0, '"paid o-1"\n')
    assert "resuming w" in notes
    assert "charging" not in notes


def test_run_says_why_an_instance_is_blocked(folder: Path, waiting: subprocess.Popen[str]) -> None:
    waiting.kill()
    waiting.wait()
    changed = Path(SHOP).read_text().replace("receipt = await charge(order)", "receipt = order")
    (folder / "shop.py").write_text(changed)
    with perdure.SyncClient(STORE) as client:
        client.raise_event("w", "approved")

    ended = perdure_("run", "shop.py:for_ever", "--input", '"o-1"', "--id", "w", "--timeout", "2")
    shown = perdure_("show", "w")

    assert ended.returncode == 7
    assert "w is blocked: nondeterminism" in ended.stderr
    assert "blocked     nondeterminism: at event 2" in shown.stdout
    assert "next try" in shown.stdout


# list and show


def test_list_shows_a_line_per_instance() -> None:
    perdure_("run", f"{SHOP}:checkout", "--input", '"o-1"', "--id", "c-1")
    perdure_("run", f"{SHOP}:refused", "--input", '"o-2"', "--id", "r-1")

    heading, first, second = perdure_("list").stdout.splitlines()

    assert heading.split()[:3] == ["INSTANCE", "ORCHESTRATION", "STATUS"]
    assert first.split()[:4] == ["c-1", "checkout", "1", "completed"]
    assert second.split()[:4] == ["r-1", "refused", "1", "failed"]


def test_list_can_be_narrowed_to_a_status() -> None:
    perdure_("run", f"{SHOP}:checkout", "--input", '"o-1"', "--id", "c-1")
    perdure_("run", f"{SHOP}:refused", "--input", '"o-2"', "--id", "r-1")

    listed = document("list", "--status", "failed")

    assert listed["schema"] == "perdure/v1"
    assert [instance["instance_id"] for instance in listed["instances"]] == ["r-1"]


def test_list_says_when_there_is_more() -> None:
    perdure_("run", f"{SHOP}:no_input")
    perdure_("run", f"{SHOP}:no_input")

    listed = perdure_("list", "--limit", "1")

    assert len(listed.stdout.splitlines()) == 2
    assert "--limit" in listed.stderr


def test_show_tells_how_an_instance_ended() -> None:
    perdure_("run", f"{SHOP}:checkout", "--input", '"o-1"', "--id", "c-1")

    facts, table = perdure_("show", "c-1").stdout.split("\n\n")

    assert "status      completed" in facts
    assert 'output      ["paid o-1"]' in facts
    rows = [line.split(maxsplit=4) for line in table.splitlines()[1:]]
    assert [row[3] for row in rows] == [
        "OrchestrationStarted",
        "ActivityScheduled",
        "ActivityCompleted",
        "OrchestrationCompleted",
    ]
    assert rows[1][4] == 'charge, input "o-1"'
    assert rows[2][4].split(maxsplit=1) == ["2", 'charge, result "paid o-1"']


def test_show_tells_what_an_instance_waits_for(waiting: subprocess.Popen[str]) -> None:
    waiting.send_signal(signal.SIGTERM)
    waiting.wait(TIMEOUT_S)

    assert "waits for   external event approved (event 4)" in perdure_("show", "w").stdout


def test_show_as_json_has_the_whole_history() -> None:
    perdure_("run", f"{SHOP}:refused", "--input", '"o-1"', "--id", "r-1")

    shown = document("show", "r-1")

    assert shown["schema"] == "perdure/v1"
    assert shown["instance"]["error"]["type"] == "ValueError"
    assert [event["type"] for event in shown["history"]] == [
        "OrchestrationStarted",
        "OrchestrationFailed",
    ]


def test_looking_does_not_need_the_code_nor_import_it(folder: Path) -> None:
    (folder / "gone.py").write_text(Path(SHOP).read_text())
    perdure_("run", "gone.py:checkout", "--input", '"o-1"', "--id", "c-1")
    (folder / "gone.py").write_text("raise RuntimeError('imported')")

    assert perdure_("list").returncode == perdure_("show", "c-1").returncode == 0


def test_an_unknown_instance_is_3() -> None:
    perdure_("run", f"{SHOP}:no_input")

    ended = perdure_("show", "nobody")

    assert ended.returncode == 3
    assert len(ended.stderr.splitlines()) == 1
    assert "perdure list" in ended.stderr


@pytest.mark.parametrize("command", [("list",), ("show", "c-1")])
def test_a_store_that_is_not_there_is_8_and_is_not_created(
    folder: Path, command: tuple[str, ...]
) -> None:
    ended = perdure_(*command)

    assert ended.returncode == 8
    assert "there is no store at sqlite:///shop.db" in ended.stderr
    assert list(folder.iterdir()) == []


def test_a_store_of_a_newer_perdure_is_8() -> None:
    perdure_("run", f"{SHOP}:no_input")
    with contextlib.closing(sqlite3.connect("shop.db")) as connection:
        connection.execute("pragma user_version = 999")

    ended = perdure_("list")

    assert ended.returncode == 8
    assert len(ended.stderr.splitlines()) == 1


def test_a_database_of_something_else_is_8_and_stays_as_it_is(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect("shop.db")) as connection:
        connection.execute("create table orders (id)")
    before = (folder / "shop.db").read_bytes()

    assert perdure_("list").returncode == 8
    assert (folder / "shop.db").read_bytes() == before


def test_looking_leaves_nothing_behind(folder: Path) -> None:
    perdure_("run", f"{SHOP}:no_input", "--id", "n-1")
    before = sorted(folder.iterdir())

    assert perdure_("list").returncode == perdure_("show", "n-1").returncode == 0
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("store", ["sqlite:///notes.txt", "postgres9://x", "sqlite:///"])
def test_what_is_no_store_is_8(folder: Path, store: str) -> None:
    (folder / "notes.txt").write_text("not a database\n" * 100)

    assert perdure_("list", store=store).returncode == 8
    assert (folder / "notes.txt").read_text() == "not a database\n" * 100


# the rest


def test_the_version_is_told_without_loading_what_draws() -> None:
    code = (
        "import sys\n"
        "from perdure.cli import main\n"
        "try: main(['--version'])\n"
        "finally: assert not {'rich', 'perdure.demo'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert perdure.__version__ in ended.stdout


def test_every_command_explains_itself_with_an_example() -> None:
    for command in sorted(main.commands):
        helped = subprocess.run(
            [sys.executable, "-m", "perdure", command, "--help"], capture_output=True, text=True
        )
        assert f"Example: perdure {command}" in " ".join(helped.stdout.split())

"""`perdure worker`: one process or several, signals, deaths, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import perdure
from perdure.cli import main, workers
from perdure.cli.outcome import Refusal

WORKS = str(Path(__file__).with_name("works.py"))
STORE = "sqlite:///shop.db"
PATIENCE_S = 60


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERDURE_STORE", raising=False)
    return tmp_path


def until(holds: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait until something that is to be seen from outside holds."""
    give_up = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up, what()
        time.sleep(0.005)


class Worker:
    """A `perdure worker`, and what it and its processes say. None of them outlives the block."""

    def __init__(self, *arguments: str, store: str = STORE) -> None:
        command = [sys.executable, "-W", "error", "-m", "perdure", "worker", WORKS]
        self.process = subprocess.Popen(
            [*command, *arguments, "--store", store], stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        for pid in self.processes("ready"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.all_gone()

    def all_gone(self) -> int:
        """Wait until the last of its processes has closed stderr; the worker's exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive(), self.lines
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def processes(self, state: str) -> list[int]:
        """The processes of which it was said that they are ready, or have stopped."""
        words = [line.split() for line in self.lines if line.startswith("perdure: node ")]
        return [int(line[5]) for line in words if line[-1] == state]

    def until_said(self, state: str, number: int) -> None:
        def is_said() -> bool:
            assert self._reader.is_alive(), self.lines
            return len(self.processes(state)) >= number

        until(is_said, lambda: self.lines)


def nodes(store: str = STORE) -> list[perdure.NodeInfo]:
    with perdure.SyncClient(store) as client:
        return client.nodes()


def started(orchestration: str, folder: Path, number: int = 1) -> list[int]:
    """Start an instance; the processes that have begun its activity, once that has happened."""
    with perdure.SyncClient(STORE) as client:
        client.start_orchestration(orchestration, str(folder / "ledger"), instance_id="i")
    return begun(folder, number)


def begun(folder: Path, number: int) -> list[int]:
    ledger = folder / "ledger"
    ledger.touch()
    until(lambda: len(ledger.read_text().splitlines()) >= number, ledger.read_text)
    return [int(line) for line in ledger.read_text().splitlines()]


def leave(folder: Path) -> None:
    (folder / "ledger.leave").touch()


# Stopping


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_a_worker_gracefully(number: signal.Signals, code: int) -> None:
    with Worker() as worker:
        worker.until_said("ready", 1)
        (node,) = nodes()
        assert worker.lines == [f"perdure: node {node.node_id} of process {node.pid} is ready"]
        assert node.pid == worker.process.pid

        worker.process.send_signal(number)

        assert worker.all_gone() == code
        assert worker.lines[1:] == [
            f"perdure: node {node.node_id} of process {node.pid} has stopped"
        ]
        assert nodes() == []


@pytest.mark.slow
def test_a_signal_lets_every_process_finish_what_it_does(folder: Path) -> None:
    with Worker("--processes", "2") as worker:
        worker.until_said("ready", 2)
        begun_by = started("waiting_work", folder)

        worker.process.terminate()
        worker.until_said("stopped", 1)
        leave(folder)

        assert worker.all_gone() == 0
        assert sorted(worker.processes("stopped")) == sorted(worker.processes("ready"))
    with Worker() as another, perdure.SyncClient(STORE) as client:
        assert [client.final_result("i", timeout=PATIENCE_S)] == begun_by
        assert begun(folder, 1) == begun_by
        assert another.process.pid not in begun_by


@pytest.mark.slow
def test_several_processes_share_a_postgresql_store(postgres_url: str, folder: Path) -> None:
    leave(folder)
    with Worker("--processes", "2", store=postgres_url) as worker:
        worker.until_said("ready", 2)
        assert {node.pid for node in nodes(postgres_url)} == set(worker.processes("ready"))
        with perdure.SyncClient(postgres_url) as client:
            client.start_orchestration("waiting_work", str(folder / "ledger"), instance_id="i")
            ran_on = client.final_result("i", timeout=PATIENCE_S)
        assert ran_on in worker.processes("ready")

        worker.process.terminate()

        assert worker.all_gone() == 0
        assert nodes(postgres_url) == []


@pytest.mark.slow
def test_a_second_signal_ends_all_processes_at_once(folder: Path) -> None:
    with Worker("--processes", "2") as worker:
        worker.until_said("ready", 2)
        started("blocking_work", folder)
        worker.process.terminate()
        worker.until_said("stopped", 1)

        worker.process.terminate()

        assert worker.all_gone() == -signal.SIGTERM
        assert len(worker.processes("stopped")) == 1


# Deaths


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_its_work_goes_on(folder: Path) -> None:
    with Worker("--processes", "2") as worker:
        worker.until_said("ready", 2)
        (killed,) = started("waiting_work", folder)

        os.kill(killed, signal.SIGKILL)

        worker.until_said("ready", 3)
        assert f"perdure: process {killed} was ended by SIGKILL; another is started in 0.2 s" in (
            worker.lines
        )
        leave(folder)
        with perdure.SyncClient(STORE) as client:
            assert client.final_result("i", timeout=PATIENCE_S) in begun(folder, 2)[1:]
            alive = {node.pid for node in client.nodes()}
        assert alive == set(worker.processes("ready")) - {killed}


@pytest.mark.slow
def test_the_processes_end_with_a_worker_that_is_killed() -> None:
    with Worker("--processes", "2") as worker:
        worker.until_said("ready", 2)

        worker.process.kill()

        assert worker.all_gone() == -signal.SIGKILL
        assert sorted(worker.processes("stopped")) == sorted(worker.processes("ready"))
        assert nodes() == []


@pytest.mark.slow
def test_a_process_that_cannot_stop_does_not_survive_a_worker_that_is_killed() -> None:
    code = """if True:
        import signal, socket
        from perdure.cli import hosting
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hosting.ORPHAN_S = 0
        ours, theirs = socket.socketpair()
        theirs.close()
        hosting._end_with(ours)
        print("survived")
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE_S)

    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")


# Processes that keep dying


class Enough(Exception):
    """So many deaths are enough for a test."""


class Pauses:
    """The pauses that were told, in seconds; they were a thousandth of that."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.enough = 100

    def note(self, text: str) -> None:
        self.told.append(round(1000 * float(text.split()[-2]), 3))
        if len(self.told) == self.enough:
            raise Enough


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(workers, "note", pauses.note)
    monkeypatch.setattr(workers, "PAUSE_S_MIN", workers.PAUSE_S_MIN / 1000)
    monkeypatch.setattr(workers, "PAUSE_S_MAX", workers.PAUSE_S_MAX / 1000)
    return pauses


def keep(code: str, processes: int = 1) -> None:
    """Keep processes running that execute this code; `link` in it is the number of the socket."""

    def command(link: int) -> list[str]:
        return [sys.executable, "-S", "-E", "-c", f"import os; link = {link}\n{code}"]

    asyncio.run(workers.keep(command, processes, dict(os.environ)))


@pytest.mark.parametrize(
    ("code", "exit_code", "manner"),
    [
        ("raise SystemExit(8)", 8, "ended with exit code 8"),
        ("raise SystemExit(0)", 1, "ended with exit code 0"),
        ("os.kill(os.getpid(), 9)", 1, "was ended by SIGKILL"),
        ("os.kill(os.getpid(), 40)", 1, "was ended by signal 40"),
    ],
)
def test_a_worker_gives_up_when_no_process_of_it_becomes_ready(
    pauses: Pauses, code: str, exit_code: int, manner: str
) -> None:
    with pytest.raises(Refusal, match=f"{manner} before it was ready, as did 4 before it") as given:
        keep(code)

    assert given.value.code == exit_code
    assert pauses.told == [0.2, 0.4, 0.8, 1.6]


def test_processes_that_were_ready_are_replaced_for_ever_but_not_ever_faster(
    pauses: Pauses,
) -> None:
    pauses.enough = 8

    with pytest.raises(Enough):
        keep("os.write(link, b'r'); raise SystemExit(3)")

    assert pauses.told == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_process_that_has_lived_for_long_is_replaced_soon(
    pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "STEADY_S", 0)
    pauses.enough = 3

    with pytest.raises(Enough):
        keep("os.write(link, b'r')")

    assert pauses.told == [0.2, 0.2, 0.2]


def test_a_worker_that_gives_up_stops_the_processes_that_are_well(
    pauses: Pauses, folder: Path
) -> None:
    code = """
try:
    file = os.open("well", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
except FileExistsError:
    os._exit(3)
os.write(file, str(os.getpid()).encode())
os.read(link, 1)
"""
    with pytest.raises(Refusal):
        keep(code, processes=2)

    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "well").read_text()), 0)


# What is refused


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


GOOD = "import perdure\n\n@perdure.activity\nasync def ship() -> None: ...\n"
TWICE = GOOD.replace("ship", "send").replace("activity", "activity(name='ship')")


@pytest.mark.usefixtures("clean_imports")
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("good.py", "missing.py"), 2, "there is no file missing.py"),
        (("nowhere_at_all",), 2, "there is no module nowhere_at_all"),
        (("broken.py",), 1, "importing broken failed: ZeroDivisionError"),
        (("empty.py",), 2, "there is nothing to run in empty.py"),
        (("good.py", "twice.py"), 2, "activity 'ship' is listed twice"),
        ((), 2, "Missing argument"),
        (("good.py", "--store", "memory://"), 2, "lives in its own process only"),
        (("good.py", "--store", "sqlite:///notes.txt"), 8, "notes.txt"),
        (("good.py", "--store", "postgresql://x@127.0.0.1:1/x"), 8, "cannot be used now"),
        (("good.py", "--store", "nonsense"), 8, "is not the URL of a store"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    processes: str,
    code: int,
    complaint: str,
) -> None:
    monkeypatch.setenv("PERDURE_STORE", STORE)
    monkeypatch.delattr(workers.asyncio, "create_subprocess_exec")
    files = {"good": GOOD, "twice": TWICE, "empty": "", "broken": "1 / 0"}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "notes.txt").write_text("not a database\n" * 100)

    ended = CliRunner().invoke(main, ["worker", *arguments, "--processes", processes])

    assert ended.exit_code == code, ended.output
    assert complaint in ended.stderr
    assert "ready" not in ended.stderr
    assert not (folder / "shop.db").exists()


@pytest.mark.usefixtures("clean_imports")
def test_a_store_for_one_process_is_not_given_to_several(folder: Path) -> None:
    (folder / "good.py").write_text(GOOD)

    ended = CliRunner().invoke(
        main, ["worker", "good.py", "--processes", "2", "--store", "file:///shop"]
    )

    assert ended.exit_code == 2
    assert "file:///shop is a store for one process" in ended.stderr
    assert not (folder / "shop").exists()


def test_a_worker_without_a_store_is_refused() -> None:
    ended = CliRunner().invoke(main, ["worker", WORKS])

    assert ended.exit_code == 2
    assert "no store given" in ended.stderr

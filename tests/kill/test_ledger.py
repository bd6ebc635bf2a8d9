"""The ledger keeps whole lines, in the order in which they were written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from kill_ledger import RECORD_BYTES, Ledger, Tail, read_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_what_is_written_is_read(path: Path) -> None:
    ledger = Ledger(path)
    ledger.write("begin", "k/1/2", 1, "feed")
    ledger.write("spawn")
    ledger.close()

    first, second = read_ledger(path)

    assert (first.place, first.pid, first.word) == (0, os.getpid(), "begin")
    assert first.args == ("k/1/2", "1", "feed")
    assert (second.place, second.word, second.args) == (1, "spawn", ())
    assert first.at_ms <= second.at_ms


def test_many_writers_do_not_mix_their_lines(path: Path) -> None:
    def write(name: str) -> None:
        ledger = Ledger(path)
        for number in range(50):
            ledger.write("end", name, number)
        ledger.close()

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    args = [line.args for line in read_ledger(path)]
    for number in range(4):
        own = [at for name, at in args if name == f"t{number}"]
        assert own == [str(at) for at in range(50)]


def test_a_tail_reads_each_line_once_and_only_whole_ones(path: Path) -> None:
    tail = Tail(path)
    assert tail.new() == []
    ledger = Ledger(path)
    ledger.write("spawn")
    with path.open("ab") as file:
        file.write(b"x" * 10)

    assert [line.word for line in tail.new()] == ["spawn"]
    assert tail.new() == []
    ledger.close()


def test_a_torn_line_is_found(path: Path) -> None:
    ledger = Ledger(path)
    with path.open("ab") as file:
        file.write(b"1 7 begin")
    ledger.write("spawn")
    ledger.close()
    with path.open("ab") as file:
        file.write(b" " * (RECORD_BYTES - len(b"1 7 begin")))

    with pytest.raises(ValueError, match="torn"):
        read_ledger(path)


def test_a_line_that_does_not_fit_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    with pytest.raises(AssertionError, match="too long"):
        ledger.write("end", "x" * RECORD_BYTES)
    ledger.close()

    assert read_ledger(path) == []

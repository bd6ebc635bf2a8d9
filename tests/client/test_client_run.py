"""`perdure.run`: one call starts or attaches, and can be interrupted and repeated."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit import World

import perdure
from perdure import (
    InstanceAlreadyExists,
    OrchestrationContext,
    OrchestrationFailedError,
    PayloadError,
    PerdureError,
)

SCRIPT = Path(__file__).with_name("shop_script.py")
CHARGED: list[str] = []


@perdure.activity
async def charge(order: str) -> str:
    CHARGED.append(order)
    return f"paid {order}"


@perdure.orchestration
async def checkout(order: str) -> str:
    receipt, _ = await asyncio.gather(charge(order), asyncio.sleep(0.01))
    return receipt


@perdure.orchestration
async def checkout_all(ctx: OrchestrationContext, left: list[str], paid: int = 0) -> int:
    if not left:
        return paid
    await checkout(left[0])
    return await ctx.continue_as_new(left[1:], paid + 1)


@perdure.orchestration
async def failing(order: str) -> None:
    raise LookupError(order)


def test_it_runs_to_the_end_and_gives_the_result(sqlite: World) -> None:
    CHARGED.clear()
    assert perdure.run(sqlite.url, checkout, "o-1", instance_id="c") == "paid o-1"
    assert CHARGED == ["o-1"]


def test_the_same_id_gives_the_same_answer(sqlite: World) -> None:
    CHARGED.clear()
    for _ in range(3):
        assert perdure.run(sqlite.url, checkout, "o-1", instance_id="c") == "paid o-1"
    assert CHARGED == ["o-1"]


def test_it_follows_continue_as_new_to_the_end(sqlite: World) -> None:
    for _ in range(2):
        assert perdure.run(sqlite.url, checkout_all, ["a", "b", "c"], instance_id="all") == 3


def test_without_an_id_it_says_which_one_it_made(
    sqlite: World, capsys: pytest.CaptureFixture[str]
) -> None:
    perdure.run(sqlite.url, checkout, "o-1")

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("perdure: instance checkout-")
    made = said.err.split()[-1]
    assert perdure.run(sqlite.url, checkout, "o-1", instance_id=made) == "paid o-1"


def test_another_input_or_orchestration_is_refused(sqlite: World) -> None:
    perdure.run(sqlite.url, checkout, "o-1", instance_id="c")
    with pytest.raises(InstanceAlreadyExists, match="another input") as refused:
        perdure.run(sqlite.url, checkout, "o-2", instance_id="c")
    assert (refused.value.instance_id, refused.value.status) == ("c", "completed")
    with pytest.raises(InstanceAlreadyExists, match="another orchestration"):
        perdure.run(sqlite.url, failing, "o-1", instance_id="c")


def test_another_input_is_refused_after_continue_as_new_too(sqlite: World) -> None:
    perdure.run(sqlite.url, checkout_all, ["a"], instance_id="all")
    with pytest.raises(InstanceAlreadyExists):
        perdure.run(sqlite.url, checkout_all, [], instance_id="all")


def test_a_failure_is_raised_each_time(sqlite: World) -> None:
    for _ in range(2):
        with pytest.raises(OrchestrationFailedError, match="LookupError: o-1"):
            perdure.run(sqlite.url, failing, "o-1", instance_id="f")


def test_bad_input_is_refused_before_anything_is_stored(sqlite: World) -> None:
    with pytest.raises(PayloadError):
        perdure.run(sqlite.url, checkout, 5)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TypeError):
        perdure.run(sqlite.url, checkout)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TypeError, match="is not an orchestration"):
        perdure.run(sqlite.url, charge, "o-1")  # mypy sees no difference; the call does
    assert not sqlite.path.exists()


async def test_inside_a_running_loop_it_says_what_to_use(sqlite: World) -> None:
    with pytest.raises(PerdureError, match="running event loop"):
        perdure.run(sqlite.url, checkout, "o-1")


def kind_of(event: object) -> str:
    return type(event).__name__


def start_script(world: World, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), world.url, "c", what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_cleanly_and_goes_on_when_repeated(
    sqlite: World, how: signal.Signals
) -> None:
    first = start_script(sqlite, "wait")
    assert first.stdout is not None
    assert first.stdout.readline() == "charging o-1\n"
    with perdure.SyncClient(sqlite.url) as client:
        while "TimerCreated" not in map(kind_of, client.read_history("c")):
            time.sleep(0.01)
    first.send_signal(how)
    _, said = first.communicate(timeout=10)
    assert first.returncode != 0
    assert "KeyboardInterrupt" in said
    for complaint in ("never retrieved", "was destroyed", "unclosed", "Exception ignored"):
        assert complaint not in said

    second = start_script(sqlite, "wait")
    out, said = second.communicate(timeout=10)
    assert (second.returncode, out) == (0, "paid o-1\n"), said
    assert said.startswith("perdure: resuming c at event ")


@pytest.mark.slow
def test_a_killed_run_goes_on_when_repeated(sqlite: World) -> None:
    first = start_script(sqlite, "wait")
    assert first.stdout is not None
    assert first.stdout.readline() == "charging o-1\n"
    first.kill()
    first.communicate()

    second = start_script(sqlite, "wait")
    out, _ = second.communicate(timeout=10)
    assert out.endswith("paid o-1\n")


@pytest.mark.slow
def test_a_thread_that_goes_on_does_not_keep_the_process(sqlite: World) -> None:
    began = time.monotonic()
    script = start_script(sqlite, "sleepy")
    out, said = script.communicate(timeout=20)
    assert (script.returncode, out) == (0, "sleeping\nstopped\n"), said
    assert time.monotonic() - began < 10

"""Every way for a command to end has its exit code, and every error is one line."""

from __future__ import annotations

import click
import pytest

from perdure import errors
from perdure.cli.outcome import Refusal, judge, reported

taken = errors.InstanceAlreadyExists("taken", instance_id="a", status="running")
ended = errors.InstanceTerminal("ended", instance_id="a", status="completed")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZeroDivisionError("a fault"), 1),
        (errors.InternalError("a fault of ours"), 1),
        (Refusal(2, "no store given"), 2),
        (errors.InvalidName("bad"), 2),
        (errors.PayloadError("bad"), 2),
        (errors.RegistrationError("bad"), 2),
        (errors.InstanceNotFound("gone"), 3),
        (taken, 4),
        (ended, 4),
        (errors.OrchestrationFailedError("ValueError", "no", instance_id="a"), 5),
        (errors.OrchestrationFailedError("C", "", instance_id="a", status="cancelled"), 6),
        (TimeoutError("late"), 7),
        (errors.StoreUnavailable("down"), 8),
        (errors.StoreTooNew("newer"), 8),
        (errors.ProviderError("odd"), 8),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_an_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert judge(error)[0] == code


def test_an_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, reported(debug=False):
        raise Refusal(3, "there is\nnone", "look elsewhere")

    captured = capsys.readouterr()
    assert ended.value.code == 3
    assert captured.out == ""
    assert captured.err == "perdure: there is none (look elsewhere)\n"


def test_an_unexpected_error_says_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported(debug=False):
        raise ZeroDivisionError("division by zero")

    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_debug_shows_the_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported(debug=True):
        raise ZeroDivisionError("division by zero")

    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("perdure: ")


@pytest.mark.parametrize("passed", [click.UsageError("no"), click.exceptions.Exit(0)])
def test_what_click_reports_itself_is_left_to_it(passed: Exception) -> None:
    with pytest.raises(type(passed)), reported(debug=False):
        raise passed

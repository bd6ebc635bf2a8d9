"""Every number of the list of cases is a case, or is said not to apply; and the suite itself."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.testing.conformance import NOT_APPLICABLE, Conformance
from perdure.testing.conformance.kit import case_of

NUMBERS = {f"C-{number:03}" for number in range(1, 231)}
CASES_MIN = 150


def test_every_number_is_a_case_or_does_not_apply() -> None:
    cases = set(Conformance.cases())

    assert cases | set(NOT_APPLICABLE) == NUMBERS
    assert cases & set(NOT_APPLICABLE) == set()


def test_there_are_enough_cases() -> None:
    names = {name for names in Conformance.cases().values() for name in names}

    assert len(Conformance.cases()) >= CASES_MIN
    assert len(names) >= CASES_MIN


def test_a_number_that_does_not_apply_has_its_reason() -> None:
    assert [number for number, reason in NOT_APPLICABLE.items() if len(reason) < 20] == []


@pytest.mark.parametrize("name", [name for name in dir(Conformance) if name.startswith("test")])
def test_a_case_is_named_after_its_first_number(name: str) -> None:
    numbers = [number for number, names in Conformance.cases().items() if name in names]

    assert f"C-{name.removeprefix('test_c')[:3]}" in numbers


@pytest.mark.parametrize("name", [name for name in dir(Conformance) if name.startswith("test")])
def test_a_case_that_opens_the_store_anew_needs_a_durable_one(name: str) -> None:
    case = getattr(Conformance, name)
    known = case_of(case)

    assert known is not None
    if ".reopen(" in inspect.getsource(inspect.unwrap(case)):
        assert "durable" in known.needs


def test_no_case_hides_another_of_the_same_name() -> None:
    areas = [area for area in Conformance.__mro__ if area.__module__.startswith("perdure")]
    names = [name for area in areas for name in vars(area) if name.startswith("test")]

    assert len(names) == len(set(names))


def test_what_a_store_cannot_show_is_left_out_and_listed() -> None:
    class Both(Conformance):
        pass

    class Neither(Conformance, durable=False, multi_process=False):
        pass

    class Inherited(Neither):
        pass

    assert Both.left_out == {}
    assert Inherited.left_out == Neither.left_out
    assert Neither.left_out["test_c096_attempts_errors_and_due_times_are_there_after_opening_anew"]
    assert all(
        not hasattr(Neither, name) or getattr(Neither, name) is None for name in Neither.left_out
    )
    assert set(Neither.left_out) | {n for names in Neither.cases().values() for n in names} == {
        n for names in Conformance.cases().values() for n in names
    }


def test_without_pytest_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['pytest'] = None; import perdure.testing.conformance"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ran.returncode == 1
    assert "perdure.testing.conformance needs pytest" in ran.stderr


SUITE = '''
import pytest
from perdure.providers.memory import MemoryProvider, MemoryStore
from perdure.testing.conformance import Clock, Conformance, Harness

class Forgetful(MemoryProvider):
    """Loses the last event of every history."""
    async def read_history(self, *args, **fields):
        return (await super().read_history(*args, **fields))[:-1]

class TestForgetful(Conformance, durable=False):
    @pytest.fixture
    def store(self):
        clock = Clock()
        memory = MemoryStore(clock)
        return Harness(lambda: Forgetful(memory), clock)
'''


@pytest.mark.slow
def test_a_provider_with_a_fault_fails_and_is_shown_what_was_compared(tmp_path: Path) -> None:
    file = tmp_path / "test_forgetful.py"
    file.write_text(SUITE)

    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            file,
            "-k",
            "c015 or c016",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert "1 failed" in ran.stdout
    assert "test_c016_events_are_read_back_byte_for_byte" in ran.stdout
    assert "one more item" in ran.stdout or "Right contains" in ran.stdout

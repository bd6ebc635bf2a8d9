"""A suite of pytest cases that checks a provider against the whole contract.

    from perdure.testing.conformance import Clock, Conformance, Harness

    class TestMyProvider(Conformance):
        @pytest.fixture
        def store(self, tmp_path: Path) -> Harness:
            clock = Clock()
            return Harness(lambda: MyProvider(tmp_path / "store", now_ms=clock), clock)

Each case has numbers, C-001 to C-230; NOT_APPLICABLE says which numbers have none, and why.
"""

from __future__ import annotations

from pkgutil import iter_modules
from typing import ClassVar

try:
    import pytest
except ImportError as error:
    raise ImportError("perdure.testing.conformance needs pytest; pip install pytest") from error
else:
    # Before the cases are imported: their asserts are to show what they compared.
    pytest.register_assert_rewrite(*(f"{__name__}.{each.name}" for each in iter_modules(__path__)))

from perdure.testing.conformance import (
    activities,
    atomic,
    attempts,
    batches,
    control,
    deleting,
    events,
    executions,
    failures,
    fidelity,
    histories,
    leases,
    ownership,
    process,
    queries,
    starting,
    timers,
)
from perdure.testing.conformance.harness import Clock, Harness
from perdure.testing.conformance.kit import Need, case_of

__all__ = ["NOT_APPLICABLE", "Clock", "Conformance", "Harness"]

NOT_APPLICABLE: dict[str, str] = {}
"""The numbers that do not apply to Perdure or its providers, each with the reason."""

for area in (
    starting,
    histories,
    ownership,
    leases,
    atomic,
    batches,
    activities,
    attempts,
    timers,
    events,
    executions,
    control,
    deleting,
    queries,
    fidelity,
    failures,
    process,
):
    NOT_APPLICABLE.update(area.NOT_APPLICABLE)


class Conformance(
    starting.StartingCases,
    histories.HistoryCases,
    ownership.OwnershipCases,
    leases.LeaseCases,
    atomic.AtomicCases,
    batches.BatchCases,
    activities.ActivityCases,
    attempts.AttemptCases,
    timers.TimerCases,
    events.EventCases,
    executions.ExecutionCases,
    control.ControlCases,
    deleting.DeletingCases,
    queries.QueryCases,
    fidelity.FidelityCases,
    failures.FailureCases,
    process.ProcessCases,
):
    """All cases. A subclass has a fixture `store` that gives a Harness with an empty store.

    durable: what was committed is there after everything was closed and opened anew.
    multi_process: several providers can be open on one store, as in several processes.
    A subclass without one of the two has no case that needs it; `left_out` lists those.
    """

    left_out: ClassVar[dict[str, str]] = {}
    """The names of the cases that the store is not asked for, each with the reason."""

    def __init_subclass__(cls, *, durable: bool = True, multi_process: bool = True) -> None:
        super().__init_subclass__()
        flags: dict[Need, bool] = {"durable": durable, "multi_process": multi_process}
        missing = {need for need, given in flags.items() if not given}
        cls.left_out = dict(cls.left_out)
        for name in dir(cls):
            found = case_of(getattr(cls, name))
            if found is not None and found.needs & missing:
                needs = " and ".join(sorted(found.needs & missing))
                cls.left_out[name] = f"{', '.join(found.numbers)}: the store is not {needs}"
                # What is not callable is no test to pytest.
                setattr(cls, name, None)

    @classmethod
    def cases(cls) -> dict[str, list[str]]:
        """The names of the tests that show each number."""
        found: dict[str, list[str]] = {}
        for name in dir(cls):
            if (known := case_of(getattr(cls, name))) is not None:
                for number in known.numbers:
                    found.setdefault(number, []).append(name)
        return found

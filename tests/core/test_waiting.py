"""What an execution waits for is read from its history alone."""

from __future__ import annotations

import pytest

from perdure.core import events
from perdure.core.events import NULL, AnyEvent, Failure
from perdure.core.waiting import REQUESTS, SETTLES, open_requests

STARTED = events.OrchestrationStarted(1, 0, "o", "1", NULL, "i", "3.11", 1)
FAILURE = Failure("ValueError", "no")
ASKED: list[AnyEvent] = [
    events.ActivityScheduled(2, 0, "charge", NULL),
    events.TimerCreated(3, 0, 10),
    events.ExternalSubscribed(4, 0, "approved"),
    events.QueueSubscribed(5, 0, "mail"),
    events.SubOrchestrationScheduled(6, 0, "child", "c", NULL),
]
SETTLED: list[AnyEvent] = [
    events.ActivityCompleted(7, 0, 2, NULL),
    events.ActivityFailed(7, 0, 2, FAILURE),
    events.ActivityCancelled(7, 0, 2),
    events.TimerFired(7, 10, 3, 10),
    events.TimerCancelled(7, 0, 3),
    events.ExternalEvent(7, 0, 4, "approved", NULL),
    events.ExternalUnsubscribed(7, 0, 4),
    events.QueueEvent(7, 0, 5, "mail", NULL),
    events.QueueUnsubscribed(7, 0, 5),
    events.SubOrchestrationCompleted(7, 0, 6, NULL),
    events.SubOrchestrationFailed(7, 0, 6, FAILURE),
    events.SubOrchestrationCancelled(7, 0, 6),
]


def test_every_request_is_open_until_it_is_settled_oldest_first() -> None:
    detached = events.OrchestrationChained(7, 0, "other", "d", NULL)
    cancelled = events.CancelRequested(8, 0, "enough")

    assert open_requests([STARTED, *ASKED, detached, cancelled]) == ASKED


@pytest.mark.parametrize("settled", SETTLED, ids=lambda event: type(event).__name__)
def test_an_answer_or_a_withdrawal_settles_its_own_request_only(settled: AnyEvent) -> None:
    left = [asked for asked in ASKED if type(asked) is not SETTLES[type(settled)]]

    assert len(left) == len(ASKED) - 1
    assert open_requests([STARTED, *ASKED, settled]) == left


@pytest.mark.parametrize(
    "ending",
    [
        events.OrchestrationCompleted(7, 0, NULL),
        events.OrchestrationFailed(7, 0, FAILURE),
        events.OrchestrationCancelled(7, 0),
        events.OrchestrationContinuedAsNew(7, 0, NULL),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_has_ended_waits_for_nothing(ending: AnyEvent) -> None:
    assert open_requests([STARTED, *ASKED, ending]) == []


def test_an_empty_history_waits_for_nothing() -> None:
    assert open_requests([]) == []


def test_every_event_with_a_source_settles_something_and_no_other_does() -> None:
    kinds = set(events.AnyEvent.__args__)
    with_source = {kind for kind in kinds if "source_event_id" in kind.__struct_fields__}

    assert set(SETTLES) == with_source == {type(event) for event in SETTLED}
    assert set(SETTLES.values()) == set(REQUESTS) == {type(event) for event in ASKED}

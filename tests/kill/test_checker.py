"""A run without kills satisfies the checker, and each fault planted into it is caught."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from kill_checker import Effects, Execution, Instance, Seen, faults
from kill_field import Field
from kill_ledger import Line
from kill_sight import hard_kills, look, recovery_ms, takeover_ms

from perdure.core import events

pytestmark = pytest.mark.slow

INSTANCES = 54
History = list[events.AnyEvent]
changed = msgspec.structs.replace


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What a run without kills leaves."""

    async def run() -> Seen:
        async with Field(tmp_path_factory.mktemp("quiet"), seed=1) as field:
            await field.spawn(INSTANCES).finished()
        return await look(field.store, field.lines)

    return asyncio.run(run())


def test_a_run_without_kills_has_no_fault_and_repeats_nothing(quiet: Seen) -> None:
    assert faults(quiet) == []
    assert Effects(quiet.lines).repeated == 0
    assert len(quiet.instances) > INSTANCES


# How a fault is planted.


def with_instance(seen: Seen, instance_id: str, change: Callable[[Instance], Instance]) -> Seen:
    assert instance_id in {instance.instance_id for instance in seen.instances}
    return changed(
        seen,
        instances=[
            change(instance) if instance.instance_id == instance_id else instance
            for instance in seen.instances
        ],
    )


def with_history(
    seen: Seen, instance_id: str, change: Callable[[History], History], number: int = 1
) -> Seen:
    def changed_execution(execution: Execution) -> Execution:
        if execution.execution_id != number:
            return execution
        return changed(execution, history=change(list(execution.history)))

    return with_instance(
        seen,
        instance_id,
        lambda instance: changed(
            instance, executions=[changed_execution(each) for each in instance.executions]
        ),
    )


def with_event(seen: Seen, instance_id: str, kind: type[Any], **fields: Any) -> Seen:
    """Change the last event of this kind."""

    def change(history: History) -> History:
        place = last(history, kind)
        return [*history[:place], changed(history[place], **fields), *history[place + 1 :]]

    return with_history(seen, instance_id, change)


def last(history: History, kind: type[Any]) -> int:
    return max(place for place, event in enumerate(history) if isinstance(event, kind))


def renumbered(history: History) -> History:
    return [changed(event, event_id=number) for number, event in enumerate(history, 1)]


def without_last(kind: type[Any]) -> Callable[[History], History]:
    def change(history: History) -> History:
        del history[last(history, kind)]
        return renumbered(history)

    return change


def doubled(kind: type[Any]) -> Callable[[History], History]:
    def change(history: History) -> History:
        return renumbered([*history[:-1], history[last(history, kind)], history[-1]])

    return change


def swapped(one: type[Any], other: type[Any]) -> Callable[[History], History]:
    def change(history: History) -> History:
        here, there = last(history, one), last(history, other)
        history[here], history[there] = history[there], history[here]
        return renumbered(history)

    return change


def with_line(seen: Seen, word: str, *args: str, pid: int | None = None) -> Seen:
    """Add a line at the end of the ledger."""
    end = seen.lines[-1]
    line = Line(end.place + 1, end.at_ms, end.pid if pid is None else pid, word, args)
    return changed(seen, lines=[*seen.lines, line])


def with_lines(seen: Seen, change: Callable[[Line], Line]) -> Seen:
    return changed(seen, lines=[change(line) for line in seen.lines])


def instance_of(seen: Seen, instance_id: str) -> Instance:
    return next(each for each in seen.instances if each.instance_id == instance_id)


def first_key(seen: Seen, instance_id: str) -> str:
    """The idempotency key of the first activity of an instance."""
    instance = instance_of(seen, instance_id)
    scheduled = next(each for each in instance.events if isinstance(each, events.ActivityScheduled))
    return f"{instance.incarnation}/1/{scheduled.event_id}"


def worker_of(seen: Seen) -> int:
    """The process that ran the activities."""
    return next(line.pid for line in seen.lines if line.word == "begin")


def child_of(seen: Seen, instance_id: str) -> str:
    """The id of its last child."""
    history = instance_of(seen, instance_id).executions[0].history
    event = history[last(history, events.SubOrchestrationScheduled)]
    assert isinstance(event, events.SubOrchestrationScheduled)
    return event.instance


def lost(seen: Seen, instance_id: str) -> Seen:
    kept = [each for each in seen.instances if each.instance_id != instance_id]
    return changed(seen, instances=kept)


def raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


# The faults.


def a_start_lost(seen: Seen) -> Seen:
    return lost(seen, "steps-0")


def a_start_repeated(seen: Seen) -> Seen:
    seen = with_line(seen, "intent", "start", "steps-0")
    return with_line(seen, "ok", "start", "steps-0", "new")


def an_instance_too_many(seen: Seen) -> Seen:
    other = changed(instance_of(seen, "steps-0"), instance_id="steps-1000")
    return changed(seen, instances=[*seen.instances, other])


def an_instance_twice(seen: Seen) -> Seen:
    return changed(seen, instances=[*seen.instances, instance_of(seen, "steps-0")])


def another_incarnation(seen: Seen) -> Seen:
    return with_instance(seen, "steps-0", lambda each: changed(each, incarnation="f" * 32))


def a_second_completion(seen: Seen) -> Seen:
    return with_history(seen, "steps-0", doubled(events.ActivityCompleted))


def a_lost_completion(seen: Seen) -> Seen:
    return with_history(seen, "fan-1", without_last(events.ActivityCompleted))


def a_wrong_nonce(seen: Seen) -> Seen:
    return with_event(seen, "steps-0", events.ActivityCompleted, result=raw('"feedfeedfeedfeed"'))


def a_wrong_nonce_in_a_failure(seen: Seen) -> Seen:
    error = events.Failure("RuntimeError", "feedfeedfeedfeed")
    return with_event(seen, "steps-0", events.ActivityFailed, error=error)


def a_wrong_output(seen: Seen) -> Seen:
    return with_event(seen, "fan-1", events.OrchestrationCompleted, output=raw('["feed"]'))


def a_missing_event(seen: Seen) -> Seen:
    return with_history(seen, "mailbox-5", without_last(events.ExternalEvent))


def an_acknowledged_event_lost(seen: Seen) -> Seen:
    seen = with_line(seen, "intent", "event", "mailbox-5", "note", "another")
    return with_line(seen, "ok", "event", "mailbox-5", "note", "another")


def an_event_twice(seen: Seen) -> Seen:
    return with_history(seen, "mailbox-5", doubled(events.ExternalEvent))


def an_event_overtaken(seen: Seen) -> Seen:
    return with_history(seen, "echo-6", swapped(events.ExternalEvent, events.ActivityCompleted))


def an_event_of_nobody(seen: Seen) -> Seen:
    return with_event(seen, "echo-6", events.ExternalEvent, data=raw('"feed"'))


def a_letter_lost(seen: Seen) -> Seen:
    return with_line(seen, "intent", "event", "letters-9", "letter", "lost")


def a_second_begin_of_what_is_made_once(seen: Seen) -> Seen:
    instance = instance_of(seen, "steps-0")
    once = next(
        event
        for event in instance.events
        if isinstance(event, events.ActivityScheduled) and event.name == "once"
    )
    key = f"{instance.incarnation}/1/{once.event_id}"
    return with_line(seen, "begin", key, "2", "another nonce")


def a_cancel_request_lost(seen: Seen) -> Seen:
    return with_line(seen, "ok", "cancel", "steps-0")


def a_timer_that_came_early(seen: Seen) -> Seen:
    return with_event(seen, "pause-2", events.TimerFired, timestamp_ms=1)


def a_timer_of_another_time(seen: Seen) -> Seen:
    return with_event(seen, "pause-2", events.TimerFired, fire_at_ms=1)


def an_effect_before_its_timer(seen: Seen) -> Seen:
    history = instance_of(seen, "pause-2").executions[0].history
    fired = history[last(history, events.TimerFired)]
    assert isinstance(fired, events.TimerFired)
    return with_lines(seen, lambda line: replace(line, at_ms=min(line.at_ms, fired.fire_at_ms - 1)))


def an_effect_of_no_history(seen: Seen) -> Seen:
    key = f"{instance_of(seen, 'steps-0').incarnation}/1/1000"
    return with_line(seen, "begin", key, "1", "feed")


def an_effect_without_a_kill(seen: Seen) -> Seen:
    return with_line(seen, "begin", first_key(seen, "fan-1"), "2", "feed")


def an_effect_after_its_completion(seen: Seen) -> Seen:
    seen = with_line(seen, "kill", str(worker_of(seen)))
    return with_line(seen, "begin", first_key(seen, "steps-0"), "2", "feed")


def an_effect_of_a_node_that_is_back(seen: Seen) -> Seen:
    worker = worker_of(seen)
    seen = with_line(seen, "pause", str(worker))
    seen = with_line(seen, "back", "another", pid=worker)
    return with_line(seen, "begin", first_key(seen, "steps-0"), "2", "feed", pid=worker)


def an_attempt_counted_badly(seen: Seen) -> Seen:
    seen = with_line(seen, "kill", str(worker_of(seen)))
    return with_line(seen, "begin", first_key(seen, "fan-1"), "1", "feed")


def a_gap(seen: Seen) -> Seen:
    return with_event(seen, "steps-0", events.OrchestrationCompleted, event_id=1_000)


def two_endings(seen: Seen) -> Seen:
    return with_history(seen, "steps-0", doubled(events.OrchestrationCompleted))


def no_ending(seen: Seen) -> Seen:
    return with_history(seen, "steps-0", lambda history: history[:-1])


def no_beginning(seen: Seen) -> Seen:
    return with_history(seen, "steps-0", lambda history: renumbered(history[1:]))


def an_ending_of_another_kind(seen: Seen) -> Seen:
    return with_instance(
        seen,
        "steps-0",
        lambda each: changed(
            each, status="failed", executions=[changed(each.executions[0], status="failed")]
        ),
    )


def time_that_goes_back(seen: Seen) -> Seen:
    return with_event(seen, "steps-0", events.OrchestrationCompleted, timestamp_ms=1)


def an_execution_lost(seen: Seen) -> Seen:
    return with_instance(
        seen, "rounds-14", lambda each: changed(each, executions=each.executions[1:])
    )


def another_input_after_continuing(seen: Seen) -> Seen:
    other = raw('{"left":0,"got":["feed"]}')

    def change(history: History) -> History:
        return [changed(history[0], input=other), *history[1:]]

    return with_history(seen, "rounds-14", change, 2)


def values_made_up_while_continuing(seen: Seen) -> Seen:
    other = raw('{"left":0,"got":["feed"]}')
    return with_event(seen, "rounds-14", events.OrchestrationContinuedAsNew, input=other)


def a_child_lost(seen: Seen) -> Seen:
    return lost(seen, child_of(seen, "family-3"))


def a_child_with_another_result(seen: Seen) -> Seen:
    return with_event(seen, "family-3", events.SubOrchestrationCompleted, result=raw('["feed"]'))


def a_child_with_another_parent(seen: Seen) -> Seen:
    child = child_of(seen, "family-3")
    return with_event(seen, child, events.OrchestrationStarted, parent_id=1_000)


def another_result_for_the_caller(seen: Seen) -> Seen:
    return with_line(seen, "result", "steps-0", "completed", "feed")


def an_instance_unfinished(seen: Seen) -> Seen:
    return with_instance(seen, "steps-0", lambda each: changed(each, status="running"))


def a_row_left_over(seen: Seen) -> Seen:
    return changed(seen, leftovers={**seen.leftovers, "inbox": 1})


def a_damaged_file(seen: Seen) -> Seen:
    return changed(seen, integrity="row 1 missing from index")


FAULTS: dict[Callable[[Seen], Seen], str] = {
    a_start_lost: "steps-0: an acknowledged start is lost",
    a_start_repeated: "steps-0: an acknowledged start was lost and made again",
    an_instance_too_many: "steps-1000: nobody intended this instance",
    an_instance_twice: "one instance id stands for two instances",
    another_incarnation: "steps-0: execution 1 was started as another instance",
    a_second_completion: "was settled 2 times",
    a_lost_completion: "was settled 0 times",
    a_wrong_nonce: "no attempt has returned feedfeedfeedfeed",
    a_wrong_nonce_in_a_failure: "no attempt has returned feedfeedfeedfeed",
    a_wrong_output: "fan-1: its output is not what its history received",
    a_missing_event: "mailbox-5: notes sent",
    an_acknowledged_event_lost: "mailbox-5: notes sent",
    an_event_twice: "mailbox-5: notes sent",
    an_event_overtaken: "echo-6: its activity's completion has overtaken the event",
    an_event_of_nobody: "echo-6: sent back",
    a_letter_lost: "letters-9: notes sent",
    a_second_begin_of_what_is_made_once: "was begun 2 times",
    a_cancel_request_lost: "steps-0: an acknowledged cancel request is lost",
    a_timer_that_came_early: "came early",
    a_timer_of_another_time: "is not the timer that was created",
    an_effect_before_its_timer: "began before the timer's time",
    an_effect_of_no_history: "ran, and is in no history",
    an_effect_without_a_kill: "without a kill",
    an_effect_after_its_completion: "overlaps what it follows",
    an_effect_of_a_node_that_is_back: "overlaps what it follows",
    an_attempt_counted_badly: "attempt 1 follows 1",
    a_gap: "steps-0: event ids of execution 1 are not 1, 2, 3, …",
    two_endings: "steps-0: execution 1 has 2 endings, or events after it",
    no_ending: "steps-0: execution 1 has 0 endings, or events after it",
    no_beginning: "steps-0: execution 1 does not begin with its one OrchestrationStarted",
    an_ending_of_another_kind: "steps-0: execution 1 is failed, its history says otherwise",
    time_that_goes_back: "steps-0: time goes back",
    an_execution_lost: "rounds-14: its executions are not 1, 2, 3, …",
    another_input_after_continuing: "rounds-14: execution 2 got another input",
    values_made_up_while_continuing: "rounds-14: execution 1 handed on what it did not",
    a_child_lost: "family-3: its child",
    a_child_with_another_result: "family-3: it received another result than its child",
    a_child_with_another_parent: "has another parent",
    another_result_for_the_caller: "steps-0: a caller was given another result",
    an_instance_unfinished: "steps-0: it is running",
    a_row_left_over: "1 row(s) left over: inbox",
    a_damaged_file: "integrity check: row 1 missing from index",
}
"""What the checker has to say about each."""


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_caught(quiet: Seen, plant: Callable[[Seen], Seen]) -> None:
    assert FAULTS[plant] in "\n".join(faults(plant(quiet)))


def test_what_a_stopped_process_begins_before_it_notices_is_no_fault(quiet: Seen) -> None:
    worker = worker_of(quiet)
    seen = with_line(quiet, "pause", str(worker))
    seen = with_line(seen, "begin", first_key(seen, "steps-0"), "2", "feed", pid=worker)
    seen = with_line(seen, "back", "another", pid=worker)

    assert faults(seen) == []


def test_only_what_a_stopped_process_had_before_it_came_back_may_begin_elsewhere() -> None:
    lines = lines_of(
        "7 begin k/1/2 1 a",
        "1 pause 7",
        "8 begin k/1/2 2 b",
        "8 begin k/1/3 2 c",
        "7 begin k/1/3 1 d",
        "7 back another",
        "7 begin k/1/4 1 e",
    )

    assert list(Effects(lines).faults()) == []
    more = [*lines, *lines_of(*8 * ["8 begin k/1/4 2 f"])[-1:]]
    assert list(Effects(more).faults()) == ["activity k/1/4 began again at line 7, without a kill"]


# What is counted.


def lines_of(*texts: str) -> list[Line]:
    """Each "<pid> <word> <args>", ten milliseconds apart."""
    split = [text.split() for text in texts]
    return [
        Line(place, 10 * place, int(pid), word, tuple(args))
        for place, (pid, word, *args) in enumerate(split)
    ]


def test_only_a_kill_in_the_middle_of_an_activity_is_hard() -> None:
    lines = lines_of(
        "7 begin k/1/2 1 a",
        "7 end k/1/2 a",
        "1 kill 7",
        "8 begin k/1/3 1 b",
        "1 kill 8",
        "9 begin k/1/3 2 c",
        "9 begin k/1/4 1 d",
        "9 end k/1/3 c",
        "1 kill 9",
        "1 kill 10",
    )

    assert hard_kills(lines) == 2


def test_a_takeover_is_counted_from_a_death_to_the_first_activity_that_begins_again() -> None:
    lines = lines_of(
        "7 begin k/1/2 1 a",
        "7 begin k/1/3 1 b",
        "7 end k/1/3 b",
        "8 begin k/1/4 1 c",
        "1 kill 7",
        "8 begin k/1/5 1 d",
        "8 begin k/1/2 2 e",
        "1 kill 8",
        "9 begin k/1/4 2 f",
        "9 begin k/1/5 2 g",
    )

    assert takeover_ms(lines) == [20, 10]


def test_recovery_is_counted_from_the_start_of_a_worker_to_its_first_activity() -> None:
    lines = lines_of(
        "1 spawn 7",
        "7 begin k/1/2 1 a",
        "1 kill 7",
        "1 spawn 8",
        "8 ok start i old",
        "8 begin k/1/2 2 b",
        "8 begin k/1/3 1 c",
    )

    assert recovery_ms(lines) == [20]

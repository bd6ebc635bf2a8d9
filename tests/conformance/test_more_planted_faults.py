"""Planted faults in events, deletion, reads, bytes and clocks: each fails a case of the suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from test_planted_faults import Faulty, changing, run

from perdure.providers.contract import (
    ClaimInstances,
    CommitTurn,
    CompleteActivity,
    DeleteInstance,
    ImportInstances,
    InstanceRow,
    Message,
    PruneExecutions,
    ReleaseInstance,
    Retention,
    RowFilter,
    SendMessage,
    StartInstance,
)
from perdure.providers.memory import MemoryProvider, MemoryStore


class NewestFirst(Faulty):
    """Gives the items of a queue the wrong way round."""

    async def queue_items(self, *args: Any) -> list[Message]:
        return (await super().queue_items(*args))[::-1]


class SkippingPages(Faulty):
    """Leaves the first item of each further page of a queue out."""

    async def queue_items(self, key: int, queue: str, after: int, limit: int) -> list[Message]:
        return await super().queue_items(key, queue, after + 1 if after else 0, limit)


class Patterns(Faulty):
    """Takes a prefix for a pattern."""

    async def list_instances(
        self, filter: RowFilter, after: int = 0, limit: int = 100
    ) -> list[InstanceRow]:
        prefix = filter.id_prefix
        if prefix is not None:
            filter = replace(filter, id_prefix=prefix.split("%")[0])
        return await super().list_instances(filter, after, limit)


class Filtering(Faulty):
    """Does not look at one field of a filter."""

    def __init__(self, memory: MemoryStore, field: str) -> None:
        super().__init__(memory)
        self.field = field

    async def list_instances(
        self, filter: RowFilter, after: int = 0, limit: int = 100
    ) -> list[InstanceRow]:
        return await super().list_instances(replace(filter, **{self.field: None}), after, limit)


class OneLevel(Faulty):
    """Knows no grandchildren."""

    async def list_tree(self, instance_id: str) -> list[InstanceRow]:
        found = await super().list_tree(instance_id)
        return [row for row in found if row.parent_instance in (None, instance_id)]


class Open(Faulty):
    """Answers reads also after it was closed."""

    async def count_blocked(self) -> dict[str, int]:
        return {}


Anew = changing(SendMessage, lambda store, send: {"event_id": None})
"""Takes every send for something new."""


def due_early(_: MemoryStore, turn: Any) -> dict[str, Any]:
    return {"due_ms": None if turn.due_ms is None else turn.due_ms - 1}


def without_output(_: MemoryStore, turn: Any) -> dict[str, Any]:
    if turn.ending is None:
        return {}
    return {"ending": replace(turn.ending, output=turn.ending.output or None)}


def without_messages(_: MemoryStore, operation: Any) -> dict[str, Any]:
    return {"instances": tuple(replace(one, messages=()) for one in operation.instances)}


PLANTED: list[tuple[str, Callable[[MemoryStore], MemoryProvider], str]] = [
    (
        "an instance is due too early",
        changing(CommitTurn, due_early),
        "test_c101_an_instance_is_not_due_before_its_timer",
    ),
    (
        "timers stay",
        changing(CommitTurn, lambda store, turn: {"timers_gone": ()}),
        "test_c110_a_cancelled_timer_never_comes",
    ),
    (
        "queues are one",
        changing(SendMessage, lambda store, send: {"queue": send.queue and "q"}),
        "test_c114_queues_and_the_inbox_are_independent_of_each_other",
    ),
    (
        "names are folded",
        changing(SendMessage, lambda store, send: {"queue": send.queue and send.queue.lower()}),
        "test_c114_queues_and_the_inbox_are_independent_of_each_other",
    ),
    (
        "the newest first",
        NewestFirst,
        "test_c113_the_items_of_a_queue_come_in_the_order_of_their_acceptance",
    ),
    ("pages skip", SkippingPages, "test_c113_a_queue_is_read_in_pages"),
    ("event ids are forgotten", Anew, "test_c120_event_ids_are_known_across_executions"),
    ("a duplicate is new", Anew, "test_c120_a_duplicate_changes_nothing"),
    (
        "a start sends nothing",
        changing(StartInstance, lambda store, start: {"sends": ()}),
        "test_c126_a_start_and_its_first_events_are_there_together",
    ),
    (
        "a cancel request is nobody's",
        changing(SendMessage, lambda store, send: {"external": False}),
        "test_c147_a_refused_end_leaves_the_request_to_be_seen",
    ),
    (
        "the end of an execution is the end",
        changing(CommitTurn, lambda store, turn: {"retention": Retention(1)}),
        "test_c132_the_next_execution_has_its_own_input_version_and_history",
    ),
    (
        "late completions are taken",
        changing(
            CompleteActivity,
            lambda store, done: {"execution_id": store.instances[done.key].execution_id},
        ),
        "test_c135_a_late_completion_of_the_old_execution_is_refused_alone",
    ),
    (
        "pruning keeps one more",
        changing(
            PruneExecutions,
            lambda store, prune: {
                "retention": replace(prune.retention, keep_last=prune.retention.keep_last + 1)
            },
        ),
        "test_c159_pruning_touches_nothing_but_executions",
    ),
    (
        "age does not matter",
        changing(
            PruneExecutions,
            lambda store, prune: {"retention": Retention(prune.retention.keep_last)},
        ),
        "test_c155_by_age_those_go_that_ended_before",
    ),
    (
        "deletion is always forced",
        changing(DeleteInstance, lambda store, delete: {"force": True}),
        "test_c162_one_descendant_that_runs_keeps_the_whole_tree",
    ),
    (
        "deletion is never forced",
        changing(DeleteInstance, lambda store, delete: {"force": False}),
        "test_c163_force_takes_it_from_its_owner_and_its_workers",
    ),
    (
        "children have no parents",
        changing(StartInstance, lambda store, start: {"parent": None}),
        "test_c164_children_and_theirs_go_with_the_instance",
    ),
    (
        "an incarnation is not looked at",
        changing(SendMessage, lambda store, send: {"incarnation": None}),
        "test_c165_an_id_that_is_used_again_is_a_stranger_to_the_old_one",
    ),
    (
        "mail is not put in",
        changing(ImportInstances, without_messages),
        "test_c161_what_was_taken_out_before_can_be_put_in_again",
    ),
    ("prefixes are patterns", Patterns, "test_c168_filters_are_text_and_no_patterns"),
    ("there are no grandchildren", OneLevel, "test_c171_a_tree_is_the_instance_with_all_below_it"),
    (
        "empty is absent",
        changing(CommitTurn, without_output),
        "test_c183_null_and_empty_bytes_are_not_absent",
    ),
    (
        "settling is forgotten",
        changing(CommitTurn, lambda store, turn: {"settle": False}),
        "test_c193_every_claim_counts_until_a_turn_settles",
    ),
    (
        "a hold is not kept",
        changing(ReleaseInstance, lambda store, release: {"hold_ms": None}),
        "test_c198_a_blocked_instance_is_tried_again_when_its_hold_is_over",
    ),
    ("a closed store answers", Open, "test_c202_a_closed_store_says_so_everywhere"),
    (
        "versions do not matter",
        changing(
            ClaimInstances,
            lambda store, claim: {
                "capabilities": claim.capabilities | {("order", "2"), ("refund", "9")}
            },
        ),
        "test_c210_a_node_does_not_claim_what_it_cannot_run",
    ),
    (
        "work of dead nodes is done twice",
        changing(CompleteActivity, lambda store, done: {"node_id": "n-2", "attempt": 2}),
        "test_c229_a_clock_that_jumps_over_a_lease_repeats_work_and_ends_it_once",
    ),
    *(
        (
            f"{field} is not looked at",
            lambda memory, field=field: Filtering(memory, field),
            "test_c167_a_list_is_filtered_by_time_and_the_time_itself_is_outside"
            if field.endswith("_ms")
            else "test_c167_a_list_is_filtered_by_status_name_version_prefix_and_parent",
        )
        for field in RowFilter.__struct_fields__
        if field != "blocked"
    ),
]


@pytest.mark.parametrize(("fault", "provider", "case"), PLANTED, ids=lambda each: str(each))
def test_a_planted_fault_is_found(
    fault: str, provider: Callable[[MemoryStore], MemoryProvider], case: str
) -> None:
    run(case, MemoryProvider)

    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        run(case, provider)

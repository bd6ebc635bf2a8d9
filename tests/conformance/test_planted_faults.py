"""The suite finds providers that break the contract: each planted fault fails a case."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    Committed,
    CommitTurn,
    CompleteActivity,
    NoteBlocked,
    Operation,
    Outcome,
    ReleaseInstance,
    RetryActivity,
    SendMessage,
    StartInstance,
)
from perdure.providers.memory import MemoryProvider, MemoryStore
from perdure.testing.conformance import Clock, Conformance, Harness


class Suite(Conformance, durable=False):
    pass


class Faulty(MemoryProvider):
    """Changes operations on their way to the store. The store is its `memory`."""

    def __init__(self, memory: MemoryStore) -> None:
        super().__init__(memory)
        self.memory = memory

    def change(self, operation: Any) -> Operation:
        unchanged: Operation = operation
        return unchanged

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        return super().commit([self.change(operation) for operation in batch])


def changing(kind: type[Any], change: Callable[[MemoryStore, Any], dict[str, Any]]) -> type[Faulty]:
    """A provider that replaces fields of every operation of one kind."""

    class Changing(Faulty):
        def change(self, operation: Any) -> Operation:
            if isinstance(operation, kind):
                changed: Operation = replace(operation, **change(self.memory, operation))
                return changed
            return super().change(operation)

    return Changing


def current(store: MemoryStore, turn: Any, field: str) -> Any:
    """What the instance of a turn has now, if there is one."""
    instance = store.instances.get(turn.key)
    return getattr(turn, field) if instance is None else getattr(instance, field)


def attempt(store: MemoryStore, done: CompleteActivity) -> int:
    activity = store.instances[done.key].activities.get((done.execution_id, done.event_id))
    return done.attempt if activity is None else activity.attempt


class OneByOne(Faulty):
    """No transaction, and the order of the list."""

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        return self._each(batch)

    async def _each(self, batch: Sequence[Operation]) -> list[Outcome]:
        return [(await MemoryProvider.commit(self, [operation]))[0] for operation in batch]


class Uncounted(Faulty):
    """Never says what was dropped."""

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        return self._uncounted(batch)

    async def _uncounted(self, batch: Sequence[Operation]) -> list[Outcome]:
        outcomes = await MemoryProvider.commit(self, batch)
        return [replace(o, dropped=0) if isinstance(o, Committed) else o for o in outcomes]


class Skipping(Faulty):
    """Leaves the first event of each further page out."""

    async def read_history(self, *args: Any, **fields: Any) -> list[bytes]:
        found = await super().read_history(*args, **fields)
        return found[1:] if fields.get("after") else found


class AlwaysAlive(Faulty):
    """Says that every node is known."""

    def beat(self, node_id: str) -> bool:
        return super().beat(node_id) or True


class NeverLost(Faulty):
    """Tells nobody that an activity was withdrawn."""

    async def lost_activities(self, *args: Any) -> list[tuple[int, int, int]]:
        return []


PLANTED: list[tuple[str, type[Faulty], str]] = [
    (
        "a token is not looked at",
        changing(CommitTurn, lambda store, turn: {"token": current(store, turn, "token") or "-"}),
        "test_c038_the_token_of_an_earlier_acquisition_by_the_same_node_is_fenced",
    ),
    (
        "an execution is not looked at",
        changing(
            CommitTurn, lambda store, turn: {"execution_id": current(store, turn, "execution_id")}
        ),
        "test_c020_only_the_current_execution_is_appended_to",
    ),
    (
        "unseen events do not matter",
        changing(CommitTurn, lambda store, turn: {"external_seen": None}),
        "test_c055_a_turn_that_has_not_seen_an_external_message_is_behind",
    ),
    (
        "unseen mail does not matter",
        changing(CommitTurn, lambda store, turn: {"mail_seen": current(store, turn, "mail")}),
        "test_c055_a_message_that_comes_while_the_instance_is_held_is_seen_by_its_owner",
    ),
    (
        "an attempt is not looked at",
        changing(CompleteActivity, lambda store, done: {"attempt": attempt(store, done)}),
        "test_c081_a_completion_by_another_claim_is_stale",
    ),
    (
        "a retry does not wait",
        changing(RetryActivity, lambda store, retry: {"due_ms": store.now_ms()}),
        "test_c082_a_failed_attempt_is_given_back_until_its_next_is_due",
    ),
    (
        "a retry forgets the error",
        changing(RetryActivity, lambda store, retry: {"error": b""}),
        "test_c082_a_failed_attempt_is_given_back_until_its_next_is_due",
    ),
    ("no transaction", OneByOne, "test_c069_a_fault_at_any_place_of_a_batch_undoes_all_of_it"),
    (
        "the order of the list",
        OneByOne,
        "test_c010_an_event_sent_right_after_the_start_comes_with_its_acquisition",
    ),
    (
        "a claim takes what the node cannot run",
        changing(
            ClaimInstances,
            lambda store, claim: {"capabilities": claim.capabilities | {("refund", "2")}},
        ),
        "test_c031_only_what_the_node_can_run_is_claimed",
    ),
    (
        "a claim has no limit",
        changing(ClaimInstances, lambda store, claim: {"limit": 1_000}),
        "test_c031_the_oldest_due_come_first_up_to_the_limit",
    ),
    (
        "a claim of activities has no limit",
        changing(ClaimActivities, lambda store, claim: {"limit": 1_000}),
        "test_c093_a_claim_takes_each_once_and_no_more_than_its_limit",
    ),
    (
        "suspects are claimed with the others",
        changing(ClaimActivities, lambda store, claim: {"alone": True}),
        "test_c076_the_oldest_due_are_claimed_first_across_names",
    ),
    (
        "drops are not counted",
        Uncounted,
        "test_c071_a_message_that_reaches_nobody_is_counted_and_no_failed_commit",
    ),
    (
        "ids are folded",
        changing(StartInstance, lambda store, start: {"instance_id": start.instance_id.casefold()}),
        "test_c013_ids_are_compared_by_bytes",
    ),
    (
        "bytes are cleaned up",
        changing(CommitTurn, lambda store, turn: {"events": tuple(map(bytes.strip, turn.events))}),
        "test_c016_events_are_read_back_byte_for_byte",
    ),
    ("pages skip", Skipping, "test_c024_pages_of_every_size_hold_together"),
    (
        "a release charges",
        changing(ReleaseInstance, lambda store, release: {"charge": True}),
        "test_c054_giving_back_uncharged_restores_the_attempt_but_never_below_zero",
    ),
    (
        "a release forgets why",
        changing(ReleaseInstance, lambda store, release: {"blocked": None}),
        "test_c053_a_blocked_instance_shows_why_and_is_held",
    ),
    (
        "a note is lost",
        changing(NoteBlocked, lambda store, note: {"keys": ()}),
        "test_c053_a_note_shows_why_unowned_open_instances_wait_and_no_more",
    ),
    (
        "nodes are always known",
        AlwaysAlive,
        "test_c044_a_node_that_was_taken_over_or_is_unknown_cannot_beat",
    ),
    (
        "withdrawals are not told",
        NeverLost,
        "test_c087_who_runs_a_withdrawn_activity_is_told_and_its_result_refused",
    ),
    (
        "a taken child is not told",
        changing(StartInstance, lambda store, start: {"if_taken": None}),
        "test_c002_whom_it_concerns_is_told_only_when_the_id_is_taken",
    ),
    (
        "messages are not consumed",
        changing(CommitTurn, lambda store, turn: {"consumed": ()}),
        "test_c066_consumed_messages_go_and_the_others_stay",
    ),
    (
        "activities are not withdrawn",
        changing(CommitTurn, lambda store, turn: {"activities_gone": ()}),
        "test_c064_the_withdrawal_of_activities_and_timers",
    ),
    (
        "queue items go to the inbox",
        changing(SendMessage, lambda store, send: {"queue": None}),
        "test_c031_a_claim_brings_the_instance_with_its_mail_and_timers",
    ),
    (
        "nothing is given back",
        changing(CommitTurn, lambda store, turn: {"release": False}),
        "test_c068_a_turn_without_events_gives_the_instance_back",
    ),
]


def run(case: str, provider: Callable[[MemoryStore], MemoryProvider]) -> None:
    clock = Clock()
    memory = MemoryStore(clock)
    getattr(Suite(), case)(Harness(lambda: provider(memory), clock))


@pytest.mark.parametrize(("fault", "provider", "case"), PLANTED, ids=lambda each: str(each))
def test_a_planted_fault_is_found(fault: str, provider: type[Faulty], case: str) -> None:
    run(case, MemoryProvider)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run(case, provider)

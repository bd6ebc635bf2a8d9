"""Promises that hold for every orchestration, tried on random ones."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import pytest
from driver import Mode, World, lines, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import EVENTS, FAILS, interpret, programs

from perdure.core import events, work
from perdure.core.execution import Execution, Turn
from perdure.core.journal import TurnRefused

STEPS_MAX = 60
seeds = st.integers(0, 1_000)
tried = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Chances:
    """Decides, from one seed, what the world does next: what comes, and how much of it at once."""

    def __init__(self, seed: int, most_at_once: int = 1) -> None:
        self._random = random.Random(seed)
        self._most = most_at_once
        self._cancel_at = self._random.choice([None, None, self._random.randrange(6)])
        self._answered: list[work.AnyWorkItem] = []
        self._steps = 0

    def next(self, world: World) -> list[work.AnyWorkItem]:
        """The next messages for this world; none if it has nothing more to wait for."""
        chance = self._random
        items: list[work.AnyWorkItem] = []
        left = list(world.open)
        for _ in range(chance.randint(1, self._most)):
            self._steps += 1
            if self._steps == self._cancel_at:
                items.append(work.CancelInstance("by chance"))
            elif chance.random() < 0.1:
                items.append(work.ExternalRaised(chance.choice(EVENTS), msgspec.Raw(b'"stray"')))
            elif chance.random() < 0.1:
                items.append(world.item(chance.choice(EVENTS), "stray"))
            elif self._answered and chance.random() < 0.1:
                items.append(chance.choice(self._answered))
            elif left:
                items.append(self._answer(world, left.pop(chance.randrange(len(left)))))
        return items

    def _answer(self, world: World, source: int) -> work.AnyWorkItem:
        event = world.open[source]
        if isinstance(event, events.TimerCreated):
            world.now_ms = max(world.now_ms, event.fire_at_ms)
            item: work.AnyWorkItem = world.firing(source)
        elif isinstance(event, events.ExternalSubscribed):
            return work.ExternalRaised(event.name, msgspec.Raw(b'"raised"'))
        elif isinstance(event, events.QueueSubscribed):
            return world.item(event.name, "enqueued")
        elif FAILS in str(world.input_of(source)):
            item = world.failure(source)
        else:
            item = world.completion(source, world.input_of(source))
        self._answered.append(item)
        return item


def play(program: Any, seed: int, mode: Mode = Mode.RESIDENT, most_at_once: int = 1) -> World:
    """Run a program to its end, or until it waits for nothing, or long enough."""
    world = World(interpret, program, mode=mode)
    chances = Chances(seed, most_at_once)
    world.start()
    for _ in range(STEPS_MAX):
        world.now_ms += 10
        kept = renewed(world)
        items = [*kept, *chances.next(world)] if world.ending is None else []
        if not items:
            break
        world.step(*items)
    world.close()
    return world


def renewed(world: World) -> list[work.AnyWorkItem]:
    """Go on after ContinueAsNew; returns the messages that stay for the new execution."""
    if not isinstance(world.ending, events.OrchestrationContinuedAsNew):
        return []
    kept: list[work.AnyWorkItem] = [item for item in world.unread if isinstance(item, KEPT)]
    world.next_execution()
    world.step()
    return kept


KEPT = (work.ExternalRaised, work.EventEnqueued, work.CancelInstance)


def histories(world: World) -> list[list[events.AnyEvent]]:
    return [*world.earlier, world.history]


def all_lines(world: World) -> list[list[str]]:
    return [lines(history) for history in histories(world)]


def execution_of(world: World, number: int) -> Execution:
    other = World(interpret, [], instance_id=world.instance_id)
    other.execution_id = number
    return other.fresh()


@given(programs, seeds)
@tried
def test_how_an_execution_is_kept_makes_no_difference(program: Any, seed: int) -> None:
    resident, evicted, checked = (play(program, seed, mode) for mode in Mode)

    assert all_lines(evicted) == all_lines(resident)
    assert all_lines(checked) == all_lines(resident)
    assert [world.dropped for world in (evicted, checked)] == [resident.dropped] * 2


@given(programs, seeds)
@tried
def test_every_history_replays(program: Any, seed: int) -> None:
    world = play(program, seed)
    for number, history in enumerate(histories(world), 1):
        execution = execution_of(world, number)
        execution.replay(stored(history))
        assert execution.length == len(history)
        assert execution.ended == isinstance(history[-1], events.ENDINGS)
        assert execution.close() == 0


def message_of(event: events.AnyEvent, execution_id: int) -> work.AnyWorkItem:
    """The message that a recorded stimulus came from."""
    match event:
        case events.ActivityCompleted(source_event_id=source, result=result):
            return work.ActivityCompleted(execution_id, source, result)
        case events.ActivityFailed(source_event_id=source, error=error):
            return work.ActivityFailed(execution_id, source, error)
        case events.TimerFired(source_event_id=source, fire_at_ms=fire_at_ms):
            return work.TimerFired(execution_id, source, fire_at_ms)
        case events.ExternalEvent(name=name, data=data):
            return work.ExternalRaised(name, data)
        case events.QueueEvent(name=name, data=data):
            return work.EventEnqueued(name, data, event.event_id)
        case events.SubOrchestrationCompleted(source_event_id=source, result=result):
            return work.SubOrchCompleted(execution_id, source, result)
        case events.SubOrchestrationFailed(source_event_id=source, error=error):
            return work.SubOrchFailed(execution_id, source, error)
        case events.CancelRequested(reason=reason):
            return work.CancelInstance(reason)
    raise AssertionError(event)


@given(programs, seeds)
@tried
def test_from_every_turn_on_a_replayed_execution_goes_on_as_recorded(
    program: Any, seed: int
) -> None:
    world = play(program, seed)
    for number, history in enumerate(histories(world), 1):
        cuts = [n for n in range(1, len(history)) if isinstance(history[n], events.STIMULI)]
        for cut, end in itertools.pairwise([*cuts, len(history)]):
            execution = execution_of(world, number)
            execution.replay(stored(history[:cut]))
            # Where nothing was decided at first, the first turn is taken for one to come.
            turn = execution.step([message_of(history[cut], number)], history[cut].timestamp_ms)
            assert lines(turn.events) == lines(history[cut:end])
            assert (turn.taken, turn.dropped) == (1, {})
            execution.close()


def one_at_a_time(program: Any, batched: World, late_ms: int = 0) -> World:
    """Another world that gets what a world took, in the same order, one message a turn.

    late_ms: how much later each comes than the one before, at least.
    """
    world = World(interpret, program)
    world.start()
    for now_ms, item in batched.delivered:
        world.now_ms = max(world.now_ms + late_ms, now_ms)
        renewed(world)
        world.step(at_its_time(world, item))
    renewed(world)
    world.close()
    return world


def at_its_time(world: World, item: work.AnyWorkItem) -> work.AnyWorkItem:
    """A timer's message with the time that this history gave it."""
    if not isinstance(item, work.TimerFired) or item.execution_id != world.execution_id:
        return item
    timer = world.history[item.source_event_id - 1]
    assert isinstance(timer, events.TimerCreated)
    return msgspec.structs.replace(item, fire_at_ms=timer.fire_at_ms)


@given(programs, seeds)
@tried
def test_how_messages_are_batched_makes_no_difference(program: Any, seed: int) -> None:
    batched = play(program, seed, most_at_once=4)

    assert all_lines(one_at_a_time(program, batched)) == all_lines(batched)


@given(programs, seeds)
@tried
def test_when_messages_come_makes_no_difference_but_to_times(program: Any, seed: int) -> None:
    batched = play(timeless(program), seed, most_at_once=4)
    single = one_at_a_time(timeless(program), batched, late_ms=7)

    assert [[timeless_line(event) for event in history] for history in histories(single)] == [
        [timeless_line(event) for event in history] for history in histories(batched)
    ]


def timeless(program: Any) -> Any:
    """The program without the statements whose decisions depend on the time of day."""
    if isinstance(program, list | tuple):
        return [timeless(part) for part in program if part != ["told", "now"]]
    return program


def timeless_line(event: events.AnyEvent) -> Any:
    fields = msgspec.json.decode(events.encode(event))
    fields.pop("timestamp_ms")
    if isinstance(event, events.TimerCreated):
        fields["fire_at_ms"] -= event.timestamp_ms
    elif isinstance(event, events.TimerFired):
        fields.pop("fire_at_ms")
    return fields


# Damage.


def damaged(history: Sequence[events.AnyEvent], chance: random.Random) -> list[events.AnyEvent]:
    """The history with one thing wrong, and its ids in order again in half of the cases."""
    found = list(history)
    at = chance.randrange(len(found))
    kind = chance.choice(["drop", "swap", "repeat", "field", "strange"])
    if kind == "drop":
        del found[at]
    elif kind == "swap":
        other = chance.randrange(len(found))
        found[at], found[other] = found[other], found[at]
    elif kind == "repeat":
        found.insert(chance.randrange(len(found) + 1), found[at])
    elif kind == "strange":
        strange: list[events.AnyEvent] = [
            events.CancelRequested(at + 1, 0, "strange"),
            events.ParentLinked(at + 1, 0, "parent", 1),
            events.TimerFired(at + 1, 0, chance.randrange(9), 0),
            events.OrchestrationCompleted(at + 1, 0, events.NULL),
        ]
        found[at] = chance.choice(strange)
    else:
        found[at] = changed(found[at], chance)
    if chance.random() < 0.5:
        found = [msgspec.structs.replace(event, event_id=n) for n, event in enumerate(found, 1)]
    return found


def changed(event: events.AnyEvent, chance: random.Random) -> events.AnyEvent:
    field = chance.choice(event.__struct_fields__)
    value: Any = getattr(event, field)
    if isinstance(value, int):
        value += chance.choice([-1, 1, 1_000])
    elif isinstance(value, str):
        value += "?"
    elif isinstance(value, msgspec.Raw):
        value = msgspec.Raw(chance.choice([b"null", b'"?"', b"[1,2]", b"{}"]))
    return msgspec.structs.replace(event, **{field: value})


@given(programs, seeds, st.integers(0, 1_000_000))
@tried
def test_a_damaged_history_is_refused_or_replays_but_never_hangs(
    program: Any, seed: int, damage: int
) -> None:
    world = play(program, seed)
    chance = random.Random(damage)
    for _ in range(5):
        history = damaged(world.history, chance)
        execution = execution_of(world, world.execution_id)
        with contextlib.suppress(TurnRefused):
            execution.replay(history)
        assert execution.close() == 0


# The programs themselves.


def test_programs_reach_every_kind_of_event() -> None:
    reached: set[str] = set()

    @given(programs, seeds)
    @tried
    def collect(program: Any, seed: int) -> None:
        for history in histories(play(program, seed)):
            reached.update(type(event).__name__ for event in history)

    collect()
    everything = {kind.__name__ for kind in get_args(events.AnyEvent)}

    assert everything - reached <= {"ParentLinked"}


@pytest.mark.parametrize("mode", Mode)
def test_a_turn_that_continues_leaves_what_it_did_not_read(mode: Mode) -> None:
    world = World(interpret, [["renew"]], mode=mode)
    turn: Turn = world.start()

    assert turn.ending is not None
    assert turn.taken == 0

"""What each row of a batch does, in SQL.

A batch of operations is one `insert into batch values (...), (...), ...`. `batch` is a view of the
connection's own (temporary, so no part of the file's format); its triggers carry out one row after
the other. One statement is one transaction, one release of the GIL, and exactly the order of the
rows: what a row sees is what the rows before it left.

Columns: `op` (the operation's place in the batch), `kind`, `key`, `execution_id`, `n`, `now`
(milliseconds) and `a` to `i`, whose meaning depends on the kind and stands at each trigger.

Whatever a caller must be told goes to `notes` (op, sub, what, value): sub -1 says that the whole
operation is refused, and its further rows then do nothing; -2 counts dropped messages; 0, 1, ...
are the starts and sends of the operation. An `op` of -1 asks for no notes: whatever would be noted
then undoes the statement.
"""

from __future__ import annotations

import apsw

from perdure.providers.contract import EVENT_IDS_KEPT
from perdure.providers.sqlite.packing import HEX_INSTANCE

COLUMNS = (*("op", "kind", "key", "execution_id", "n"), *"abcdefghi", "now")

TURN = 1
EVENT = 2
CONSUMED = 3
ACTIVITY_GONE = 4
TIMER_GONE = 5
ACTIVITY = 6
TIMER = 7
START = 8
PARENT = 9
SEND = 10
STATE = 11
ENDING = 12
NEXT = 13
COMPLETE_ACTIVITY = 14
RELEASE_ACTIVITY = 15
RELEASE_INSTANCE = 16
NOTE_BLOCKED = 17
PRUNE = 18
ENQUEUE = 19
RETRY_ACTIVITY = 20
RENEW = 21
PRUNE_OLDER = 22

_ACCEPTED = "not exists (select 1 from notes where op = new.op and sub = -1)"
_ITEM = "key = new.key and execution_id = new.execution_id and event_id = new.n"
_CLAIMED = f"{_ITEM} and owner = new.a and attempt = new.b"
_DUE_NOW = "min(coalesce(due_ms, 9223372036854775807), max(new.now, coalesce(hold_ms, 0)))"

_GONE = """
    where key = coalesce(new.key, (select key from instances where instance_id = new.a))
        and execution_id <= new.b + (
            select execution_id from instances
            where key = coalesce(new.key, (select key from instances where instance_id = new.a))
        )
        and ended_ms is not null and (new.c is null or ended_ms < new.c)
"""

_TRIGGERS: dict[int, str] = {
    # a token, b external_seen, c and d the first two events, n the id of the first, e an activity
    # that is gone, f to i a new activity: id, name, input, owner. So the turns of an orchestration
    # that calls one activity after the other are a row each.
    TURN: f"""
insert into notes (op, sub, what)
    select new.op, -1, coalesce((
        select 'behind' from instances
        where key = new.key and token = new.a and execution_id = new.execution_id
    ), 'fenced')
    where not exists (
        select 1 from instances
        where key = new.key and token = new.a and execution_id = new.execution_id
            and (new.b is null or external = new.b)
    );
delete from activities
    where key = new.key and execution_id = new.execution_id and event_id = new.e and {_ACCEPTED};
insert into history (key, execution_id, event_id, data)
    select new.key, new.execution_id, new.n, new.c where new.c is not null and {_ACCEPTED};
insert into history (key, execution_id, event_id, data)
    select new.key, new.execution_id, new.n + 1, new.d where new.d is not null and {_ACCEPTED};
insert into activities
    (key, execution_id, event_id, name, input, owner, attempt, claims, due_ms)
    select new.key, new.execution_id, new.f, new.g, new.h, new.i,
        new.i is not null, new.i is not null, new.now
    where new.f is not null and {_ACCEPTED};
""",
    # n event id, a data
    EVENT: """
insert into history (key, execution_id, event_id, data)
    values (new.key, new.execution_id, new.n, new.a);
""",
    # n seq
    CONSUMED: "delete from inbox where seq = new.n and key = new.key;",
    # n event id
    ACTIVITY_GONE: f"delete from activities where {_ITEM};",
    # n event id
    TIMER_GONE: f"delete from timers where {_ITEM};",
    # n event id, a name, b input, c owner, d options
    ACTIVITY: """
insert into activities
    (key, execution_id, event_id, name, input, owner, attempt, claims, due_ms, options)
    values (new.key, new.execution_id, new.n, new.a, new.b, new.c,
        new.c is not null, new.c is not null, new.now, new.d);
""",
    # n event id, a fire_at_ms
    TIMER: """
insert into timers (key, execution_id, event_id, fire_at_ms)
    values (new.key, new.execution_id, new.n, new.a);
""",
    # key or none, n sub, a instance id, b incarnation, c name, d version, e input, f nesting,
    # g owner, h token
    START: f"""
insert into notes (op, sub, what, value)
    select new.op, new.n, 'taken', {HEX_INSTANCE}
    from instances as i join executions as e on e.key = i.key and e.execution_id = i.execution_id
    where i.instance_id = new.a;
insert into instances
    (key, instance_id, incarnation, name, version, status, execution_id, nesting, created_ms,
     owner, token, attempt, due_ms, mail, external)
    select new.key, new.a, new.b, new.c, new.d, 'pending', 1, new.f, new.now,
        new.g, new.h, new.g is not null, new.now, 0, 0
    where not exists (select 1 from notes where op = new.op and sub = new.n);
insert into notes (op, sub, what, value)
    select new.op, new.n, 'started', key from instances
    where new.op >= 0 and instance_id = new.a
        and not exists (select 1 from notes where op = new.op and sub = new.n);
insert into executions (key, execution_id, version, status, input, started_ms)
    select value, 1, new.d, 'pending', new.e, new.now from notes
    where op = new.op and sub = new.n and what = 'started'
    union all
    select new.key, 1, new.d, 'pending', new.e, new.now where new.op < 0;
""",
    # n sub, a instance id, b incarnation, c execution id, d event id
    PARENT: """
update instances
    set parent_instance = new.a, parent_incarnation = new.b,
        parent_execution = new.c, parent_event = new.d
    where key = (
        select value from notes where op = new.op and sub = new.n and what = 'started'
    );
""",
    # n sub, a instance id, b incarnation, c body, d external, e sub of the start whose id must
    # have been taken for this to be sent
    SEND: f"""
insert into notes (op, sub, what, value)
    select new.op, new.n,
        case when key is null then 'missing' when finished_ms is null then 'sent' else status end,
        key
    from (select 1) left join instances
        on instance_id = new.a and (new.b is null or incarnation = new.b)
    where new.e is null
        or exists (select 1 from notes where op = new.op and sub = new.e and what = 'taken');
insert into inbox (key, accepted_ms, body)
    select value, new.now, new.c from notes
    where op = new.op and sub = new.n and what = 'sent';
update instances
    set mail = mail + 1, external = external + new.d, due_ms = {_DUE_NOW}
    where key = (select value from notes where op = new.op and sub = new.n and what = 'sent');
""",
    # n sub, a instance id, b incarnation, c body, d external, e sub of the start that this depends
    # on, f queue, g event id, h what that start must have noted ("started" or "taken")
    ENQUEUE: f"""
insert into notes (op, sub, what, value)
    select new.op, new.n, case
        when key is null then 'missing'
        when finished_ms is not null then status
        when exists (
            select 1 from event_ids where event_ids.key = found.key and event_id = new.g
        ) then 'duplicate'
        else 'sent' end, key
    from (select 1) left join (select key, finished_ms, status from instances
        where instance_id = new.a and (new.b is null or incarnation = new.b)) as found
    where new.e is null
        or exists (select 1 from notes where op = new.op and sub = new.e and what = new.h);
insert into event_ids (key, event_id, number)
    select value, new.g,
        1 + coalesce((select max(number) from event_ids where event_ids.key = value), 0)
    from notes where op = new.op and sub = new.n and what = 'sent' and new.g is not null;
delete from event_ids
    where new.g is not null and (key, number) in (
        select value, (select max(number) from event_ids where key = value) - {EVENT_IDS_KEPT}
        from notes where op = new.op and sub = new.n and what = 'sent'
    );
insert into inbox (key, accepted_ms, body, queue)
    select value, new.now, new.c, new.f from notes
    where op = new.op and sub = new.n and what = 'sent';
update instances
    set mail = mail + 1, external = external + new.d, queued = queued + (new.f is not null),
        due_ms = {_DUE_NOW}
    where key = (select value from notes where op = new.op and sub = new.n and what = 'sent');
""",
    # a version, b settle, c set_due, d due_ms, e mail_seen, f release
    STATE: """
update executions set version = new.a, status = 'running'
    where key = new.key and execution_id = new.execution_id and new.a is not null;
update instances
    set version = coalesce(new.a, version),
        status = iif(new.a is null, status, 'running'),
        attempt = iif(new.b, 0, attempt),
        blocked = iif(new.b, null, blocked),
        blocked_detail = iif(new.b, null, blocked_detail),
        hold_ms = iif(new.b, null, hold_ms),
        due_ms = iif(new.c and mail = new.e, new.d, due_ms),
        owner = iif(new.f, null, owner),
        token = iif(new.f, null, token)
    where key = new.key;
""",
    # a status of the execution, b output, c error, d status of the instance if it ends too
    ENDING: """
update executions set status = new.a, output = new.b, error = new.c, ended_ms = new.now
    where key = new.key and execution_id = new.execution_id;
delete from activities where key = new.key and execution_id = new.execution_id;
delete from timers where key = new.key and execution_id = new.execution_id;
insert into notes (op, sub, what, value)
    select new.op, -2, 'dropped', count(*) from inbox
    where key = new.key and new.d is not null having count(*) > 0;
delete from inbox where key = new.key and new.d is not null;
delete from event_ids where key = new.key and new.d is not null;
update instances
    set status = new.d, finished_ms = new.now, owner = null, token = null, due_ms = null
    where key = new.key and new.d is not null;
""",
    # execution_id the new one, a version, b input, c first event
    NEXT: """
insert into executions (key, execution_id, version, status, input, started_ms)
    values (new.key, new.execution_id, new.a, 'running', new.b, new.now);
insert into history (key, execution_id, event_id, data)
    values (new.key, new.execution_id, 1, new.c);
update instances
    set execution_id = new.execution_id, version = new.a, status = 'running'
    where key = new.key;
""",
    # STATE, ENDING and NEXT in one, for an execution that continues as new: n it, execution_id the
    # new one, a version, b input, c first event, d version of the old one if this is its first
    # turn, e settle, f set_due, g due_ms, h mail_seen, i release. What is indexed has statements of
    # its own: each page less that is written counts at the sync.
    RENEW: """
update executions
    set version = coalesce(new.d, version), status = 'continued_as_new', ended_ms = new.now
    where key = new.key and execution_id = new.n;
delete from activities where key = new.key and execution_id = new.n;
delete from timers where key = new.key and execution_id = new.n;
insert into executions (key, execution_id, version, status, input, started_ms)
    values (new.key, new.execution_id, new.a, 'running', new.b, new.now);
insert into history (key, execution_id, event_id, data)
    values (new.key, new.execution_id, 1, new.c);
update instances
    set execution_id = new.execution_id, version = new.a, status = 'running',
        attempt = iif(new.e, 0, attempt),
        blocked = iif(new.e, null, blocked),
        blocked_detail = iif(new.e, null, blocked_detail),
        hold_ms = iif(new.e, null, hold_ms)
    where key = new.key;
update instances set due_ms = new.g where new.f and key = new.key and mail = new.h;
update instances set owner = null, token = null where new.i and key = new.key;
""",
    # b the newest of the executions that go; all of them have ended
    PRUNE_OLDER: """
delete from history where key = new.key and execution_id <= new.b;
delete from executions where key = new.key and execution_id <= new.b;
""",
    # n event id, a owner, b attempt, c body
    COMPLETE_ACTIVITY: f"""
insert into notes (op, sub, what)
    select new.op, -1, 'stale' where not exists (select 1 from activities where {_CLAIMED});
insert into inbox (key, accepted_ms, body)
    select new.key, new.now, new.c from activities where {_CLAIMED};
update instances set mail = mail + 1, due_ms = {_DUE_NOW}
    where key = new.key and exists (select 1 from activities where {_CLAIMED});
delete from activities where {_CLAIMED};
""",
    # n event id, a owner, b attempt
    RELEASE_ACTIVITY: f"""
insert into notes (op, sub, what)
    select new.op, -1, 'stale' where not exists (select 1 from activities where {_CLAIMED});
update activities set owner = null, attempt = attempt - 1, claims = max(claims - 1, 0)
    where {_CLAIMED};
""",
    # n event id, a owner, b attempt, c due_ms, d error
    RETRY_ACTIVITY: f"""
insert into notes (op, sub, what)
    select new.op, -1, 'stale' where not exists (select 1 from activities where {_CLAIMED});
update activities set owner = null, claims = 0, due_ms = new.c, error = new.d where {_CLAIMED};
""",
    # a token, b mail_seen, c due_ms, d charge, e blocked, f detail, g hold_ms
    RELEASE_INSTANCE: """
insert into notes (op, sub, what)
    select new.op, -1, 'fenced'
    where not exists (select 1 from instances where key = new.key and token = new.a);
update instances
    set owner = null, token = null,
        attempt = iif(new.d, attempt, max(attempt - 1, 0)),
        blocked = coalesce(new.e, blocked),
        blocked_detail = iif(new.e is null, blocked_detail, new.f),
        hold_ms = coalesce(new.g, hold_ms),
        due_ms = coalesce(new.g, iif(mail = new.b, new.c, due_ms))
    where key = new.key and token = new.a;
""",
    # key, or a instance id; b minus the number of executions kept, c ended before
    PRUNE: f"""
insert into notes (op, sub, what, value)
    select new.op, 0, 'pruned', json_array(
        (select count(*) from executions {_GONE}),
        (select count(*) from history where (key, execution_id) in
            (select key, execution_id from executions {_GONE})))
    where new.key is null and exists (select 1 from instances where instance_id = new.a);
delete from history where (key, execution_id) in
    (select key, execution_id from executions {_GONE});
delete from executions {_GONE};
""",
    # a reason, b detail
    NOTE_BLOCKED: """
update instances set blocked = new.a, blocked_detail = new.b
    where key = new.key and owner is null and finished_ms is null;
""",
}


def prepare(connection: apsw.Connection) -> None:
    """Give a writing connection its `notes`, its `batch` and the triggers."""
    # Another process may have made the tables since this connection last read the schema. SQLite
    # finds that out when a statement names a missing table, but not when a trigger does.
    connection.execute("select 1 from instances limit 0").fetchall()
    columns = ", ".join(f"null as {name}" for name in COLUMNS)
    connection.execute(
        "create temp table notes (op integer check (op >= 0), sub integer, what text, value, "
        f"primary key (op, sub)) without rowid; create temp view batch as select {columns}"
    )
    for kind, body in _TRIGGERS.items():
        condition = f"new.kind = {kind}"
        if kind != TURN:
            condition += f" and {_ACCEPTED}"
        connection.execute(
            f"create temp trigger batch_{kind} instead of insert on batch "
            f"when {condition} begin {body} end"
        )

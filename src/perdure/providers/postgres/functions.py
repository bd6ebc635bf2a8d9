"""The functions of a store's schema: each does in one round trip what a batch needs of one kind.

`look` locks the instances that a batch touches, in key order, and shows them; what is decided from
that is decided in Python (see decisions.py). `put` writes the decisions, one statement for each
kind of row. `put_turns` does without the look. Whatever writes rows of an instance holds the lock
of the instance's row, but for claims of activities.

p_now is the store's time in milliseconds if the caller has a clock of its own (tests), else null.
"""

from __future__ import annotations

OTHERWISE = "PD001"
"""The state of the error by which `put_turns` does nothing."""

NOW_GIVEN = "coalesce(p_now, floor(extract(epoch from clock_timestamp()) * 1000)::bigint)"

_LOOK = f"""
create function look(
    p_now bigint, p_keys bigint[], p_ids text[], p_starts text[], p_ending bigint[],
    p_claimed place[], p_event_instances text[], p_events text[], p_fresh bigint,
    out now_ms bigint, out held instances[], out current executions[], out waiting place[],
    out claimed activities[], out known event_ids[], out last event_ids[], out fresh bigint[]
) language plpgsql as $$
begin
    if cardinality(p_keys) > 0 or cardinality(p_ids) > 0 then
        held := array(
            select i from instances as i where i.key = any(p_keys || array(
                select named.key from instances as named where named.instance_id = any(p_ids)
            )) order by i.key for update
        );
    end if;
    if cardinality(p_starts) > 0 then
        current := array(
            select e from instances as i join executions as e
                on e.key = i.key and e.execution_id = i.execution_id
            where i.instance_id = any(p_starts)
        );
    end if;
    if cardinality(p_ending) > 0 then
        waiting := array(
            select row(m.key, m.seq, null)::place from inbox as m where m.key = any(p_ending)
        );
    end if;
    if cardinality(p_claimed) > 0 then
        claimed := array(
            select a from unnest(p_claimed) as w join activities as a
                on a.key = w.key and a.execution_id = w.execution_id and a.event_id = w.event_id
            order by a.key, a.execution_id, a.event_id for update of a
        );
    end if;
    if cardinality(p_events) > 0 then
        known := array(
            select d from unnest(p_event_instances, p_events) as w (instance_id, event_id)
            join instances as i on i.instance_id = w.instance_id
            join event_ids as d on d.key = i.key and d.event_id = w.event_id
        );
        last := array(
            select row(i.key, '', (
                select d.number from event_ids as d where d.key = i.key
                order by d.number desc limit 1
            ))::event_ids
            from instances as i where i.instance_id = any(p_event_instances)
        );
    end if;
    if p_fresh > 0 then
        fresh := array(select nextval('instance_keys') from generate_series(1, p_fresh));
    end if;
    now_ms := {NOW_GIVEN};
end $$;
"""

_PUT = """
create function put(
    p_consumed place[], p_activities_gone place[], p_timers_gone place[],
    p_executions_over place[], p_instances_over bigint[],
    p_instances instances[], p_changed instances[],
    p_executions executions[], p_executions_changed executions[], p_history history[],
    p_activities activities[], p_activities_changed activities[], p_timers timers[],
    p_messages inbox[], p_trimmed event_ids[], p_event_ids event_ids[],
    p_pruned executions[], p_writer text, p_batch bigint, p_now bigint,
    out pruned place[], out xid text
) language plpgsql as $$
declare
    written bigint;
    one executions;
    counts place;
begin
    if cardinality(p_consumed) > 0 then
        delete from inbox as m using unnest(p_consumed) as c
            where m.seq = c.event_id and m.key = c.key;
    end if;
    if cardinality(p_activities_gone) > 0 then
        delete from activities as a using unnest(p_activities_gone) as c
            where a.key = c.key and a.execution_id = c.execution_id and a.event_id = c.event_id;
    end if;
    if cardinality(p_timers_gone) > 0 then
        delete from timers as t using unnest(p_timers_gone) as c
            where t.key = c.key and t.execution_id = c.execution_id and t.event_id = c.event_id;
    end if;
    if cardinality(p_executions_over) > 0 then
        delete from activities as a using unnest(p_executions_over) as c
            where a.key = c.key and a.execution_id = c.execution_id;
        delete from timers as t using unnest(p_executions_over) as c
            where t.key = c.key and t.execution_id = c.execution_id;
    end if;
    if cardinality(p_instances_over) > 0 then
        delete from inbox as m where m.key = any(p_instances_over);
        delete from event_ids as d where d.key = any(p_instances_over);
    end if;
    if cardinality(p_instances) > 0 then
        insert into instances select * from unnest(p_instances)
            on conflict on constraint instances_id do nothing;
        get diagnostics written = row_count;
        if written <> cardinality(p_instances) then
            raise exception 'an instance id was taken meanwhile' using errcode = '40001';
        end if;
    end if;
    if cardinality(p_changed) > 0 then
        update instances as i set
            version = c.version, status = c.status, execution_id = c.execution_id,
            finished_ms = c.finished_ms, owner = c.owner, token = c.token,
            attempt = c.attempt, due_ms = c.due_ms, hold_ms = c.hold_ms, mail = c.mail,
            external = c.external, queued = c.queued, blocked = c.blocked,
            blocked_detail = c.blocked_detail
        from unnest(p_changed) as c where i.key = c.key;
    end if;
    if cardinality(p_executions) > 0 then
        insert into executions select * from unnest(p_executions);
    end if;
    if cardinality(p_executions_changed) > 0 then
        update executions as e set
            version = coalesce(c.version, e.version), status = c.status, output = c.output,
            error = c.error, ended_ms = c.ended_ms
        from unnest(p_executions_changed) as c
        where e.key = c.key and e.execution_id = c.execution_id;
    end if;
    if cardinality(p_history) > 0 then
        insert into history select * from unnest(p_history);
    end if;
    if cardinality(p_activities) > 0 then
        insert into activities select * from unnest(p_activities);
    end if;
    if cardinality(p_activities_changed) > 0 then
        update activities as a set
            owner = c.owner, attempt = c.attempt, claims = c.claims, due_ms = c.due_ms,
            error = c.error
        from unnest(p_activities_changed) as c
        where a.key = c.key and a.execution_id = c.execution_id and a.event_id = c.event_id;
    end if;
    if cardinality(p_timers) > 0 then
        insert into timers select * from unnest(p_timers);
    end if;
    if cardinality(p_messages) > 0 then
        insert into inbox (key, accepted_ms, body, queue)
            select m.key, m.accepted_ms, m.body, m.queue
            from unnest(p_messages) with ordinality as m (seq, key, accepted_ms, body, queue, place)
            order by m.place;
    end if;
    if cardinality(p_trimmed) > 0 then
        delete from event_ids as d using unnest(p_trimmed) as c
            where d.key = c.key and d.number <= c.number;
    end if;
    if cardinality(p_event_ids) > 0 then
        insert into event_ids select * from unnest(p_event_ids);
    end if;
    pruned := '{}';
    foreach one in array coalesce(p_pruned, '{}') loop
        with gone as (
            delete from executions as e
                where e.key = one.key and e.execution_id <= one.execution_id
                    and e.ended_ms is not null
                    and (one.ended_ms is null or e.ended_ms < one.ended_ms)
                returning e.key, e.execution_id
        ), events as (
            delete from history as h using gone
                where h.key = gone.key and h.execution_id = gone.execution_id
                returning h.event_id
        )
        select one.key, (select count(*) from gone), (select count(*) from events) into counts;
        pruned := pruned || counts;
    end loop;
    -- By this the writer knows its own transaction again if the answer to COMMIT is lost.
    if p_writer is not null then
        insert into writers as w (writer, batch, at_ms) values (p_writer, p_batch, p_now)
            on conflict (writer) do update set batch = excluded.batch, at_ms = excluded.at_ms;
    end if;
    xid := pg_current_xact_id();
end $$;
"""

# A whole batch of turns, starts and completions in one round trip, if the rows are as their writer
# believes; otherwise nothing of it happens. A statement that arrives after its writer has given it
# up, and has said so by the fence, does nothing either.
_PUT_TURNS = f"""
create function put_turns(
    p_turns turn[], p_consumed place[], p_activities_gone place[], p_timers_gone place[],
    p_executions_over place[], p_instances_over bigint[], p_instances instances[],
    p_executions executions[], p_executions_changed executions[], p_history history[],
    p_activities activities[], p_timers timers[], p_pruned executions[],
    p_completed completion[], p_locks bigint[],
    p_writer text, p_batch bigint, p_now bigint,
    out now_ms bigint, out owners text[], out unowned boolean
) language plpgsql as $$
declare
    written bigint;
begin
    now_ms := {NOW_GIVEN};
    insert into writers as w (writer, batch, at_ms) values (p_writer, p_batch, now_ms)
        on conflict (writer) do update set batch = excluded.batch, at_ms = excluded.at_ms
        where w.fence < excluded.batch;
    get diagnostics written = row_count;
    if written = 0 then
        raise exception 'given up' using errcode = '{OTHERWISE}';
    end if;
    if cardinality(p_locks) > 0 then
        perform from instances as i where i.key = any(p_locks) order by i.key for update;
    end if;
    update instances as i set
        version = coalesce(c.version, i.version), status = coalesce(c.status, i.status),
        execution_id = c.next_execution, finished_ms = c.finished_ms,
        owner = case when not c.gives_back then i.owner end,
        token = case when not c.gives_back then i.token end,
        attempt = case when c.settles then 0 else i.attempt end,
        due_ms = case when c.sets_due then c.due_ms else i.due_ms end,
        hold_ms = case when not c.settles then i.hold_ms end,
        blocked = case when not c.settles then i.blocked end,
        blocked_detail = case when not c.settles then i.blocked_detail end
    from unnest(p_turns) as c
    where i.key = c.key and i.token = c.token and i.execution_id = c.execution_id
        and (c.external is null or i.external = c.external)
        and (c.mail is null or i.mail = c.mail);
    get diagnostics written = row_count;
    if written <> coalesce(cardinality(p_turns), 0) then
        raise exception 'not as believed' using errcode = '{OTHERWISE}';
    end if;
    if cardinality(p_instances_over) > 0 then
        perform from inbox as m where m.key = any(p_instances_over)
            and m.seq <> all(array(select c.event_id from unnest(p_consumed) as c)) limit 1;
        if found then
            raise exception 'unread messages' using errcode = '{OTHERWISE}';
        end if;
    end if;
    perform put(
        p_consumed, p_activities_gone, p_timers_gone, p_executions_over, p_instances_over,
        p_instances, null, p_executions, p_executions_changed, p_history, p_activities, null,
        p_timers, null, null, null, p_pruned, null, null, now_ms
    );
    if cardinality(p_completed) > 0 then
        delete from activities as a using unnest(p_completed) as c
            where a.key = c.key and a.execution_id = c.execution_id and a.event_id = c.event_id
                and a.owner = c.node and a.attempt = c.attempt;
        get diagnostics written = row_count;
        if written <> cardinality(p_completed) then
            raise exception 'not claimed so' using errcode = '{OTHERWISE}';
        end if;
        insert into inbox (key, accepted_ms, body)
            select c.key, now_ms, c.body from unnest(p_completed) with ordinality
                as c (key, execution_id, event_id, node, attempt, body, place) order by c.place;
        with delivered as (
            update instances as i set mail = i.mail + c.number,
                due_ms = least(i.due_ms, greatest(now_ms, i.hold_ms))
            from (
                select each.key, count(*) as number from unnest(p_completed) as each
                group by each.key
            ) as c where i.key = c.key returning i.owner
        )
        select array_agg(distinct d.owner) filter (where d.owner is not null),
            bool_or(d.owner is null) into owners, unowned from delivered as d;
    end if;
end $$;
"""

_TREE = """
create function tree(p_id text) returns setof bigint language sql stable as $$
    with recursive found (key) as (
        select key from instances where instance_id = p_id
        union
        select child.key from found
        join instances as parent on parent.key = found.key
        join instances as child on child.parent_instance = parent.instance_id
            and child.parent_incarnation = parent.incarnation
    )
    select key from found order by key
$$;
"""

_REMOVE = """
create function remove(
    p_id text, p_incarnation text, p_force boolean, out what text, out other text, out gone bigint
) language plpgsql as $$
declare
    keys bigint[];
    again bigint[];
begin
    keys := array(select t from tree(p_id) as t);
    -- Children may come while it waits for a lock; with all locks held none comes any more.
    loop
        perform from instances as i where i.key = any(keys) order by i.key for update;
        again := array(select t from tree(p_id) as t);
        exit when again = keys;
        keys := again;
    end loop;
    perform from instances as i where i.instance_id = p_id
        and (p_incarnation is null or i.incarnation = p_incarnation);
    if not found then
        what := 'missing';
        return;
    end if;
    select parent.instance_id into other from instances as child join instances as parent
        on parent.instance_id = child.parent_instance
        and parent.incarnation = child.parent_incarnation
        where child.instance_id = p_id;
    if other is not null then
        what := 'child';
        return;
    end if;
    if not p_force then
        select i.instance_id into other from instances as i
            where i.key = any(keys) and i.finished_ms is null order by i.key limit 1;
        if other is not null then
            what := 'running';
            return;
        end if;
    end if;
    delete from event_ids as d where d.key = any(keys);
    delete from inbox as d where d.key = any(keys);
    delete from timers as d where d.key = any(keys);
    delete from activities as d where d.key = any(keys);
    delete from history as d where d.key = any(keys);
    delete from executions as d where d.key = any(keys);
    delete from instances as d where d.key = any(keys);
    what := 'deleted';
    gone := cardinality(keys);
end $$;
"""

# A lease that was renewed since it was looked at saves the node. Instances are locked first, in key
# order, as everywhere: also those whose activities fall free.
_FORGET = """
create function forget(p_node text, p_lease_until bigint) returns boolean
language plpgsql as $$
declare
    known boolean;
begin
    delete from nodes as n where n.node_id = p_node
        and (p_lease_until is null or n.lease_until_ms = p_lease_until);
    known := found;
    if p_lease_until is not null and not known then
        return false;
    end if;
    perform from instances as i where i.key = any(array(
            select j.key from instances as j where j.owner = p_node
            union select a.key from activities as a where a.owner = p_node
        )) order by i.key for update;
    update instances as i set owner = null, token = null where i.owner = p_node;
    update activities as a set owner = null where a.owner = p_node;
    return known;
end $$;
"""

FUNCTIONS_1 = "".join((_LOOK, _PUT, _PUT_TURNS, _TREE, _REMOVE, _FORGET))

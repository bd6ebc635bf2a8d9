"""The functions of a store's schema that give out work which nobody holds.

They pass over what another transaction has locked, so that no claim waits. p_now is the store's
time in milliseconds if the caller has a clock of its own (tests), else null.
"""

from __future__ import annotations

from perdure.providers.postgres.functions import NOW_GIVEN

ROUNDS_MAX = 10
"""How often a claim looks for more when others were quicker."""

# Rows that another transaction has locked are passed over, and no more are locked than are taken:
# what one transaction has locked, the others do not see for that moment.
_CLAIM_INSTANCES = f"""
create function claim_instances(
    p_node text, p_names text[], p_versions text[], p_any_names text[], p_now bigint,
    p_least bigint, p_most bigint, p_limit bigint,
    out taken instances[], out current executions[], out messages inbox[], out waiting timers[],
    out xid text
) language plpgsql as $$
declare
    keys bigint[] := '{{}}';
    tries bigint[];
    last_ms bigint := -1;
    last_key bigint := 0;
begin
    p_now := {NOW_GIVEN};
    for round in 1..{ROUNDS_MAX} loop
        -- On from the last one tried: to leave out each by name costs its number squared.
        select array_agg(d.key order by d.due_ms, d.key), max(d.due_ms) into tries, last_ms from (
            select d.key, d.due_ms from (
                select one.key, one.due_ms from unnest(p_names, p_versions) as pair (name, version)
                cross join lateral (
                    select i.key, i.due_ms from instances as i
                    where i.name = pair.name and i.version = pair.version and i.owner is null
                        and i.due_ms <= p_now and i.attempt >= p_least and i.attempt < p_most
                        and (i.due_ms, i.key) > (last_ms, last_key)
                    order by i.due_ms, i.key limit p_limit - cardinality(keys)
                ) as one
                union all
                select one.key, one.due_ms from unnest(p_any_names) as named (name)
                cross join lateral (
                    select i.key, i.due_ms from instances as i
                    where i.name = named.name and i.version is null and i.owner is null
                        and i.due_ms <= p_now and i.attempt >= p_least and i.attempt < p_most
                        and (i.due_ms, i.key) > (last_ms, last_key)
                    order by i.due_ms, i.key limit p_limit - cardinality(keys)
                ) as one
            ) as d order by d.due_ms, d.key limit p_limit - cardinality(keys)
        ) as d;
        exit when tries is null;
        last_key := tries[cardinality(tries)];
        keys := keys || array(
            select i.key from instances as i where i.key = any(tries) and i.owner is null
                and i.due_ms <= p_now and i.attempt >= p_least and i.attempt < p_most
            order by i.due_ms, i.key for update skip locked
        );
        exit when cardinality(keys) >= p_limit;
    end loop;
    if cardinality(keys) > 0 then
        update instances as i set owner = p_node, attempt = i.attempt + 1,
            token = replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')
            where i.key = any(keys);
        taken := array(
            select i from unnest(keys) with ordinality as w (key, place)
            join instances as i on i.key = w.key order by w.place
        );
        current := array(
            select e from unnest(taken) as t
            join executions as e on e.key = t.key and e.execution_id = t.execution_id
        );
        messages := array(
            select m from inbox as m where m.key = any(keys) and m.queue is null order by m.seq
        );
        waiting := array(
            select t from timers as t where t.key = any(keys) order by t.event_id
        );
        xid := pg_current_xact_id_if_assigned();
    end if;
end $$;
"""

_CLAIM_ACTIVITIES = f"""
create function claim_activities(
    p_node text, p_names text[], p_now bigint, p_least bigint, p_most bigint, p_limit bigint,
    out taken activities[], out holders instances[], out more boolean, out xid text
) language plpgsql as $$
declare
    places place[] := '{{}}';
    tries place[];
    last_ms bigint := -1;
    last place := row(0, 0, 0);
begin
    p_now := {NOW_GIVEN};
    for round in 1..{ROUNDS_MAX} loop
        select array_agg(
                row(one.key, one.execution_id, one.event_id)::place
                order by one.due_ms, one.key, one.execution_id, one.event_id
            ), max(one.due_ms) into tries, last_ms
        from (
            select one.* from unnest(p_names) as named (name) cross join lateral (
                select a.key, a.execution_id, a.event_id, a.due_ms from activities as a
                where a.name = named.name and a.owner is null and a.due_ms <= p_now
                    and a.claims >= p_least and a.claims < p_most
                    and (a.due_ms, a.key, a.execution_id, a.event_id)
                        > (last_ms, last.key, last.execution_id, last.event_id)
                order by a.due_ms, a.key, a.execution_id, a.event_id
                limit p_limit - cardinality(places)
            ) as one
            order by one.due_ms, one.key, one.execution_id, one.event_id
            limit p_limit - cardinality(places)
        ) as one;
        exit when tries is null;
        last := tries[cardinality(tries)];
        places := places || array(
            select row(one.key, one.execution_id, one.event_id)::place
            from unnest(tries) as w cross join lateral (
                select a.* from activities as a
                where a.key = w.key and a.execution_id = w.execution_id
                    and a.event_id = w.event_id and a.owner is null and a.due_ms <= p_now
                    and a.claims >= p_least and a.claims < p_most
                for update skip locked
            ) as one
            order by one.due_ms, one.key, one.execution_id, one.event_id
        );
        exit when cardinality(places) >= p_limit;
    end loop;
    if cardinality(places) > 0 then
        update activities as a set owner = p_node, attempt = a.attempt + 1, claims = a.claims + 1
            from unnest(places) as w
            where a.key = w.key and a.execution_id = w.execution_id and a.event_id = w.event_id;
        taken := array(
            select a from unnest(places) with ordinality as w (key, execution_id, event_id, place)
            join activities as a on a.key = w.key and a.execution_id = w.execution_id
                and a.event_id = w.event_id
            order by w.place
        );
        holders := array(
            select i from instances as i
            where i.key = any(array(select w.key from unnest(places) as w))
        );
        xid := pg_current_xact_id_if_assigned();
    end if;
    more := exists (
        select 1 from unnest(p_names) as named (name) cross join lateral (
            select a.key from activities as a
            where a.name = named.name and a.owner is null and a.due_ms <= p_now
                and a.claims >= p_least and a.claims < p_most limit 1
        ) as one
    );
end $$;
"""

CLAIM_FUNCTIONS_1 = _CLAIM_INSTANCES + _CLAIM_ACTIVITIES

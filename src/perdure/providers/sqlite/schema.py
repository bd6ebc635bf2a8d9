"""The tables of a SQLite store, and how a file gets them: numbered migrations, forward only.

`PRAGMA user_version` holds the number of the last migration applied, `PRAGMA application_id` says
that the file is a Perdure store. Each migration is one transaction under the write lock, so that
any number of processes may open an empty file at once.
"""

from __future__ import annotations

import apsw

from perdure.errors import ProviderError, StoreTooNew

APPLICATION_ID = 0x50657264

_VERSION_1 = f"""
pragma application_id = {APPLICATION_ID};

create table instances (
    key integer primary key autoincrement,
    instance_id text not null unique,
    incarnation text not null,
    name text not null,
    version text,
    status text not null
        check (status in ('pending', 'running', 'completed', 'failed', 'cancelled')),
    execution_id integer not null,
    parent_instance text,
    parent_incarnation text,
    parent_execution integer,
    parent_event integer,
    nesting integer not null,
    created_ms integer not null,
    finished_ms integer,
    owner text,
    token text,
    attempt integer not null,
    due_ms integer,
    hold_ms integer,
    mail integer not null,
    external integer not null,
    blocked text,
    blocked_detail text,
    check ((owner is null) = (token is null)),
    check (finished_ms is null or (owner is null and due_ms is null))
) strict;
create index instances_ready on instances (name, version, due_ms)
    where owner is null and due_ms is not null;
create index instances_held on instances (owner, due_ms) where owner is not null;
create index instances_children on instances (parent_instance, parent_incarnation)
    where parent_instance is not null;

create table executions (
    key integer not null,
    execution_id integer not null,
    version text,
    status text not null check (
        status in
        ('pending', 'running', 'completed', 'failed', 'cancelled', 'continued_as_new')
    ),
    input blob not null,
    output blob,
    error blob,
    started_ms integer not null,
    ended_ms integer,
    primary key (key, execution_id)
) strict, without rowid;

create table history (
    key integer not null,
    execution_id integer not null,
    event_id integer not null,
    data blob not null,
    primary key (key, execution_id, event_id)
) strict, without rowid;

create table activities (
    key integer not null,
    execution_id integer not null,
    event_id integer not null,
    name text not null,
    input blob not null,
    owner text,
    attempt integer not null,
    queued_ms integer not null,
    primary key (key, execution_id, event_id)
) strict, without rowid;
create index activities_queue on activities (name, queued_ms) where owner is null;

create table timers (
    key integer not null,
    execution_id integer not null,
    event_id integer not null,
    fire_at_ms integer not null,
    primary key (key, execution_id, event_id)
) strict, without rowid;

create table inbox (
    seq integer primary key autoincrement,
    key integer not null,
    accepted_ms integer not null,
    body blob not null
) strict;
create index inbox_key on inbox (key);

create table nodes (
    node_id text primary key,
    host text not null,
    pid integer not null,
    started_ms integer not null,
    lease_until_ms integer not null
) strict, without rowid;
"""

_VERSION_2 = """
alter table instances add column queued integer not null default 0;
create index instances_blocked on instances (blocked) where blocked is not null;

alter table inbox add column queue text;
drop index inbox_key;
create index inbox_key on inbox (key, queue);

alter table activities rename column queued_ms to due_ms;
alter table activities add column claims integer not null default 0;
alter table activities add column options blob;
alter table activities add column error blob;
update activities set claims = attempt;

create table event_ids (
    key integer not null,
    event_id text not null,
    number integer not null,
    primary key (key, event_id)
) strict, without rowid;
create index event_ids_number on event_ids (key, number);
"""

MIGRATIONS = (_VERSION_1, _VERSION_2)
"""Migration n takes a store from version n (counted from 0) to n + 1."""


# In one statement, because another process may be creating the store right now.
_LOOK = """
select
    (select application_id from pragma_application_id),
    (select user_version from pragma_user_version),
    (select count(*) from sqlite_schema)
"""


def check_version(connection: apsw.Connection, path: str) -> int:
    """The version of the store; 0 for an empty file. Changes nothing.

    Raises StoreTooNew, and ProviderError if the file belongs to another program.
    """
    application_id, version, tables = connection.execute(_LOOK).get
    if application_id != APPLICATION_ID:
        if version or tables:
            raise ProviderError(f"{path} is a database of another program; choose another file")
    elif version > len(MIGRATIONS):
        raise StoreTooNew(
            f"{path} has schema version {version}, this Perdure knows {len(MIGRATIONS)}; "
            "upgrade perdure in this process"
        )
    return int(version)


def migrate(connection: apsw.Connection, path: str) -> None:
    """Bring the store to the newest version. Safe to call from many processes at once."""
    while check_version(connection, path) < len(MIGRATIONS):
        connection.execute("begin immediate")
        try:
            version = check_version(connection, path)
            if version < len(MIGRATIONS):
                connection.execute(MIGRATIONS[version])
                connection.execute(f"pragma user_version = {version + 1}")
            connection.execute("commit")
        finally:
            if connection.in_transaction:
                connection.execute("rollback")

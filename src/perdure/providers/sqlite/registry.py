"""The table of nodes: who is known, until when its lease runs, and what falls free with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import apsw
import msgspec


def register(connection: apsw.Connection, node_id: str, now: int, lease_until_ms: int) -> None:
    connection.execute(
        "insert into nodes (node_id, host, pid, started_ms, lease_until_ms) values (?, ?, ?, ?, ?)",
        (node_id, socket.gethostname(), os.getpid(), now, lease_until_ms),
    )


def renew(connection: apsw.Connection, node_id: str, lease_until_ms: int) -> bool:
    """False if the node is not known any more."""
    connection.execute(
        "update nodes set lease_until_ms = ? where node_id = ?", (lease_until_ms, node_id)
    )
    return connection.changes() > 0


def is_known(connection: apsw.Connection, node_id: str) -> bool:
    return bool(
        connection.execute("select exists (select 1 from nodes where node_id = ?)", (node_id,)).get
    )


def expired(connection: apsw.Connection, node_ids: Sequence[str], now: int) -> list[str]:
    """Those of the nodes whose lease is over."""
    found: list[str] = msgspec.json.decode(
        connection.execute(
            "select json_group_array(node_id) from nodes where lease_until_ms < ? "
            "and node_id in (select value from json_each(?))",
            (now, msgspec.json.encode(node_ids).decode()),
        ).get
    )
    return found


def forget(connection: apsw.Connection, node_id: str) -> bool:
    """Remove the node and free what it held; attempts stay as claimed. False if it is not known."""
    connection.execute("delete from nodes where node_id = ?", (node_id,))
    known = connection.changes() > 0
    connection.execute(
        "update instances set owner = null, token = null where owner = ?", (node_id,)
    )
    connection.execute("update activities set owner = null where owner = ?", (node_id,))
    return known


def reserve_keys(connection: apsw.Connection, number: int) -> range:
    """Take the next `number` keys of instances out of SQLite's own counter."""
    connection.execute(
        "insert into sqlite_sequence (name, seq) select 'instances', 0 "
        "where not exists (select 1 from sqlite_sequence where name = 'instances')"
    )
    connection.execute(
        "update sqlite_sequence set seq = seq + ? where name = 'instances'", (number,)
    )
    last: int = connection.execute("select seq from sqlite_sequence where name = 'instances'").get
    return range(last - number + 1, last + 1)

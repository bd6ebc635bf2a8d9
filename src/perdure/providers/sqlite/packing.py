"""Many rows in one: a query whose answer is packed into a single row by SQLite.

apsw gives up the GIL at each row, and beside a busy Python thread each way back can take up to
5 ms. The packed row holds a JSON array of the plain columns and one blob with all blobs in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apsw
import msgspec

from perdure.providers.contract import InstanceRow

_decode = msgspec.json.Decoder(list[list[Any]]).decode


Parameters = Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Query:
    """A query in two forms with the same rows: packed into one, and plain."""

    packed: str
    plain: str
    blobs: int

    def rows(self, connection: apsw.Connection, parameters: Parameters) -> list[list[Any]]:
        """All rows; the last `blobs` columns are bytes or None."""
        try:
            text, data = connection.execute(self.packed, parameters).get
        except apsw.TooBigError:
            # All blobs in a row do not fit into one value of SQLite (1 GB).
            return [list(row) for row in connection.execute(self.plain, parameters)]
        rows = _decode(text)
        if self.blobs and data is not None:
            _put_back(rows, data, self.blobs)
        return rows


def query(columns: str, blobs: str, rest: str) -> Query:
    """The query `select columns, blobs rest`. columns, blobs: comma-separated, no commas inside."""
    plain_columns = [name.strip() for name in columns.split(",")]
    blob_columns = [name.strip() for name in blobs.split(",") if name.strip()]
    values = [f"c{n}" for n in range(len(plain_columns))]
    datas = [f"b{n}" for n in range(len(blob_columns))]
    named = ", ".join(
        f"{column} as {name}"
        for column, name in zip(plain_columns + blob_columns, values + datas, strict=True)
    )
    array = ", ".join(values + [f"length({name})" for name in datas])
    joined = " || ".join(f"coalesce({name}, x'')" for name in datas)
    blob = f"cast(group_concat({joined}, '') as blob)" if datas else "null"
    return Query(
        f"select json_group_array(json_array({array})), {blob} from (select {named} {rest})",
        f"select {named} {rest}",
        len(blob_columns),
    )


def _put_back(rows: list[list[Any]], data: bytes, blobs: int) -> None:
    at = 0
    for row in rows:
        for column in range(len(row) - blobs, len(row)):
            length = row[column]
            if length is not None:
                row[column] = data[at : at + length]
                at += length


INSTANCE_COLUMNS = (
    "i.key, i.instance_id, i.incarnation, i.name, i.version, i.status, i.execution_id, "
    "i.created_ms, i.finished_ms, i.due_ms, i.owner, i.attempt, i.blocked, i.blocked_detail, "
    "i.hold_ms, i.parent_instance"
)
INSTANCE_BLOBS = "e.input, e.output, e.error"
HEX_INSTANCE = (
    f"json_array({INSTANCE_COLUMNS}, "
    + ", ".join(f"iif({c} is null, null, hex({c}))" for c in INSTANCE_BLOBS.split(", "))
    + ")"
)


def instance_of_hex(text: str) -> InstanceRow:
    """The row that HEX_INSTANCE made."""
    values: list[Any] = msgspec.json.decode(text)
    blobs = [None if value is None else bytes.fromhex(value) for value in values[-3:]]
    return InstanceRow(*values[:-3], *blobs)

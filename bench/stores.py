"""Where the stores of the benchmark are: fresh ones for every measurement, and gone after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from postgres_server import Server, with_schema

GIVEN = ("PERDURE_BENCH_POSTGRES", "PERDURE_TEST_POSTGRES")
_numbers = count(1)


class SqliteStores:
    """Files in a temporary folder."""

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        folder = tempfile.mkdtemp(prefix="perdure-bench-")
        try:
            yield f"sqlite:///{folder}/store.db"
        finally:
            shutil.rmtree(folder)


class PostgresStores:
    """Schemas of one database. url: another way to the same database, such as a proxy."""

    def __init__(self, url: str, server: Server | None) -> None:
        self.url = url
        self.server = server

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        schema = f"bench_{os.getpid()}_{next(_numbers)}"
        try:
            yield with_schema(self.url, schema)
        finally:
            asyncio.run(self._run(f"drop schema if exists {schema} cascade"))

    def through(self, port: int) -> PostgresStores:
        """The same stores behind a proxy on this port."""
        parts = urlsplit(self.url)
        user, separator, _ = parts.netloc.rpartition("@")
        netloc = f"{user}{separator}127.0.0.1:{port}"
        return PostgresStores(urlunsplit(parts._replace(netloc=netloc)), self.server)

    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 5432

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(statement)
        await connection.close()

    def cpu_s(self) -> float | None:
        """Processor time that the server has used so far; None if it is not ours to look at."""
        if self.server is None:
            return None
        return _cpu_s(int((self.server.folder / "data" / "postmaster.pid").read_text().split()[0]))


def _cpu_s(postmaster: int) -> float:
    """Of a process, of its children, and of those that it has waited for."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(entry.parent.name) == postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == postmaster:
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def postgres() -> Iterator[PostgresStores]:
    """A server of our own, or the one that a variable of GIVEN names."""
    for variable in GIVEN:
        if os.environ.get(variable):
            yield PostgresStores(os.environ[variable], None)
            return
    # Set as a server comes, unlike the tests': what is measured is durable.
    server = Server(
        fsync="on",
        full_page_writes="on",
        shared_buffers="128MB",
        max_wal_size="1GB",
        autovacuum_naptime="1min",
    )
    try:
        yield PostgresStores(server.url, server)
    finally:
        server.close()

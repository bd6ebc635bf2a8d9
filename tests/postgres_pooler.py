"""PgBouncer in transaction mode in front of a PostgreSQL server, where the program is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from postgres_server import PATIENCE_S, free_port

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

SETTINGS = """
[databases]
* = host={host} port={port} user={user}{password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
logfile = {folder}/log
pidfile = {folder}/pid
{more}
"""


class Pooler:
    """target: the URL of a server. size: how many of its sessions all clients share.

    url: that of the same database through the pooler. more: further lines of its settings.
    """

    def __init__(self, target: str, size: int = 5, more: str = "") -> None:
        assert PROGRAM is not None
        parts = urlsplit(target)
        self.folder = Path(tempfile.mkdtemp(prefix="perdure-pooler-"))
        port = free_port()
        text = SETTINGS.format(
            host=parts.hostname,
            port=parts.port or 5432,
            user=unquote(parts.username or "postgres"),
            password=f" password={unquote(parts.password)}" if parts.password else "",
            listen_port=port,
            size=size,
            folder=self.folder,
            more=more,
        )
        (self.folder / "ini").write_text(text)
        who: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self.url = urlunsplit(parts._replace(netloc=f"any@127.0.0.1:{port}"))
        self._process = subprocess.Popen(
            [PROGRAM, "-q", self.folder / "ini"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **who,
        )
        give_up = time.monotonic() + PATIENCE_S
        while not _accepts(port):
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.close()
                raise RuntimeError("no pooler")
            time.sleep(0.02)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)
        shutil.rmtree(self.folder)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

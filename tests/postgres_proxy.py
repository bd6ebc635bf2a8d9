"""A TCP proxy in front of a PostgreSQL server that loses the answer to a COMMIT."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

COMMIT = b"commit\x00"
HELD_S = 0.3

Loss = Literal["answer", "question", "late"]
"""What is lost of the next commit: the server's answer; the question itself; or the connection
while the question is still on its way, arriving HELD_S later."""


class Proxy:
    """url: that of a store behind the proxy. lost: how many commits were lost so far."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.lose: Loss | None = None
        self.lost = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1")
        port = self._server.sockets[0].getsockname()[1]
        user = self._target.username
        self.url = urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        host, port = self._target.hostname, self._target.port
        server, to_server = await asyncio.open_connection(host, port)
        answers = asyncio.create_task(_copy(server, to_client))
        try:
            while data := await client.read(1 << 16):
                if self.lose and COMMIT in data.lower():
                    loss, self.lose = self.lose, None
                    self.lost += 1
                    await self._lose(loss, data, answers, to_client, server, to_server)
                    break
                to_server.write(data)
        except ConnectionError:
            return
        finally:
            answers.cancel()
            await asyncio.wait([answers])
            for writer in (to_client, to_server):
                with contextlib.suppress(ConnectionError):
                    writer.close()

    async def _lose(
        self,
        loss: Loss,
        data: bytes,
        answers: asyncio.Task[None],
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        answers.cancel()
        await asyncio.wait([answers])
        if loss == "late":
            to_client.transport.abort()
            await asyncio.sleep(HELD_S)
        if loss != "question":
            to_server.write(data)
            await server.read(1)
        to_client.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

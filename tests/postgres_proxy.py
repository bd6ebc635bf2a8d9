"""A TCP proxy in front of a PostgreSQL server: it loses answers, swallows, cuts off, and moves."""

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

Way = Literal["questions", "answers"]


class Proxy:
    """url: that of a store behind the proxy. lose: what is to be lost of the next commit. commit:
    by which bytes it is known. lost: how many commits were lost so far. asked: how often a client
    has sent something.

    swallows: what is not handed on, while nothing is closed. A connection of which something was
    swallowed is of no use ever after.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.lose: Loss | None = None
        self.commit = COMMIT
        self.lost = 0
        self._losing = 0
        self.asked = 0
        self.swallows: set[Way] = set()
        self.is_cut = False

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

    async def delivered(self) -> None:
        """Wait until what arrives late has arrived, and was answered."""
        async with asyncio.timeout(60):
            while self._losing:
                await asyncio.sleep(0.01)

    def cut(self) -> None:
        """End every connection, and take no more until `mend`."""
        self.is_cut = True
        for link in self._links:
            link.to_client.transport.abort()
            link.to_server.transport.abort()

    def mend(self) -> None:
        """Take connections again, and hand everything on."""
        self.is_cut = False
        self.swallows.clear()

    def move(self, url: str) -> None:
        """From now on connections go to the server of that URL."""
        self._target = urlsplit(url)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        host, port = self._target.hostname, self._target.port
        try:
            server, to_server = await asyncio.open_connection(host, port)
        except OSError:
            to_client.transport.abort()
            return
        link = _Link(self, client, to_client, server, to_server)
        self._links.add(link)
        try:
            if not self.is_cut:
                await link.serve()
        finally:
            self._links.discard(link)
            for writer in (to_client, to_server):
                with contextlib.suppress(ConnectionError):
                    writer.close()


class _Link:
    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._swallowed: set[Way] = set()
        self._answers: asyncio.Task[None]
        self.to_client = to_client
        self.to_server = to_server

    async def serve(self) -> None:
        proxy = self._proxy
        self._answers = asyncio.create_task(self._hand_on_answers())
        try:
            while data := await self._client.read(1 << 16):
                proxy.asked += 1
                if proxy.lose and proxy.commit in data.lower():
                    loss, proxy.lose = proxy.lose, None
                    proxy.lost += 1
                    await self._lose(loss, data)
                    break
                if self._hands_on("questions"):
                    self.to_server.write(data)
        except ConnectionError:
            return
        finally:
            await self._end_answers()

    def _hands_on(self, way: Way) -> bool:
        if way in self._proxy.swallows:
            self._swallowed.add(way)
        return way not in self._swallowed

    async def _hand_on_answers(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._server.read(1 << 16):
                if self._hands_on("answers"):
                    self.to_client.write(data)
        self.to_client.close()

    async def _end_answers(self) -> None:
        self._answers.cancel()
        await asyncio.wait([self._answers])

    async def _lose(self, loss: Loss, data: bytes) -> None:
        self._proxy._losing += 1
        try:
            await self._lose_it(loss, data)
        finally:
            self._proxy._losing -= 1

    async def _lose_it(self, loss: Loss, data: bytes) -> None:
        await self._end_answers()
        if loss == "late":
            self.to_client.transport.abort()
            await asyncio.sleep(HELD_S)
        if loss != "question":
            self.to_server.write(data)
            await self._server.read(1)
        self.to_client.transport.abort()

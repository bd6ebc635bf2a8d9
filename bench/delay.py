"""A TCP proxy that adds to each round trip: python bench/delay.py HOST PORT MS_PER_DIRECTION.

Prints its port, and ends with its stdin. What arrives is sent on so many milliseconds later, in
order, however much is under way: it adds latency and takes no bandwidth.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

import asyncpg
from stores import PostgresStores


class _End(asyncio.Protocol):
    """One end of a connection: what it receives goes to the other end, once that is there."""

    def __init__(self, delay_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s = delay_s
        self._under_way: deque[bytes] = deque()
        self._transport: asyncio.Transport
        self._other: _End

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.pause_reading()

    def join(self, other: _End) -> None:
        self._other = other
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._under_way.append(data)
        self._loop.call_later(self._delay_s, self._send)

    def _send(self) -> None:
        # In the order in which it came, whatever two timers of one moment do.
        self._other._transport.write(self._under_way.popleft())

    def connection_lost(self, error: Exception | None) -> None:
        self._loop.call_later(self._delay_s, self._other._transport.close)


async def _serve(host: str, port: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    joining: set[asyncio.Task[None]] = set()

    async def join(near: _End) -> None:
        _, far = await loop.create_connection(lambda: _End(delay_s), host, port)
        far.join(near)
        near.join(far)

    class Near(_End):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = loop.create_task(join(self))
            joining.add(task)
            task.add_done_callback(joining.discard)

    server = await loop.create_server(lambda: Near(delay_s), "127.0.0.1")
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()
    os._exit(0)


@contextlib.contextmanager
def _proxy(stores: PostgresStores, per_direction_ms: float) -> Iterator[PostgresStores]:
    host, port = stores.address()
    command = [sys.executable, __file__, host, str(port), str(per_direction_ms)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            yield stores.through(int(process.stdout.readline()))
        finally:
            process.stdin.close()


@contextlib.contextmanager
def farther(stores: PostgresStores, added_ms: float) -> Iterator[tuple[PostgresStores, float]]:
    """The stores with so much added to a round trip, the proxy's own time included, and how much
    it really is."""
    direct_ms = asyncio.run(_round_trip_ms(stores.url))
    per_direction_ms = added_ms / 2
    for _ in range(2):
        with _proxy(stores, per_direction_ms) as tried:
            too_much_ms = asyncio.run(_round_trip_ms(tried.url)) - direct_ms - added_ms
            per_direction_ms = max(0, per_direction_ms - too_much_ms / 2)
    with _proxy(stores, per_direction_ms) as far:
        yield far, asyncio.run(_round_trip_ms(far.url)) - direct_ms


async def _round_trip_ms(url: str, times: int = 300) -> float:
    connection = await asyncpg.connect(url)
    statement = await connection.prepare("select 1")
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await statement.fetch()
        took.append((time.perf_counter() - began) * 1000)
    await connection.close()
    return statistics.median(took)


def main() -> None:
    host, port, per_direction_ms = sys.argv[1:]
    # Other selectors round a pause up to whole milliseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(_serve(host, int(port), float(per_direction_ms) / 1000))


if __name__ == "__main__":
    main()

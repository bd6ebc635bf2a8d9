"""What the author of a provider gives to the conformance suite: one store, and its clock."""

from __future__ import annotations

from collections.abc import Callable

from perdure.providers.contract import Provider

EPOCH_MS = 1_700_000_000_000


class Clock:
    """A store's clock in the test's hand, in milliseconds since the epoch; it stands still."""

    def __init__(self) -> None:
        self.now = EPOCH_MS

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> int:
        """Move the clock; returns the new time."""
        self.now += ms
        return self.now


class Harness:
    """One store, empty at first, of which each case gets a new one.

    make: a new provider on the store, not yet open, whose clock is `clock`.
    """

    def __init__(self, make: Callable[[], Provider], clock: Clock) -> None:
        self.clock = clock
        self._make = make
        self._opened: list[Provider] = []

    def unopened(self) -> Provider:
        """A new provider on the store that is not open; it is closed by `close`."""
        provider = self._make()
        self._opened.append(provider)
        return provider

    async def open(self) -> Provider:
        """Another view of the store, as a process of its own would have it.

        A second one while the first is open is for cases that need MULTI_PROCESS.
        """
        provider = self.unopened()
        await provider.open()
        return provider

    async def reopen(self) -> Provider:
        """Close everything and open the store anew; for cases that need DURABLE."""
        await self.close()
        return await self.open()

    async def close(self) -> None:
        """Close every provider that was opened."""
        while self._opened:
            await self._opened.pop().close()

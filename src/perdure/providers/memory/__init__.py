"""The store in memory: the contract in the plainest code, for tests and for trying things out.

`MemoryStore` is the data, `MemoryProvider` one process's view of it: several providers on one store
behave like several processes on one database. Nothing survives the process.
"""

from perdure.providers.memory.provider import MemoryProvider
from perdure.providers.memory.store import MemoryStore

__all__ = ["MemoryProvider", "MemoryStore"]

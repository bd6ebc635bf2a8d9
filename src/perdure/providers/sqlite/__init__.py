"""The SQLite provider: one file, any number of processes of one host."""

from perdure.providers.sqlite.provider import SqliteProvider

__all__ = ["SqliteProvider"]

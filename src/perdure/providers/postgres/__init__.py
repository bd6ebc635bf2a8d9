"""The PostgreSQL provider: one schema of a database, any number of processes of any hosts.

Needs asyncpg (`pip install 'perdure[postgres]'`); imported only when such a URL is opened.
"""

from perdure.providers.postgres.provider import PostgresProvider

__all__ = ["PostgresProvider"]

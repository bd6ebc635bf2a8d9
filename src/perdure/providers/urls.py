"""Store URLs: which provider a text names."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from perdure.errors import ProviderError
from perdure.providers.clock import wall_ms
from perdure.providers.contract import Provider
from perdure.providers.filesystem import FilesystemProvider
from perdure.providers.memory import MemoryProvider, MemoryStore
from perdure.providers.sqlite import SqliteProvider

_FORMS = (
    "sqlite:///relative.db, sqlite:////absolute.db, file:///relative, file:////absolute, "
    "memory:// or memory://name, postgresql://user@host/database?schema=name"
)
_named_stores: dict[str, MemoryStore] = {}


def open_provider(url: str) -> Provider:
    """The provider for a URL, not yet opened.

    `sqlite:///shop.db` is a file in the current folder, `sqlite:////var/shop.db` an absolute path.
    `file:///shop` is a folder in the current folder, `file:////var/shop` an absolute path.
    `memory://` is a new empty store at each call, `memory://name` the store of that name in this
    process. `postgresql://user@host/database` is a schema of a PostgreSQL database, "perdure" or
    the one that `?schema=name` names, with `pooling=transaction` through a pooler such as
    PgBouncer; it needs `pip install 'perdure[postgres]'`.
    Raises ProviderError for anything else.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory" and "/" not in rest:
        if not rest:
            return MemoryProvider(MemoryStore(wall_ms))
        return MemoryProvider(_named_stores.setdefault(rest, MemoryStore(wall_ms)))
    if separator and scheme == "sqlite" and rest.startswith("/") and rest.strip("/"):
        if "?" in rest or "#" in rest or rest.endswith("/"):
            raise ProviderError(f"{url!r} is not the URL of a file; use {_FORMS}")
        return SqliteProvider(rest[1:])
    if separator and scheme == "file" and rest.startswith("/") and rest.strip("/"):
        if "?" in rest or "#" in rest:
            raise ProviderError(f"{url!r} is not the URL of a folder; use {_FORMS}")
        return FilesystemProvider(rest[1:])
    if separator and scheme == "postgresql" and rest:
        return _postgres(url)
    raise ProviderError(f"{url!r} is not the URL of a store; use {_FORMS}")


def _postgres(url: str) -> Provider:
    try:
        # Only here: who does not use it need not have its driver.
        module = import_module("perdure.providers.postgres")
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"a postgresql:// store needs {error.name}; pip install 'perdure[postgres]'"
        ) from error
    return cast(Provider, module.PostgresProvider(url))

"""Which store a command works on."""

from __future__ import annotations

import asyncio
import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from perdure.cli.outcome import NO_STORE, USAGE, Refusal
from perdure.providers.urls import open_provider

SQLITE = "sqlite:///"
FOLDER = "file:///"


def find_store(given: str | None) -> str | None:
    """The store's URL: the one given, else PERDURE_STORE, else [tool.perdure] store in the current
    folder's pyproject.toml; None if none of them names one."""
    return given or os.environ.get("PERDURE_STORE") or _store_of_project(Path("pyproject.toml"))


def store_to_look_at(given: str | None) -> str:
    """The URL of a store that is there already: looking at a store must not create one."""
    url = store_to_write_to(given)
    place = Path(url.partition(":///")[2])
    journal = place / ".perdure" / "journal"
    if url.startswith(SQLITE):
        is_there = place.is_file()
    elif url.startswith(FOLDER):
        is_there = journal.is_file()
    else:
        is_there = _is_on_server(url)
    if not is_there:
        raise Refusal(NO_STORE, f"there is no store at {url}", "check --store; nothing was created")
    return url


def _is_on_server(url: str) -> bool:
    provider: Any = open_provider(url)
    return bool(asyncio.run(provider.exists()))


def store_to_write_to(given: str | None) -> str:
    """The URL of a store that outlives the command; it may still have to be created."""
    url = find_store(given)
    if url is None:
        raise Refusal(
            USAGE,
            "no store given",
            "pass --store URL, or set PERDURE_STORE, or [tool.perdure] store in pyproject.toml",
        )
    if url.startswith("memory:"):
        raise Refusal(USAGE, f"{url} lives in its own process only", "name a file or a server")
    return url


def store_to_run_on(given: str | None) -> str:
    """The URL of a store that may still have to be created; ./.perdure/dev.db if none is named."""
    url = find_store(given)
    if url is not None:
        return url
    Path(".perdure").mkdir(exist_ok=True)
    return f"{SQLITE}.perdure/dev.db"


def _store_of_project(file: Path) -> str | None:
    try:
        project = msgspec.convert(tomllib.loads(file.read_text()), _Project)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Refusal(USAGE, f"{file} cannot be used: {error}") from error
    return project.tool.perdure.store


class _Perdure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    store: str | None = None


class _Tool(msgspec.Struct, frozen=True):
    perdure: _Perdure = _Perdure()


class _Project(msgspec.Struct, frozen=True):
    tool: _Tool = _Tool()

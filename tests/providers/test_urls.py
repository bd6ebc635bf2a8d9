"""Store URLs."""

from __future__ import annotations

from pathlib import Path

import pytest
from provider_world import start

from perdure.errors import ProviderError
from perdure.providers.filesystem import FilesystemProvider
from perdure.providers.memory import MemoryProvider
from perdure.providers.sqlite import SqliteProvider
from perdure.providers.urls import open_provider


def test_three_slashes_name_a_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    provider = open_provider("sqlite:///data/shop.db")

    assert isinstance(provider, SqliteProvider)
    assert provider.path == str(tmp_path / "data" / "shop.db")
    assert list(tmp_path.iterdir()) == []


def test_four_slashes_name_an_absolute_path() -> None:
    provider = open_provider("sqlite:////var/lib/shop.db")

    assert isinstance(provider, SqliteProvider)
    assert provider.path == "/var/lib/shop.db"


def test_three_slashes_name_a_folder_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    provider = open_provider("file:///data/shop")

    assert isinstance(provider, FilesystemProvider)
    assert provider.path == str(tmp_path / "data" / "shop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:////var/lib/shop", "file:////var/lib/shop/"])
def test_four_slashes_name_a_folder_by_its_absolute_path(url: str) -> None:
    provider = open_provider(url)

    assert isinstance(provider, FilesystemProvider)
    assert provider.path == "/var/lib/shop"


async def test_memory_without_a_name_is_a_new_store_at_each_call() -> None:
    first, second = open_provider("memory://"), open_provider("memory://")
    await first.open()
    await second.open()
    await start(first)

    assert isinstance(first, MemoryProvider)
    assert await second.count_instances() == {}


async def test_memory_with_a_name_is_one_store_of_this_process() -> None:
    first, second, other = (
        open_provider(f"memory://{name}") for name in ("urls-a", "urls-a", "urls-b")
    )
    for provider in (first, second, other):
        await provider.open()
    await start(first)

    assert await second.count_instances() == {"pending": 1}
    assert await other.count_instances() == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop.db",
        "/var/shop.db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:////",
        "sqlite://shop.db",
        "sqlite:///folder/",
        "sqlite:///shop.db?mode=ro",
        "SQLITE:///shop.db",
        "memory:",
        "memory://a/b",
        "postgres://host/db",
        "file:",
        "file://",
        "file:///",
        "file:////",
        "file://folder",
        "file:///folder?mode=ro",
    ],
)
def test_anything_else_is_refused_with_the_forms_that_work(url: str) -> None:
    with pytest.raises(ProviderError, match="use sqlite:///"):
        open_provider(url)

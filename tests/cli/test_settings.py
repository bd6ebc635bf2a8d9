"""The store of a command comes from the option, the environment, the project, or a default."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure import Client
from perdure.cli.outcome import Refusal
from perdure.cli.settings import find_store, store_to_look_at, store_to_run_on, store_to_write_to
from perdure.providers.postgres import PostgresProvider

PROJECT = '[tool.perdure]\nstore = "sqlite:///project.db"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERDURE_STORE", raising=False)
    return tmp_path


def test_the_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_STORE", "sqlite:///environment.db")

    assert find_store("sqlite:///option.db") == "sqlite:///option.db"


def test_the_environment_goes_before_the_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setenv("PERDURE_STORE", "sqlite:///environment.db")

    assert find_store(None) == "sqlite:///environment.db"


def test_the_project_names_a_store(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(PROJECT)

    assert find_store(None) == "sqlite:///project.db"


@pytest.mark.parametrize("content", ["", "[tool.perdure]\n", "[tool.other]\nstore = 'x'\n"])
def test_a_project_need_not_name_one(folder: Path, content: str) -> None:
    (folder / "pyproject.toml").write_text(content)

    assert find_store(None) is None


@pytest.mark.parametrize(
    "content", ["[tool", "[tool.perdure]\nstore = 3\n", "[tool.perdure]\nshop = 'x'\n"]
)
def test_a_wrong_project_file_is_a_usage_error(folder: Path, content: str) -> None:
    (folder / "pyproject.toml").write_text(content)

    with pytest.raises(Refusal, match=r"pyproject\.toml") as refused:
        find_store(None)
    assert refused.value.code == 2


def test_running_has_a_default(folder: Path) -> None:
    assert store_to_run_on(None) == "sqlite:///.perdure/dev.db"
    assert (folder / ".perdure").is_dir()


def test_looking_has_no_default(folder: Path) -> None:
    with pytest.raises(Refusal, match="no store given") as refused:
        store_to_look_at(None)
    assert refused.value.code == 2


@pytest.mark.parametrize("url", ["sqlite:///missing.db", "file:///missing", "file:///."])
def test_looking_creates_no_store(folder: Path, url: str) -> None:
    with pytest.raises(Refusal, match="there is no store") as refused:
        store_to_look_at(url)
    assert refused.value.code == 8
    assert list(folder.iterdir()) == []


def test_what_is_imported_may_make_a_store_that_outlives_the_command() -> None:
    assert store_to_write_to("sqlite:///missing.db") == "sqlite:///missing.db"
    for given, why in ((None, "no store given"), ("memory://", "its own process")):
        with pytest.raises(Refusal, match=why):
            store_to_write_to(given)


def test_there_is_no_looking_into_another_process() -> None:
    with pytest.raises(Refusal, match="its own process"):
        store_to_look_at("memory://")


def test_a_store_that_is_there_can_be_looked_at(folder: Path) -> None:
    (folder / "there.db").touch()

    assert store_to_look_at("sqlite:///there.db") == "sqlite:///there.db"
    absolute = f"sqlite:///{folder}/there.db"
    assert store_to_look_at(absolute) == absolute


def test_a_folder_that_is_a_store_can_be_looked_at(folder: Path) -> None:
    async def use() -> None:
        async with Client("file:///jobs"):
            pass

    asyncio.run(use())
    assert store_to_look_at("file:///jobs") == "file:///jobs"


def test_looking_at_a_schema_creates_no_store_in_it(postgres_url: str) -> None:
    async def exists() -> bool:
        return await PostgresProvider(postgres_url).exists()

    with pytest.raises(Refusal, match="there is no store"):
        store_to_look_at(postgres_url)
    assert not asyncio.run(exists())

    async def create() -> None:
        async with Client(postgres_url):
            pass

    asyncio.run(create())
    assert store_to_look_at(postgres_url) == postgres_url

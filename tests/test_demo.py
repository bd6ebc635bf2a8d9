"""The demo's job is right and bounded, and its story tells the truth."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import perdure
from perdure.demo import story
from perdure.demo.bar import ledger_lines
from perdure.demo.index_job import (
    FILES_PER_EXECUTION,
    FOLDERS_PER_EXECUTION,
    Job,
    Summary,
    entry_of,
    index_folder,
    manifest_of,
    subfolders,
    write_atomically,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """More files in one sub-folder, and more sub-folders, than one execution takes."""
    root = tmp_path / "folder"
    for number in range(FOLDERS_PER_EXECUTION + 5):
        (root / f"sub{number}").mkdir(parents=True)
        (root / f"sub{number}" / "only.txt").write_text(f"{number}\n")
    for number in range(2 * FILES_PER_EXECUTION + 50):
        (root / "sub0" / f"{number}.txt").write_bytes(b"line\n" * number)
    (root / "empty" / "deeper").mkdir(parents=True)
    return root


def job_of(folder: Path, place: Path) -> Job:
    return Job(str(folder), f"{place}/manifest.json", f"{place}/work", f"{place}/ledger.txt")


def plain_loop(folder: Path) -> bytes:
    """The manifest made without Perdure."""
    return manifest_of(entry_of(folder, path) for paths in subfolders(folder) for path in paths)


@pytest.mark.slow
def test_the_job_writes_the_manifest_that_a_plain_loop_does(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, tmp_path)

    summary = perdure.run(f"sqlite:///{tmp_path}/demo.db", index_folder, job, instance_id="i")

    files = 2 * FILES_PER_EXECUTION + 50 + FOLDERS_PER_EXECUTION + 5
    assert Path(job.manifest).read_bytes() == plain_loop(folder)
    assert summary.files == files
    assert summary.lines == sum(range(2 * FILES_PER_EXECUTION + 50)) + FOLDERS_PER_EXECUTION + 5
    assert set(Counter(ledger_lines(job)).values()) == {1}
    assert len(ledger_lines(job)) == files
    assert not Path(job.work).exists()


@pytest.mark.slow
def test_no_history_of_the_job_grows_with_the_folder(folder: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/demo.db"
    perdure.run(store, index_folder, job_of(folder, tmp_path), instance_id="i")

    with perdure.SyncClient(store) as client:
        instances = client.list_instances(limit=1000)
        histories = [
            client.read_history(instance.instance_id, number)
            for instance in instances
            for number in range(1, instance.execution_id + 1)
        ]
        executions = Counter(instance.execution_id for instance in instances)

    # Two events an activity (a batch, its files, the part) or a child, and begin and end.
    assert max(map(len, histories)) <= 2 * (FILES_PER_EXECUTION + 2) + 2
    assert executions == {1: FOLDERS_PER_EXECUTION + 4, 2: 1, 3: 1}


@pytest.mark.slow
def test_an_empty_folder_has_an_empty_manifest(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    job = job_of(tmp_path / "folder", tmp_path)

    summary = perdure.run("memory://", index_folder, job, instance_id="i")

    assert summary == Summary(files=0, bytes=0, lines=0, unreadable=0)
    assert json.loads(Path(job.manifest).read_text()) == []


@pytest.mark.slow
def test_a_folder_that_is_not_there_fails_the_job(tmp_path: Path) -> None:
    job = job_of(tmp_path / "nowhere", tmp_path)

    with pytest.raises(perdure.OrchestrationFailedError, match="is not a folder"):
        perdure.run("memory://", index_folder, job, instance_id="i")


def test_only_regular_files_of_visible_folders_are_indexed(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "__pycache__/x.pyc", "site-packages/y.py", ".git/z", ".kept"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("b.txt")
    (tmp_path / "dangling").symlink_to("nowhere")

    assert list(subfolders(tmp_path)) == [[".kept", "b.txt"], ["a/c.txt"]]


def test_a_file_that_cannot_be_read_is_an_entry_with_the_reason(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, "gone.txt")

    assert entry.error == "No such file or directory"
    assert b'"error":"No such file or directory"' in manifest_of([entry])


def test_a_name_that_is_not_utf8_can_be_listed(tmp_path: Path) -> None:
    Path(bytes(tmp_path).decode(), "caf\udce9").touch()

    assert list(subfolders(tmp_path)) == [["caf\\xe9"]]


def test_a_manifest_does_not_depend_on_the_order_of_its_entries(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    entries = [entry_of(tmp_path, name) for name in "abc"]

    assert manifest_of(entries) == manifest_of(reversed(entries))


def test_a_file_written_atomically_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("old")

    write_atomically(tmp_path / "manifest.json", b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert (tmp_path / "manifest.json").read_bytes() == b"new"


@pytest.mark.slow
def test_the_story_kills_and_ends_well(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "LOOK_S", 0.001)
    for number in range(1_000):
        (folder / "empty" / f"{number}.txt").write_text("x")

    assert story.tell(str(folder)) == 0

    told = capsys.readouterr().out
    assert "kill -9" in told
    assert "The manifests are equal: 1,275 entries" in told


def test_a_wrong_manifest_is_not_called_equal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(folder, tmp_path)
    Path(job.manifest).write_bytes(plain_loop(folder).replace(b'"size":5', b'"size":6'))

    paths = [path for paths in subfolders(folder) for path in paths]

    assert story.compare(job, paths, before=0) == 1
    assert "differ" in capsys.readouterr().out

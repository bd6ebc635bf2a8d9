"""The visible story: a job is killed in the middle, started again, and its result is exact."""

from __future__ import annotations

import itertools
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from perdure.demo.bar import ledger_lines
from perdure.demo.index_job import Job, entry_of, manifest_of, subfolders

LOOK_S = 0.005
"""How often the ledger is looked at for the moment to kill."""


def tell(folder: str | None = None) -> int:
    """Index `folder` (default: the standard library's source) with a kill -9 in the middle.

    Prints the story on stdout and the bars on stderr. Returns 0 if the manifest equals one that
    was made without Perdure, otherwise 1.
    """
    source = Path(folder or sysconfig.get_paths()["stdlib"]).resolve()
    paths = list(itertools.chain.from_iterable(subfolders(source)))
    with tempfile.TemporaryDirectory(prefix="perdure-demo-") as place:
        job = Job(
            folder=str(source),
            manifest=f"{place}/manifest.json",
            work=f"{place}/work",
            ledger=f"{place}/ledger.txt",
        )
        store = f"sqlite:///{place}/demo.db"
        say(f"[bold]A durable job: hash the {len(paths):,} files below {escape(str(source))}[/]")
        before = kill_in_the_middle(store, job, len(paths))
        say("[bold]3.[/] the same command again; it goes on where the store says it was")
        with Child(store, job) as child:
            if child.wait() != 0:
                say("[red]the second run failed[/]")
                return 1
        return compare(job, paths, before)


def kill_in_the_middle(store: str, job: Job, total: int) -> int:
    """Run the job, kill it when a third of the files is done; return how many were."""
    with Child(store, job) as child:
        say(f"[bold]1.[/] start the job (process {child.pid})")
        while child.poll() is None and len(ledger_lines(job)) * 3 < total:
            time.sleep(LOOK_S)
        child.kill()
        killed = child.wait() < 0
    # The killed process had hidden the cursor to draw its bar.
    Console(stderr=True).show_cursor(True)
    done = len(ledger_lines(job))
    if killed:
        say(f"\n[bold]2.[/] [red]kill -9 {child.pid}[/] after {done:,} of {total:,} files")
    else:
        say(f"\n[bold]2.[/] it was done with {done:,} files before it could be killed")
    return done


def compare(job: Job, paths: list[str], before: int) -> int:
    """Print what was done when, and whether the manifest is right; 0 if it is."""
    lines = ledger_lines(job)
    folder = Path(job.folder)
    expected = manifest_of(entry_of(folder, path) for path in paths)
    equal = Path(job.manifest).read_bytes() == expected
    say("[bold]4.[/] compare with a manifest made by a plain loop, without Perdure")
    say(f"   files hashed before the kill  {before:7,}")
    say(f"   files hashed after it         {len(lines) - before:7,}")
    twice = len(lines) - len(set(lines))
    say(f"   of these, hashed twice        {twice:7,}  (not yet recorded at the kill)")
    if not equal:
        say("[red]The manifests differ.[/]")
        return 1
    say(f"[green]The manifests are equal: {len(paths):,} entries, {len(expected):,} bytes.[/]")
    return 0


class Child(subprocess.Popen[bytes]):
    """The job in a process of its own, which does not outlive the block that it is used in."""

    def __init__(self, store: str, job: Job) -> None:
        text = msgspec.json.encode(job).decode()
        command = [sys.executable, "-m", "perdure.demo.bar", store, text]
        # A session of its own: Ctrl-C is for the story, which then ends its child.
        super().__init__(command, start_new_session=True)

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self.wait()


def say(text: str) -> None:
    """One line of the story."""
    Console(highlight=False, soft_wrap=True).print(text)

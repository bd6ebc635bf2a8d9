"""Runs the index job with a progress bar. The bar follows the ledger; the job knows nothing of it.

`python -m perdure.demo.bar STORE JOB` does it for a store's URL and a job as JSON: a program that
can be killed and started again with the same arguments.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import perdure
from perdure.demo.index_job import Job, Summary, index_folder, subfolders

REFRESH_S = 0.1


def run_with_bar(store: str, job: Job) -> Summary:
    """Start the job, or go on with it if the store has it, and draw a bar on stderr meanwhile.

    Its instance id follows from the job: the same job is the same instance. Raises what
    `perdure.run` raises.
    """
    instance_id = f"index-{hashlib.sha256(msgspec.json.encode(job)).hexdigest()[:12]}"
    total = sum(len(paths) for paths in subfolders(Path(job.folder)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    ended = threading.Event()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("files hashed", total=total)

        def follow() -> None:
            while not ended.wait(REFRESH_S):
                progress.update(task, completed=len(set(ledger_lines(job))))
            progress.update(task, completed=len(set(ledger_lines(job))))

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            return perdure.run(store, index_folder, job, instance_id=instance_id)
        finally:
            ended.set()
            follower.join()


def ledger_lines(job: Job) -> list[bytes]:
    """The ledger's lines, one per hashed file, oldest first; none before the first is written."""
    ledger = Path(job.ledger)
    return ledger.read_bytes().splitlines() if ledger.exists() else []


if __name__ == "__main__":
    store, text = sys.argv[1:]
    run_with_bar(store, msgspec.json.decode(text, type=Job))

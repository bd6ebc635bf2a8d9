"""Hash every file of a folder into a JSON manifest, durably.

    python examples/index_folder.py FOLDER [--store URL] [--out manifest.json]

Kill it (Ctrl-C, kill -9, the power switch) and run the same command again: it goes on. Run it once
more when it is done, and it only says what it found then; a new --store or --out indexes again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from perdure.demo.bar import run_with_bar
from perdure.demo.index_job import Job


def main() -> None:
    parser = argparse.ArgumentParser(description="Hash every file of a folder, durably.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", default="sqlite:///index.db", metavar="URL")
    parser.add_argument("--out", type=Path, default=Path("manifest.json"), metavar="FILE")
    options = parser.parse_args()

    manifest = options.out.resolve()
    job = Job(
        folder=str(options.folder.resolve()),
        manifest=str(manifest),
        work=f"{manifest}.work",
        ledger=f"{manifest}.ledger",
    )
    summary = run_with_bar(options.store, job)
    print(f"{summary.files} files, {summary.lines} lines, {summary.bytes} bytes: {manifest}")


if __name__ == "__main__":
    main()

"""The filesystem provider: a folder with a readable file for each execution, for one process.

The journal in `.perdure` is the store; the rows are in memory. The readable files follow it, and
are never read as truth.
"""

from perdure.providers.filesystem.provider import FilesystemProvider
from perdure.providers.filesystem.store import FilesystemStore

__all__ = ["FilesystemProvider", "FilesystemStore"]

"""The logger of an orchestration: what was said once is not said again at replay."""

from __future__ import annotations

import logging

from perdure.core.journal import Journal
from perdure.core.marked import Info


class ReplayAwareLogger(logging.LoggerAdapter[logging.Logger]):
    """Silent while replaying, and once the execution is over."""

    def __init__(self, journal: Journal, info: Info) -> None:
        super().__init__(logging.getLogger("perdure.orchestration"), {})
        self._journal = journal
        self.extra = {"instance_id": info.instance_id, "execution_id": info.execution_id}

    def isEnabledFor(self, level: int) -> bool:
        journal = self._journal
        return not (journal.replaying or journal.closed) and super().isEnabledFor(level)

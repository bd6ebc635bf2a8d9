"""The node: what the parts of one started runtime share. State and counters, no logic."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from random import Random

from perdure.errors import InternalError
from perdure.providers.committer import Committer
from perdure.providers.contract import Outcome, Provider
from perdure.registry import Registry
from perdure.runtime.options import Options
from perdure.runtime.residents import Resident, Residents

logger = logging.getLogger("perdure")


class Node:
    """node_id: new at each start. stopping: nothing new is begun. alone: the resident whose turn
    runs while no other does (see ClaimInstances). suspect: for whom an instance or an activity is
    being claimed to run alone, or what runs so; the other kind then waits, or a death would charge
    both.
    counters: what was dropped or refused, by reason. new_token: the injected source of ids.
    random: for what need not be repeatable."""

    def __init__(
        self,
        provider: Provider,
        committer: Committer,
        registry: Registry,
        options: Options,
        new_token: Callable[[], str],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.provider = provider
        self.committer = committer
        self.registry = registry
        self.options = options
        self.new_token = new_token
        self.node_id = new_token()
        self.random = Random(self.node_id)
        self.residents = Residents(options.max_residents)
        self.counters: Counter[str] = Counter()
        self.stopping = False
        self.alone: Resident | None = None
        self.suspect: object = None

    def begin_alone(self, who: object) -> bool:
        """Take the right to claim and run a suspect; False while another has it."""
        if self.suspect is not None or self.stopping:
            return False
        self.suspect = who
        return True

    def end_alone(self, who: object) -> None:
        """Give that right back."""
        if self.suspect is who:
            self.suspect = None

    def drop(self, reason: str, instance_id: str, number: int = 1) -> None:
        """Count and log something that has no effect. Nothing is dropped without this."""
        self.counters[reason] += number
        logger.info("instance %s: dropped %d (%s)", instance_id, number, reason)

    def expect(self, outcome: Outcome | BaseException, what: str) -> None:
        """Log an error that nothing else handles."""
        if isinstance(outcome, BaseException) and not self.stopping:
            logger.error("%s failed", what, exc_info=outcome)

    def owner_of(self, name: str, version: str | None) -> tuple[str, str] | None:
        """This node and a new token, if it can run such an instance at once."""
        if self.stopping or self.registry.orchestration(name, version) is None:
            return None
        return self.node_id, self.new_token()


def internal(error: BaseException) -> InternalError:
    """An error of Perdure's own making, as one that asks to be reported."""
    fault = InternalError(f"{type(error).__name__}: {error}; please report it")
    fault.__cause__ = error
    return fault

"""What one runtime hosts: marked functions by name and version. A plain object, never global."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from perdure.errors import RegistrationError
from perdure.marks import Activity, Orchestration
from perdure.names import version_key

Listed = Activity[..., Any] | Orchestration[..., Any] | ModuleType
"""What can be listed for a runtime."""


class Registry:
    """Built once from what a runtime lists; every annotation is resolved here.

    Raises RegistrationError for a name listed twice, an unmarked function, or an annotation that
    cannot be resolved.
    """

    def __init__(self, listed: Iterable[Listed]) -> None:
        self.activities: dict[str, Activity[..., Any]] = {}
        self.orchestrations: dict[tuple[str, str], Orchestration[..., Any]] = {}
        self._latest: dict[str, Orchestration[..., Any]] = {}
        for item in listed:
            if isinstance(item, ModuleType):
                for found in marked_in(item):
                    self._add(found)
            else:
                self._add(item)

    @property
    def capabilities(self) -> frozenset[tuple[str, str]]:
        """The (name, version) pairs of all orchestrations."""
        return frozenset(self.orchestrations)

    def orchestration(self, name: str, version: str | None) -> Orchestration[..., Any] | None:
        """The orchestration of this name and version (None: the latest), if it is listed."""
        if version is None:
            return self._latest.get(name)
        return self.orchestrations.get((name, version))

    def _add(self, item: Any) -> None:
        if isinstance(item, Activity):
            self._add_activity(item)
        elif isinstance(item, Orchestration):
            self._add_orchestration(item)
        else:
            raise RegistrationError(
                f"{item!r} is neither an activity nor an orchestration: mark it with "
                "@perdure.activity or @perdure.orchestration, or list its module"
            )

    def _add_activity(self, item: Activity[..., Any]) -> None:
        known = self.activities.setdefault(item.name, item)
        if known.function != item.function:
            raise RegistrationError(
                f"activity {item.name!r} is listed twice; give one of them another name="
            )
        item.signature.resolve()

    def _add_orchestration(self, item: Orchestration[..., Any]) -> None:
        known = self.orchestrations.setdefault((item.name, item.version), item)
        if known.function != item.function:
            raise RegistrationError(
                f"orchestration {item.name!r} version {item.version} is listed twice; "
                "give one of them another version= or name="
            )
        item.signature.resolve()
        latest = self._latest.setdefault(item.name, item)
        if version_key(item.version) > version_key(latest.version):
            self._latest[item.name] = item


def marked_in(module: ModuleType) -> list[Activity[..., Any] | Orchestration[..., Any]]:
    """The marked functions of a module, each once, in the order of its names."""
    found: dict[int, Activity[..., Any] | Orchestration[..., Any]] = {}
    for value in vars(module).values():
        if isinstance(value, Activity | Orchestration):
            found.setdefault(id(value), value)
    return list(found.values())

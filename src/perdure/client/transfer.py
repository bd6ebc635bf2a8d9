"""Moving instances between stores: out as JSON Lines, in again whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from perdure.client.connection import Connection, check_addressable, not_found
from perdure.client.transfer_checks import check_trees
from perdure.client.transfer_format import lines_of, snapshot_of, trees_of
from perdure.errors import InstanceAlreadyExists
from perdure.providers.contract import ImportInstances, Snapshot, Taken


class Transfer(Connection):
    """The part of a client that moves instances."""

    async def export_instance(self, instance_id: str) -> list[bytes]:
        """The instance, its sub-orchestrations and theirs with all that belongs to them, as of one
        moment: lines of JSON, each with its newline, for `import_instances`.

        The instance stays and goes on where it is. Raises InstanceNotFound.
        """
        self._check_open()
        check_addressable(instance_id)
        tree = await self._provider.snapshots(instance_id)
        if not tree:
            raise not_found(instance_id)
        return lines_of(sorted(tree, key=lambda one: one.nesting))

    async def import_instances(self, lines: Iterable[bytes]) -> list[str]:
        """Store the instances of one or more exports, all of them or none; their ids.

        lines: as `export_instance` gives them, or a file of them opened in binary mode. What has
        not ended goes on here: its original must not go on elsewhere, or all that it does is done
        twice. Raises InvalidImport if anything in it is not as an export writes it or cannot be,
        InstanceAlreadyExists if one of the ids is taken.
        """
        committer = self.committer
        # A second for each 50,000 lines, in which a runtime of this process must not stand still.
        instances = await asyncio.to_thread(_checked, lines, self._provider.now_ms())
        outcome = await committer.write(ImportInstances(instances))
        if isinstance(outcome, Taken):
            found = outcome.instance
            raise InstanceAlreadyExists(
                f"instance {found.instance_id!r} exists ({found.status}); nothing was imported",
                instance_id=found.instance_id,
                status=found.status,
            )
        if self._host is not None:
            self._host.news()
        return [instance.instance_id for instance in instances]


def _checked(lines: Iterable[bytes], now_ms: int) -> tuple[Snapshot, ...]:
    trees = trees_of(lines)
    check_trees(trees)
    return tuple(snapshot_of(one, now_ms) for tree in trees for one in tree)

"""Taking work: due instances and unclaimed activities."""

from __future__ import annotations

from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import (
    Acquired,
    ActivityClaim,
    ClaimActivities,
    Claimed,
    ClaimedActivities,
    ClaimInstances,
    NewTimer,
)
from perdure.providers.memory.rows import Instance
from perdure.providers.memory.tables import Tables, is_runnable


def claim_instances(tables: Tables, claim: ClaimInstances) -> Claimed:
    fitting = [
        instance
        for instance in tables.due()
        if is_runnable(instance, claim.capabilities)
        and (instance.attempt >= CLAIMS_SHARED_MAX) == claim.alone
    ]
    taken = fitting[: min(claim.limit, 1) if claim.alone else claim.limit]
    for instance in taken:
        tables.set(instance, owner=claim.node_id, token=tables.new_token())
        tables.set(instance, attempt=instance.attempt + 1)
    return Claimed(tuple(_acquired(instance) for instance in taken))


def _acquired(instance: Instance) -> Acquired:
    assert instance.token is not None
    return Acquired(
        key=instance.key,
        instance_id=instance.instance_id,
        incarnation=instance.incarnation,
        name=instance.name,
        version=instance.version,
        execution_id=instance.execution_id,
        token=instance.token,
        attempt=instance.attempt,
        input=instance.executions[instance.execution_id].input,
        parent=instance.parent,
        nesting=instance.nesting,
        mail=instance.mail,
        external=instance.external,
        messages=instance.messages(),
        timers=tuple(
            NewTimer(event_id, fire_at_ms)
            for (_, event_id), fire_at_ms in sorted(instance.timers.items())
        ),
        queued=instance.queued,
    )


def claim_activities(tables: Tables, claim: ClaimActivities) -> ClaimedActivities:
    now = tables.now_ms()
    fitting = [
        item
        for item in tables.unclaimed(claim.names)
        if item[3].due_ms <= now and (item[3].claims >= CLAIMS_SHARED_MAX) == claim.alone
    ]
    limit = min(claim.limit, 1) if claim.alone else claim.limit
    taken = []
    for instance, execution_id, event_id, activity in fitting[:limit]:
        tables.set(activity, owner=claim.node_id, attempt=activity.attempt + 1)
        tables.set(activity, claims=activity.claims + 1)
        taken.append(
            ActivityClaim(
                key=instance.key,
                instance_id=instance.instance_id,
                incarnation=instance.incarnation,
                execution_id=execution_id,
                event_id=event_id,
                name=activity.name,
                input=activity.input,
                attempt=activity.attempt,
                claims=activity.claims,
                options=activity.options,
            )
        )
    return ClaimedActivities(tuple(taken), more=len(fitting) > limit)

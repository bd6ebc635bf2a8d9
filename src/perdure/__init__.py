"""Durable orchestration for Python: `async def` that survives crashes, restarts, deployments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.client.client import Client
    from perdure.client.filters import InstanceFilter
    from perdure.client.handles import OrchestrationHandle
    from perdure.client.models import (
        ActivityDepth,
        ExecutionInfo,
        Instance,
        InstancePage,
        InstanceTree,
        Metrics,
        NodeInfo,
        PruneResult,
        QueueDepths,
    )
    from perdure.client.queues import QueuedEvent
    from perdure.client.sync import SyncClient
    from perdure.client.waits import Wait
    from perdure.core.context import OrchestrationContext
    from perdure.core.futures import DurableFuture
    from perdure.errors import (
        ActivityError,
        ActivityLost,
        ActivityTimeout,
        ForbiddenOperation,
        ForkedStoreError,
        HistoryLimitExceeded,
        InstanceAlreadyExists,
        InstanceIsChild,
        InstanceNotFound,
        InstanceRunning,
        InstanceTerminal,
        InternalError,
        InvalidImport,
        InvalidName,
        InvalidTimer,
        LimitExceeded,
        NestingTooDeep,
        NondeterminismError,
        NotInOrchestration,
        OrchestrationFailedError,
        PayloadError,
        PayloadTooLarge,
        PerdureError,
        ProviderError,
        RecordedFailure,
        RegistrationError,
        StoreClosed,
        StoreTooNew,
        StoreUnavailable,
        SubOrchestrationError,
        TooManyPending,
        TransactionRefused,
        TransactionTimeout,
        TurnLimitExceeded,
    )
    from perdure.marks import activity, context, orchestration
    from perdure.retention import PruneOptions
    from perdure.retries import RetryPolicy
    from perdure.running import run
    from perdure.runtime.activity_context import ActivityContext, activity_context
    from perdure.runtime.options import Options
    from perdure.runtime.runtime import Runtime

__version__ = "0.1.0"

__all__ = [
    "ActivityContext",
    "ActivityDepth",
    "ActivityError",
    "ActivityLost",
    "ActivityTimeout",
    "Client",
    "DurableFuture",
    "ExecutionInfo",
    "ForbiddenOperation",
    "ForkedStoreError",
    "HistoryLimitExceeded",
    "Instance",
    "InstanceAlreadyExists",
    "InstanceFilter",
    "InstanceIsChild",
    "InstanceNotFound",
    "InstancePage",
    "InstanceRunning",
    "InstanceTerminal",
    "InstanceTree",
    "InternalError",
    "InvalidImport",
    "InvalidName",
    "InvalidTimer",
    "LimitExceeded",
    "Metrics",
    "NestingTooDeep",
    "NodeInfo",
    "NondeterminismError",
    "NotInOrchestration",
    "Options",
    "OrchestrationContext",
    "OrchestrationFailedError",
    "OrchestrationHandle",
    "PayloadError",
    "PayloadTooLarge",
    "PerdureError",
    "ProviderError",
    "PruneOptions",
    "PruneResult",
    "QueueDepths",
    "QueuedEvent",
    "RecordedFailure",
    "RegistrationError",
    "RetryPolicy",
    "Runtime",
    "StoreClosed",
    "StoreTooNew",
    "StoreUnavailable",
    "SubOrchestrationError",
    "SyncClient",
    "TooManyPending",
    "TransactionRefused",
    "TransactionTimeout",
    "TurnLimitExceeded",
    "Wait",
    "activity",
    "activity_context",
    "context",
    "orchestration",
    "run",
]

_MODULES = {
    "client.client": "Client",
    "client.filters": "InstanceFilter",
    "client.handles": "OrchestrationHandle",
    "client.models": "ActivityDepth ExecutionInfo Instance InstancePage InstanceTree Metrics "
    "NodeInfo PruneResult QueueDepths",
    "client.queues": "QueuedEvent",
    "client.sync": "SyncClient",
    "client.waits": "Wait",
    "core.context": "OrchestrationContext",
    "core.futures": "DurableFuture",
    "marks": "activity context orchestration",
    "retention": "PruneOptions",
    "retries": "RetryPolicy",
    "running": "run",
    "runtime.activity_context": "ActivityContext activity_context",
    "runtime.options": "Options",
    "runtime.runtime": "Runtime",
}
"""Where the public names are that are no errors. They are loaded when they are first used:
`import perdure` costs a program that needs little of it (a client, a command) nearly nothing."""

_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

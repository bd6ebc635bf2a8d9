"""Durable orchestration for Python: `async def` that survives crashes, restarts, deployments."""

from perdure.client.client import Client
from perdure.client.handles import OrchestrationHandle
from perdure.client.models import ExecutionInfo, Instance, PruneResult
from perdure.client.sync import SyncClient
from perdure.core.context import OrchestrationContext
from perdure.core.futures import DurableFuture
from perdure.errors import (
    ActivityError,
    ForbiddenOperation,
    ForkedStoreError,
    HistoryLimitExceeded,
    InstanceAlreadyExists,
    InstanceNotFound,
    InstanceTerminal,
    InternalError,
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
    TurnLimitExceeded,
)
from perdure.marks import activity, context, orchestration
from perdure.retention import PruneOptions
from perdure.run import run
from perdure.runtime.activity_context import ActivityContext, activity_context
from perdure.runtime.options import Options
from perdure.runtime.runtime import Runtime

__version__ = "0.1.0"

__all__ = [
    "ActivityContext",
    "ActivityError",
    "Client",
    "DurableFuture",
    "ExecutionInfo",
    "ForbiddenOperation",
    "ForkedStoreError",
    "HistoryLimitExceeded",
    "Instance",
    "InstanceAlreadyExists",
    "InstanceNotFound",
    "InstanceTerminal",
    "InternalError",
    "InvalidName",
    "InvalidTimer",
    "LimitExceeded",
    "NestingTooDeep",
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
    "RecordedFailure",
    "RegistrationError",
    "Runtime",
    "StoreClosed",
    "StoreTooNew",
    "StoreUnavailable",
    "SubOrchestrationError",
    "SyncClient",
    "TooManyPending",
    "TurnLimitExceeded",
    "activity",
    "activity_context",
    "context",
    "orchestration",
    "run",
]

"""What the limit programs write: the events of a middle turn, and those of a continue-as-new."""

from __future__ import annotations

EVENT_DONE = (
    b'{"type":"ActivityCompleted","event_id":5,"timestamp_ms":1763700000000,'
    b'"source_event_id":4,"result":{"i":1}}'
)
EVENT_NEXT = (
    b'{"type":"ActivityScheduled","event_id":6,"timestamp_ms":1763700000000,'
    b'"name":"act","input":{"i":2}}'
)
EVENT_ENDED = (
    b'{"type":"OrchestrationContinuedAsNew","event_id":2,"timestamp_ms":1763700000000,"input":999}'
)
EVENT_STARTED = (
    b'{"type":"OrchestrationStarted","event_id":1,"timestamp_ms":1763700000000,'
    b'"name":"generations","version":"1","input":999,'
    b'"incarnation":"00000000000000000000000000000000","python":"3.11","engine":1}'
)
INPUT = b'{"i":2}'
NODE = "0" * 32
KEPT = 3
"""How many executions the policy of a continue-as-new keeps."""

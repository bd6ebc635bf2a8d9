"""Every limit with its number. What is over a limit is refused with an error, never dropped."""

from __future__ import annotations

INSTANCE_ID_BYTES_MAX = 255
NAME_BYTES_MAX = 200
VERSION_BYTES_MAX = 64

PAYLOAD_BYTES_MAX = 1 << 20
PAYLOAD_DEPTH_MAX = 100
INTEGER_DIGITS_MAX = 4_300
ERROR_TEXT_BYTES_MAX = 16 << 10
TRACEBACK_BYTES_MAX = 64 << 10

HISTORY_EVENTS_MAX = 50_000
HISTORY_EVENTS_WARN = 10_000
TURN_DECISIONS_MAX = 10_000
TURN_CALLBACKS_MAX = 100_000
PENDING_MAX = 10_000
NESTING_MAX = 32

TIMER_MS_MAX = 3_650 * 24 * 3_600 * 1_000

CLAIMS_MAX = 10
"""Claims of one item without a successful commit before it counts as poison."""
CLAIMS_SHARED_MAX = 2
"""From the next claim on, an item is claimed and run alone on its node."""

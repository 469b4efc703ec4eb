"""Figures that both backends share."""

from __future__ import annotations

SCRATCH_BYTES = 64 << 20
SERVER_BYTES = 32 << 20  # of the fork server, beside its program
# Short, so that a box that used up its share waits for a few milliseconds, and its fork server with it.
PERIOD_MICROSECONDS = 20_000
# Users of boxes, above what systemd, container engines and directory services hand out.
FIRST_UID = 1_900_000_000
UIDS = 100_000_000

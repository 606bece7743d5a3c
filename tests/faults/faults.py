"""All faults, in the order of the table."""

from __future__ import annotations

from . import disks, kills

FAULTS = (*kills.FAULTS, *disks.FAULTS)

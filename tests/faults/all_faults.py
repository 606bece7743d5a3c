"""All faults, in the order of the table."""

from __future__ import annotations

from . import clocks, disks, inputs, kills, stops, tested

_ALL = (*kills.FAULTS, *stops.FAULTS, *disks.FAULTS, *clocks.FAULTS, *inputs.FAULTS, *tested.FAULTS)

_KINDS = list(dict.fromkeys(fault.kind for fault in _ALL))

FAULTS = tuple(sorted(_ALL, key=lambda fault: _KINDS.index(fault.kind)))

"""Owns the counters that Ray exports for Prometheus: what the units of a run came to. The driver counts, as they end.

A counter of a worker would go with its process, and counters by unit would be a series each; these are some for each node.
"""

from __future__ import annotations

from ..worker import Outcome


class RayMetrics:
    """The counters of one run. Ray adds `ray_` before their names, and `_total` behind them.

    Args:
        stage: its name.
    """

    def __init__(self, stage: str) -> None:
        from ray.util.metrics import Counter

        tags = ("stage", "node")
        self._stage = stage
        self._units = Counter("teachonce_units", "Units that came to an end.", (*tags, "state"))
        self._samples = Counter("teachonce_samples", "Samples of the units that are done.", tags)
        self._invalid = Counter("teachonce_invalid_samples", "Those of them that cannot be used.", tags)
        self._bytes = Counter("teachonce_bytes_written", "Bytes of the files of the units that are done.", tags)
        self._seconds = Counter("teachonce_seconds", "Seconds of work, summed over threads.", (*tags, "kind"))

    def count(self, outcome: Outcome) -> None:
        """Count what became of a unit. Of one whose process has ended the node is not known."""
        effort = outcome.effort
        tags = {"stage": self._stage, "node": "" if effort is None else effort.node}
        self._units.inc(1, {**tags, "state": "failed" if outcome.error is not None else "done"})
        if outcome.error is None:
            for counter, value in (
                (self._samples, outcome.rows),
                (self._invalid, outcome.invalid_rows),
                (self._bytes, 0 if effort is None else effort.bytes_written),
            ):
                if value:
                    counter.inc(value, tags)
        for kind, seconds in () if effort is None else effort.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {**tags, "kind": kind})

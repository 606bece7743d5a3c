"""Owns the names of the figures that the best epoch of a training is best by."""

from __future__ import annotations

#: Accuracy over all classes, of base images among base classes, or the harmonic mean of that and of novel images among
#: novel classes.
FIGURES = ("top1", "base", "harmonic-mean")

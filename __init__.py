"""teachonce: run a frozen teacher once, store its outputs, train any number of students from them.

The public names, for trainers and pipelines of your own (imported when they are first used):

- `TargetStream`: batches of images and targets, an iterable data set for any trainer.
- `join_targets`: adds targets to the samples of a `webdataset.WebDataset` pipeline.
- `load_student`: a student bundle as a module, with its class vectors; its `predict` takes images.
- `open_store`: a target store as an object: the teacher's outputs for any sample, by row or key. Needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stages.library.store import open_store
    from .stages.pairs.stream import TargetStream
    from .stages.pairs.target_join import join_targets
    from .stages.students.bundle import load_student

__version__ = "0.1.0"
__all__ = ["TargetStream", "__version__", "join_targets", "load_student", "open_store"]

_HOMES = {
    "TargetStream": "stages.pairs.stream",
    "join_targets": "stages.pairs.target_join",
    "load_student": "stages.students.bundle",
    "open_store": "stages.library.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

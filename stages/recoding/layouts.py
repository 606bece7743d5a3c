"""Owns the table of layouts that `--to` names, and what is told of exported files as a whole."""

from __future__ import annotations

from ..settings.recode import RecodeSettings
from .export import Exported, Layout
from .layout_npy import NpyLayout
from .layout_parquet import ParquetLayout
from .layout_tars import TarsLayout
from .layout_topk import TopKLayout
from .source import LOGITS
from .taking import Taken


def describe_files(taken: Taken) -> Exported:
    """What layouts are told of the files as a whole."""
    source, stored = taken.source, {target.name: target.axes[2:] for target in taken.facts.spec.targets}
    classes = taken.classes
    return Exported(
        targets={name: (stored.get(name, ("class",)), source.width_of(name)) for name in source.targets},
        view_numbers=source.views,
        views=taken.facts.views.some(source.views).to_json(),
        teacher=taken.description.teacher,
        colors=taken.facts.spec.colors,
        classes=None
        if classes is None
        else {
            "names": list(classes.vectors.names),
            "logit_scale": classes.vectors.logit_scale,
            "normalized": classes.vectors.normalized,
            "digest": classes.vectors.digest,
        },
        recoded=taken.origin.to_json(),
        corpus_id=taken.facts.corpus_id,
    )


def layout_of(settings: RecodeSettings, exported: Exported) -> Layout:
    """The layout that `--to` names."""
    shapes, dtype = exported.shapes, settings.dtype
    top = min([settings.top, *shapes.get(LOGITS, ())])
    if settings.to == "parquet":
        return ParquetLayout(dtype=dtype, exported=exported)
    if settings.to == "npy":
        return NpyLayout(dtype=dtype, exported=exported)
    if settings.to == "tars":
        return TarsLayout(dtype=dtype, top=top)
    num_classes = shapes[LOGITS][0] if LOGITS in shapes else 0
    return TopKLayout(dtype=dtype, top=top, packed=settings.packed, num_classes=num_classes)

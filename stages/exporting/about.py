"""Owns `export.json`: what whoever loads an export has to know of its input and output, and how it was checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict

from ...pipeline.contents import EXPORT_NOTE
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.folder_config import file_digest
from .compare import Difference
from .form import Export
from .graph import INPUT

NAME = EXPORT_NOTE

_LAYOUTS = {"float-nchw": ("float32", "NCHW"), "uint8-nchw": ("uint8", "NCHW"), "uint8-nhwc": ("uint8", "NHWC")}


def claim() -> bytes:
    """What the file holds while the others are written: it marks the folder as one of exports."""
    return _bytes({"kind": "teachonce export", "finished": False})


def about(form: str, export: Export, files: Mapping[str, bytes], difference: Difference, images: str | None) -> bytes:
    """The file of a finished export."""
    student, preprocess = export.student, export.student.preprocess
    dtype, layout = _LAYOUTS[export.pixels]
    size, vectors = preprocess.size, student.class_vectors
    fields: dict[str, Json] = {
        "kind": "teachonce export",
        "finished": True,
        "form": form,
        "student": student.config.student.get("name"),
        "input": {
            "name": INPUT,
            "dtype": dtype,
            "layout": layout,
            "size": [size, size],
            "batch": "any number of images",
            "normalised_inside": dtype == "uint8",
        },
        "preprocessing": {
            "1_resize": {
                "how": {"center": "the shorter side", "border": "the longer side", "squash": "both sides"}[
                    preprocess.crop_mode
                ],
                "to": math.floor(size / preprocess.crop_pct),
                "filter": preprocess.interpolation,
                "by": "Pillow's Image.resize on uint8 RGB: other libraries' filters differ",
            },
            "2_crop": {
                "size": [size, size],
                "where": "centre",
                "fill": list(preprocess.center_view().fill or ()) or None,
            },
            "3_normalise": {"scale": 1 / 255, "mean": list(preprocess.mean), "std": list(preprocess.std)},
        },
        "output": {
            "name": export.result,
            "dtype": "float32",
            "normalised": student.student.head.normalized if export.result == "embedding" else False,
            "classes": list(vectors.names) if vectors is not None and export.result == "logits" else None,
        },
        "class_vectors": None
        if vectors is None
        else {
            "names": list(vectors.names),
            "logit_scale": vectors.logit_scale,
            "logits": "logit_scale * embedding @ vectors.T" + ("" if vectors.bias_C is None else " + bias"),
        },
        "checked": {**asdict(difference), "on": images or "drawn pictures"},
        "files": {name: file_digest(data) for name, data in files.items()},
        "origin": dict(student.config.origin),
    }
    return _bytes(fields)


def _bytes(fields: Json) -> bytes:
    return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()

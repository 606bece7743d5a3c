"""Owns the layout `tars`: WebDataset tars with a few members a sample, after apple's dataset reinforcement.

ml-dr keeps `(id, [{"params", "prob"}, …])` of each image in a file of torch's pickle, `ID.pth.tar`. Pickle is not written here. The authors' later
program, which reads and writes DataCompDR, has the same facts in plain members, and those are matched: `KEY.paug.json` with `param_aug`, the compressed
parameters of each view; `KEY.npz` with `image_emb` (view, channel); `KEY.json` with the rest. `prob`, which only ml-dr has, stands in
`KEY.prob.json`: for each view (probabilities, ids) of its top classes, as `dr.utils.sparsify` gives them.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json, canonical_json
from ...storage_schemas.tar_file import TarFile
from .export import Exported, ExportShard, Portion, as_dtype
from .source import LOGITS
from .top_classes import top_classes

#: Names of arrays that the other program knows by another name.
_NAMES = {"embedding": "image_emb"}


@dataclass(frozen=True, kw_only=True)
class TarsLayout:
    """`NNNNNNNN.tar`, and `config.json` with the augmentations that the parameters are of.

    Attributes:
        dtype: of the arrays.
        top: classes of a distribution.
    """

    dtype: str
    top: int

    def to_json(self) -> Json:
        return {"layout": "tars", "dtype": self.dtype, "top": self.top}

    def check(self, exported: Exported, where: object) -> None:
        kind = exported.views.get("kind")
        if exported.colors or kind == "border":
            raise InputError(
                "this layout has no room for these views",
                code="layout-has-no-room",
                where=f"{where}, --to tars",
                expected="boxes inside the image, and mirroring",
                found="views with colours" if exported.colors else "views with a border",
                hint="use --to parquet or npy",
            )

    def beside(self, exported: Exported) -> dict[str, bytes]:
        preprocess = exported.teacher.get("preprocess") or {}
        crop = {name: preprocess[name] for name in ("size", "interpolation") if name in preprocess}
        crop |= {name: exported.views[name] for name in ("scale", "ratio", "interpolation") if name in exported.views}
        augmentation: dict[str, Any] = {
            "random_resized_crop": crop,
            "random_horizontal_flip": {"p": exported.views.get("flip", 0.0)},
            "to_tensor": {"enable": True},
        }
        if "mean" in preprocess:
            augmentation["normalize"] = {name: preprocess[name] for name in ("mean", "std")}
        config = {
            "model_name": exported.teacher.get("model"),
            "num_samples": exported.num_views,
            "reinforce": {
                "num_samples": exported.num_views,
                "topk": self.top,
                "compress": True,
                "image_augmentation": augmentation,
            },
        }
        return {"config.json": (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()}

    def write(self, shard: ExportShard, folder: Location) -> list[str]:
        name = f"{shard.number:08d}.tar"
        with (folder / name).create() as file:
            tar = TarFile(file)
            for portion in shard.portions():
                self._add(tar, portion)
            tar.finish()
        return [name]

    def _add(self, tar: TarFile, portion: Portion) -> None:
        top = top_classes(portion.targets[LOGITS], self.top) if LOGITS in portion.targets else None
        arrays = {
            _NAMES.get(name, name): as_dtype(values, self.dtype, name)
            for name, values in portion.targets.items()
            if name != LOGITS
        }
        for place, (key, row, entry) in enumerate(zip(portion.keys, portion.rows, portion.entries, strict=True)):
            facts: dict[str, Json] = {"uid": key, "row": row}
            if entry is not None:
                facts |= {"path": entry.path} | ({} if entry.label is None else {"label": entry.label})
            tar.add(f"{key}.json", canonical_json(facts))
            tar.add(f"{key}.paug.json", canonical_json({"param_aug": _compressed(portion.params[place])}))
            if arrays:
                tar.add(f"{key}.npz", _npz({name: values[place] for name, values in arrays.items()}))
            if top is not None:
                ids_VK, logs_VK = top[0][place], np.exp(top[1][place])
                prob = [[_short(p), ids.tolist()] for p, ids in zip(logs_VK, ids_VK, strict=True)]
                tar.add(f"{key}.prob.json", canonical_json({"prob": prob}))


def _compressed(params_V: Any) -> list[Json]:
    """Of each view what ml-dr's `Compose.compress` gives of a crop and a flip: [[top, left, height, width], flip]."""
    return [[[int(view[name]) for name in ("top", "left", "height", "width")], bool(view["flip"])] for view in params_V]


def _short(values: Any) -> list[float]:
    """fp32 as numbers with no more digits than they have."""
    return [float(str(value)) for value in values]


def _npz(arrays: dict[str, Any]) -> bytes:
    """Without compression, and without a time in it."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()

"""Owns open_clip students: the image tower alone, by open_clip's own spelling of models and weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from ...storage_schemas.fingerprint import Json
from ..models.clip import build_tower, make_tower, resize_trunk
from ..models.clip_source import names_its_weights, resolve_clip
from ..models.known_weights import KnownWeights
from ..models.names import RANDOM
from .described import check_backbone
from .family import Backbone


class OpenClipFamily:
    """`ViT-B-16`, `hf-hub:ORG/REPO`, `local-dir:FOLDER`, weights by tag or path. Builds no text tower."""

    reads_images = True

    def create(self, name: str, pretrained: str | None, *, seed: int, size: int | None) -> Backbone:
        starts = pretrained if pretrained is not None or self.implies_weights(name) else RANDOM
        source = resolve_clip(name, starts, role="student")
        filled = {"family": "open_clip", "tower": source.model_cfg, "configured": source.configured, "size": size}
        known = KnownWeights.of(source.weights_path, filled)
        built = build_tower(source, size=size, seed=seed)
        vision_cfg = copy.deepcopy(built.model_cfg["vision_cfg"])
        config = {
            "family": "open_clip",
            "name": source.name,
            "embed_dim": built.model_cfg["embed_dim"],
            "vision_cfg": vision_cfg,
            "quick_gelu": bool(built.model_cfg.get("quick_gelu", False)),
            # A timm trunk takes its weights at its own size and is resized then; open_clip's towers the other way round.
            "trunk_size": size if "timm_model_name" in vision_cfg else None,
        }
        check_backbone(config, where=name)
        return Backbone(
            module=built.module,
            config=config,
            preprocess=built.preprocess,
            width=int(built.model_cfg["embed_dim"]),
            logit_scale=built.logit_scale,
            weights=f"random, seed {seed}" if source.weights_path is None else source.weights,
            loaded=", ".join(filter(None, (built.entry, built.activation))),
            known=known,
        )

    def rebuild(self, config: Mapping[str, Json]) -> nn.Module:
        tower = make_tower(config)
        resize_trunk(tower, config["trunk_size"], where=config["name"])
        return tower

    def implies_weights(self, name: str) -> bool:
        return names_its_weights(name)

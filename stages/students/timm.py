"""Owns timm students: `timm:NAME`, features before the classifier, with weights by tag or path."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..models.known_weights import KnownWeights
from ..models.names import RANDOM, TIMM_PREFIX
from ..models.preprocess import Preprocess
from ..models.probe import try_images
from ..models.timm_models import build_timm, names_its_weights, resolve_timm
from .described import check_backbone
from .family import Backbone


class TimmFamily:
    """Any timm image model, without its classifier (`num_classes=0`): pooled features."""

    reads_images = True

    def create(self, name: str, pretrained: str | None, *, seed: int, size: int | None) -> Backbone:
        from timm.data import resolve_data_config

        starts = pretrained if pretrained is not None or self.implies_weights(name) else RANDOM
        source = resolve_timm(name, starts, role="student")
        known = KnownWeights.of(source.path, {"family": "timm", "tower": source.name, "size": size})
        built = build_timm(source, size=size, seed=seed, num_classes=0)
        where = f"{TIMM_PREFIX}{source.name}"
        preprocess = Preprocess.of_timm(resolve_data_config(model=built.module), size=size, where=where)
        features_ND = try_images(built.module, preprocess.size, f"{where}, --student-size")
        if features_ND.ndim != 2:
            raise InputError(
                "this student gives no pooled features",
                code="student-without-features",
                where=f"--student {where}",
                expected="one vector an image",
                found=f"shape {tuple(features_ND.shape)}",
                hint="choose another",
            )
        config: dict[str, Json] = {"family": "timm", "name": source.name, "kwargs": dict(built.kwargs)}
        check_backbone(config, where=name)
        return Backbone(
            module=built.module,
            config=config,
            preprocess=preprocess,
            width=int(features_ND.shape[1]),
            logit_scale=None,
            weights=f"random, seed {seed}" if source.weights == RANDOM else source.weights,
            loaded=built.entry,
            known=known,
        )

    def rebuild(self, config: Mapping[str, Json]) -> nn.Module:
        import timm

        module: nn.Module = timm.create_model(config["name"], pretrained=False, num_classes=0, **config["kwargs"])
        return module

    def implies_weights(self, name: str) -> bool:
        return names_its_weights(name)

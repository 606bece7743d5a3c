"""Owns decoders as a family of students: `decoder:NAME`, made for whatever maps a store holds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.near_names import did_you_mean
from ..models.names import DECODER_PREFIX, RANDOM
from ..models.preprocess import Preprocess
from .decoder import DECODERS
from .family import Backbone

#: How the published method prepares images: resized to 256 x 256 whatever their shape, ImageNet's mean and deviation.
PUBLISHED = Preprocess(
    size=256,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bilinear",
    crop_mode="squash",
)


class DecoderFamily:
    """Decoders that mirror a ResNet. Their shapes are those of the maps, so they are built once a recipe has chosen them."""

    reads_images = False

    def create(self, name: str, pretrained: str | None, *, seed: int, size: int | None) -> Backbone:
        """A backbone without a module yet, see `map_student.new_map_student`.

        Raises:
            InputError: no such decoder; weights or a size, which it cannot have.
        """
        mirrored = name.removeprefix(DECODER_PREFIX)
        if mirrored not in DECODERS:
            raise InputError(
                "no such decoder",
                code="decoder-unknown",
                where=f"--student {name}",
                expected=" or ".join(f"{DECODER_PREFIX}{known}" for known in DECODERS),
                found=mirrored,
                hint=did_you_mean(mirrored, tuple(DECODERS), "") or None,
            )
        if pretrained not in (None, RANDOM):
            raise InputError(
                "a decoder starts from random weights",
                code="decoder-has-no-weights",
                where=f"--student-pretrained {pretrained}",
                hint="leave it out",
            )
        if size is not None:
            raise InputError(
                "a decoder reads maps, and has their size",
                code="decoder-has-no-size",
                where=f"--student-size {size}",
                hint="leave it out",
            )
        return Backbone(
            module=nn.Identity(),
            config={"family": "decoder", "name": mirrored},
            preprocess=PUBLISHED,
            width=1,
            logit_scale=None,
            weights=f"random, seed {seed}",
        )

    def rebuild(self, config: Mapping[str, Json]) -> nn.Module:
        """Nothing yet: what a decoder is made for lies in the bundle's head."""
        return nn.Identity()

    def implies_weights(self, name: str) -> bool:
        return False

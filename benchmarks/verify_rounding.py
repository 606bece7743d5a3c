"""How far a teacher's values move by rounding, and how far by faults that `verify --teacher` tells apart from it.

    python benchmarks/verify_rounding.py IMAGES --teacher local-dir:FOLDER [--pretrained WEIGHTS] [--count 40]

IMAGES is a folder of photographs. The teacher runs on a random crop of each. A line says 1 - cosine of embeddings and, where the teacher has classes,
KL of logits at T = 1, to the same teacher in fp32: median / largest. The table in docs/verify.md is made of these.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.names import RANDOM
from teachonce.stages.models.preprocess import Normalize
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.samples.images import IMAGES
from teachonce.stages.samples.kind import draw_views
from teachonce.stages.teachers import load_teacher
from teachonce.stages.teachers.placing import place
from teachonce.stages.verifying.differences import apart
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import TeachonceError

FP32 = Compute(device="cpu", precision="fp32", threads=1)
VIEW = ViewSpec(kind="random_resized_crop", count=1, seed=0)
Pixels = NDArray[np.uint8]


def chroma_of_another_decoder(image: Image.Image) -> Image.Image:
    """The picture with its colours at half the size, enlarged to the nearest pixel."""
    light, *colors = image.convert("YCbCr").split()
    half = ((image.width + 1) // 2, (image.height + 1) // 2)
    near = [each.resize(half, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST) for each in colors]
    return Image.merge("YCbCr", (light, *near)).convert("RGB")


def mirrored(params: Any) -> Any:
    params["flip"] = 1 - params["flip"]
    return params


def one_to_the_left(params: Any) -> Any:
    params["left"] = np.maximum(params["left"] - 1, 0)
    return params


class Study:
    """A teacher, and photographs."""

    def __init__(self, config: TeacherConfig, files: list[Path]) -> None:
        self.config, self.files, self.teacher = config, files, load_teacher(config)
        try:
            names = self.teacher.class_names([f"class {i}" for i in range(10)])
            self.vectors: Any = self.teacher.class_vectors(names, ("a photo of a {}.",))
        except TeachonceError:
            self.vectors = None

    def pixels(
        self,
        *,
        interpolation: str = VIEW.interpolation,
        params_by: Callable[[Any], Any] = lambda params: params,
        image_by: Callable[[Image.Image], Image.Image] = lambda image: image,
    ) -> Pixels:
        """Views, uint8 (picture, 3, height, width)."""
        spec, views = replace(VIEW, interpolation=interpolation), []
        for file in self.files:
            image = Image.open(file).convert("RGB")
            params = params_by(spec.params(file.name, *image.size))
            views.append(draw_views(IMAGES, image_by(image), params, self.teacher.spec.preprocess.size, spec)[0])
        return np.stack(views)

    def values(self, pixels: Pixels, compute: Compute = FP32, *, teacher: Any = None, batch: int = 16) -> Any:
        """Embeddings, and logits where there are classes, fp32 (picture, …)."""
        placed = place(self.teacher if teacher is None else teacher, compute)
        with compute.inference():
            parts = [
                placed.embed(torch.from_numpy(pixels[start : start + batch])).float().numpy()
                for start in range(0, len(pixels), batch)
            ]
        found = {"embedding": np.concatenate(parts)}
        return found if self.vectors is None else {**found, "logits": self.vectors.logits(found["embedding"])}

    def normalised(self, pixels: Pixels, mean: Any, std: Any) -> Any:
        """Values with another mean and standard deviation."""
        own = self.teacher._normalize
        self.teacher._normalize = Normalize(replace(self.teacher.spec.preprocess, mean=tuple(mean), std=tuple(std)))
        try:
            return self.values(pixels)
        finally:
            self.teacher._normalize = own

    def noisy(self, pixels: Pixels, share: float) -> Any:
        """Values with noise in the weights, a share of each one's deviation."""
        other: Any = load_teacher.__wrapped__(self.config)
        torch.manual_seed(0)
        with torch.no_grad():
            for weights in (other.model if hasattr(other, "model") else other._model).parameters():
                if weights.ndim > 1:
                    weights.add_(torch.randn_like(weights) * weights.std() * share)
        return self.values(pixels, teacher=other)

    def random(self, pixels: Pixels) -> Any:
        """Values with random weights."""
        return self.values(pixels, teacher=load_teacher.__wrapped__(replace(self.config, pretrained=RANDOM)))

    def all(self) -> Iterator[tuple[str, Any, Any]]:
        """What each line is of; what it is compared with; its values."""
        pixels, spec = self.pixels(), self.teacher.spec.preprocess
        base = self.values(pixels)
        yield "batch of 1", base, self.values(pixels, batch=1)
        yield "batch of 7", base, self.values(pixels, batch=7)
        yield "2 threads", base, self.values(pixels, replace(FP32, threads=2))
        autocast = self.values(pixels, replace(FP32, precision="bf16"))
        weights = self.values(pixels, replace(FP32, precision="bf16_weights"))
        yield "autocast in bf16", base, autocast
        yield "weights in bf16", base, weights
        yield "the two against each other", weights, autocast
        for share in (0.001, 0.01, 0.03):
            yield f"noise in the weights, {share:.1%}", base, self.noisy(pixels, share)
        for name in ("lanczos", "bilinear", "nearest"):
            yield f"{name} for {VIEW.interpolation}", base, self.values(self.pixels(interpolation=name))
        yield "boxes one pixel to the left", base, self.values(self.pixels(params_by=one_to_the_left))
        yield "mirrored", base, self.values(self.pixels(params_by=mirrored))
        yield "chroma of another decoder", base, self.values(self.pixels(image_by=chroma_of_another_decoder))
        yield "red and blue exchanged", base, self.values(pixels[:, ::-1].copy())
        imagenet = self.normalised(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        yield "ImageNet's mean and deviation", base, imagenet
        unscaled = self.normalised(pixels, [m / 255 for m in spec.mean], [s / 255 for s in spec.std])
        yield "x/255 left out", base, unscaled
        yield "rows shifted by one", base, self.values(np.roll(pixels, 1, axis=0))
        yield "random weights", base, self.random(pixels)


def line(label: str, one: Any, other: Any) -> str:
    parts = []
    for name, values in one.items():
        found = apart(name, values, other[name])
        parts.append(f"{name} {np.median(found.cosine_M):.1e} / {found.cosine_M.max():.1e}")
        if found.kl_M is not None:
            parts.append(f"KL {np.median(found.kl_M):.1e} / {found.kl_M.max():.1e}")
    return f"{label:32} " + "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--mean", type=float, nargs=3)
    parser.add_argument("--std", type=float, nargs=3)
    parser.add_argument("--count", type=int, default=40)
    given = parser.parse_args()
    files = sorted(f for f in given.images.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
    files = files[:: max(1, len(files) // given.count)][: given.count]
    own = {name: tuple(values) for name in ("mean", "std") if (values := getattr(given, name)) is not None}
    config = TeacherConfig(model=given.teacher, pretrained=given.pretrained, **own)
    for label, one, other in Study(config, files).all():
        print(line(label, one, other), flush=True)


if __name__ == "__main__":
    main()

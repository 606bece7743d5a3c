"""The script that makes a data set of four domains of photographs, and a small CLIP-like teacher for it.

    python benchmarks/drawn_domains.py --photographs CALTECH101 --weights EFFICIENTNET_LITE0.pth --out DIRECTORY
    teachonce benchmark vl2v --data DIRECTORY/data --dataset folder --teacher local-dir:DIRECTORY/teacher …

No set of domain generalisation and no CLIP's weights can be had where this project is built. So the domains are drawn: each photograph
goes to one of `photo`, `sketch` (its edges, in grey), `poster` (few colours, blurred) and `negative` (inverted colours), by a hash of
its name. The teacher is an ImageNet EfficientNet-Lite0 with a random linear projection; its text tower is random too, but for
its last layer, which is fitted so that the class vectors are the mean embeddings of some photographs of each class. These
are in no domain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import safetensors.torch
import torch
from PIL import Image, ImageFilter, ImageOps
from teachonce.stages.students.registry import family_of

#: Photographs of each class that the text tower is fitted to, and the longer side of drawn images.
FITTED, SIDE, SIZE, WIDTH = 6, 192, 160, 64

MEAN, STD = (0.498039,) * 3, (0.501961,) * 3
CONFIG = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "timm_model_name": "efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": SIZE,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
PREPROCESS = {"size": SIZE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}


def sketch(image: Image.Image) -> Image.Image:
    """Dark edges on white."""
    edges = ImageOps.grayscale(image).filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    return ImageOps.invert(ImageOps.autocontrast(edges.crop((2, 2, edges.width - 2, edges.height - 2)))).convert("RGB")


def poster(image: Image.Image) -> Image.Image:
    """Four levels of each colour, in soft patches."""
    return ImageOps.posterize(image.filter(ImageFilter.MedianFilter(7)), 2)


DOMAINS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "negative": ImageOps.invert,
    "photo": lambda image: image,
    "poster": poster,
    "sketch": sketch,
}


def draw(photographs: Path, out: Path, classes: int) -> dict[str, list[Path]]:
    """Write OUT/DOMAIN/CLASS/IMAGE; returns the photographs of each class that are in no domain."""
    kept: dict[str, list[Path]] = {}
    for folder in sorted(p for p in photographs.iterdir() if p.is_dir())[:classes]:
        files = sorted(folder.glob("*.jpg"), key=lambda path: hashlib.blake2b(path.name.encode()).digest())
        kept[folder.name] = files[:FITTED]
        for number, path in enumerate(files[FITTED:]):
            domain = list(DOMAINS)[number % len(DOMAINS)]
            image = Image.open(path).convert("RGB")
            image.thumbnail((SIDE, SIDE))
            place = out / domain / folder.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            DOMAINS[domain](image).save(place, quality=90)
    return kept


def make_teacher(weights: Path, photographs: dict[str, list[Path]], folder: Path) -> None:
    """Write the teacher's folder, for `local-dir:`."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    trunk = family_of("timm:efficientnet_lite0").create("timm:efficientnet_lite0", str(weights), seed=0, size=None)
    model.visual.trunk.load_state_dict(trunk.module.state_dict())
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16", context_length=CONFIG["text_cfg"]["context_length"])
    with torch.no_grad():
        means_CD = torch.stack([embed(model, paths).mean(dim=0) for paths in photographs.values()])
        means_CD = torch.nn.functional.normalize(means_CD - means_CD.mean(dim=0), dim=1)
        model.text_projection.copy_(torch.eye(*model.text_projection.shape))
        names = [f"a photo of a {name.replace('_', ' ')}" for name in photographs]
        # With the unit matrix as projection the features are those before it, up to the first WIDTH channels: fit on all of them.
        features_CW = text_features(model, tokenizer(names))
        model.text_projection.copy_(torch.linalg.lstsq(features_CW, means_CD).solution)
        model.logit_scale.fill_(torch.tensor(30.0).log())
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def embed(model: torch.nn.Module, paths: list[Path]) -> torch.Tensor:
    """Normalised embeddings (N, D) of photographs."""
    transform = open_clip.image_transform(SIZE, is_train=False, mean=MEAN, std=STD)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    return torch.nn.functional.normalize(model.encode_image(images), dim=1)


def text_features(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Features (C, width) in front of the text projection."""
    found: list[torch.Tensor] = []
    hook = model.ln_final.register_forward_hook(lambda module, given, result: found.append(result))
    model.encode_text(tokens)
    hook.remove()
    return found[0][torch.arange(len(tokens)), tokens.argmax(dim=-1)]


def main(arguments: list[str] | None = None) -> int:
    """Write DIRECTORY/data and DIRECTORY/teacher."""
    parser = argparse.ArgumentParser(description="Draw four domains of photographs, and make a teacher.")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of CLASS/*.jpg")
    parser.add_argument("--weights", type=Path, required=True, help="of EfficientNet-Lite0, as its package ships them")
    parser.add_argument("--classes", type=int, default=40, help="the first so many")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets data/ and teacher/")
    options = parser.parse_args(arguments)
    kept = draw(options.photographs, options.out / "data", options.classes)
    make_teacher(options.weights, kept, options.out / "teacher")
    images = {domain: sum(1 for _ in (options.out / "data" / domain).rglob("*.jpg")) for domain in DOMAINS}
    print(", ".join(f"{domain}: {count} images" for domain, count in images.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

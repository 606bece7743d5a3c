"""Owns the small CLIP-like teacher of data sets that are drawn from photographs, and how these are taken.

It is an ImageNet EfficientNet-Lite0 with a random linear projection. Its text tower is random too, but for its last layer, which
is fitted so that each sentence lies where some photographs of its class do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import open_clip
import safetensors.torch
import torch
from PIL import Image
from teachonce.stages.students.registry import family_of

#: Of the images that the teacher sees; and the longer side of those that are written.
SIZE, SIDE = 160, 192

MEAN, STD = (0.498039,) * 3, (0.501961,) * 3
VISION = {
    "timm_model_name": "efficientnet_lite0",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": SIZE,
}
PREPROCESS = {"size": SIZE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}


def drawing_options(description: str, out: str) -> argparse.ArgumentParser:
    """What a script takes that draws a data set and makes its teacher; `out` is what --out gets."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of CLASS/*.jpg")
    parser.add_argument("--weights", type=Path, required=True, help="of EfficientNet-Lite0, as its package ships them")
    parser.add_argument("--out", type=Path, required=True, help=f"folder that gets {out}")
    return parser


def classes_of(photographs: Path, fitted: int) -> Iterator[tuple[str, list[Path], list[Path]]]:
    """Of each class its name, so many photographs that the teacher is fitted to, and the others; by a hash of their file names."""
    for folder in sorted(p for p in photographs.iterdir() if p.is_dir()):
        files = sorted(folder.glob("*.jpg"), key=hash_of)
        yield folder.name, files[:fitted], files[fitted:]


def hash_of(path: Path) -> bytes:
    """Of the file's name."""
    return hashlib.blake2b(path.name.encode()).digest()


def small(path: Path) -> Image.Image:
    """A photograph in RGB, its longer side at most `SIDE`."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return image


def save(image: Image.Image, place: Path) -> None:
    """Write an image as JPEG, and the folders that it lies in."""
    place.parent.mkdir(parents=True, exist_ok=True)
    image.save(place, quality=90)


def make_teacher(
    weights: Path, photographs: dict[str, list[Path]], folder: Path, *, sentences: Sequence[str], text_width: int
) -> None:
    """Write the teacher's folder, for `local-dir:`.

    Args:
        photographs: of each class, those that its sentences are fitted to.
        sentences: around a class's name.
        text_width: of the text tower; more than there are sentences of all classes, so that all of them can be fitted.
    """
    torch.manual_seed(0)
    text = {"context_length": 16, "vocab_size": 49408, "width": text_width, "heads": 4, "layers": 2}
    config = {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": text}
    model = open_clip.CLIP(**config)
    trunk = family_of("timm:efficientnet_lite0").create("timm:efficientnet_lite0", str(weights), seed=0, size=None)
    model.visual.trunk.load_state_dict(trunk.module.state_dict())
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16", context_length=text["context_length"])
    with torch.no_grad():
        means_CD = torch.stack([_embed(model, paths).mean(dim=0) for paths in photographs.values()])
        means_CD = torch.nn.functional.normalize(means_CD - means_CD.mean(dim=0), dim=1)
        texts = [sentence.format(name.replace("_", " ")) for name in photographs for sentence in sentences]
        features_TW = _text_features(model, tokenizer(texts))
        wanted_TD = means_CD.repeat_interleave(len(sentences), dim=0)
        model.text_projection.copy_(torch.linalg.lstsq(features_TW, wanted_TD).solution)
        model.logit_scale.fill_(torch.tensor(30.0).log())
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    about = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _embed(model: torch.nn.Module, paths: list[Path]) -> torch.Tensor:
    """Normalised embeddings (N, D) of photographs."""
    transform = open_clip.image_transform(SIZE, is_train=False, mean=MEAN, std=STD)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    return torch.nn.functional.normalize(model.encode_image(images), dim=1)


def _text_features(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Features (T, width) in front of the text projection."""
    found: list[torch.Tensor] = []
    hook = model.ln_final.register_forward_hook(lambda module, given, result: found.append(result))
    model.encode_text(tokens)
    hook.remove()
    return found[0][torch.arange(len(tokens)), tokens.argmax(dim=-1)]

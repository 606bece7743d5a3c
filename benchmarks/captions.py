"""The script that makes captions for photographs, and a small CLIP-like teacher that reads them.

    python benchmarks/captions.py --photographs CALTECH101 --weights EFFICIENTNET_LITE0.pth --out DIRECTORY

No CLIP's weights and no captioned photographs can be had where this project is built. So captions are drawn: each photograph of
DIRECTORY/train has three, of the name of its class in sentences that a hash of its file name chooses, and one in twenty has none
(DIRECTORY/captions.csv). The teacher is an ImageNet EfficientNet-Lite0 with a random linear projection; its text tower is random
too, but for its last layer, which is fitted so that each sentence lies where some other photographs of its class do.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
from pathlib import Path

import open_clip
import safetensors.torch
import torch
from drawn_domains import CONFIG, PREPROCESS, embed, text_features
from PIL import Image
from teachonce.stages.students.registry import family_of

#: Sentences around a class's name, and how many a photograph has.
SENTENCES = (
    "a photo of a {}.",
    "a picture of a {}, taken indoors.",
    "there is a {} here.",
    "my {}.",
    "one {}, close up.",
)
EACH, WITHOUT = 3, 20

#: Photographs of each class that the text tower is fitted to, that are tested, and the longer side of those that are written.
FITTED, TESTED, SIDE = 10, 10, 192


def split(photographs: Path, out: Path) -> dict[str, list[Path]]:
    """Write OUT/train, OUT/test and OUT/captions.csv; returns the photographs of each class that are in neither."""
    kept: dict[str, list[Path]] = {}
    rows: list[tuple[str, str]] = []
    for folder in sorted(p for p in photographs.iterdir() if p.is_dir()):
        files = sorted(folder.glob("*.jpg"), key=_hash)
        kept[folder.name] = files[:FITTED]
        for number, path in enumerate(files[FITTED:]):
            part = "test" if number < TESTED else "train"
            place = out / part / folder.name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(path).convert("RGB")
            image.thumbnail((SIDE, SIDE))
            image.save(place, quality=90)
            if part == "train" and _hash(path)[0] % WITHOUT:
                words = [SENTENCES[(_hash(path)[1] + i) % len(SENTENCES)] for i in range(EACH)]
                rows += [(f"{folder.name}/{path.name}", text.format(_words(folder.name))) for text in words]
    with (out / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    return kept


def make_teacher(weights: Path, photographs: dict[str, list[Path]], folder: Path) -> None:
    """Write the teacher's folder, for `local-dir:`."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIG)
    config["text_cfg"]["width"] = 256  # more than there are sentences, so that all of them can be fitted
    model = open_clip.CLIP(**config)
    trunk = family_of("timm:efficientnet_lite0").create("timm:efficientnet_lite0", str(weights), seed=0, size=None)
    model.visual.trunk.load_state_dict(trunk.module.state_dict())
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16", context_length=config["text_cfg"]["context_length"])
    with torch.no_grad():
        means_CD = torch.stack([embed(model, paths).mean(dim=0) for paths in photographs.values()])
        means_CD = torch.nn.functional.normalize(means_CD - means_CD.mean(dim=0), dim=1)
        texts = [text.format(_words(name)) for name in photographs for text in SENTENCES]
        features_TW = text_features(model, tokenizer(texts))
        wanted_TD = means_CD.repeat_interleave(len(SENTENCES), dim=0)
        model.text_projection.copy_(torch.linalg.lstsq(features_TW, wanted_TD).solution)
        model.logit_scale.fill_(torch.tensor(30.0).log())
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    about = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _hash(path: Path) -> bytes:
    return hashlib.blake2b(path.name.encode()).digest()


def _words(name: str) -> str:
    return name.replace("_", " ")


def main(arguments: list[str] | None = None) -> int:
    """Write DIRECTORY/train, DIRECTORY/test, DIRECTORY/captions.csv, DIRECTORY/classes.txt and DIRECTORY/teacher."""
    parser = argparse.ArgumentParser(description="Draw captions of photographs, and make a teacher that reads them.")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of CLASS/*.jpg")
    parser.add_argument("--weights", type=Path, required=True, help="of EfficientNet-Lite0, as its package ships them")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets what is made")
    options = parser.parse_args(arguments)
    kept = split(options.photographs, options.out)
    (options.out / "classes.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    make_teacher(options.weights, kept, options.out / "teacher")
    for part in ("train", "test"):
        print(f"{part}: {sum(1 for _ in (options.out / part).rglob('*.jpg'))} images")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

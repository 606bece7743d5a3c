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

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from drawn_teacher import classes_of, drawing_options, make_teacher, save, small
from PIL import Image, ImageFilter, ImageOps

#: Photographs of each class that the text tower is fitted to.
FITTED = 6


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
    for name, fitted, others in islice(classes_of(photographs, FITTED), classes):
        kept[name] = fitted
        for number, path in enumerate(others):
            domain = list(DOMAINS)[number % len(DOMAINS)]
            save(DOMAINS[domain](small(path)), out / domain / name / path.name)
    return kept


def main(arguments: list[str] | None = None) -> int:
    """Write DIRECTORY/data and DIRECTORY/teacher."""
    parser = drawing_options("Draw four domains of photographs, and make a teacher.", "data/ and teacher/")
    parser.add_argument("--classes", type=int, default=40, help="the first so many")
    options = parser.parse_args(arguments)
    kept = draw(options.photographs, options.out / "data", options.classes)
    make_teacher(options.weights, kept, options.out / "teacher", sentences=["a photo of a {}"], text_width=128)
    images = {domain: sum(1 for _ in (options.out / "data" / domain).rglob("*.jpg")) for domain in DOMAINS}
    print(", ".join(f"{domain}: {count} images" for domain, count in images.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

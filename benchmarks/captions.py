"""The script that makes captions for photographs, and a small CLIP-like teacher that reads them.

    python benchmarks/captions.py --photographs CALTECH101 --weights EFFICIENTNET_LITE0.pth --out DIRECTORY

No CLIP's weights and no captioned photographs can be had where this project is built. So captions are drawn: each photograph of
DIRECTORY/train has three, of the name of its class in sentences that a hash of its file name chooses, and one in twenty has none
(DIRECTORY/captions.csv). The teacher is an ImageNet EfficientNet-Lite0 with a random linear projection; its text tower is random
too, but for its last layer, which is fitted so that each sentence lies where some other photographs of its class do.
"""

from __future__ import annotations

import csv
from pathlib import Path

from drawn_teacher import classes_of, drawing_options, hash_of, make_teacher, save, small

#: Sentences around a class's name, and how many a photograph has.
SENTENCES = (
    "a photo of a {}.",
    "a picture of a {}, taken indoors.",
    "there is a {} here.",
    "my {}.",
    "one {}, close up.",
)
EACH, WITHOUT = 3, 20

#: Photographs of each class that the text tower is fitted to, and that are tested.
FITTED, TESTED = 10, 10


def split(photographs: Path, out: Path) -> dict[str, list[Path]]:
    """Write OUT/train, OUT/test and OUT/captions.csv; returns the photographs of each class that are in neither."""
    kept: dict[str, list[Path]] = {}
    rows: list[tuple[str, str]] = []
    for name, fitted, others in classes_of(photographs, FITTED):
        kept[name] = fitted
        for number, path in enumerate(others):
            part, place = "test" if number < TESTED else "train", f"{name}/{path.name}"
            save(small(path), out / part / place)
            if part == "train" and hash_of(path)[0] % WITHOUT:
                first = hash_of(path)[1]
                chosen = [SENTENCES[(first + i) % len(SENTENCES)] for i in range(EACH)]
                rows += [(place, sentence.format(name.replace("_", " "))) for sentence in chosen]
    with (out / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    return kept


def main(arguments: list[str] | None = None) -> int:
    """Write DIRECTORY/train, DIRECTORY/test, DIRECTORY/captions.csv, DIRECTORY/classes.txt and DIRECTORY/teacher."""
    parser = drawing_options("Draw captions of photographs, and make a teacher that reads them.", "what is made")
    options = parser.parse_args(arguments)
    kept = split(options.photographs, options.out)
    (options.out / "classes.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    make_teacher(options.weights, kept, options.out / "teacher", sentences=SENTENCES, text_width=256)
    for part in ("train", "test"):
        print(f"{part}: {sum(1 for _ in (options.out / part).rglob('*.jpg'))} images")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

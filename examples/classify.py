"""Classify images with a student bundle: its folder is all that it takes, no teacher and no network.

python examples/classify.py demo-run/kd demo-run/images/*.png
"""

import argparse

import torch
from PIL import Image
from teachonce import load_student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder of `teachonce distill --out`")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=3, help="classes to print for each")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    bundle = load_student(args.bundle, device=device)
    for start in range(0, len(args.images), args.batch_size):
        paths = args.images[start : start + args.batch_size]
        images = []
        for path in paths:
            with Image.open(path) as image:
                images.append(bundle.pixels(image))  # resized and cropped as `teachonce evaluate` does, uint8
        with torch.inference_mode():
            logits_NC = bundle.vectors.logits(bundle.student(torch.stack(images).to(device)))
        best = logits_NC.softmax(1).topk(min(args.top, bundle.vectors.num_classes))
        for path, shares, classes in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True):
            named = [f"{bundle.vectors.names[c]} {p:.3f}" for p, c in zip(shares, classes, strict=True)]
            print(f"{path}: {', '.join(named)}")


if __name__ == "__main__":
    main()

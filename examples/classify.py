"""Classify images with a student bundle: its folder is all that it takes, no teacher and no network.

python examples/classify.py demo-run/kd demo-run/images/*.png
"""

import argparse

import torch
from teachonce import load_student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder of `teachonce distill --out`")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=3, help="classes to print for each")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    bundle = load_student(args.bundle, device="cuda" if torch.cuda.is_available() else "cpu")
    # Resized and cropped as `teachonce evaluate` does; what cannot be used is told apart.
    found = bundle.predict(args.images, batch_size=args.batch_size, keep_unusable=True)
    for path, seen in zip(args.images, found, strict=True):
        named = ", ".join(f"{name} {probability:.3f}" for name, probability in seen.top(args.top))
        print(f"{path}: {named or seen.reason}")


if __name__ == "__main__":
    main()

"""The plain loop: open_clip and torch's DataLoader over a folder of images, as open_clip's documentation writes it."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Folder(Dataset):
    def __init__(self, folder: str, preprocess) -> None:
        self.paths = sorted(Path(folder).rglob("*.jpg"))
        self.names = [path.relative_to(folder).as_posix() for path in self.paths]
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        return self._preprocess(Image.open(self.paths[index]))


def main(given: dict) -> None:
    torch.set_num_threads(given["threads"])
    model, _, preprocess = open_clip.create_model_and_transforms(given["model"], pretrained=given["weights"])
    model.eval()
    folder = Folder(given["images"], preprocess)
    loader = DataLoader(folder, batch_size=given["batch"], num_workers=given["loaders"])
    autocast = torch.autocast("cpu", torch.bfloat16) if given["precision"] == "bf16" else nullcontext()
    with torch.inference_mode(), autocast:
        outputs = [
            torch.nn.functional.normalize(model.encode_image(images).float(), dim=-1).half() for images in loader
        ]
    np.save(f"{given['out']}/embeddings.npy", torch.cat(outputs).numpy())
    Path(given["out"], "names.json").write_text(json.dumps(folder.names))
    versions = {name: version(name) for name in ("open_clip_torch", "torch", "pillow")}
    Path(given["out"], "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

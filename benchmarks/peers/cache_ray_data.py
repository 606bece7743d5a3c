"""Ray Data: `read_images`, `map` for the transform, `map_batches` with the model in an actor, as its documentation writes it."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import ray
import torch
from PIL import Image


class Transform:
    """Made once in each process that runs it."""

    def __init__(self, size: int) -> None:
        self._preprocess = open_clip.image_transform(size, is_train=False)

    def __call__(self, row: dict) -> dict:
        return {"path": row["path"], "pixels": self._preprocess(Image.fromarray(row["image"])).numpy()}


class Embed:
    def __init__(self, given: dict) -> None:
        torch.set_num_threads(given["threads"])
        self._model = open_clip.create_model(given["model"], pretrained=given["weights"]).eval()
        self._bf16 = given["precision"] == "bf16"

    def __call__(self, batch: dict) -> dict:
        autocast = torch.autocast("cpu", torch.bfloat16) if self._bf16 else nullcontext()
        with torch.inference_mode(), autocast:
            embedding = self._model.encode_image(torch.from_numpy(batch["pixels"]))
            embedding = torch.nn.functional.normalize(embedding.float(), dim=-1).half().numpy()
        return {"path": batch["path"], "embedding": embedding}


def main(given: dict) -> None:
    ray.init(address="local", include_dashboard=False, num_cpus=os.cpu_count(), log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    transform = Transform(given["size"])
    images = ray.data.read_images(given["images"], include_paths=True, mode="RGB", file_extensions=["jpg"])
    # One CPU for the model's actor as Ray counts, whatever its threads: the tasks that decode need one too.
    # Another share for these, or Ray joins both steps and the model waits for every transform.
    embedded = images.map(transform, num_cpus=0.5).map_batches(
        Embed, fn_constructor_args=(given,), batch_size=given["batch"], num_cpus=1, concurrency=1
    )
    names, outputs = [], []
    for batch in embedded.iter_batches(batch_size=None):
        names += [Path(path).relative_to(given["images"]).as_posix() for path in batch["path"]]
        outputs.append(batch["embedding"])
    np.save(f"{given['out']}/embeddings.npy", np.concatenate(outputs))
    Path(given["out"], "names.json").write_text(json.dumps(names))
    versions = {name: version(name) for name in ("ray", "open_clip_torch", "torch", "pillow")}
    Path(given["out"], "versions.json").write_text(json.dumps(versions))
    ray.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

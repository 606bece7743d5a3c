"""Students trained on encoded targets beside students trained on fp32 targets: `python benchmarks/encoded_students.py SHARDS STORE`.

STORE holds fp32 logits of the shards' samples in several views. Students (resnet10t from random weights) see the views at 48 pixels
and are trained on KL divergence at T = 1 to what each encoding decodes; a fifth of the samples is left out and compared: how often
the student's first class is the teacher's, and the divergence from the teacher. Top-k keeps the mass of the other classes, spread
evenly, and counts 10 bits an id and 8 bits a value.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import timm
import torch
from teachonce.stages.encodings.measure import divergence
from teachonce.stages.pairs.stream import TargetStream
from teachonce.storage_schemas.encodings.registry import unfitted
from teachonce.storage_schemas.encodings.spelling import one
from teachonce.storage_schemas.store_description import TargetSpec
from torch.nn import functional as F

SIZE = 48


def gathered(shards: str, store: str, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (row, view, 3, size, size) and logits fp32 (row, view, class), by row."""
    images: dict[int, list[np.ndarray]] = {}
    logits: dict[int, list[np.ndarray]] = {}
    with TargetStream(
        shards, store, image_size=SIZE, batch_size=50, targets=["logits"], drop_last=False, accept_other_pixels=True
    ) as stream:
        for view in range(views):
            for batch in stream.batches(view):
                for row, image, target in zip(
                    batch.rows_N.tolist(), batch.images_NCHW.numpy(), batch.targets["logits"].numpy(), strict=True
                ):
                    images.setdefault(row, []).append(image)
                    logits.setdefault(row, []).append(target)
    rows = sorted(images)
    return np.stack([np.stack(images[r]) for r in rows]), np.stack([np.stack(logits[r]) for r in rows])


def encoded(text: str, logits: np.ndarray) -> np.ndarray:
    """What an encoding makes of logits (row, view, class)."""
    if text == "fp32":
        return logits
    name, _, number = text.partition(":")
    if name == "top":
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        least = np.partition(p, -int(number), axis=-1)[..., -int(number), None]
        inside = p >= least
        tail = np.where(inside, 0, p).sum(-1, keepdims=True) / (~inside).sum(-1, keepdims=True)
        return np.log(np.where(inside, p, tail)).astype(np.float32)
    encoding = unfitted(one(text))
    target = TargetSpec(name="logits", axes=("sample", "view", "class"), shape=logits.shape[2:])
    keys = [f"{row:032x}" for row in range(len(logits))]
    arrays = encoding.encode(target, logits, keys=keys, first_view=0)
    views = range(logits.shape[1])
    return np.stack([encoding.decode(target, {n: a[:, v] for n, a in arrays.items()}) for v in views], axis=1)


def trained(images: torch.Tensor, targets: torch.Tensor, *, seed: int, epochs: int) -> torch.nn.Module:
    """A student of one seed; epoch e reads view e mod K, as `distill` does."""
    torch.manual_seed(seed)
    student = timm.create_model("resnet10t", num_classes=targets.shape[-1])
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.05)
    batch, count = 64, len(images)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    student.train()
    for epoch in range(epochs):
        view = epoch % images.shape[1]
        for rows in torch.randperm(count, generator=generator)[: count // batch * batch].split(batch):
            log_q = F.log_softmax(student(images[rows, view].float().div(127.5).sub(1)), 1)
            log_p = F.log_softmax(targets[rows, view], 1)
            loss = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return student.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("store")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encodings", default="fp32,sampled:40,sampled:50,top:11,top:14")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images_np, logits = gathered(options.shards, options.store, options.views)
    left_out = np.arange(len(logits)) % 5 == 0
    images = torch.from_numpy(images_np)
    teacher = logits[left_out].reshape(-1, logits.shape[2])
    for text in options.encodings.split(","):
        targets = torch.from_numpy(encoded(text, logits)[~left_out])
        found = []
        for seed in range(options.seeds):
            begun = time.process_time()
            student = trained(images[~left_out], targets, seed=seed, epochs=options.epochs)
            with torch.inference_mode():
                parts = images[left_out].flatten(0, 1).split(256)
                out = torch.cat([student(part.float().div(127.5).sub(1)) for part in parts]).numpy()
            agreement = float((out.argmax(1) == teacher.argmax(1)).mean())
            found.append((agreement, float(divergence(teacher, out).mean())))
            print(
                json.dumps(
                    {
                        "encoding": text,
                        "seed": seed,
                        "agreement": agreement,
                        "kl": found[-1][1],
                        "cpu_seconds": time.process_time() - begun,
                    }
                ),
                flush=True,
            )
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        print(
            f"{text}: agreement {mean[0]:.4f} ± {spread[0]:.4f}, KL from the teacher {mean[1]:.4f} ± {spread[1]:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

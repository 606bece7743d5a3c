"""The teacher's forward pass in each precision: its speed by autocast's and by open_clip's own with weights in bf16, and its distance to fp32.

Weights are random, but uneven as trained ones are: norms' weights differ, and blocks move what they add to, so that
rounding of either shows. `distance` and `uneven` serve `benchmarks/gpu.py` too.
"""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from corpora import files
from harness import Bench, Cost, Line, cost, pairs, speeds
from PIL import Image

#: Models, and images in a forward pass on the CPU; on CUDA it is `CUDA_BATCH` for all.
MODELS = {"ViT-B-32": 32, "ViT-B-16": 16, "ViT-L-14": 8}
CUDA_BATCH = 256

#: Images for distances, and the passes that are timed on CUDA.
IMAGES, CUDA_PASSES = 32, 8

CLASSES, SCALE = 1000, 100


def run(bench: Bench) -> Iterator[Line]:
    """Three lines a model, on the first corpus; on CUDA where there is one."""
    name, corpus = bench.corpora[0]
    for model in MODELS:
        yield from compare(model, pictures(corpus, 224, IMAGES), name, repeats=bench.repeats, threads=bench.threads)


def compare(model: str, images_NCHW: Any, corpus: str, *, repeats: int, threads: int) -> Iterator[Line]:
    """`bf16` by `amp_bf16`, and by open_clip's tower whose weights and input are all in bf16.

    Args:
        images_NCHW: uint8 tensor of the model's size.
        corpus: what the table calls them.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = CUDA_BATCH if device == "cuda" else MODELS.get(model, 8)
    passes = CUDA_PASSES if device == "cuda" else 1
    one_batch = images_NCHW.repeat(-(-batch // len(images_NCHW)), 1, 1, 1)[:batch].to(device)
    embed = {name: teacher_pass(model, name, device, threads) for name in ("fp32", "amp_bf16", "bf16")}
    plain, pixels = plain_pass(model, device), (one_batch / 255).to(torch.bfloat16)

    def work(forward: Any, images: Any) -> Any:
        def measured() -> Cost:
            torch.set_num_threads(threads)

            def all_passes() -> None:
                for _ in range(passes):
                    forward(images)
                if device == "cuda":
                    torch.cuda.synchronize()

            return cost(all_passes)

        return measured

    found = {n: torch.cat([f(part.to(device)).cpu() for part in images_NCHW.split(batch)]) for n, f in embed.items()}
    apart = {name: distance(found["fp32"], found[name]) for name in ("amp_bf16", "bf16")}
    ours = work(embed["bf16"], one_batch)
    by_autocast = pairs(ours, work(embed["amp_bf16"], one_batch), repeats)
    by_plain = pairs(ours, work(plain, pixels), repeats)
    rate = passes * batch / statistics.median(o.wall for o, _ in by_autocast)
    wall, cpu = speeds(by_autocast)
    note = f"{rate:,.0f} images/s, batch {batch}, {device}"
    yield Line(what=f"{model} in bf16, to autocast", corpus=corpus, ratios=wall, cpu_ratios=cpu, at_least=1, note=note)
    wall, cpu = speeds(by_plain)
    what = f"{model} in bf16, to open_clip's forward with weights in bf16"
    yield Line(what=what, corpus=corpus, ratios=wall, cpu_ratios=cpu, at_least=0.98, note=note)
    note = "; ".join(f"{name}: {', '.join(f'{k} {v:.1e}' for k, v in kinds.items())}" for name, kinds in apart.items())
    ratio = apart["bf16"]["1 - cosine, mean"] / apart["amp_bf16"]["1 - cosine, mean"]
    what = f"{model}: 1 - cosine to fp32 in bf16, by autocast's"
    yield Line(what=what, corpus=corpus, ratios=[ratio], at_most=1.3, note=note)


def teacher_pass(model: str, precision: str, device: str, threads: int) -> Any:
    """`embed` of teachonce's teacher, uneven weights, in a precision of `cache`: of uint8 images on the device."""
    import torch
    from teachonce.stages.models.compute import teacher_compute
    from teachonce.stages.models.settings import ComputeSettings
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.teachers.open_clip import OpenClipTeacher
    from teachonce.stages.teachers.placing import place

    compute = teacher_compute(ComputeSettings(device=device, precision=precision, threads=threads))
    loaded = OpenClipTeacher.load(TeacherConfig.of(model=model, pretrained="random"))
    uneven(loaded.model.visual)
    teacher = place(loaded, compute)

    def embed(images_NCHW: torch.Tensor) -> torch.Tensor:
        with compute.inference():
            return teacher.embed(images_NCHW)

    return embed


def plain_pass(model: str, device: str) -> Any:
    """open_clip's own image tower, weights in bf16, of normalised images in bf16."""
    import open_clip
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = open_clip.create_model(model, pretrained=None, load_weights=False)
    tower = whole.visual.eval().requires_grad_(False)
    uneven(tower)
    tower.to(device, torch.bfloat16)
    return torch.inference_mode()(tower)


def uneven(tower: Any) -> None:
    """Make a tower's random weights uneven, in place: always the same way."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.add_(noise, alpha=0.1)
            elif ".ln_" in name or name.startswith("ln_"):
                parameter.mul_((0.5 * noise).exp())
            elif "resblocks" in name:
                parameter.mul_(1.5)


def distance(exact_ND: Any, embedding_ND: Any) -> dict[str, float]:
    """1 - cosine of unit embeddings, and KL of softmax over random class vectors at a logit scale of 100: mean and largest."""
    import torch
    from torch.nn import functional as F

    exact_ND, embedding_ND = exact_ND.double().cpu(), embedding_ND.double().cpu()
    random_CD = torch.randn(CLASSES, exact_ND.shape[1], generator=torch.Generator().manual_seed(0))
    vectors_CD = F.normalize(random_CD.double(), dim=-1)
    log_p, log_q = ((SCALE * e @ vectors_CD.T).log_softmax(-1) for e in (exact_ND, embedding_ND))
    measures = {
        "1 - cosine": 1 - F.cosine_similarity(exact_ND, embedding_ND),
        "KL": (log_p.exp() * (log_p - log_q)).sum(-1),
    }
    means = {f"{name}, mean": float(values.mean()) for name, values in measures.items()}
    return means | {f"{name}, max": float(values.max()) for name, values in measures.items()}


def pictures(corpus: Path, size: int, count: int) -> Any:
    """uint8 tensor (count, 3, size, size) of the first images of a corpus, squeezed to a square."""
    import torch

    arrays = []
    for number, (_, data) in enumerate(files(corpus)):
        if number == count:
            break
        arrays.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size))))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

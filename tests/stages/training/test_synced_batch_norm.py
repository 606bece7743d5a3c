"""Batch norm over two ranks is batch norm over the whole batch: outputs, gradients, running statistics, names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from teachonce.stages.training.synced_batch_norm import sync_batch_norm

spec = importlib.util.spec_from_file_location("rank_jobs", Path(__file__).parent / "rank_jobs.py")
assert spec is not None
assert spec.loader is not None
rank_jobs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rank_jobs)

#: In fp64 the arithmetic is the same up to 1e-10. In fp32 a deep net with ReLUs has gradients whose own rounding is 1e-2.
CASES = {
    "projector in fp32": ("projector", "float32", 1, 1e-5),
    "projector": ("projector", "float64", 1, 1e-10),
    "resnet10t": ("resnet10t", "float64", 1, 1e-9),
    "in parts": ("resnet10t", "float64", 2, 1e-9),
    "cumulative averages": ("cumulative", "float64", 1, 1e-10),
    "fixed or without averages": ("odd", "float64", 1, 1e-10),
}


@pytest.mark.parametrize("case", CASES)
def test_two_halves_are_the_whole(case, together, tmp_path) -> None:
    model, dtype, parts, tolerance = CASES[case]
    assert together("steps", tmp_path, model=model, dtype=dtype, parts=parts) == [0, 0]
    module, images = rank_jobs.make(model, getattr(torch, dtype))
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        outputs = [rank_jobs.backward(module, images[part::parts], parts) for part in range(parts)]
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for rank in range(2):
        mine = found[rank]["output"].chunk(2 * parts)[parts:]
        for part, whole in enumerate(outputs):
            assert torch.allclose(mine[part], whole.chunk(2)[rank], rtol=0, atol=tolerance)
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        assert {n.removeprefix("gradient/") for n in found[rank] if n.startswith("gradient/")} == gradients.keys()
        largest = max((float(g.abs().max()) for g in gradients.values()), default=0.0)
        for name, gradient in gradients.items():
            difference = (found[rank][f"gradient/{name}"] - gradient).abs().max()
            assert difference <= tolerance * largest, name
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == sorted(module.state_dict())
        for name, value in module.state_dict().items():
            assert torch.allclose(found[rank][f"state/{name}"], value, rtol=tolerance, atol=tolerance), name
            assert torch.equal(found[0][f"state/{name}"], found[1][f"state/{name}"]), name


def test_without_batch_norm_nothing_is_wrapped() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    assert sync_batch_norm(module, torch.device("cpu")) is module


def test_in_evaluation_nothing_is_exchanged() -> None:
    """There is no process group here, so an exchange would fail."""
    module = torch.nn.BatchNorm1d(3).eval()
    synced = sync_batch_norm(module, torch.device("cpu"))
    assert synced is not module
    x = torch.randn(4, 3)
    assert torch.equal(synced(x), module(x))


def test_on_a_gpu_torchs_own_takes_over_in_place() -> None:
    """The exchange itself needs a GPU; here: the same parameters and buffers under the same names."""
    module, _ = rank_jobs.make("resnet10t", torch.float32)
    before = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    synced = sync_batch_norm(module, torch.device("cuda"))
    assert synced is module
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert all(norm.training for norm in norms)

"""Weights in bf16: autocast's numbers, weights that are cast once, layer norms that compute in fp32."""

from __future__ import annotations

import contextlib
from typing import Any

import open_clip
import pytest
import timm
import torch
from teachonce.stages.models import bf16_weights
from teachonce.stages.models.bf16_weights import bf16_copy, with_parts
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """What runs inside: names of operations, and how often a tensor of `weights` is cast."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self._weights = {weight.data_ptr() for weight in weights}
        self.names: list[str] = []
        self.weights_cast = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **kwargs or {})
        self.names.append(name)
        if name in ("to", "_to_copy") and args[0].data_ptr() in self._weights and args[0].dtype != result.dtype:
            self.weights_cast += 1
        return result


def run(module: nn.Module, images_NCHW: torch.Tensor) -> tuple[torch.Tensor, Operations]:
    operations = Operations([*module.parameters()])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), operations:
        return module(images_NCHW), operations


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """An image tower of open_clip's, whose norms are not those of a model that was never trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16}
        tower: nn.Module = open_clip.CLIP(
            embed_dim=8, vision_cfg=config, text_cfg={"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1}
        ).visual
        for name, parameter in tower.named_parameters():
            if ".ln_" in name:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return tower.eval().requires_grad_(False)


@pytest.mark.parametrize("fp32_norms", [True, False], ids=["norms as on the CPU", "norms as on CUDA"])
def test_no_weight_is_cast_in_a_pass(vit, fp32_norms, monkeypatch):
    monkeypatch.setattr(bf16_weights, "_takes_fp32_weights", lambda device: fp32_norms)
    images_NCHW = torch.randn(2, 3, 32, 32)
    twin = bf16_copy(vit, CPU)
    norms = {name for name, part in twin.named_modules() if isinstance(part, nn.LayerNorm)}
    for name, parameter in twin.named_parameters():
        assert (parameter.dtype == torch.float32) == (name.rpartition(".")[0] in norms), name
    assert run(vit, images_NCHW)[1].weights_cast > 20
    _, operations = run(twin, images_NCHW)
    assert operations.weights_cast == 0
    assert operations.names.count("layer_norm") == 2 * 4 + 2
    assert all(parameter.dtype == torch.float32 for parameter in vit.parameters()), "the model itself stays"


def test_a_convolutional_nets_weights_are_cast_and_its_norms_are_not():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("test_efficientnet").eval().requires_grad_(False)
    twin = bf16_copy(net, CPU)
    images_NCHW = torch.randn(2, 3, 96, 96)
    plain, before = run(net, images_NCHW)
    found, after = run(twin, images_NCHW)
    assert (before.weights_cast > 20, after.weights_cast) == (True, 0)
    assert torch.equal(found, plain), "these are autocast's numbers"
    kinds = {type(part): {p.dtype for p in part.parameters(recurse=False)} for part in twin.modules()}
    assert kinds[nn.Conv2d] == kinds[nn.Linear] == {torch.bfloat16}
    assert torch.float32 in {p.dtype for p in twin.parameters()}


@pytest.mark.parametrize("fp32_norms", [True, False])
@pytest.mark.parametrize("kind", [nn.LayerNorm, open_clip.transformer.LayerNorm, timm.layers.LayerNorm])
def test_layer_norms_compute_in_fp32(kind, fp32_norms, monkeypatch):
    """A large mean beside a small spread: in bf16 arithmetic nothing of it would be left."""
    monkeypatch.setattr(bf16_weights, "_takes_fp32_weights", lambda device: fp32_norms)
    torch.manual_seed(0)
    norm = kind(64).requires_grad_(False)
    norm.weight.copy_(torch.randn(64)), norm.bias.copy_(torch.randn(64))
    x = (100 + torch.randn(5, 64)).to(torch.bfloat16)
    expected = norm.double()(x.double())
    twin = bf16_copy(norm.float(), CPU)
    with torch.autocast("cpu", torch.bfloat16):
        found, of_fp32 = twin(x), twin(x.float())
    assert found.dtype == torch.bfloat16
    # Half a unit in the last place of the result, and of each rounded weight.
    units = (1 if fp32_norms else 3) * 2**-8
    bound = expected.abs() + (0 if fp32_norms else 1) * (expected - norm.bias.double()).abs()
    assert bool(((found.double() - expected).abs() <= units * bound + 1e-4).all())
    torch.testing.assert_close(of_fp32.double(), expected, atol=1e-4, rtol=1e-4)
    naive = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True)) * norm.weight.bfloat16()
    assert float((naive + norm.bias.bfloat16() - expected).abs().max()) > 0.05


def test_attention_is_torchs_fused_operation(vit):
    from teachonce.stages.models.attention import fold_attention

    images_NCHW = torch.randn(2, 3, 32, 32)
    twin = bf16_copy(vit, CPU)
    fold_attention(twin)
    found, operations = run(twin, images_NCHW)
    assert operations.names.count("_native_multi_head_attention") == 4
    assert operations.weights_cast == 0
    with torch.no_grad():
        torch.testing.assert_close(found.float(), vit(images_NCHW), atol=0.05, rtol=0.05)


def test_weights_that_a_module_changes_first_are_left_to_it():
    """Standardised in fp32 and then cast, as autocast does: cast before, they would be rounded twice."""
    conv = timm.layers.ScaledStdConv2d(3, 8, 3).requires_grad_(False).eval()
    twin = bf16_copy(conv, CPU)
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.float32}
    images_NCHW = torch.randn(1, 3, 8, 8)
    assert torch.equal(run(twin, images_NCHW)[0], run(conv, images_NCHW)[0])


def test_a_module_with_another_part_leaves_the_first_as_it_is():
    first = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first.register_parameter("scale", nn.Parameter(torch.ones(1)))
    other = nn.Linear(2, 2)
    twin = with_parts(first, **{"1": other})
    assert (twin[0], twin[1], first[1] is other) == (first[0], other, False)
    assert twin.scale is first.scale
    with contextlib.suppress(AttributeError):
        del twin.scale
    assert "scale" in dict(first.named_parameters())

"""The faster attention against torch's own: the same numbers, the same names, the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from teachonce.stages.models.attention import FoldedAttention, fold_attention
from torch import nn


@pytest.fixture
def attention() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(32, 4, batch_first=True).requires_grad_(False)


def folded(module: nn.Module) -> nn.Module:
    twin = nn.Sequential(copy.deepcopy(module))
    fold_attention(twin)
    return twin[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_says_what_torchs_own_says(attention, masked, precision):
    x_NLD = torch.randn(3, 5, 32)
    mask_LL = torch.full((5, 5), float("-inf")).triu(1) if masked else None
    twin = folded(attention)
    assert isinstance(twin, FoldedAttention)
    assert twin.state_dict().keys() == attention.state_dict().keys()
    for gradients in (False, True):
        with (
            torch.set_grad_enabled(gradients),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            expected, expected_weights = attention(x_NLD, x_NLD, x_NLD, attn_mask=mask_LL)
            found, weights = twin(x_NLD, x_NLD, x_NLD, attn_mask=mask_LL)
        tolerance = 1e-6 if precision == "fp32" else 2e-2
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(weights, expected_weights, atol=tolerance, rtol=tolerance)


def test_gradients_reach_the_input_and_other_uses_are_left_alone(attention):
    twin = folded(attention)
    grads = []
    for module in (attention, twin):
        x_NLD = torch.linspace(-1, 1, 3 * 5 * 32).reshape(3, 5, 32).requires_grad_()
        module(x_NLD, x_NLD, x_NLD, need_weights=False)[0].square().sum().backward()
        grads.append(x_NLD.grad)
    torch.testing.assert_close(grads[1], grads[0])
    query, other = torch.randn(2, 4, 32), torch.randn(2, 6, 32)
    torch.testing.assert_close(twin(query, other, other)[0], attention(query, other, other)[0])
    torch.testing.assert_close(twin(query[0], query[0], query[0])[0], attention(query[0], query[0], query[0])[0])


def test_only_plain_attention_is_changed():
    tower = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4, batch_first=True), nn.Linear(8, 8))
    fold_attention(tower)
    assert [type(part) for part in tower] == [nn.MultiheadAttention, nn.Linear]

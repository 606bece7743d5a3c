"""Deep visual prompts against a plain re-implementation of the published description."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from teachonce.stages.prompts.vision import PromptedVisionTransformer, count_blocks
from teachonce.storage_schemas.errors import InputError
from torch import nn

CONFIG = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16}
HEADS, WIDTH = 2, 32


def tower(**changes) -> nn.Module:
    torch.manual_seed(1)
    return _build_vision_tower(5, {**CONFIG, **changes}).eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def norm(x_TD, weight_D, bias_D):
    mean = x_TD.mean(-1, keepdim=True)
    variance = ((x_TD - mean) ** 2).mean(-1, keepdim=True)
    return (x_TD - mean) / torch.sqrt(variance + 1e-5) * weight_D + bias_D


def attention(x_TD, block):
    query, key, value = (x_TD @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]).chunk(3, -1)
    out = []
    size = WIDTH // HEADS
    for head in range(HEADS):
        q, k, v = (t[:, head * size : (head + 1) * size] for t in (query, key, value))
        out.append(torch.softmax(q @ k.T / math.sqrt(size), -1) @ v)
    return torch.cat(out, -1) @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]


def published(weights, prompts_LPD, image_CHW) -> torch.Tensor:
    """One image, token by token, from the description: no open_clip code."""
    depth, count, _ = prompts_LPD.shape
    patches = image_CHW.reshape(3, 4, 8, 4, 8).permute(1, 3, 0, 2, 4).reshape(16, -1)
    tokens = patches @ weights["conv1.weight"].reshape(WIDTH, -1).T
    tokens = torch.cat([weights["class_embedding"][None], tokens]) + weights["positional_embedding"]
    tokens = torch.cat([tokens, prompts_LPD[0]])
    x = norm(tokens, weights["ln_pre.weight"], weights["ln_pre.bias"])
    for layer in range(CONFIG["layers"]):
        block = {
            name.removeprefix(f"transformer.resblocks.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"transformer.resblocks.{layer}.")
        }
        if 1 <= layer < depth:
            x = torch.cat([x[: len(x) - count], prompts_LPD[layer]])
        x = x + attention(norm(x, block["ln_1.weight"], block["ln_1.bias"]), block)
        hidden = norm(x, block["ln_2.weight"], block["ln_2.bias"]) @ block["mlp.c_fc.weight"].T
        hidden = hidden + block["mlp.c_fc.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return norm(x[0], weights["ln_post.weight"], weights["ln_post.bias"]) @ weights["proj"]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_forward_is_the_published_one(depth: int) -> None:
    prompted = PromptedVisionTransformer(tower(), length=4, depth=depth).eval()
    with torch.no_grad():
        prompted.prompts_LPD.normal_()
        expected = torch.stack(
            [published(prompted.tower.state_dict(), prompted.prompts_LPD, image) for image in images()]
        )
        assert torch.allclose(prompted(images()), expected, atol=2e-5, rtol=1e-5)
        plain = prompted.tower(images())
    assert not torch.allclose(expected, plain, atol=1e-2)


def test_without_prompts_it_is_open_clip_to_the_last_bit() -> None:
    model = open_clip.CLIP(
        embed_dim=5,
        vision_cfg=CONFIG,
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
    ).eval()
    prompted = PromptedVisionTransformer(model.visual, length=0, depth=3).eval()
    assert torch.equal(prompted(images()), model.encode_image(images()))


def test_a_tower_that_keeps_sequences_first_gives_the_same() -> None:
    prompted = PromptedVisionTransformer(tower(), length=2, depth=3).eval()
    expected = prompted(images())
    prompted.tower.transformer.batch_first = False
    for block in prompted.tower.transformer.resblocks:
        block.attn.batch_first = False
    assert torch.allclose(prompted(images()), expected, atol=1e-6)


@pytest.mark.parametrize("changes", [{"no_ln_pre": True}, {"final_ln_after_pool": True}, {"qk_norm": True}])
def test_variants_of_the_tower(changes: dict) -> None:
    prompted = PromptedVisionTransformer(tower(**changes), length=0, depth=2).eval()
    assert torch.equal(prompted(images()), prompted.tower(images()))


def test_prompts_start_small_and_get_gradients() -> None:
    torch.manual_seed(0)
    prompted = PromptedVisionTransformer(tower(width=512, head_width=64), length=4, depth=4)
    assert prompted.prompts_LPD.shape == (4, 4, 512)
    assert prompted.prompts_LPD.std().item() == pytest.approx(0.02, rel=0.02)
    prompted(images()).square().sum().backward()
    assert (prompted.prompts_LPD.grad.abs().sum((1, 2)) > 0).all()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"layers": [1, 1, 1, 1]}, "an image tower of type ModifiedResNet"),
        ({"timm_model_name": "test_vit"}, "an image tower of type TimmModel"),
        ({"pool_type": "avg"}, "pooling 'avg'"),
        ({"attentional_pool": True, "attn_pooler_heads": 1}, "attentional pooling"),
    ],
)
def test_towers_that_cannot_take_prompts_are_refused(changes: dict, found: str) -> None:
    with pytest.raises(InputError) as error:
        PromptedVisionTransformer(tower(**changes), length=4, depth=2)
    assert str(error.value) == (
        "this student cannot take visual prompts: --student: expected an open_clip vision transformer that "
        f"pools its class token, found {found}. Next: choose such a model (ViT-B-16, ViT-B-32, ViT-L-14, …), "
        "or --recipe kd"
    )


def test_more_layers_than_there_are_is_refused() -> None:
    assert count_blocks(tower()) == 4
    with pytest.raises(InputError) as error:
        PromptedVisionTransformer(tower(), length=4, depth=5)
    assert (error.value.code, str(error.value.found)) == ("prompt-size-impossible", "4, 5")
    assert str(error.value.expected).endswith("depth 1 to 4")

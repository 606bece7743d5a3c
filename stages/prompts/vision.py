"""Owns deep visual prompts: learned tokens in the first blocks of an open_clip vision transformer.

From PromptKD (Li et al., CVPR 2024, arXiv 2403.02781), which takes them from Khattak et al. (MaPLe's
independent vision-language prompting).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...storage_schemas.errors import InputError

#: Standard deviation of the prompts at the start.
INITIAL_STD = 0.02

#: What to do where a model cannot take prompts, by the role that it was to play.
_INSTEAD = {"student": ", or --recipe kd", "teacher": ""}


class PromptedVisionTransformer(nn.Module):
    """An open_clip `VisionTransformer` with prompts; images (N, 3, H, W) to features (N, output width).

    Attributes:
        tower: the open_clip module.
        prompts_LPD: fp32 (layer, prompt, channel), layer < depth.
    """

    def __init__(self, tower: nn.Module, *, length: int, depth: int) -> None:
        """Prompts are drawn from torch's global generator.

        Raises:
            InputError: the tower is of another kind (see `check_tower`), or has fewer blocks than `depth`.
        """
        super().__init__()
        check_tower(tower)
        check_shape(length, depth, count_blocks(tower), where="--prompt-length, --prompt-depth")
        self.tower = tower
        self.prompts_LPD = nn.Parameter(draw_prompts(depth, length, vision_width(tower)))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Features as `encode_image` of open_clip gives them, before any normalisation."""
        return image_features(self.tower, self.prompts_LPD, images_NCHW)


def image_features(tower: nn.Module, prompts_LPD: Tensor, images_NCHW: Tensor) -> Tensor:
    """Features (N, output width) of normalised images (N, 3, H, W), as open_clip's `encode_image` gives them.

    The prompts of layer 0 come last, after the patch tokens, without positional embedding but through
    `ln_pre`. At the input of blocks 1 to depth-1 those last tokens are replaced by that layer's own raw
    prompts; later blocks keep what comes out. With prompts of length 0 this is the transformer's own forward.
    """
    vit: Any = tower
    depth, length, _ = prompts_LPD.shape
    tokens_NTD = vit._embeds(images_NCHW)  # patches, class token, positions, ln_pre (which is per token)
    count = tokens_NTD.shape[0]  # `len` would fix it in a graph that is traced
    if length:
        first_PD = vit.ln_pre(prompts_LPD[0]).to(tokens_NTD.dtype)
        tokens_NTD = torch.cat([tokens_NTD, first_PD.expand(count, -1, -1)], dim=1)
    batch_first = vit.transformer.batch_first
    for layer, block in enumerate(vit.transformer.resblocks):
        if length and 0 < layer < depth:
            own_NPD = prompts_LPD[layer].to(tokens_NTD.dtype).expand(count, -1, -1)
            tokens_NTD = torch.cat([tokens_NTD[:, :-length], own_NPD], dim=1)
        tokens_NTD = block(tokens_NTD) if batch_first else block(tokens_NTD.transpose(0, 1)).transpose(0, 1)
    pooled_ND, _ = vit._pool(tokens_NTD)
    features_ND: Tensor = pooled_ND @ vit.proj
    return features_ND


def draw_prompts(depth: int, length: int, width: int) -> Tensor:
    """Prompts (layer, prompt, channel) in fp32 as training starts with them, from torch's global generator."""
    return torch.randn(depth, length, width) * INITIAL_STD


def check_tower(tower: nn.Module, *, role: str = "student") -> None:
    """Refuse towers that prompts are not defined for.

    Args:
        tower: an image tower.
        role: `student` or `teacher`: what the model was given as.

    Raises:
        InputError: naming what is unsupported.
    """
    from open_clip.transformer import VisionTransformer

    problem = None
    if not isinstance(tower, VisionTransformer):
        problem = f"an image tower of type {type(tower).__name__}"
    elif tower.attn_pool is not None:
        problem = "attentional pooling"
    elif tower.pool_type != "tok":
        problem = f"pooling '{tower.pool_type}'"
    elif tower.proj is None:
        problem = "no output projection"
    if problem:
        raise InputError(
            f"this {role} cannot take visual prompts",
            code="visual-prompts-impossible",
            where=f"--{role}",
            expected="an open_clip vision transformer that pools its class token",
            found=problem,
            hint=f"choose such a model (ViT-B-16, ViT-B-32, ViT-L-14, …){_INSTEAD[role]}",
        )


def check_shape(length: int, depth: int, num_blocks: int, *, where: str) -> None:
    """Refuse prompts that a tower of so many blocks has no place for.

    Raises:
        InputError: `where` names the options.
    """
    if length < 0 or not 1 <= depth <= num_blocks:
        raise InputError(
            "impossible prompts",
            code="prompt-size-impossible",
            where=where,
            expected=f"length from 0 on, depth 1 to {num_blocks}",
            found=f"{length}, {depth}",
        )


def count_blocks(tower: nn.Module) -> int:
    """Transformer blocks of a tower that `check_tower` accepts."""
    return len(tower.transformer.resblocks)  # type: ignore[union-attr,arg-type]


def vision_width(tower: nn.Module) -> int:
    """Channels of the tokens in a tower that `check_tower` accepts."""
    vit: Any = tower
    return int(vit.class_embedding.shape[0])

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


class PromptedVisionTransformer(nn.Module):
    """An open_clip `VisionTransformer` with prompts; images (N, 3, H, W) to features (N, output width).

    The prompts of layer 0 come last, after the patch tokens, without positional embedding but through
    `ln_pre`. At the input of blocks 1 to depth-1 those last tokens are replaced by that layer's own raw
    prompts; later blocks keep what comes out. With prompts of length 0 this is the transformer's own forward.

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
        num_blocks = count_blocks(tower)
        if length < 0 or not 1 <= depth <= num_blocks:
            raise InputError(
                "impossible prompts", where="--prompt-length, --prompt-depth",
                expected=f"length from 0 on, depth 1 to {num_blocks}", found=f"{length}, {depth}",
            )  # fmt: skip
        vit: Any = tower
        self.tower = tower
        width = vit.class_embedding.shape[0]
        self.prompts_LPD = nn.Parameter(torch.randn(depth, length, width) * INITIAL_STD)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Features as `encode_image` of open_clip gives them, before any normalisation."""
        tower: Any = self.tower
        prompts_LPD = self.prompts_LPD
        depth, length, _ = prompts_LPD.shape
        tokens_NTD = tower._embeds(
            images_NCHW
        )  # patches, class token, positions, ln_pre (which is per token)
        count = len(tokens_NTD)
        if length:
            first_PD = tower.ln_pre(prompts_LPD[0]).to(tokens_NTD.dtype)
            tokens_NTD = torch.cat([tokens_NTD, first_PD.expand(count, -1, -1)], dim=1)
        batch_first = tower.transformer.batch_first
        for layer, block in enumerate(tower.transformer.resblocks):
            if length and 0 < layer < depth:
                own_NPD = prompts_LPD[layer].to(tokens_NTD.dtype).expand(count, -1, -1)
                tokens_NTD = torch.cat([tokens_NTD[:, :-length], own_NPD], dim=1)
            tokens_NTD = (
                block(tokens_NTD) if batch_first else block(tokens_NTD.transpose(0, 1)).transpose(0, 1)
            )
        pooled_ND, _ = tower._pool(tokens_NTD)
        features_ND: Tensor = pooled_ND @ tower.proj
        return features_ND


def check_tower(tower: nn.Module) -> None:
    """Refuse towers that prompts are not defined for.

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
            "this student cannot take visual prompts", where="--student",
            expected="an open_clip vision transformer that pools its class token", found=problem,
            hint="choose such a model (ViT-B-16, ViT-B-32, ViT-L-14, …), or --recipe kd",
        )  # fmt: skip


def count_blocks(tower: nn.Module) -> int:
    """Transformer blocks of a tower that `check_tower` accepts."""
    return len(tower.transformer.resblocks)  # type: ignore[union-attr,arg-type]

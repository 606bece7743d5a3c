"""Owns deep text prompts: learned context tokens in the first blocks of an open_clip text transformer.

From PromptSRC (Khattak et al., ICCV 2023, arXiv 2307.06948), whose layout PromptKD's teacher has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...storage_schemas.errors import InputError

#: Token ids (text, position) of some texts, as open_clip's tokenizers give them.
Tokenize = Callable[[Sequence[str]], Tensor]


def text_tower(model: nn.Module) -> nn.Module:
    """The part of an open_clip model that holds its text transformer: the model itself, or its `text`."""
    own: Any = model
    return own.text if hasattr(own, "text") else model


def text_features(tower: nn.Module, prompts_LPD: Tensor, ids_CT: Tensor) -> Tensor:
    """Features (C, D) of token ids (C, position), as open_clip's `encode_text` gives them.

    With `length` prompts a layer: those of layer 0 stand in for the embeddings of positions 1 to length (behind the
    start token) and get positional embeddings; at the input of blocks 1 to depth-1 these positions are replaced by
    that layer's own raw prompts; later blocks keep what comes out. With prompts of length 0 this is the
    transformer's own forward.

    Attention is causal and only the end token's place is read, so positions behind the last end token are left out:
    the same features, in a fifth of the time and memory for short names.
    """
    own: Any = tower
    depth, length, _ = prompts_LPD.shape
    end_C = _ends(own, ids_CT)
    used = int(end_C.max()) + 1
    count, dtype = len(ids_CT), own.transformer.get_cast_dtype()
    tokens_CTD = own.token_embedding(ids_CT[:, :used]).to(dtype)
    if length:
        tokens_CTD = _replace(tokens_CTD, prompts_LPD[0])
    tokens_CTD = tokens_CTD + own.positional_embedding[:used].to(dtype)
    mask_TT = own.attn_mask[:used, :used].to(tokens_CTD.dtype)
    batch_first = own.transformer.batch_first
    for layer, block in enumerate(own.transformer.resblocks):
        if length and 0 < layer < depth:
            tokens_CTD = _replace(tokens_CTD, prompts_LPD[layer])
        if batch_first:
            tokens_CTD = block(tokens_CTD, attn_mask=mask_TT)
        else:
            tokens_CTD = block(tokens_CTD.transpose(0, 1), attn_mask=mask_TT).transpose(0, 1)
    pooled_CD = own.ln_final(tokens_CTD[torch.arange(count, device=ids_CT.device), end_C])
    projection = own.text_projection
    features_CD: Tensor = projection(pooled_CD) if isinstance(projection, nn.Linear) else pooled_CD @ projection
    return features_CD


def check_text_tower(model: nn.Module) -> None:
    """Refuse teachers whose text tower prompts are not defined for.

    Raises:
        InputError: naming what is unsupported.
    """
    tower: Any = text_tower(model)
    problem = None
    if not hasattr(tower, "token_embedding") or not hasattr(tower, "positional_embedding"):
        problem = f"a text tower of type {type(tower).__name__}"
    elif getattr(tower, "attn_mask", None) is None:
        problem = "attention in both directions"
    elif getattr(tower, "cls_emb", None) is not None:
        problem = "a class token"
    elif _pooling(tower)[0] not in ("argmax", "eos"):
        problem = f"pooling '{_pooling(tower)[0]}'"
    elif tower.text_projection is None:
        problem = "no output projection"
    if problem:
        raise InputError(
            "this teacher cannot take text prompts",
            code="text-prompts-impossible",
            where="--teacher",
            expected="open_clip's causal text transformer, read at its end token",
            found=problem,
            hint="choose such a model (ViT-B-16, ViT-B-32, ViT-L-14, …)",
        )


def count_text_blocks(model: nn.Module) -> int:
    """Transformer blocks of a text tower that `check_text_tower` accepts."""
    tower: Any = text_tower(model)
    return len(tower.transformer.resblocks)


def text_width(model: nn.Module) -> int:
    """Channels of the tokens in a text tower that `check_text_tower` accepts."""
    tower: Any = text_tower(model)
    return int(tower.token_embedding.weight.shape[1])


@torch.no_grad()
def context_embedding(model: nn.Module, tokenizer: Tokenize, context: str, length: int) -> Tensor:
    """Embeddings (length, channel), fp32, of the first tokens of a text: where the prompts of layer 0 start.

    Raises:
        InputError: fewer tokens than `length`: prompts would take the places of class names.
    """
    tower: Any = text_tower(model)
    ids_1T = tokenizer([context])
    tokens = int(_ends(tower, ids_1T)) - 1  # without the start
    if tokens < length:
        raise InputError(
            "the context has fewer tokens than there are text prompts",
            code="context-too-short",
            where=f"--context {context!r}",
            expected=f"at least {length} tokens",
            found=tokens,
            hint="use more words, or a smaller --text-length",
        )
    device = tower.token_embedding.weight.device
    vectors: Tensor = tower.token_embedding(ids_1T[0, 1 : 1 + length].to(device)).float()
    return vectors


def prompt_texts(context: str, names: Sequence[str]) -> list[str]:
    """ "{context} {name}." for each class; underscores become spaces, as in CoOp."""
    return [f"{context} {name.replace('_', ' ')}." for name in names]


def _pooling(tower: Any) -> tuple[str, int | None]:
    if hasattr(tower, "text_pool_type"):  # open_clip.CLIP
        return tower.text_pool_type, getattr(tower, "text_eos_id", None)
    return getattr(tower, "pool_type", "unknown"), getattr(tower, "eos_id", None)


def _ends(tower: Any, ids_CT: Tensor) -> Tensor:
    """Positions of the end tokens, where features are read."""
    pool_type, eos_id = _pooling(tower)
    return ids_CT.argmax(dim=-1) if pool_type == "argmax" else torch.eq(ids_CT, eos_id or 0).int().argmax(dim=-1)


def _replace(tokens_CTD: Tensor, prompts_PD: Tensor) -> Tensor:
    """The tokens with prompts in the places behind the first."""
    length = len(prompts_PD)
    own_CPD = prompts_PD.to(tokens_CTD.dtype).expand(len(tokens_CTD), -1, -1)
    return torch.cat([tokens_CTD[:, :1], own_CPD, tokens_CTD[:, 1 + length :]], dim=1)

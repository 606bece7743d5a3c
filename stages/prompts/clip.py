"""Owns a CLIP with prompts in both towers: what prompt tuning trains, and what the tuned teacher is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...storage_schemas.fingerprint import Json
from .text import (
    Tokenize,
    check_text_tower,
    context_embedding,
    count_text_blocks,
    prompt_texts,
    text_features,
    text_tower,
    text_width,
)
from .vision import check_shape, check_tower, count_blocks, draw_prompts, image_features, vision_width


@dataclass(frozen=True, kw_only=True)
class PromptShape:
    """How many prompts there are: tokens a layer, and layers, in each tower. Length 0: none in that tower."""

    vision_length: int
    vision_depth: int
    text_length: int
    text_depth: int

    def to_json(self) -> Json:
        return asdict(self)


class PromptedClip(nn.Module):
    """An open_clip model, frozen, with trainable prompts in both towers.

    Attributes:
        model: the open_clip model; its weights take no gradients.
        vision_prompts_LPD, text_prompts_LPD: fp32 (layer, prompt, channel); see `vision.image_features` and
            `text.text_features` for their places.
    """

    def __init__(self, model: nn.Module, shape: PromptShape) -> None:
        """Prompts are drawn from torch's global generator; `start_from` gives text prompts their starting text.

        Raises:
            InputError: a tower that prompts are not defined for, or that has fewer blocks.
        """
        super().__init__()
        own: Any = model
        check_tower(own.visual, role="teacher")
        check_text_tower(model)
        vision, text = (shape.vision_length, shape.vision_depth), (shape.text_length, shape.text_depth)
        check_shape(*vision, count_blocks(own.visual), where="--vision-length, --vision-depth")
        check_shape(*text, count_text_blocks(model), where="--text-length, --text-depth")
        self.model = model.requires_grad_(False)
        self.vision_prompts_LPD = nn.Parameter(draw_prompts(vision[1], vision[0], vision_width(own.visual)))
        self.text_prompts_LPD = nn.Parameter(draw_prompts(text[1], text[0], text_width(model)))

    @property
    def shape(self) -> PromptShape:
        depth, length, _ = self.vision_prompts_LPD.shape
        text_depth, text_length, _ = self.text_prompts_LPD.shape
        return PromptShape(vision_length=length, vision_depth=depth, text_length=text_length, text_depth=text_depth)

    @torch.no_grad()
    def start_from(self, context: str, tokenizer: Tokenize) -> None:
        """Let the text prompts of layer 0 be the embeddings of a text, such as "a photo of a".

        Raises:
            InputError: fewer tokens than prompts.
        """
        length = self.shape.text_length
        self.text_prompts_LPD[0] = context_embedding(self.model, tokenizer, context, length)

    def image_features(self, images_NCHW: Tensor) -> Tensor:
        """L2-normalised features (N, D), fp32, of normalised images."""
        own: Any = self.model
        features_ND = image_features(own.visual, self.vision_prompts_LPD, images_NCHW)
        return F.normalize(features_ND.float(), dim=-1)

    @torch.no_grad()
    def plain_image_features(self, images_NCHW: Tensor) -> Tensor:
        """The same of the model without prompts, by open_clip's own `encode_image`; no gradients."""
        own: Any = self.model
        return F.normalize(own.encode_image(images_NCHW).float(), dim=-1)

    def class_features(self, ids_CT: Tensor, *, chunk: int | None = None) -> Tensor:
        """L2-normalised text features (C, D), fp32, of the texts that `class_ids` made.

        Args:
            ids_CT: token ids on the model's device.
            chunk: classes in a forward pass. Activations of one chunk only are held at a time: the backward pass
                computes them once more (Chen et al., 2016, arXiv 1604.06174). None: all at once, nothing twice.
        """
        tower = text_tower(self.model)

        def features(part_CT: Tensor) -> Tensor:
            return F.normalize(text_features(tower, self.text_prompts_LPD, part_CT).float(), dim=-1)

        if chunk is None:
            return features(ids_CT)
        parts: list[Tensor] = [
            # Nothing random happens inside: its state need not be kept.
            checkpoint(features, part, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
            if torch.is_grad_enabled()
            else features(part)
            for part in torch.split(ids_CT, chunk)
        ]
        return torch.cat(parts)

    def trained(self) -> dict[str, nn.Parameter]:
        """The prompts, by name."""
        return {name: p for name, p in self._prompts() if p.numel()}

    def changing(self) -> Mapping[str, Tensor]:
        """All that training changes, by name: the prompts."""
        return self.trained()

    def prompts(self) -> dict[str, Tensor]:
        """Copies of all prompts on the CPU, by name."""
        return {name: p.detach().cpu().clone() for name, p in self._prompts()}

    @torch.no_grad()
    def load_prompts(self, prompts: Mapping[str, Tensor]) -> None:
        """Take prompts of the same shapes, by name."""
        for name, parameter in self._prompts():
            parameter.copy_(prompts[name])

    def _prompts(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "text_prompts_LPD", self.text_prompts_LPD
        yield "vision_prompts_LPD", self.vision_prompts_LPD


def class_ids(context: str, names: Sequence[str], tokenizer: Tokenize) -> Tensor:
    """Token ids (C, position) of "{context} {name}." for each class."""
    return tokenizer(prompt_texts(context, names))

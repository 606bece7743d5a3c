"""Owns PromptSRC's loss: cross-entropy, and three terms that hold the tuned model to the one that it was.

Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023, arXiv 2307.06948.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..prompts.text import Tokenize, text_features, text_tower, text_width
from .settings import PretrainSettings

#: The first 60 of OpenAI's 80 ImageNet templates: those of PromptSRC's frozen text features.
NUM_TEMPLATES = 60

#: Texts in a forward pass of the frozen text tower.
_TEXTS_AT_ONCE = 240


@dataclass(frozen=True, kw_only=True)
class BatchFeatures:
    """Features of one batch, of the tuned and the frozen model, all fp32 and L2-normalised.

    Attributes:
        image_ND, text_CD: of the model with prompts, with gradients.
        plain_image_ND, plain_text_CD: of the model without.
        logit_scale: the model's own factor from cosines to logits.
        labels_N: int64 (sample,), places in the list of classes.
    """

    image_ND: Tensor
    text_CD: Tensor
    plain_image_ND: Tensor
    plain_text_CD: Tensor
    logit_scale: Tensor
    labels_N: Tensor


def promptsrc_loss(features: BatchFeatures, settings: PretrainSettings) -> dict[str, Tensor]:
    """The terms, with their weights, and their sum as `loss`.

    cross_entropy + text_weight · mean|Δ text| + image_weight · mean|Δ image|
    + logits_weight · KL(plain logits ‖ tuned logits) / (B · C)

    Means are over all numbers of the features. The authors' code passes the plain logits as target.
    """
    logits_NC = features.logit_scale * features.image_ND @ features.text_CD.T
    plain_NC = features.logit_scale * features.plain_image_ND @ features.plain_text_CD.T
    divergence = F.kl_div(
        F.log_softmax(logits_NC, dim=1), F.log_softmax(plain_NC, dim=1), reduction="sum", log_target=True
    )
    terms = {
        "cross_entropy": F.cross_entropy(logits_NC, features.labels_N),
        "text_distance": settings.text_weight * F.l1_loss(features.text_CD, features.plain_text_CD),
        "image_distance": settings.image_weight * F.l1_loss(features.image_ND, features.plain_image_ND),
        "logits_divergence": settings.logits_weight * divergence / logits_NC.numel(),
    }
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


@torch.no_grad()
def plain_text_features(model: torch.nn.Module, tokenizer: Tokenize, names: Sequence[str]) -> Tensor:
    """Frozen text features (C, D) of each class, fp32 on the model's device: averaged over templates, then normalised."""
    import open_clip

    templates = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:NUM_TEMPLATES]]
    tower: Any = text_tower(model)
    device = tower.token_embedding.weight.device
    none_LPD = torch.zeros(1, 0, text_width(model), device=device)
    at_once = max(1, _TEXTS_AT_ONCE // len(templates))
    means = []
    for first in range(0, len(names), at_once):
        part = [name.replace("_", " ") for name in names[first : first + at_once]]
        ids_NT = tokenizer([text.replace("{}", name) for name in part for text in templates]).to(device)
        features_ND = text_features(tower, none_LPD, ids_NT).float()
        means.append(features_ND.reshape(len(part), len(templates), -1).mean(dim=1))
    return F.normalize(torch.cat(means), dim=-1)

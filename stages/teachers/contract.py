"""Owns the check of a teacher's contract: embedding · class vectors + bias are the model's own logits."""

from __future__ import annotations

import torch

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError

#: The code of `not_linear`.
NOT_LINEAR = "teacher-not-linear"

#: Largest difference that rounding explains, as a share of the largest logit (or of 1).
_ROUNDING = 1e-4


def check_contract(vectors: ClassVectors, embedding_ND: torch.Tensor, own_NC: torch.Tensor, *, where: str) -> None:
    """Refuse a teacher whose stored targets would not give its own outputs.

    Args:
        vectors: of the classes of `own_NC`.
        embedding_ND: of a few images, fp32.
        own_NC: the model's own logits of the same images.
        where: the model's name.

    Raises:
        InputError: something is not finite; or they differ by more than rounding, as with a head that is no linear map of one embedding.
    """
    ours_NC = torch.from_numpy(vectors.logits(embedding_ND.cpu().numpy()))
    own_NC = own_NC.float().cpu()
    if not (own_NC.isfinite().all() and embedding_ND.isfinite().all()):
        raise InputError(
            "this teacher gives NaN or infinity",
            code="teacher-not-finite",
            where=where,
            expected="finite logits of a few images",
            found="others",
            hint="check its weights, and --teacher-mean and --teacher-std if they were given",
        )
    if ours_NC.shape == own_NC.shape:
        difference = float((ours_NC - own_NC).abs().max())
        if difference <= _ROUNDING * max(1.0, float(own_NC.abs().max())):
            return
        found = f"a difference of {difference:.2g} in logits of up to {float(own_NC.abs().max()):.2g}"
    else:
        found = f"logits of shape {tuple(ours_NC.shape)} against {tuple(own_NC.shape)}"
    raise not_linear(where, "equal to rounding", found)


def check_features(features_ND: torch.Tensor, width: int, *, where: str) -> None:
    """Refuse a teacher without classes that gives no finite vector of that width for each image.

    Raises:
        InputError: it does not.
    """
    if features_ND.ndim != 2 or features_ND.shape[1] != width or not features_ND.isfinite().all():
        raise InputError(
            "this teacher gives no features of images",
            code="teacher-without-features",
            where=where,
            expected=f"a finite vector of {width} channels an image",
            found=f"shape {tuple(features_ND.shape)}",
            hint="choose another, or check its weights",
        )


def not_linear(where: str, expected: str, found: str) -> InputError:
    """The error for a model whose logits are no linear map of one embedding."""
    return InputError(
        "this model cannot be a teacher: its logits are not embedding · class vectors + bias",
        code="teacher-not-linear",
        where=where,
        expected=expected,
        found=found,
        hint="choose another; docs/targets.md says which models cannot be teachers, and why",
    )

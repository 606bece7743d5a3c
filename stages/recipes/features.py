"""The recipe `features`: a student learns the teacher's feature maps, tokens or embedding, place by place; needs no classes.

Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550, with a choice of distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from ...storage_schemas.store_description import TargetSpec
from ..models.intermediates import TOKENS, Intermediates
from ..students.family import Backbone
from ..students.head import POOLED, Head, Level
from ..students.student import Student, grid_of
from .features_settings import FeaturesSettings
from .recipe import BaseRecipe, LossInputs, all_with_decay_on_matrices

#: Axes of a target's row, and whether a student's map can be brought to it.
_MAP, _TOKENS, _VECTOR = ("channel", "y", "x"), ("token", "channel"), ("channel",)

#: The target that the student's pooled features learn.
_EMBEDDING = "embedding"


class Features(BaseRecipe):
    """Any student of either family; each target has a map of the student and a projector of its own.

    Student and teacher see the same box, flip and colours of a view, so that places correspond. With `embedding` among the targets
    the pooled features learn it, and are compared with class vectors where the store has some; without, the student has no classes.
    Embeddings of other teachers' stores each have a projector of the pooled features.
    """

    name = "features"
    defaults = FeaturesSettings()

    def targets(self, settings: FeaturesSettings, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        known = {target.name: target for target in stored if target.axes[2:] in (_MAP, _TOKENS, _VECTOR)}
        if not settings.feature_targets:
            if not known:
                raise InputError(
                    "the store holds no features",
                    code="features-not-in-store",
                    where="--recipe features",
                    expected="an embedding, tokens or maps",
                    found=", ".join(target.name for target in stored),
                    hint="teachonce cache SHARDS --targets embedding,tokens --teacher … --out ANOTHER_STORE",
                )
            return tuple(known)
        return target_names(settings.feature_targets, tuple(known))

    def head(
        self,
        settings: FeaturesSettings,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        others = [target for target in targets.values() if target.name != _EMBEDDING]
        maps = [target for target in others if len(target.shape) > 1]
        shapes = _shapes(backbone) if maps else {}
        layers = dict(zip((m.name for m in maps), _layers(settings.student_layers, maps, shapes), strict=True))
        shapes[POOLED] = (backbone.width,)
        levels = tuple(
            Level(
                target=target.name,
                layer=layer,
                width=shapes[layer][-1] if layer == TOKENS else shapes[layer][0],
                shape=list(target.shape),
                projector=settings.projector,
            )
            for target in others
            for layer in [layers.get(target.name, POOLED)]
        )
        embedding = targets.get(_EMBEDDING)
        return Head(
            width=backbone.width,
            embed_dim=backbone.width if embedding is None else embedding.shape[0],
            projector="none" if embedding is None else settings.projector,
            normalized=vectors is not None and vectors.normalized,
            levels=levels,
        )

    def standardized(self, settings: FeaturesSettings, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(names) if settings.standardize else ()

    def parameter_groups(self, student: Student, settings: FeaturesSettings) -> list[dict[str, Any]]:
        return all_with_decay_on_matrices(student, settings)

    def loss(self, outputs: LossInputs, settings: FeaturesSettings) -> Tensor:
        """The mean over samples, places (and for `mse` and `smooth-l1` channels) of the distance, summed over targets."""
        terms = []
        for name, teacher in outputs.teacher.items():
            student = outputs.student[name]
            if settings.feature_loss == "cosine":
                channels = 1 if student.ndim != 3 else 2  # tokens have theirs last
                terms.append((1 - F.cosine_similarity(student, teacher, dim=channels)).mean())
            elif settings.feature_loss == "mse":
                terms.append(F.mse_loss(student, teacher))
            else:
                terms.append(F.smooth_l1_loss(student, teacher))
        return torch.stack(terms).sum()


def target_names(given: str, known: Sequence[str], *, what: str = "features") -> tuple[str, ...]:
    """The targets that `--feature-targets` names; all that are known where it names none.

    Raises:
        InputError: one is not among those that are known.
    """
    names = _words(given)
    for name in names:
        if name not in known:
            raise InputError(
                f"the store holds no such {what}",
                code="target-not-in-store",
                where="--feature-targets",
                expected=", ".join(known) or "none here",
                found=name,
                hint=f"teachonce cache SHARDS --targets {name} --teacher … --out ANOTHER_STORE",
            )
    return names or tuple(known)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """The student's maps at its input size.

    Raises:
        InputError: its library computes none.
    """
    size = backbone.preprocess.size
    shapes = Intermediates(backbone.module).shapes(torch.zeros(1, 3, size, size))
    if not shapes:
        raise InputError(
            "this student gives no feature maps",
            code="student-without-maps",
            where="--student",
            expected="a model with `forward_intermediates`",
            found=str(backbone.config.get("name")),
            hint="choose another student, or --feature-targets embedding",
        )
    return shapes


def _layers(given: str, maps: Sequence[TargetSpec], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The student's map for each target."""
    if not given:
        return [_nearest(target, shapes) for target in maps]
    names = [word.strip() for word in given.split(",")]
    if len(names) != len(maps):
        raise InputError(
            "one map of the student for each target",
            code="student-layers-count-wrong",
            where="--student-layers",
            expected=f"{len(maps)} names, for " + (", ".join(target.name for target in maps) or "no target"),
            found=given,
            hint="leave it out to have them chosen",
        )
    for name in names:
        if name not in shapes:
            raise InputError(
                "the student has no such map",
                code="student-layer-unknown",
                where="--student-layers",
                expected=", ".join(shapes),
                found=name,
                hint=did_you_mean(name, list(shapes), "") or None,
            )
    return names


def _nearest(target: TargetSpec, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The deepest map whose number of places is nearest, as a factor, to the target's."""
    rows, columns = grid_of(target.shape, target.name)

    def distance(name: str) -> float:
        shape = shapes[name]
        places = shape[0] if name == TOKENS else shape[1] * shape[2]
        return max(places / (rows * columns), rows * columns / places)

    least = min(map(distance, shapes))
    return [name for name in shapes if distance(name) == least][-1]

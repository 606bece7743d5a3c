"""The timm family: image classifiers, whose class vectors are their heads' rows and bias, and models without a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json, digest_json
from ..models.bf16_weights import bf16_copy
from ..models.intermediates import Intermediates
from ..models.known_weights import KnownWeights
from ..models.names import TIMM_PREFIX
from ..models.preprocess import Normalize, Preprocess
from ..models.probe import few_images, tried
from ..models.teacher_config import TeacherConfig
from ..models.timm_models import build_timm, resolve_timm
from .base import BaseTeacher, Offer, TeacherSpec, freeze
from .contract import NOT_LINEAR, check_contract, check_features
from .offers import offers_with_maps, outputs_with_maps
from .timm_heads import AnyHead, Heads, LinearHeads, heads_of


class TimmTeacher(BaseTeacher):
    """A timm model. `embed` is what its linear head reads, so embedding · weightᵀ + bias are its logits.

    Models with several heads (distilled ones) return the mean of their logits. Then the embedding is what the heads read,
    one behind the other, and the class vectors are their rows, divided by the number of heads. Heads of any other kind give logits, and these
    are the embedding. A model without a classifier has features, and no classes.
    """

    def __init__(self, model: Any, heads: Heads, spec: TeacherSpec, loaded: str) -> None:
        self._model = freeze(model).to(memory_format=torch.channels_last)
        self._heads = heads
        self._maps = Intermediates(model)
        self._normalize = Normalize(spec.preprocess)
        self.spec = spec
        self.loaded = loaded

    @staticmethod
    def load(config: TeacherConfig) -> TimmTeacher:
        """Load by timm's own rules, or from a weights file.

        Raises:
            InputError: unknown model, weights that are missing or do not fit, a size that it cannot take, or a model that gives neither
                logits nor a vector of features.
        """
        source = resolve_timm(config.model, config.pretrained, role="teacher")
        filled = {"family": "timm", "name": source.name, "size": config.size}
        known = KnownWeights.of(source.path, filled, rehash=config.rehash)
        built = build_timm(source, size=config.size)
        name, model = config.model.removeprefix(TIMM_PREFIX), built.module
        own = Preprocess.of_timm(timm.data.resolve_data_config(model=model), size=config.size, where=name)
        preprocess = config.preprocess(own)
        given: Json = {"preprocess": preprocess.to_json()}
        digest = known.digest(model)

        def teacher(heads: Heads) -> TimmTeacher:
            kind = {"head": heads.kind} if heads.kind else {}
            spec = TeacherSpec(
                family="timm",
                model=name,
                architecture=digest_json({"timm": name, **built.kwargs, **kind}),
                weights_digest=digest,
                embed_dim=heads.width,
                normalized=False,
                preprocess=preprocess,
                takes_templates=False,
            )
            note = {"own logits": "its logits are its embedding", "features": "features, no classes"}.get(
                heads.kind, ""
            )
            return TimmTeacher(model, heads, spec, spec.to_text(source.weights, built.entry, note))

        heads = heads_of(model, name)
        if heads is not None:
            found = teacher(heads)
            if known.is_tried(given):
                return found
            try:
                found._check()
                known.note_tried(given)
                return found
            except InputError as error:
                if error.code != NOT_LINEAR:
                    raise
        size, where = preprocess.size, f"{TIMM_PREFIX}{name}, --teacher-size"
        normalize = Normalize(preprocess)
        logits_NC = tried(lambda: freeze(model)(normalize(few_images(2, size))), size, where)
        found = teacher(AnyHead(logits_NC, name))
        found._check()
        return found

    def to(self, device: torch.device) -> TimmTeacher:
        self._model.to(device)
        self._normalize.to(device)
        return self

    def bf16_copy(self, device: torch.device) -> TimmTeacher:
        """A copy on a device, in bf16, for images alone: class vectors are the fp32 model's."""
        model = bf16_copy(self._model, device)
        heads = LinearHeads(model, self.spec.model) if isinstance(self._heads, LinearHeads) else self._heads
        twin = TimmTeacher(model, heads, self.spec, self.loaded)
        twin._normalize.to(device)
        return twin

    def prepared(self, preprocess: Preprocess) -> TimmTeacher:
        twin = TimmTeacher(self._model, self._heads, replace(self.spec, preprocess=preprocess), self.loaded)
        twin._normalize.to(next(self._model.parameters()).device)
        return twin

    def offers(self) -> tuple[Offer, ...]:
        images_NCHW = few_images(1, self.spec.preprocess.size).to(next(self._model.parameters()).device)
        return offers_with_maps(self.spec.embed_dim, self._maps, self._pixels(images_NCHW))

    def outputs(self, images_NCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return outputs_with_maps(
            names,
            embed=lambda: self.embed(images_NCHW),
            maps=self._maps,
            pixels=lambda: self._pixels(images_NCHW),
            embed_end=self._embed_end,
        )

    def _embed_end(self, end: Tensor) -> Tensor:
        def forward() -> Tensor:
            logits_NC: Tensor = self._model.forward_head(end)
            return logits_NC

        return self._heads.read(forward)[0]

    def embed(self, images_NCHW: Tensor) -> Tensor:
        return self._answer(images_NCHW)[0]

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The names given, in the head's order, or those that timm has."""
        if not self._heads.num_classes:
            raise self._no_classes()
        names = _own_names(self._model) if names is None else names
        if names is None:
            raise InputError(
                "timm does not know this model's classes",
                code="classes-needed",
                where=self.spec.model,
                hint="add --classes FILE",
            )
        if len(names) != self._heads.num_classes:
            raise InputError(
                "the class list does not fit the teacher's head",
                code="classes-do-not-fit-head",
                where=self.spec.model,
                expected=f"{self._heads.num_classes} names in the head's order",
                found=len(names),
                hint="leave out --classes to use timm's own names",
            )
        return tuple(names)

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        """The heads' weight rows and bias; templates do not apply."""
        if not self._heads.num_classes:
            raise self._no_classes()
        weight_CD, bias_C = self._heads.rows()
        return ClassVectors(names=tuple(names), vectors_CD=weight_CD, bias_C=bias_C, logit_scale=1.0, normalized=False)

    def _pixels(self, images_NCHW: Tensor) -> Tensor:
        pixels_NCHW: Tensor = self._normalize(images_NCHW)
        return pixels_NCHW.contiguous(memory_format=torch.channels_last)

    def _answer(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (N, D) in fp32, and the model's own logits (N, C)."""
        return self._heads.read(lambda: self._model(self._pixels(images_NCHW)))

    def _check(self) -> None:
        size, where = self.spec.preprocess.size, f"{TIMM_PREFIX}{self.spec.model}"
        embedding_ND, own_NC = tried(lambda: self._answer(few_images(2, size)), size, f"{where}, --teacher-size")
        if not self._heads.num_classes:
            check_features(embedding_ND, self.spec.embed_dim, where=where)
            return
        names = tuple(map(str, range(self._heads.num_classes)))
        check_contract(self.class_vectors(names, ()), embedding_ND, own_NC, where=where)


def _own_names(model: Any) -> list[str] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]

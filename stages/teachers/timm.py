"""The timm family: image classifiers with linear heads; class vectors are the heads' rows and bias."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

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
from ..models.timm_models import build_timm, classifiers, resolve_timm
from .base import BaseTeacher, Offer, TeacherSpec, freeze
from .contract import check_contract, not_linear
from .offers import offers_with_maps, outputs_with_maps


class TimmTeacher(BaseTeacher):
    """A timm classifier. `embed` is what its linear head reads, so embedding · weightᵀ + bias are its logits.

    Models with several heads (distilled ones) return the mean of their logits. Then the embedding is what the heads read,
    one behind the other, and the class vectors are their rows, divided by the number of heads.
    """

    def __init__(self, model: Any, spec: TeacherSpec, loaded: str) -> None:
        self._model = freeze(model).to(memory_format=torch.channels_last)
        self._heads = _Heads(model, spec.model)
        self._maps = Intermediates(model)
        self._normalize = Normalize(spec.preprocess)
        self.spec = spec
        self.loaded = loaded

    @staticmethod
    def load(config: TeacherConfig) -> TimmTeacher:
        """Load by timm's own rules, or from a weights file.

        Raises:
            InputError: unknown model, weights that are missing or do not fit, a size that it cannot take, or a model
                whose logits are no linear map of one embedding.
        """
        source = resolve_timm(config.model, config.pretrained, role="teacher")
        filled = {"family": "timm", "name": source.name, "size": config.size}
        known = KnownWeights.of(source.path, filled, rehash=config.rehash)
        built = build_timm(source, size=config.size)
        name, model = config.model.removeprefix(TIMM_PREFIX), built.module
        own = Preprocess.of_timm(timm.data.resolve_data_config(model=model), size=config.size, where=name)
        spec = TeacherSpec(
            family="timm",
            model=name,
            architecture=digest_json({"timm": name, **built.kwargs}),
            weights_digest=known.digest(model),
            embed_dim=_Heads(model, name).width,
            normalized=False,
            preprocess=config.preprocess(own),
            takes_templates=False,
        )
        teacher = TimmTeacher(model, spec, spec.to_text(source.weights, built.entry))
        tried: Json = {"preprocess": spec.preprocess.to_json()}
        if not known.is_tried(tried):
            teacher._check()
            known.note_tried(tried)
        return teacher

    def to(self, device: torch.device) -> TimmTeacher:
        self._model.to(device)
        self._normalize.to(device)
        return self

    def bf16_copy(self, device: torch.device) -> TimmTeacher:
        """A copy on a device, in bf16, for images alone: class vectors are the fp32 model's."""
        twin = TimmTeacher(bf16_copy(self._model, device), self.spec, self.loaded)
        twin._normalize.to(device)
        return twin

    def prepared(self, preprocess: Preprocess) -> TimmTeacher:
        twin = TimmTeacher(self._model, replace(self.spec, preprocess=preprocess), self.loaded)
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
        names = tuple(map(str, range(self._heads.num_classes)))
        check_contract(self.class_vectors(names, ()), embedding_ND, own_NC, where=where)


class _Heads:
    """The layers that a model classifies with: linear ones, or 1x1 convolutions of one pixel.

    Attributes:
        layers: by name, in the model's own order.
        width: channels of what they read, together.
        num_classes: outputs of each of them.
    """

    def __init__(self, model: Any, where: str) -> None:
        names = classifiers(model)
        self._where = f"{TIMM_PREFIX}{where}"
        self.layers: dict[str, nn.Linear | nn.Conv2d] = {}
        for name in names:
            layer = model.get_submodule(name)
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                layer = None
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                raise InputError(
                    "a timm teacher needs a linear head",
                    code="classifier-not-linear",
                    where=f"{TIMM_PREFIX}{where}",
                    expected="a linear layer, or a 1x1 convolution",
                    found=f"{name}: {type(model.get_submodule(name)).__name__}",
                    hint="choose a model with a classifier",
                )
            self.layers[name] = layer
        if not names:
            raise InputError(
                "this model has no classifier",
                code="classifier-missing",
                where=f"{TIMM_PREFIX}{where}",
                expected="a linear head",
                found="none",
                hint="choose a model with a classifier, or a CLIP-like one",
            )
        self.width = sum(layer.weight.shape[1] for layer in self.layers.values())
        self.num_classes = next(iter(self.layers.values())).weight.shape[0]

    def rows(
        self,
    ) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]] | None]:
        """Weight (C, D) and bias (C,), or None, whose map of the embedding is the mean of the heads' outputs."""
        heads, count = self.layers.values(), len(self.layers)
        weight_CD = torch.cat([head.weight.detach().float().flatten(1) for head in heads], dim=1) / count
        biases = [head.bias.detach().float() for head in heads if head.bias is not None]
        bias_C = torch.stack(biases).sum(0) / count if biases else None
        return np.ascontiguousarray(weight_CD.cpu().numpy()), None if bias_C is None else bias_C.cpu().numpy()

    def read(self, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """What the heads read in a pass, joined (N, D) in fp32, and what the pass gave."""
        with self.listening() as read:
            given = forward()
        return self.joined(read), given

    def joined(self, read: Mapping[str, Tensor]) -> Tensor:
        """What the heads have read, one behind the other (N, D), fp32.

        Raises:
            InputError: a head reads more than one vector an image.
        """
        parts = [read[name].flatten(1).float() for name in self.layers]
        if sum(part.shape[1] for part in parts) != self.width:
            shapes = ", ".join(f"{name} {tuple(read[name].shape[1:])}" for name in self.layers)
            raise not_linear(self._where, "one vector an image for each head", shapes)
        return torch.cat(parts, dim=1)

    @contextlib.contextmanager
    def listening(self) -> Iterator[dict[str, Tensor]]:
        """Inside, what each head reads in the model's next pass, by name."""
        read: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, inputs: read.__setitem__(name, inputs[0])

        handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            yield read
        finally:
            for handle in handles:
                handle.remove()


def _own_names(model: Any) -> list[str] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]

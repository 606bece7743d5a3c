"""The timm family: image classifiers with a linear head; class vectors are the head's rows and bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import digest_json
from ..models.preprocess import Normalize, Preprocess, square_size
from ..models.weights import fit_weights, names_in_order, read_weights, weights_digest
from .base import RANDOM, TIMM_PREFIX, Teacher, TeacherConfig, TeacherSpec, freeze


class TimmTeacher:
    """A timm classifier. `embed` is what its linear head reads, so embedding · weightᵀ + bias are its logits."""

    def __init__(self, model: Any, spec: TeacherSpec) -> None:
        self._model = freeze(model).to(memory_format=torch.channels_last)
        self._normalize = Normalize(spec.preprocess)
        self.spec = spec

    @staticmethod
    def load(config: TeacherConfig) -> TimmTeacher:
        """Load by timm's own rules, or from a weights file.

        Raises:
            InputError: unknown model, no linear head, or weights that are missing or do not fit.
        """
        name = config.model.removeprefix(TIMM_PREFIX)
        model = _create(name, config)
        head = model.get_classifier()
        if not isinstance(head, torch.nn.Linear):
            raise InputError(
                "a timm teacher needs a linear head",
                where=name,
                expected="torch.nn.Linear",
                found=type(head).__name__,
            )
        cfg = timm.data.resolve_data_config(model=model)
        preprocess = config.preprocess(
            Preprocess(
                size=square_size(cfg["input_size"][1:], name),
                mean=tuple(cfg["mean"]),
                std=tuple(cfg["std"]),
                interpolation=cfg["interpolation"],
                crop_pct=cfg["crop_pct"],
            )
        )
        spec = TeacherSpec(
            family="timm",
            model=name,
            architecture=digest_json({"timm": name}),
            weights_digest=weights_digest(model),
            embed_dim=head.in_features,
            normalized=False,
            preprocess=preprocess,
            takes_templates=False,
        )
        return TimmTeacher(model, spec)

    def to(self, device: torch.device) -> TimmTeacher:
        self._model.to(device)
        self._normalize.to(device)
        return self

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        pixels = self._normalize(images_NCHW).contiguous(memory_format=torch.channels_last)
        features = self._model.forward_features(pixels)
        return self._model.forward_head(features, pre_logits=True).float()  # type: ignore[no-any-return]

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The names given, in the head's order, or those that timm knows."""
        names = _own_names(self._model) if names is None else names
        if names is None:
            raise InputError(
                "timm does not know this model's classes", where=self.spec.model, hint="add --classes FILE"
            )
        rows = self._model.get_classifier().out_features
        if len(names) != rows:
            raise InputError(
                "the class list does not fit the teacher's head", where=self.spec.model,
                expected=f"{rows} names in the head's order", found=len(names),
                hint="leave out --classes to use timm's own names",
            )  # fmt: skip
        return tuple(names)

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        """The head's weight rows and bias; templates mean nothing to it."""
        head = self._model.get_classifier()
        return ClassVectors(
            names=tuple(names),
            vectors_CD=np.ascontiguousarray(head.weight.float().cpu().numpy()),
            bias_C=None if head.bias is None else head.bias.float().cpu().numpy(),
            logit_scale=1.0,
            normalized=False,
        )

    def plain(self, names: Sequence[str]) -> list[tuple[Teacher, ClassVectors]]:
        return []


def _own_names(model: Any) -> list[str] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]


def _create(name: str, config: TeacherConfig) -> Any:
    if config.pretrained is None:
        raise InputError(
            "a teacher needs weights", where=config.model,
            hint=f"add --teacher-pretrained: `default` (timm's own), a tag, a weights file, or `{RANDOM}`",
        )  # fmt: skip
    path = Path(config.pretrained)
    if config.pretrained == RANDOM:
        torch.manual_seed(0)
    from_file = path.suffix in (".safetensors", ".pth", ".pt", ".bin") or path.exists()
    own_weights = config.pretrained != RANDOM and not from_file
    tagged = name if not own_weights or config.pretrained == "default" else f"{name}.{config.pretrained}"
    try:
        model = timm.create_model(tagged, pretrained=own_weights)
    except Exception as error:  # timm raises RuntimeError; the hub client a family of its own
        raise InputError(
            "cannot load the teacher", where=f"{config.model} {config.pretrained}",
            found=" ".join(str(error).split())[:300], hint="`python -c 'import timm; print(timm.list_models())'` lists models",
        ) from error  # fmt: skip
    if from_file:
        load_weights(model, str(path))
    return model


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Load a weights file strictly: by names, or, for ports with other names, in order (see `names_in_order`).

    A classifier for another number of classes replaces the model's own.

    Raises:
        InputError: no such file, a pickle that holds more than tensors, or weights of another model.
    """
    weights, own = read_weights(path), model.state_dict()
    if not own.keys() & weights.keys():
        weights = names_in_order(weights, own, what="the model", where=path)
    _fit_classes(model, weights)
    fit_weights(model, weights, what="the model", where=path)


def _fit_classes(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give the model as many classes as the file's classifier has: a file from fine-tuning has its own."""
    head = weights.get(f"{model.pretrained_cfg.get('classifier')}.weight")
    if head is not None and head.ndim == 2 and len(head) != model.num_classes:
        model.reset_classifier(len(head))

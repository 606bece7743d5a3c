"""The family of prompt-tuned teachers, `teachonce:FOLDER`: an open_clip model with learned prompts in both towers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import digest_json
from ...storage_schemas.json_file import as_schema
from ...storage_schemas.prompts import CONFIG
from ..inputs.classes import DEFAULT_TEMPLATES
from ..models.bf16_weights import bf16_copy, with_parts
from ..models.names import PROMPTS_PREFIX
from ..models.preprocess import Normalize, Preprocess
from ..models.teacher_config import TeacherConfig
from ..models.tokenizer import name_notes
from ..models.weights import fit_weights, tensors_digest, weights_digest
from ..prompts.clip import PromptedClip, class_ids
from ..prompts.folder import LoadedPrompts, read_prompts
from ..prompts.text import prompt_texts
from .base import BaseTeacher, Offer, Teacher, freeze
from .open_clip import OpenClipTeacher

#: Classes in a forward pass of the text tower.
_CLASSES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class _Backbone:
    """The model that a folder's prompts were learned for."""

    model: str
    pretrained: str | None
    architecture: str
    weights: str


class PromptedTeacher(BaseTeacher):
    """`embed` and `class_vectors` as PromptSRC's evaluation has them, in fp32."""

    def __init__(self, backbone: OpenClipTeacher, loaded: LoadedPrompts, name: str) -> None:
        config = loaded.config
        # The draw of the prompts is overwritten; it must not change the random numbers of others.
        with torch.random.fork_rng(devices=[]):
            clip = PromptedClip(backbone.model, loaded.shape)
        for field, own in clip.prompts().items():  # one that is narrower would be stretched
            if (found := tuple(loaded.prompts[field].shape)) != tuple(own.shape):
                raise _another_backbone(name, f"{field} {found}", tuple(own.shape))
        clip.load_prompts(loaded.prompts)
        parts = [loaded.shape.to_json(), tensors_digest(loaded.prompts), tensors_digest(loaded.towers or {})]
        known = backbone.known and backbone.known.beside({"prompts": parts})
        self._clip: PromptedClip = freeze(clip)
        self._backbone = backbone
        self._normalize = Normalize(backbone.spec.preprocess)
        self._config = config
        self.spec = replace(
            backbone.spec,
            family="prompted",
            model=name,
            architecture=digest_json({"backbone": backbone.spec.architecture, **loaded.shape.to_json()}),
            weights_digest=weights_digest(clip) if known is None else known.digest(clip),
            takes_templates=False,
        )
        self.loaded = f"{name}: prompts for {backbone.loaded}"

    @staticmethod
    def load(config: TeacherConfig) -> PromptedTeacher:
        """Load the prompts, then the model that they were learned for.

        Raises:
            InputError: no prompts there, or whatever loading the model raises.
            DamagedError: files that do not belong together, or that do not name the model.
            MismatchError: the model is not the one that the prompts were learned for.
        """
        folder = config.model.removeprefix(PROMPTS_PREFIX)
        loaded = read_prompts(folder)
        name = f"{PROMPTS_PREFIX}{folder.rstrip('/').rpartition('/')[2]}"
        about = as_schema(
            dict(loaded.config.backbone),
            _Backbone,
            what="prompts that do not name their model",
            code="prompts-without-model",
            where=f"{folder}/{CONFIG}",
            hint="copy the folder again",
        )
        model = config.backbone or about.model
        pretrained = config.pretrained or about.pretrained
        backbone = OpenClipTeacher.load(replace(config, model=model, pretrained=pretrained, backbone=None))
        for field, expected, found in (
            ("architecture", about.architecture, backbone.spec.architecture),
            ("weights", about.weights, backbone.spec.weights_digest),
        ):
            if found != expected:
                raise _another_backbone(name, f"{about.model} with {field} {expected}", f"{model} with {field} {found}")
        if loaded.towers is not None:
            fit_weights(backbone.model, loaded.towers, what="the towers of the backbone", where=name, partly=True)
        return PromptedTeacher(backbone, loaded, name)

    def to(self, device: torch.device) -> PromptedTeacher:
        self._clip.to(device)
        self._normalize.to(device)
        return self

    def bf16_copy(self, device: torch.device) -> PromptedTeacher:
        """A copy whose image tower is on a device, in bf16, with its prompts. The text side is shared, and stays where it is."""
        own: Any = self._clip.model
        prompts_LPD = self._clip.vision_prompts_LPD.detach().to(device)
        twin = copy.copy(self)
        twin._clip = with_parts(
            self._clip,
            model=with_parts(own, visual=bf16_copy(own.visual, device)),
            vision_prompts_LPD=nn.Parameter(prompts_LPD, requires_grad=False),
        )
        twin._normalize = Normalize(self.spec.preprocess).to(device)
        return twin

    def prepared(self, preprocess: Preprocess) -> PromptedTeacher:
        twin = copy.copy(self)
        twin.spec = replace(self.spec, preprocess=preprocess)
        twin._normalize = Normalize(preprocess).to(self._clip.vision_prompts_LPD.device)
        return twin

    def offers(self) -> tuple[Offer, ...]:
        """The embedding alone: the libraries' passes for maps have no prompts."""
        return (Offer(name="embedding", axes=("channel",), shape=(self.spec.embed_dim,)),)

    def outputs(self, images_NCHW: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        return {name: self.embed(images_NCHW) for name in names}

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self._clip.image_features(self._normalize(images_NCHW))

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The names given, or the classes in the prompts' folder, base and novel."""
        return self._config.class_names if names is None else tuple(names)

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        """Text features of the learned prompts for each class, L2-normalised; templates do not apply.

        Classes are marked as base classes where the folder records that prompts were learned on them; no marks if that
        is so for all or none of the names.
        """
        ids_CT = class_ids(self._config.context, names, self._backbone.tokenizer)
        with torch.no_grad():
            ids_CT = ids_CT.to(self._clip.text_prompts_LPD.device)
            features_CD = self._clip.class_features(ids_CT, chunk=_CLASSES_AT_ONCE)
        base_C = np.isin(np.array(names, object), np.array(self._config.base_classes, object))
        return replace(
            self._backbone.vectors_of(names, features_CD),
            base_C=base_C if base_C.any() and not base_C.all() else None,
        )

    def name_notes(self, names: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
        return name_notes(self._backbone.tokenizer, names, prompt_texts(self._config.context, names))

    def plain(self, names: Sequence[str]) -> list[tuple[Teacher, ClassVectors]]:
        """The backbone, and its class vectors for one plain template."""
        self._backbone.to(self._clip.text_prompts_LPD.device)
        return [(self._backbone, self._backbone.class_vectors(names, DEFAULT_TEMPLATES))]


def _another_backbone(name: str, expected: object, found: object) -> MismatchError:
    return MismatchError(
        "these prompts were learned for another backbone",
        code="prompts-other-backbone",
        where=name,
        expected=f"{expected} (the prompts)",
        found=f"{found} (the model)",
        hint="name it with --teacher-backbone MODEL and --teacher-pretrained WEIGHTS",
    )

"""The transformers family: DINOv2 and v3, ViT, ConvNeXt, … as features, and CLIP, SigLIP and SigLIP2 with class vectors."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json, digest_json
from ..models.intermediates import FEATURES, TOKENS
from ..models.preprocess import Normalize, Preprocess
from ..models.probe import few_images, tried
from ..models.teacher_config import TeacherConfig
from ..models.tokenizer import name_notes
from ..models.transformers_models import TransformersModel, load_transformers
from .base import BaseTeacher, Offer, TeacherSpec, freeze
from .contract import check_contract, check_features
from .text_tower import TextTower

#: Tokens of a text at most, where a model could take more.
_MOST_TOKENS = 77


class TransformersTeacher(BaseTeacher):
    """A model of `AutoModel`. `embed` is its pooled output; of one with a text tower the projected one, L2-normalised.

    Targets: `embedding`; `tokens`, the last hidden state without class and register tokens; and `features.stem`, `features.stage1`, …,
    the hidden states as maps, by the names that transformers' backbones give them.
    """

    def __init__(self, model: TransformersModel, spec: TeacherSpec, loaded: str) -> None:
        self._model, self.spec, self.loaded = model, spec, loaded
        self._module = freeze(model.module)
        self._has_text = _has_text(self._module)
        self._vision = self._module.vision_model if self._has_text else self._module
        self._normalize = Normalize(spec.preprocess)
        parameters = inspect.signature(self._vision.forward).parameters
        self._in_patches = "spatial_shapes" in parameters
        # transformers 4 calls it so in the tower alone.
        self._names = {} if "pixel_attention_mask" in parameters else {"pixel_attention_mask": "attention_mask"}
        vision = getattr(self._module.config, "vision_config", self._module.config)
        self._patch: Any = getattr(vision, "patch_size", None)
        other_size = getattr(vision, "image_size", None) not in (None, spec.preprocess.size)
        self._options: dict[str, Any] = {}
        if other_size and "interpolate_pos_encoding" in parameters:
            self._options["interpolate_pos_encoding"] = True

    @staticmethod
    def load(config: TeacherConfig) -> TransformersTeacher:
        """Load it, and send a few images through.

        Raises:
            InputError: as `load_transformers`; a size that it cannot take; a model that gives no features of images; or one whose
                logits are not what its embeddings and text features give.
            MissingDependency: transformers is not installed.
        """
        model = load_transformers(config.model, config.pretrained, size=config.size, rehash=config.rehash)
        preprocess = config.preprocess(model.preprocess)
        spec = TeacherSpec(
            family="transformers",
            model=model.name,
            architecture=digest_json({"transformers": dict(model.architecture)}),
            weights_digest=model.known.digest(model.module),
            embed_dim=1,
            normalized=_has_text(model.module),
            preprocess=preprocess,
            takes_templates=_has_text(model.module),
        )
        teacher = TransformersTeacher(model, spec, "")
        where = f"{config.model}, --teacher-size"
        embedding_ND = tried(lambda: teacher.embed(few_images(2, preprocess.size)), preprocess.size, where)
        teacher.spec = spec = replace(spec, embed_dim=int(embedding_ND.shape[1]))
        teacher.loaded = spec.to_text(model.weights, "")
        tried_with: Json = {"preprocess": preprocess.to_json()}
        if not model.known.is_tried(tried_with):
            teacher._check(embedding_ND, config.model)
            model.known.note_tried(tried_with)
        return teacher

    def to(self, device: torch.device) -> TransformersTeacher:
        self._module.to(device)
        self._normalize.to(device)
        return self

    def prepared(self, preprocess: Preprocess) -> TransformersTeacher:
        twin = TransformersTeacher(self._model, replace(self.spec, preprocess=preprocess), self.loaded)
        twin._normalize.to(next(self._module.parameters()).device)
        return twin

    @torch.no_grad()
    def offers(self) -> tuple[Offer, ...]:
        images_NCHW = few_images(1, self.spec.preprocess.size).to(next(self._module.parameters()).device)
        states = self._pass(images_NCHW, states=True).hidden_states or ()
        names = ["embedding", TOKENS, *(_stage(index) for index in range(len(states)))]
        offers = []
        for name in names:
            found = self._one(name, self._pass(images_NCHW, states=True))
            if found is not None:
                axes = {2: ("channel",), 3: ("token", "channel"), 4: ("channel", "y", "x")}[found.ndim]
                offers.append(Offer(name=name, axes=axes, shape=tuple(found.shape[1:])))
        return tuple(offers)

    def outputs(self, images_NCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        passed = self._pass(images_NCHW, states=any(name.startswith(FEATURES) for name in names))
        found = {}
        for name in names:
            value = self._one(name, passed)
            assert value is not None  # it is among its offers
            found[name] = value.float()
        return found

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if not self._has_text:
            raise self._no_classes()
        if names is None:
            raise InputError(
                "this teacher has no classes of its own",
                code="classes-needed",
                where=self.spec.model,
                hint="add --classes FILE",
            )
        return tuple(names)

    @torch.no_grad()
    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        """Text features, averaged over templates and normalised; underscores in class names become spaces."""
        if not self._has_text:
            raise self._no_classes()
        features = []
        for name in names:
            texts = [template.replace("{}", name.replace("_", " ")) for template in templates]
            features.append(F.normalize(self._text_features(self._tokenizer(texts)).mean(dim=0), dim=0))
        return self._vectors_of(names, torch.stack(features))

    def text_tower(self) -> TextTower:
        if not self._has_text:
            return super().text_tower()
        scale = float(self._module.logit_scale.detach().float().exp())
        return TextTower(encode=self._text_features, tokenizer=self._tokenizer, logit_scale=scale)

    def name_notes(self, names: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
        if not self._has_text:
            return ()
        texts = [templates[0].replace("{}", name.replace("_", " ")) for name in names]
        return name_notes(self._tokenizer, names, texts)

    @functools.cached_property
    def _tokenizer(self) -> _Tokenizer:
        from transformers import AutoTokenizer

        with self._model.access():
            own = AutoTokenizer.from_pretrained(self._model.source, trust_remote_code=False)
        return _Tokenizer(own, _context_length(self._module))

    def _text_features(self, ids_TL: Tensor) -> Tensor:
        """L2-normalised, on the model's device. CLIP's causal tower pools at the end of text; SigLIP's reads all, padding too."""
        device = next(self._module.parameters()).device
        return F.normalize(_pooled(self._module.get_text_features(input_ids=ids_TL.to(device))).float(), dim=-1)

    def _vectors_of(self, names: Sequence[str], features_CD: Tensor) -> ClassVectors:
        bias = getattr(self._module, "logit_bias", None)
        return ClassVectors(
            names=tuple(names),
            vectors_CD=np.ascontiguousarray(features_CD.float().cpu().numpy(), np.float32),
            bias_C=None if bias is None else np.full(len(names), float(bias), np.float32),
            logit_scale=float(self._module.logit_scale.detach().float().exp()),
            normalized=True,
        )

    def _inputs(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        pixels_NCHW: Tensor = self._normalize(images_NCHW)
        if not self._in_patches:
            return {"pixel_values": pixels_NCHW}
        count, side = len(pixels_NCHW), pixels_NCHW.shape[-1] // self._patch
        patches = pixels_NCHW.reshape(count, 3, side, self._patch, side, self._patch).permute(0, 2, 4, 3, 5, 1)
        device = pixels_NCHW.device
        return {
            "pixel_values": patches.reshape(count, side * side, -1),
            "pixel_attention_mask": torch.ones(count, side * side, dtype=torch.long, device=device),
            "spatial_shapes": torch.full((count, 2), side, device=device),
        }

    def _pass(self, images_NCHW: Tensor, *, states: bool) -> Any:
        inputs = {self._names.get(name, name): value for name, value in self._inputs(images_NCHW).items()}
        return self._vision(**inputs, output_hidden_states=states, **self._options)

    def _one(self, name: str, passed: Any) -> Tensor | None:
        """A target of a pass; None where the model has no such thing."""
        last = passed.last_hidden_state
        if name == "embedding":
            return self._embedding(passed)
        if name == TOKENS:
            map_NCYX = self._as_map(last)
            return None if map_NCYX is None else map_NCYX.flatten(2).transpose(1, 2)
        stages = {_stage(index): state for index, state in enumerate(passed.hidden_states or ())}
        map_NCYX = self._as_map(stages[name])
        return None if map_NCYX is None else map_NCYX.contiguous()

    def _embedding(self, passed: Any) -> Tensor:
        pooled = getattr(passed, "pooler_output", None)
        if pooled is None:
            last = passed.last_hidden_state
            pooled = last.mean(dim=(2, 3)) if last.ndim == 4 else last[:, 0]
        pooled = pooled.flatten(1)  # convolutional nets keep two axes of length 1
        if not self._has_text:
            return pooled.float()  # type: ignore[no-any-return]
        projection = getattr(self._module, "visual_projection", None)
        return F.normalize((pooled if projection is None else projection(pooled)).float(), dim=-1)

    def _as_map(self, state: Tensor) -> Tensor | None:
        """(N, C, Y, X) of maps, or of tokens that lie on the grid of patches, behind class and register tokens."""
        if state.ndim == 4:
            return state
        count = state.shape[1]
        side = self.spec.preprocess.size // self._patch if isinstance(self._patch, int) else math.isqrt(count)
        if side * side > count:  # later stages of models whose grids shrink
            side = math.isqrt(count)
        prefix = count - side * side
        if self._patch is None and prefix:
            return None
        return state[:, prefix:].transpose(1, 2).reshape(len(state), -1, side, side)

    @torch.no_grad()
    def _check(self, embedding_ND: Tensor, where: str) -> None:
        check_features(embedding_ND, self.spec.embed_dim, where=where)
        if not self._has_text:
            return
        text = self._module.config.text_config
        ids_CL = torch.full((2, _context_length(self._module)), int(text.pad_token_id or 0))
        last = min(value for value in (text.eos_token_id, text.vocab_size - 1) if isinstance(value, int))
        ids_CL[:, :3] = torch.tensor([[1, 2, last], [1, 3, last]])
        own_NC = self._module(
            input_ids=ids_CL, **self._inputs(few_images(2, self.spec.preprocess.size)), **self._options
        )
        vectors = self._vectors_of(("a", "b"), self._text_features(ids_CL))
        check_contract(vectors, embedding_ND, own_NC.logits_per_image, where=where)


class _Tokenizer:
    """A tokenizer of transformers, as open_clip's are called: texts padded to the model's length, as SigLIP was trained with them."""

    def __init__(self, own: Any, context_length: int) -> None:
        self._own, self.context_length = own, context_length

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        found = self._own(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids_TL: Tensor = found["input_ids"]
        return ids_TL


def _has_text(module: Any) -> bool:
    return hasattr(module, "get_text_features") and hasattr(module, "logit_scale") and hasattr(module, "vision_model")


def _context_length(module: Any) -> int:
    return min(int(module.config.text_config.max_position_embeddings), _MOST_TOKENS)


def _pooled(found: Any) -> Tensor:
    """Features of a tower: transformers 4 gives them, 5 an object that holds them."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features


def _stage(index: int) -> str:
    return f"{FEATURES}stem" if index == 0 else f"{FEATURES}stage{index}"

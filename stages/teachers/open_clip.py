"""The open_clip family: any CLIP-like model; class vectors are text features of class names in templates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import torch

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json, digest_json
from ..models.bf16_weights import bf16_copy, with_parts
from ..models.clip import build_clip, check_width
from ..models.clip_source import resolve_clip
from ..models.intermediates import Intermediates
from ..models.known_weights import KnownWeights
from ..models.preprocess import Normalize, Preprocess
from ..models.probe import few_images, run_once, tried
from ..models.teacher_config import TeacherConfig
from ..models.tokenizer import Tokenizer, load_tokenizer, name_notes
from .base import BaseTeacher, Offer, TeacherSpec, freeze
from .contract import check_contract
from .offers import offers_with_maps, outputs_with_maps
from .text_tower import TextTower


class OpenClipTeacher(BaseTeacher):
    """An open_clip model. `embed` is its L2-normalised `encode_image`.

    Attributes:
        model: as open_clip makes it; prompts are put into it.
        loaded: one line for people: what was loaded.
        known: what is remembered of its weights.
    """

    def __init__(
        self, model: Any, typed: str, spec: TeacherSpec, loaded: str, known: KnownWeights | None = None
    ) -> None:
        self.model = freeze(model)
        self.known = known
        self._typed = typed
        self._normalize = Normalize(spec.preprocess)
        self._maps = Intermediates(model.visual)
        self.spec = spec
        self.loaded = loaded

    @staticmethod
    def load(config: TeacherConfig) -> OpenClipTeacher:
        """Load the very model that was named, with the activation that its weights were trained with.

        Raises:
            InputError: unknown model, weights that are missing or do not fit, a size that it cannot take, or a model
                whose logits are not what its embeddings and text features give.
        """
        source = resolve_clip(config.model, config.pretrained, role="teacher")
        filled = {
            "family": "open_clip",
            "model_cfg": source.model_cfg,
            "configured": source.configured,
            "size": config.size,
        }
        known = KnownWeights.of(source.weights_path, filled, rehash=config.rehash)
        built = build_clip(source, size=config.size)
        digest = known.digest(built.module)
        preprocess = config.preprocess(built.preprocess)
        spec = TeacherSpec(
            family="open_clip",
            model=source.name,
            architecture=digest_json(
                {**source.model_cfg, "quick_gelu": bool(built.model_cfg.get("quick_gelu"))}
                | ({} if built.at_own_size else {"image_size": config.size})
            ),
            weights_digest=digest,
            embed_dim=int(built.model_cfg["embed_dim"]),
            normalized=True,
            preprocess=preprocess,
            takes_templates=True,
        )
        loaded = spec.to_text(source.weights, built.entry, built.activation)
        teacher = OpenClipTeacher(built.module, source.typed, spec, loaded, known)
        tried: Json = {"preprocess": preprocess.to_json(), "activation": built.activation}
        if not known.is_tried(tried):
            teacher._check()
            known.note_tried(tried)
        return teacher

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer; only class vectors and prompts need it.

        Raises:
            InputError: its files or its library are missing.
        """
        return load_tokenizer(self._typed)

    def to(self, device: torch.device) -> OpenClipTeacher:
        self.model.to(device)
        self._normalize.to(device)
        return self

    def bf16_copy(self, device: torch.device) -> OpenClipTeacher:
        """A copy whose image tower is on a device, in bf16. The text tower is shared, and stays where it is."""
        model = with_parts(self.model, visual=bf16_copy(self.model.visual, device))
        twin = OpenClipTeacher(model, self._typed, self.spec, self.loaded)
        twin._normalize.to(device)
        return twin

    def prepared(self, preprocess: Preprocess) -> OpenClipTeacher:
        twin = OpenClipTeacher(
            self.model, self._typed, replace(self.spec, preprocess=preprocess), self.loaded, self.known
        )
        twin._normalize.to(next(self.model.visual.parameters()).device)
        return twin

    def offers(self) -> tuple[Offer, ...]:
        images_NCHW = few_images(1, self.spec.preprocess.size).to(next(self.model.visual.parameters()).device)
        return offers_with_maps(self.spec.embed_dim, self._maps, self._normalize(images_NCHW))

    def outputs(self, images_NCHW: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        return outputs_with_maps(
            names,
            embed=lambda: self.embed(images_NCHW),
            maps=self._maps,
            pixels=lambda: self._normalize(images_NCHW),
            embed_end=_unit,
        )

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return _unit(self.model.encode_image(self._normalize(images_NCHW)))

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            raise InputError(
                "this teacher has no classes of its own",
                code="classes-needed",
                where=self.spec.model,
                hint="add --classes FILE",
            )
        return tuple(names)

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        """Text features, averaged over templates and normalised, as open_clip's `build_zero_shot_classifier` does.

        Underscores in class names become spaces in the prompts, as in CoOp and PromptKD.
        """
        device = next(self.model.parameters()).device
        vectors_DC = open_clip.build_zero_shot_classifier(
            self.model,
            self.tokenizer,
            classnames=[name.replace("_", " ") for name in names],
            templates=[_template(text) for text in templates],
            num_classes_per_batch=max(1, 256 // len(templates)),
            device=device,
        )
        return self.vectors_of(names, vectors_DC.T)

    def vectors_of(self, names: Sequence[str], features_CD: torch.Tensor) -> ClassVectors:
        """Class vectors of normalised text features, with the model's own scale and bias.

        SigLIP models add one learned bias to every logit; it cancels in a softmax but not in a sigmoid.
        """
        bias = getattr(self.model, "logit_bias", None)
        return ClassVectors(
            names=tuple(names),
            vectors_CD=np.ascontiguousarray(features_CD.float().cpu().numpy(), np.float32),
            bias_C=None if bias is None else np.full(len(names), float(bias), np.float32),
            logit_scale=float(self.model.logit_scale.float().exp()),
            normalized=True,
        )

    def text_tower(self) -> TextTower:
        device = next(self.model.parameters()).device
        return TextTower(
            encode=lambda ids_TL: _unit(self.model.encode_text(ids_TL.to(device))),
            tokenizer=self.tokenizer,
            logit_scale=float(self.model.logit_scale.float().exp()),
        )

    def name_notes(self, names: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
        texts = [templates[0].replace("{}", name.replace("_", " ")) for name in names]
        return name_notes(self.tokenizer, names, texts)

    @torch.no_grad()
    def _check(self) -> None:
        """A few images and texts: embeddings and class vectors must give the model's own logits."""
        size, where = self.spec.preprocess.size, f"{self.spec.model}, --teacher-size"
        images_NCHW = few_images(2, size)
        length, vocabulary = _text_shape(self.model)
        ids_CT = torch.zeros(2, length, dtype=torch.long)  # two short texts, and padding
        ids_CT[:, :3] = torch.tensor([[1, 2, vocabulary - 1], [1, 3, vocabulary - 1]])
        with run_once(self.model.visual):  # which takes nearly all of the time
            embedding_ND = tried(lambda: self.embed(images_NCHW), size, where)
            check_width(embedding_ND, self.spec.embed_dim, self.spec.model)
            own_NC = _own_logits(self.model, self._normalize(images_NCHW), ids_CT)
        features_CD = torch.nn.functional.normalize(self.model.encode_text(ids_CT).float(), dim=-1)
        check_contract(self.vectors_of(("a", "b"), features_CD), embedding_ND, own_NC, where=self.spec.model)


def _unit(embedding_ND: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embedding_ND.float(), dim=-1)


def _own_logits(model: Any, images_NCHW: torch.Tensor, ids_CT: torch.Tensor) -> torch.Tensor:
    """Logits (image, text) as the model itself forms them."""
    if hasattr(model, "get_logits"):
        logits_NC: torch.Tensor = model.get_logits(images_NCHW, ids_CT)[0]
        return logits_NC
    out = model(images_NCHW, ids_CT)  # CoCa leaves the product to its loss
    logits_NC = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    return logits_NC + out["logit_bias"] if "logit_bias" in out else logits_NC


def _text_shape(model: Any) -> tuple[int, int]:
    """Context length (at most CLIP's own) and vocabulary of a model's text tower."""
    text = getattr(model, "text", model)
    return min(int(text.context_length), 77), int(text.vocab_size)


def _template(text: str) -> Callable[[str], str]:
    return lambda name: text.replace("{}", name)

"""The open_clip family: any CLIP-like model; class vectors are text features of class names in templates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import digest_json
from ..models.attention import fold_attention
from ..models.preprocess import Normalize, Preprocess, square_size
from ..models.weights import weights_digest
from .base import LOCAL_PREFIX, RANDOM, Teacher, TeacherConfig, TeacherSpec, freeze

_HUB = "hf-hub:"

#: A model folder may bring its own (smaller) BPE vocabulary under this name.
BPE_FILE = "bpe_simple_vocab.txt.gz"


class OpenClipTeacher:
    """An open_clip model. `embed` is its L2-normalised `encode_image`.

    Attributes:
        model, tokenizer: as open_clip makes them; prompts are put into them.
    """

    def __init__(self, model: Any, tokenizer: Callable[..., torch.Tensor], spec: TeacherSpec) -> None:
        self.model = freeze(model)
        fold_attention(self.model)
        self.tokenizer = tokenizer
        self._normalize = Normalize(spec.preprocess)
        self.spec = spec

    @staticmethod
    def load(config: TeacherConfig) -> OpenClipTeacher:
        """Load by open_clip's own rules.

        Raises:
            InputError: unknown model, or weights that are missing or do not fit.
        """
        model = _create(config)
        visual = model.visual
        cfg = visual.preprocess_cfg
        where = config.model
        preprocess = config.preprocess(
            Preprocess(
                size=square_size(cfg.get("size", visual.image_size), where),
                mean=tuple(cfg["mean"]),
                std=tuple(cfg["std"]),
                interpolation=cfg.get("interpolation", "bicubic"),
            )
        )
        if cfg.get("resize_mode", "shortest") != "shortest":
            raise InputError(
                "unsupported resize mode", where=where, expected="shortest", found=cfg["resize_mode"],
                hint="use a teacher that resizes the shorter side",
            )  # fmt: skip
        name = f"{LOCAL_PREFIX}{Path(where).name}" if where.startswith(LOCAL_PREFIX) else where
        spec = TeacherSpec(
            family="open_clip",
            model=name,
            architecture=digest_json(
                (open_clip.get_model_config(where) or {}) | {"quick_gelu": _quick_gelu(config)}
            ),
            weights_digest=weights_digest(model),
            embed_dim=int(model.visual.output_dim),
            normalized=True,
            preprocess=preprocess,
            takes_templates=True,
        )
        return OpenClipTeacher(model, _tokenizer(where), spec)

    def to(self, device: torch.device) -> OpenClipTeacher:
        self.model.to(device)
        self._normalize.to(device)
        return self

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        embedding_ND = self.model.encode_image(self._normalize(images_NCHW))
        return torch.nn.functional.normalize(embedding_ND.float(), dim=-1)

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            raise InputError(
                "this teacher has no classes of its own", where=self.spec.model, hint="add --classes FILE"
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
        return ClassVectors(
            names=tuple(names),
            vectors_CD=np.ascontiguousarray(vectors_DC.float().T.cpu().numpy(), np.float32),
            bias_C=self._bias(len(names)),
            logit_scale=float(self.model.logit_scale.float().exp()),
            normalized=True,
        )

    def plain(self, names: Sequence[str]) -> list[tuple[Teacher, ClassVectors]]:
        return []

    def _bias(self, num_classes: int) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        """SigLIP models add one learned bias to every logit; it cancels in a softmax but not in a sigmoid."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else np.full(num_classes, float(bias), np.float32)


def _create(config: TeacherConfig) -> Any:
    """The model with its weights, and never with open_clip's silent random ones."""
    has_schema = config.model.startswith((LOCAL_PREFIX, _HUB))
    if not has_schema and config.pretrained is None:
        tags = [tag for _, tag in open_clip.list_pretrained() if _ == config.model]
        known = f"one of {', '.join(tags)}" if tags else "a weights file"
        raise InputError(
            "a teacher needs weights", where=config.model,
            hint=f"add --teacher-pretrained: {known}; `{RANDOM}` gives seeded random weights for trying things out",
        )  # fmt: skip
    if config.pretrained == RANDOM:
        torch.manual_seed(0)
        logging.getLogger().disabled, was = True, logging.getLogger().disabled
    else:
        was = None
    try:
        return open_clip.create_model(
            config.model,
            pretrained=None if config.pretrained == RANDOM or has_schema else config.pretrained,
            load_weights=config.pretrained != RANDOM,
            force_quick_gelu=_quick_gelu(config),
            precision="fp32",
            device="cpu",
            weights_only=True,
        )
    except Exception as error:  # open_clip raises RuntimeError, ValueError, FileNotFoundError, KeyError, …
        raise InputError(
            "cannot load the teacher", where=f"{config.model} {config.pretrained or ''}".strip(),
            found=" ".join(str(error).split())[:300],
            hint="`python -c 'import open_clip; print(open_clip.list_pretrained())'` lists models and tags",
        ) from error  # fmt: skip
    finally:
        if was is not None:
            logging.getLogger().disabled = was


def _quick_gelu(config: TeacherConfig) -> bool:
    """Whether the weights want QuickGELU. open_clip builds `ViT-L-14` with GELU, whatever the tag says, and only warns."""
    own = (open_clip.get_model_config(config.model) or {}).get("quick_gelu", False)
    tag = open_clip.get_pretrained_cfg(config.model, config.pretrained) if config.pretrained else {}
    return bool(own or tag.get("quick_gelu", False))


def _tokenizer(model: str) -> Callable[..., torch.Tensor]:
    if model.startswith(LOCAL_PREFIX):
        vocabulary = Path(model.removeprefix(LOCAL_PREFIX)) / BPE_FILE
        if vocabulary.exists():
            config = open_clip.get_model_config(model) or {}
            length = config.get("text_cfg", {}).get("context_length", 77)
            return open_clip.tokenizer.SimpleTokenizer(bpe_path=str(vocabulary), context_length=length)  # type: ignore[no-any-return]
    return open_clip.get_tokenizer(model)  # type: ignore[no-any-return]


def _template(text: str) -> Callable[[str], str]:
    return lambda name: text.replace("{}", name)

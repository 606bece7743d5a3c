"""Owns the models that can be named: those that open_clip and timm build in, with sizes and their own weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .hub import quiet_libraries
from .names import TIMM_PREFIX


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model by name.

    Attributes:
        name: as `--teacher` and `--student` take it.
        size: of its images, in pixels.
        weights: tags for `--…-pretrained`, and where each is downloaded from.
        can_teach: whether it has a classifier, or a text tower: others teach features alone.
        needs: packages beyond the base install: `transformers` for the text tower's tokenizer, or ''.
    """

    name: str
    size: int
    weights: dict[str, str]
    can_teach: bool
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is known of a model only once it is built.

    Attributes:
        width: channels of its embedding.
        parameters: of all its parts: of a CLIP, both towers.
    """

    width: int
    parameters: int


def open_clip_models() -> Iterator[NamedModel]:
    """All that open_clip builds in, in its order."""
    import open_clip

    tags: dict[str, list[str]] = {}
    for model, tag in open_clip.list_pretrained():
        tags.setdefault(model, []).append(tag)
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text = config["text_cfg"]
        size = config["vision_cfg"].get("image_size", 224)
        yield NamedModel(
            name=name,
            size=size if isinstance(size, int) else max(size),
            can_teach=True,
            weights={tag: _clip_origin(open_clip.get_pretrained_cfg(name, tag)) for tag in tags.get(name, [])},
            needs="transformers" if text.get("hf_model_name") or text.get("hf_tokenizer_name") else "",
        )


def timm_models() -> Iterator[NamedModel]:
    """All of timm's architectures, in its order."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    for name in timm.list_models():
        first = timm.models.get_pretrained_cfg(name)
        if first is None or first.input_size[0] != 3:
            continue
        weights = {
            full.partition(".")[2]: f"hub {cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url or ""
            for full, cfg in get_arch_pretrained_cfgs(name).items()
            if cfg.has_weights
        }
        yield NamedModel(
            name=f"{TIMM_PREFIX}{name}",
            size=first.input_size[1],
            weights=weights,
            can_teach=bool(first.classifier and first.num_classes),
        )


def measure(name: str) -> Measures | None:
    """Build a model without memory for its weights, and measure it; None where that cannot be done.

    Some models compute with their weights while they are built; text towers of transformers need their configuration
    from the hub.
    """
    import torch

    try:
        with torch.device("meta"), quiet_libraries():
            return (
                _measure_timm(name.removeprefix(TIMM_PREFIX)) if name.startswith(TIMM_PREFIX) else _measure_clip(name)
            )
    except Exception:  # whatever a library raises on the meta device: the model may still be a good one
        return None


def _measure_clip(name: str) -> Measures:
    import open_clip

    from .clip import make_model

    config: dict[str, Any] = open_clip.get_model_config(name)
    config["vision_cfg"].pop("timm_model_pretrained", None)
    if "hf_model_name" in config["text_cfg"]:
        raise ValueError("its text tower is described on the hub")
    return Measures(width=config["embed_dim"], parameters=_count(make_model(config)))


def _measure_timm(name: str) -> Measures:
    import timm

    model = timm.create_model(name)
    width = getattr(model, "head_hidden_size", None) or model.num_features
    return Measures(width=int(width), parameters=_count(model))


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _clip_origin(tag: Any) -> str:
    return f"hub {tag['hf_hub'].rstrip('/')}" if tag.get("hf_hub") else str(tag.get("url", ""))

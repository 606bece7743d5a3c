"""Owns open_clip models: a whole model, or its image tower alone, built and filled with the weights that were named."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ...pipeline.lean_imports import complete_open_clip
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError, MissingDependency
from .attention import fold_attention
from .building import unfilled
from .clip_source import ClipSource
from .hub import hub_access, one_line
from .preprocess import Preprocess, square_size
from .probe import try_images
from .weights import Tensors, WeightsFile, fit_weights, read_weights_file

#: In old files: what newer versions of transformers compute themselves. open_clip drops it too.
_GONE = frozenset({"text.transformer.embeddings.position_ids"})


@dataclass(frozen=True, kw_only=True)
class BuiltClip:
    """A model, or an image tower, with its weights.

    Attributes:
        module: on the CPU, in fp32.
        model_cfg: open_clip's, as it was built: with the activation and the image size.
        preprocess: the model's own, at the chosen size.
        at_own_size: whether that is the size of its configuration.
        logit_scale: the model's own factor from cosines to logits.
        entry: which entry of the weights file was taken, such as `state_dict_ema`; '' where there is but one.
    """

    module: Any
    model_cfg: Mapping[str, Any]
    preprocess: Preprocess
    at_own_size: bool
    logit_scale: float
    entry: str

    @property
    def activation(self) -> str:
        """What open_clip's own towers have between their matrices; '' where both towers come from other libraries."""
        if "timm_model_name" in self.model_cfg["vision_cfg"]:
            return ""
        return "QuickGELU" if self.model_cfg.get("quick_gelu") else "GELU"


def build_clip(source: ClipSource, *, size: int | None = None) -> BuiltClip:
    """The whole model: both towers, scale and bias, as open_clip's `create_model` builds it.

    Args:
        source: from `resolve_clip`. Random weights are always the same.
        size: of the images, in pixels, instead of the model's own: position embeddings are interpolated, as open_clip
            does with `force_image_size`.

    Raises:
        InputError: no text tower, weights of another model, or a size that the model's trunk cannot take.
        MissingDependency: the text tower is one of transformers', which is not installed.
    """
    if "text_cfg" not in source.model_cfg:
        raise InputError(
            "this model has no text tower",
            code="model-without-text-tower",
            where=source.name,
            expected="text_cfg in its model_cfg",
            found="none",
            hint="choose a CLIP-like model; classifiers of timm's are named timm:NAME",
        )

    from open_clip.model import resize_pos_embed

    def fill(model: Any, weights: Tensors) -> None:
        weights = _converted(model, weights)
        if size is not None:
            resize_pos_embed(weights, model)
        fit_weights(model, weights, what=source.name, where=source.weights, consume=True)

    return _build(source, size, 0, make_model, lambda model: model.visual, fill)


def build_tower(source: ClipSource, *, size: int | None = None, seed: int = 0) -> BuiltClip:
    """The image tower alone: no text tower is built. See `build_clip`; random weights depend on `seed` alone.

    Raises:
        InputError: weights of another model, or a size that the model cannot take.
    """
    from open_clip.model import resize_pos_embed

    scale = float(source.model_cfg.get("init_logit_scale", math.log(1 / 0.07)))

    def fill(tower: nn.Module, weights: Tensors) -> None:
        nonlocal scale
        whole = SimpleNamespace(visual=tower)  # all that open_clip's conversions look at
        if "logit_scale" in weights:
            scale = float(weights["logit_scale"].float())
        weights = _converted(whole, weights)
        if not any(name.startswith("visual.") for name in weights):
            weights = {f"visual.{name}": value for name, value in weights.items()}  # a tower's own file
        if size is not None:
            resize_pos_embed(weights, whole)
        visual = {n.removeprefix("visual."): v for n, v in weights.items() if n.startswith("visual.")}
        what = f"the image tower of {source.name}"
        fit_weights(tower, visual, what=what, where=source.weights, consume=True)

    built = _build(source, size, seed, make_tower, lambda tower: tower, fill)
    features = try_images(built.module, built.preprocess.size, f"{source.name}, --{source.role}-size")
    check_width(features, int(built.model_cfg["embed_dim"]), source.name)
    return replace(built, logit_scale=math.exp(scale))


def make_tower(model_cfg: Mapping[str, Any]) -> nn.Module:
    """The image tower of a configuration (`embed_dim`, `vision_cfg`, `quick_gelu`), drawn from torch's global generator."""
    # open_clip has no public way to build one tower; this is what its CLIP, CustomTextCLIP and CoCa all call.
    from open_clip.model import _build_vision_tower

    tower: nn.Module = _build_vision_tower(
        model_cfg["embed_dim"], dict(model_cfg["vision_cfg"]), bool(model_cfg.get("quick_gelu"))
    )
    fold_attention(tower)
    return tower


def resize_trunk(tower: Any, size: int | None, where: str) -> None:
    """Give the trunk of a timm tower another image size; others were built at theirs.

    Raises:
        InputError: it cannot take that size.
    """
    if size is None or not hasattr(getattr(tower, "trunk", None), "set_input_size"):
        return  # convolutional trunks take any size
    try:
        tower.set_input_size(size)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise InputError(
            "this model cannot take that image size", code="image-size-impossible", where=where, found=size
        ) from error


def make_model(model_cfg: Mapping[str, Any]) -> nn.Module:
    """The whole model of a configuration, drawn from torch's global generator."""
    import open_clip

    fields = dict(model_cfg)
    custom = fields.pop("custom_text", False) or "hf_model_name" in fields["text_cfg"]
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in fields else open_clip.CustomTextCLIP
    model: nn.Module = kind(**fields)
    fold_attention(model)
    return model


def _build(
    source: ClipSource,
    size: int | None,
    seed: int,
    make: Callable[[Mapping[str, Any]], nn.Module],
    tower_of: Callable[[Any], Any],
    fill: Callable[[Any, Tensors], None],
) -> BuiltClip:
    file = None if source.weights_path is None else read_weights_file(source.weights_path)
    model_cfg = _final_config(source, size, file)
    with _building(source, model_cfg), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with unfilled() if file is not None else contextlib.nullcontext():
            module = make(model_cfg)
    if file is not None:
        fill(module, _taken(file))
    tower = tower_of(module)
    where = f"{source.name}, --{source.role}-size"
    own = square_size(source.model_cfg["vision_cfg"].get("image_size", 224), where=source.name)
    resize_trunk(tower, size, where)
    preprocess = Preprocess.of_open_clip(source.preprocess_cfg, size=size or own, where=source.name)
    scale = getattr(module, "logit_scale", None)
    return BuiltClip(
        module=module,
        model_cfg=model_cfg,
        preprocess=preprocess,
        at_own_size=preprocess.size == own,
        entry="" if file is None else file.entry,
        logit_scale=math.nan if scale is None else float(scale.detach().float().exp()),
    )


def _taken(file: WeightsFile) -> Tensors:
    """The file's tensors, which it then no longer holds: what is converted must not stay in memory beside its copy."""
    weights = dict(file.weights)
    file.weights.clear()
    return weights


def _final_config(source: ClipSource, size: int | None, file: WeightsFile | None) -> dict[str, Any]:
    """The configuration to build: nothing is fetched from elsewhere, and the activation is that of the weights."""
    model_cfg: dict[str, Any] = copy.deepcopy(dict(source.model_cfg))
    model_cfg["vision_cfg"].pop("timm_model_pretrained", None)
    if "hf_model_name" in model_cfg.get("text_cfg", {}):
        model_cfg["text_cfg"]["hf_model_pretrained"] = False
    if size is not None:
        model_cfg["vision_cfg"]["image_size"] = size
    if file is not None and file.openai and not source.configured:
        model_cfg["quick_gelu"] = True
    return model_cfg


@contextlib.contextmanager
def _building(source: ClipSource, model_cfg: Mapping[str, Any]) -> Iterator[None]:
    """Inside, libraries build a configuration: quietly, and what they raise is one clear line."""
    text_model = model_cfg.get("text_cfg", {}).get("hf_model_name")
    if text_model and importlib.util.find_spec("transformers") is None:
        raise MissingDependency(f"the text tower of {source.name} needs transformers", "pip install 'teachonce[hf]'")
    hint = f"check its configuration, and --{source.role}-size if it was given"
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_line(f"cannot build this {source.role}", source.name, hint, code="model-unbuildable"))
        if text_model:
            complete_open_clip()
            stack.enter_context(_no_code_of_repositories())
            if not UserFile.of(text_model).is_dir():
                stack.enter_context(hub_access(f"{source.name}: its text tower {text_model}", "check the network"))
        yield


@contextlib.contextmanager
def _no_code_of_repositories() -> Iterator[None]:
    """Inside, transformers neither runs code that a repository or a folder brings, nor prompts at the terminal whether it may."""
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _converted(whole: Any, weights: Tensors) -> Tensors:
    """A file's tensors under the names of open_clip's classes, as its `load_checkpoint` has them.

    Position embeddings stay as they are; callers interpolate them only where another size was chosen, since weights of
    another size are another model's. A missing bias stays missing, for the same reason. What the model computes itself, such as the attention mask
    that TorchScript stores, is left out.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    weights = convert_state_dict(whole, weights)
    if hasattr(whole, "text") and "positional_embedding" in weights:
        weights = convert_to_custom_text_state_dict(weights)
    for name in ("logit_scale", "logit_bias"):
        scalar = getattr(whole, name, None)
        if name in weights and scalar is not None and weights[name].numel() == scalar.numel():
            weights[name] = weights[name].reshape(scalar.shape)
    if isinstance(whole, nn.Module):
        own = whole.state_dict()
        computed = {name for name, _ in whole.named_buffers()} | _GONE
        weights = {n: v for n, v in weights.items() if n in own or n not in computed}
    return weights


def check_width(features: Any, embed_dim: int, where: str) -> None:
    """Refuse features that are not (image, embed_dim).

    Raises:
        InputError: the configuration has another width, or the tower gives more than one vector an image.
    """
    if features.ndim != 2 or features.shape[1] != embed_dim:
        raise InputError(
            "this model's features are not what its configuration says",
            code="model-features-differ",
            where=where,
            expected=f"one vector of {embed_dim} channels an image",
            found=f"shape {tuple(features.shape)}",
        )

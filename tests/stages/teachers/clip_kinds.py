"""Tiny configurations of every kind of model in open_clip's registry: the same classes and switches, fewer and narrower layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file

#: What makes a model large and no other kind.
_SIZES = {
    "context_length",
    "head_width",
    "heads",
    "hf_tokenizer_name",
    "image_size",
    "layers",
    "mlp_ratio",
    "patch_size",
    "timm_drop",
    "timm_drop_path",
    "timm_model_name",
    "timm_model_pretrained",
    "tokenizer_kwargs",
    "vocab_size",
    "width",
}

#: timm's module of an image tower: a small model of the same class. A module that is not here gives the tower itself.
_SMALL_TRUNKS = {
    "convnext": "test_convnext",
    "eva": "eva02_tiny_patch14_224",
    "fastvit": "fastvit_t8",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "vision_transformer": "test_vit",
    "vitamin": "vitamin_small_224",
}

#: transformers' kind of a text tower by the name of open_clip's choice.
_TEXT_KINDS = {"xlm-roberta": "xlm-roberta", "roberta": "roberta", "mt5": "mt5", "nllb": "m2m_100"}


def kinds() -> dict[str, str]:
    """One built-in model of each kind, the first by name: {kind: model}."""
    found: dict[str, str] = {}
    for name in open_clip.list_models():
        found.setdefault(_kind(open_clip.get_model_config(name)), name)
    return {name: kind for kind, name in found.items()}


def _kind(config: dict[str, Any]) -> str:
    vision = config["vision_cfg"]
    trunk = ""
    if "timm_model_name" in vision:
        trunk = timm.model_entrypoint(vision["timm_model_name"]).__module__
    parts = [
        trunk,
        isinstance(vision.get("layers"), list),
        {k: v for k, v in vision.items() if k not in _SIZES},
        {k: v for k, v in config["text_cfg"].items() if k not in _SIZES},
        config.get("custom_text", False),
        config.get("quick_gelu", False),
        "init_logit_bias" in config,
        "multimodal_cfg" in config,
    ]
    return json.dumps(parts, sort_keys=True)


def needs_transformers(name: str) -> bool:
    """Whether a built-in model's text tower is one of transformers'."""
    return "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]


def shrink(name: str, text_models: Path) -> dict[str, Any]:
    """The `model_cfg` of a built-in model, tiny. Texts of transformers' towers get a configuration under `text_models`."""
    config: dict[str, Any] = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = 32
    if "timm_model_name" in vision:
        module = timm.model_entrypoint(vision["timm_model_name"]).__module__.rpartition(".")[2]
        vision["timm_model_name"] = _SMALL_TRUNKS.get(module, vision["timm_model_name"])
        trunk = timm.create_model(vision["timm_model_name"])
        vision["image_size"] = trunk.default_cfg["input_size"][1]
        if vision.get("timm_proj") == "none":
            config["embed_dim"] = trunk.num_features
    elif isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    else:
        vision |= {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 48}
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        text.pop(key, None)  # texts are CLIP's tokens here: the vocabulary makes no other tower
    if "hf_model_name" in text:
        text["hf_model_name"] = str(_text_model(text["hf_model_name"], text_models))
    else:
        text |= {"layers": 2, "width": config["embed_dim"], "heads": 2, "vocab_size": 49408}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    return config


def write_model(folder: Path, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> Path:
    """A folder for `local-dir:` with seeded weights, made by open_clip itself. Scale and bias are not the defaults."""
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    with torch.no_grad():
        model.logit_scale.fill_(2.5)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.fill_(-3.0)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)  # layer scales start so small that all images look alike
            if name.startswith(("text.", "transformer.")) and parameter.ndim == 2:
                parameter.mul_(3)  # and text towers so small that all texts do
    state = {n: v.clone().contiguous() for n, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def _text_model(name: str, folder: Path) -> Path:
    """A tiny configuration of the same class, where transformers reads it without a network."""
    kind = next(kind for part, kind in _TEXT_KINDS.items() if part in name)
    narrow: dict[str, Any] = {"vocab_size": 49408, "pad_token_id": 0, "model_type": kind}
    if kind in ("roberta", "xlm-roberta"):
        narrow |= {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 90,
        }
    else:
        narrow |= {
            "d_model": 32,
            "d_ff": 64,
            "d_kv": 16,
            "num_layers": 1,
            "num_heads": 2,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 90,
        }
    path = folder / kind
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(narrow))
    return path

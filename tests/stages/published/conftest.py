"""Tiny open_clip models that the authors' checkpoints could come from, and such checkpoints."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

NAMES = ("red fox", "Blue_Jay", "house-cat", "newt", "yak")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="session")
def authors() -> ModuleType:
    """The module authors.py."""
    spec = importlib.util.spec_from_file_location("authors", Path(__file__).parent / "authors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["authors"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Tiny:
    """An open_clip model in a folder: `name` for --teacher and --student, its configuration and weights."""

    name: str
    cfg: dict
    state: dict

    @property
    def inner(self) -> str:
        return "text." if self.cfg.get("custom_text") else ""


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory):
    """`make_tiny(seed=0, **changes to the model's configuration)`."""

    def make(seed: int = 0, **changes) -> Tiny:
        cfg = {
            "embed_dim": 16,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
            **changes,
        }
        kind = open_clip.CustomTextCLIP if cfg.get("custom_text") else open_clip.CLIP
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = kind(**{name: value for name, value in cfg.items() if name != "custom_text"})
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.logit_scale.data.fill_(np.log(20.0))
        folder = tmp_path_factory.mktemp("models") / f"tiny{seed}"
        folder.mkdir()
        preprocess = {
            "size": 32,
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
        state = model.state_dict()
        safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
        return Tiny(f"local-dir:{folder}", cfg, state)

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny) -> Tiny:
    return make_tiny()


@pytest.fixture(scope="session")
def classes(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("classes") / "classes.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """uint8 (4, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="session")
def normalized(images) -> torch.Tensor:
    return (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture(scope="session")
def make_teacher(authors):
    """`make_teacher(tiny, names, drift=0.001, …)`: the authors' model in fp32, and its state as they save it.

    The model computes with what is in the file: its fp16 numbers are cast back. `drift` moves every frozen weight by such
    a share, as averaging in fp16 does.
    """

    def make(tiny: Tiny, names=NAMES[:3], *, drift: float = 0.0, seed: int = 5, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = authors.Teacher(tiny.cfg, tiny.state, names, inner=tiny.inner, **options)
            for name, value in model.state_dict().items():
                if "VPT" not in name and not name.endswith(".ctx"):
                    value *= 1 + drift * torch.randn_like(value)
        state = authors.halved(model.state_dict())
        model.load_state_dict({name: value.float() for name, value in state.items()})
        return model.eval(), state

    return make

"""A module built for weights from a file: the same module in the end, in little more memory than its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from teachonce.stages.models.building import unfilled
from teachonce.stages.models.weights import fit_weights
from torch import Tensor, nn

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
TRUNK = {
    "timm_model_name": "test_vit",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "mlp",
    "image_size": 160,
}

CLIPS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: open_clip.CLIP(16, VISION, TEXT, quick_gelu=True),
    "resnet": lambda: open_clip.CLIP(16, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}, TEXT),
    "coca": lambda: open_clip.CoCa(
        16,
        {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2, "attn_pooler_heads": 2},
        {**TEXT, "embed_cls": True, "output_tokens": True},
        {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    ),
    "timm trunk": lambda: open_clip.CustomTextCLIP(16, TRUNK, TEXT),
    "convolutional trunk": lambda: open_clip.CustomTextCLIP(16, {**TRUNK, "timm_model_name": "test_convnext"}, TEXT),
}

#: The newest of these came with timm 1.0.31.
TIMM = tuple(
    name
    for name in (
        "test_vit",
        "test_vit_relpos",
        "test_maxvit",
        "test_resnet",
        "test_nfnet",
        "test_efficientnet",
        "test_convnext",
    )
    if timm.is_model(name)
)

LARGER = (
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "maxvit_nano_rw_256",
    "beitv2_base_patch16_224",
    "eva02_tiny_patch14_224",
    "convnextv2_atto",
    "mobilenetv4_conv_small",
    "deit3_small_patch16_224",
    "levit_128s",
    "hiera_tiny_224",
    "regnety_002",
)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch allocates holds NaN until it is written, so whatever is computed from it shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def everything(module: nn.Module) -> dict[str, Any]:
    """Tensors, numbers and texts that a module holds outside its parameters, by name."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        left: list[tuple[str, Any]] = [(f"{name}:{n}", v) for n, v in {**vars(part), **part._buffers}.items()]
        while left:
            place, value = left.pop()
            if isinstance(value, (Tensor, int, float, str)) and not isinstance(value, nn.Parameter):
                found[place] = value
            elif isinstance(value, (list, tuple)):
                left += [(f"{place}.{i}", item) for i, item in enumerate(value)]
            elif isinstance(value, dict) and not place.endswith(("_parameters", "_modules", "_buffers")):
                left += [(f"{place}.{key}", item) for key, item in value.items()]
    return found


def outputs(thing: Any) -> list[Tensor]:
    if isinstance(thing, Tensor):
        return [thing]
    items = thing.values() if isinstance(thing, dict) else thing or ()
    return [tensor for item in items for tensor in outputs(item)]


def check_same(build: Callable[[], nn.Module], *inputs: Tensor) -> None:
    drawn = build().eval()
    with unfilled():
        built = build().eval()
    written = [name for name, value in built.named_parameters() if not value.isnan().all()]
    # What a parameter is created from is computed; nearly all are created empty and drawn afterwards.
    assert len(written) < 0.2 * len(dict(built.named_parameters())), written
    expected, found = everything(drawn), everything(built)
    assert expected.keys() == found.keys()
    different = [
        name
        for name, value in expected.items()
        if not (
            torch.equal(value.nan_to_num(7), found[name].nan_to_num(7))
            if isinstance(value, Tensor)
            else value == found[name]
        )
    ]
    assert different == []
    with torch.no_grad():
        for value in drawn.parameters():
            value.nan_to_num_(0.01)  # open_clip leaves one of CoCa's undrawn
    fit_weights(built, drawn.state_dict(), what="it", where="f")
    with torch.no_grad():
        pairs = list(zip(outputs(drawn(*inputs)), outputs(built(*inputs)), strict=True))
    assert pairs
    assert all(torch.equal(a, b) and not a.isnan().any() for a, b in pairs)


@pytest.mark.parametrize("name", CLIPS)
def test_an_open_clip_model_is_the_same(name: str, poisoned: None) -> None:
    size = 160 if "trunk" in name else 32
    torch.manual_seed(0)
    check_same(CLIPS[name], torch.rand(2, 3, size, size), torch.randint(1, 49, (2, 8)))


@pytest.mark.parametrize("name", [*TIMM, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_a_timm_model_is_the_same(name: str, poisoned: None) -> None:
    size = timm.models.get_pretrained_cfg_value(name, "input_size")[-1]
    torch.manual_seed(0)
    check_same(lambda: timm.create_model(name), torch.rand(1, 3, size, size))


def test_only_changes_of_values_are_left_out() -> None:
    buffer = torch.zeros(2)
    with unfilled():
        one = nn.Parameter(torch.ones(2, 3))
        nn.init.normal_(one)
        nn.init.xavier_uniform_(one)
        nn.init.constant_(one, 5.0)
        nn.init.trunc_normal_(one)
        timm.layers.trunc_normal_tf_(one)
        timm.layers.lecun_normal_(one)
        one.data.mul_(2).fill_(3)
        with torch.no_grad():
            one.zero_().add_(1)
            one *= 4  # type: ignore[misc]
            one[0] = 9
        one.requires_grad_(False)
        buffer.fill_(7)
        nn.init.ones_(buffer[:1])
        other = nn.Parameter(torch.ones(1))
        other.data = torch.full((2,), 6.0)
    assert torch.equal(one, torch.ones(2, 3))
    assert not one.requires_grad
    assert buffer.tolist() == [1, 7]
    assert other.tolist() == [6, 6]
    nn.init.constant_(one, 5.0)
    assert torch.equal(one, torch.full((2, 3), 5.0))


# --- memory

_MEASURE = """
import glob, os, sys
import open_clip, safetensors.torch, torch
from teachonce.stages.models.compute import keep_freed_memory
from teachonce.stages.models.building import unfilled
from teachonce.stages.models.weights import fit_weights, read_weights_file

folder, keep = sys.argv[1:]
torch.set_num_threads(1)
if keep == "keep":
    keep_freed_memory()

def build(width):
    vision = {"image_size": 64, "layers": 4, "width": width, "patch_size": 16, "head_width": 64}
    text = {"context_length": 16, "vocab_size": 4000, "width": width * 3 // 4, "heads": width // 64, "layers": 4}
    return open_clip.CLIP(512, vision, text)

def write(width, name):
    state = build(width).state_dict()
    safetensors.torch.save_file(state, f"{folder}/{name}-fp32.safetensors")
    torch.save(state, f"{folder}/{name}-fp32.pt")
    torch.save({name: value.half() for name, value in state.items()}, f"{folder}/{name}-fp16.pt")

def peak():
    # Not getrusage: a new process takes over the peak of the one that started it.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def measure(width, path):
    before = peak()
    with unfilled():
        model = build(width)
    file = read_weights_file(path)
    fit_weights(model, file.weights, what="it", where=path, consume=True)
    grown = peak() - before
    size = sum(value.nbytes for value in model.state_dict().values())
    assert all(value.isfinite().all() for value in model.parameters())
    return path.rpartition("-")[2], size, grown / size

def apart(function, *arguments):
    # Each in a process of its own, without the time that the imports take.
    child = os.fork()
    if child == 0:
        print(*(function(*arguments) or ()), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

if keep == "write":
    apart(write, 1024, "large")
    apart(write, 64, "small")
    sys.exit()
for path in sorted(glob.glob(f"{folder}/small-*")):
    measure(64, path)
for path in sorted(glob.glob(f"{folder}/large-*")):
    apart(measure, 1024, path)
"""


@pytest.fixture(scope="module")
def weights_files(python, tmp_path_factory) -> Path:
    """A folder with weights of a large model and of a small one, in each form."""
    folder = tmp_path_factory.mktemp("weights")
    done = python.run("-W", "ignore", "-c", _MEASURE, folder, "write")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["free", "keep"])
def test_opening_a_model_takes_little_more_than_its_weights(keep: str, python, weights_files: Path) -> None:
    done = python.run("-W", "ignore", "-c", _MEASURE, weights_files, keep)
    assert done.returncode == 0, done.stderr
    measured = [line.split() for line in done.stdout.splitlines() if line]
    assert [name for name, *_ in measured] == ["fp16.pt", "fp32.pt", "fp32.safetensors"]
    for name, size, ratio in measured:
        assert int(size) > 300e6
        assert 0.9 < float(ratio) < 1.15, f"{name}: {ratio} of {size} bytes"


@pytest.mark.parametrize(("name", "width"), [("ViT-H-14", 1024), ("ViT-bigG-14", 1280)])
def test_the_largest_models_are_built_without_memory(name: str, width: int) -> None:
    with torch.device("meta"), torch.no_grad():
        model = open_clip.CLIP(**open_clip.get_model_config(name)).eval()
        embedding = model.encode_image(torch.empty(1, 3, 224, 224))
    assert embedding.shape == (1, width)
    assert all(value.is_meta for value in model.state_dict().values())
    parameters = sum(value.numel() for value in model.visual.parameters())
    assert parameters > {"ViT-H-14": 0.6e9, "ViT-bigG-14": 1.8e9}[name]

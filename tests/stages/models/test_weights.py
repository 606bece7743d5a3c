"""Weights as people hold them: what is taken from a file, in whose memory it lies, and how it fits a module."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.model import convert_weights_to_lp
from teachonce.stages.models.weights import fit_weights, read_weights_file
from teachonce.storage_schemas.errors import InputError
from torch import Tensor, nn

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones((), dtype=torch.float16)}
OTHER = {name: value + 1 for name, value in WEIGHTS.items()}


def read_weights(path: str) -> dict[str, Tensor]:
    return read_weights_file(path).weights


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Save a thing as `w.pth` in the current folder; the name."""
    monkeypatch.chdir(tmp_path)

    def saved(thing: Any, **options: Any) -> str:
        torch.save(thing, "w.pth", **options)
        return "w.pth"

    return saved


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def refusal(path: str) -> str:
    with pytest.raises(InputError) as error:
        read_weights_file(path)
    return str(error.value)


# --- which entry is taken


@pytest.mark.parametrize(
    ("thing", "entry"),
    [
        (WEIGHTS, ""),
        ({"model": WEIGHTS, "epoch": 3}, "model"),
        ({"state_dict": WEIGHTS, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "state_dict"),
        ({"model": {"state_dict": WEIGHTS}}, "model.state_dict"),
        ({"checkpoint": {"model_ema": {"module": WEIGHTS}, "model": OTHER}}, "checkpoint.model_ema.module"),
        ({"model": OTHER, "model_ema": WEIGHTS}, "model_ema"),
        ({"model": OTHER, "ema": {"state_dict": WEIGHTS}}, "ema.state_dict"),
        ({"state_dict": OTHER, "state_dict_ema": WEIGHTS}, "state_dict_ema"),
        ({"state_dict": OTHER, "ema_state_dict": WEIGHTS}, "ema_state_dict"),
        ({"state_dict": WEIGHTS, "ema": {"decay": 0.999, "updates": 4}}, "state_dict"),
        ({"state_dict": WEIGHTS, "ema": None, "rng_state": torch.get_rng_state()}, "state_dict"),
        ({"model_state_dict": WEIGHTS}, "model_state_dict"),
        ({"module": WEIGHTS, "ds_version": "0.1"}, "module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_entry_that_is_taken(thing: dict[str, Any], entry: str, save) -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        file = read_weights_file(save(thing, **options))
        assert same(file.weights, WEIGHTS)
        assert (file.entry, file.openai) == (entry, False)


def test_what_lies_around_the_weights_lies_beside_them(save) -> None:
    path = save({"checkpoint": {"model": WEIGHTS, "epoch": 3}, "name": "x", "loss": {"value": 1.5}})
    assert read_weights_file(path).beside == {"epoch": 3, "name": "x", "loss": {"value": 1.5}}


def test_a_lightning_checkpoint(save) -> None:
    path = save(
        {
            "epoch": 9,
            "global_step": 100,
            "pytorch-lightning_version": "2.4.0",
            "loops": {"fit_loop": {"state_dict": {}}},
            "state_dict": {f"model.{name}": value for name, value in WEIGHTS.items()},
            "callbacks": {},
            "lr_schedulers": [{}],
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
            "hyper_parameters": argparse.Namespace(lr=1),
        }
    )
    file = read_weights_file(path)
    assert same(file.weights, {f"model.{name}": value for name, value in WEIGHTS.items()})
    assert (file.entry, file.beside["global_step"]) == ("state_dict", 100)


def test_prefixes_go_where_all_names_have_them(save) -> None:
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."):
        named = {prefix + name: value for name, value in WEIGHTS.items()}
        assert same(read_weights(save({"state_dict": named})), WEIGHTS)
        mixed = {**named, "c": torch.ones(1)}
        assert same(read_weights(save(mixed)), mixed)
    model = {f"model.{name}": value for name, value in WEIGHTS.items()}
    assert same(read_weights(save(model)), model)


def test_averaged_and_compiled_modules(save) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    averaged = torch.optim.swa_utils.AveragedModel(module)
    file = read_weights_file(save({"model_ema": averaged.state_dict(), "model": OTHER}))
    assert same(file.weights, module.state_dict())
    assert (file.entry, int(file.beside["n_averaged"])) == ("model_ema", 0)
    assert same(read_weights(save(torch.compile(nn.DataParallel(module)).state_dict())), module.state_dict())  # type: ignore[attr-defined]


def test_parameters_are_read_as_plain_tensors(save) -> None:
    found = read_weights(save({"a": nn.Parameter(torch.ones(2))}))["a"]
    assert (type(found), found.requires_grad) == (Tensor, False)


# --- what lies beside the tensors


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch):
    """Kinds of settings under the names of libraries that need not be here."""

    def make(module: str, name: str, base: type) -> Any:
        kind = type(name, (base,), {"__module__": module})
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            part = ".".join(parts[:count])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        setattr(sys.modules[module], name, kind)
        return kind

    return make


def test_numbers_of_numpy_and_settings_stand_beside(save, settings) -> None:
    node = settings("yacs.config", "CfgNode", dict)({"lr": 0.1})
    node["inner"] = type(node)({"depth": 4})
    node.__dict__["__immutable__"] = False
    other = settings("omegaconf.dictconfig", "DictConfig", object)()
    other.__dict__["_content"] = {"lr": np.float32(0.1), "parent": other}
    beside = {
        "epoch": 4,
        "best": np.float64(0.5),
        "step": np.int64(3),
        "flag": np.bool_(True),
        "args": argparse.Namespace(lr=1),
        "more": types.SimpleNamespace(out=pathlib.Path("x")),
        "windows": pathlib.PureWindowsPath("c:/x"),
        "cfg": node,
        "omega": other,
        "curve": [np.float32(1)],
        "dtype": np.dtype("f4"),
        "rng": ("MT19937", np.arange(3), 1),
    }
    for thing in ({"state_dict": WEIGHTS, **beside}, {**WEIGHTS, **beside}):
        file = read_weights_file(save(thing))
        assert same(file.weights, WEIGHTS)
        assert file.beside.keys() == beside.keys()
        assert file.beside["epoch"] == 4
        assert file.beside["cfg"] == {"lr": 0.1, "inner": {"depth": 4}}
        for name in ("best", "step", "flag", "args", "more", "windows", "omega", "dtype"):
            assert type(file.beside[name]).__name__ == "_Unbuilt", name
            assert vars(file.beside[name]) == {}, name


def test_pickles_of_another_numpy(save) -> None:
    path = save({"state_dict": WEIGHTS, "best": np.float64(0.5)})
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile("other.pth", "w") as target:
            for record in source.infolist():
                data = source.read(record).replace(b"numpy._core.multiarray", module)
                target.writestr(zipfile.ZipInfo(record.filename), data)
                assert not record.filename.endswith("data.pkl") or module in data
        assert same(read_weights("other.pth"), WEIGHTS)


def test_arrays_are_no_weights(save) -> None:
    arrays = {name: value.numpy() for name, value in WEIGHTS.items()}
    for thing, names in (
        (arrays, "a.weight, b"),
        ({"model": arrays}, "a.weight, b"),
        ({**WEIGHTS, "c": np.ones(2)}, "c"),
    ):
        assert refusal(save(thing)) == (
            f"cannot read weights: w.pth: expected tensors, found numpy arrays ({names}). Next: save them as tensors: "
            "torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, NEW_FILE)"
        )


def test_a_whole_module_is_refused_by_name(save) -> None:
    for thing in (nn.Linear(2, 2), {"ema": nn.Linear(2, 2), "state_dict": WEIGHTS}):
        assert refusal(save(thing)).startswith(
            "cannot read weights: w.pth: found a pickled object (torch.nn.modules.linear.Linear), and nothing in a file is "
            "run. Next: where you trust the file, save its weights alone: "
        )


def test_files_without_weights(save) -> None:
    expected = "not a file of weights: w.pth: expected tensors by name, found"
    assert refusal(save([1, 2])) == f"{expected} list"
    assert refusal(save({})) == f"{expected} dict"
    networks = {"student": {"a": torch.ones(1)}, "teacher": {"a": torch.ones(1)}, "epoch": 1, "loss": 1}
    assert refusal(save(networks)) == f"{expected} entries student, teacher, epoch, …"
    assert refusal("none.pth") == "no such file of weights: none.pth"
    itself: dict[str, Any] = {}
    itself["model"] = itself["state_dict"] = itself
    assert refusal(save(itself)) == f"{expected} entries model, state_dict"


# --- OpenAI's own


def tiny_clip() -> open_clip.CLIP:
    return open_clip.CLIP(
        16,
        {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    )


def test_openais_weights_are_recognised_by_their_numbers(save) -> None:
    numbers = {"input_resolution": 32, "context_length": 8, "vocab_size": 50}
    state = tiny_clip().state_dict()
    file = read_weights_file(save({**state, **{n: torch.tensor(v) for n, v in numbers.items()}}))
    assert same(file.weights, state)
    assert (file.openai, file.beside) == (True, numbers)
    del numbers["input_resolution"]
    file = read_weights_file(save({**state, **{n: torch.tensor(v) for n, v in numbers.items()}}))
    assert (file.openai, file.beside) == (False, numbers)


def test_openais_weights_are_recognised_by_their_storage(save) -> None:
    model = tiny_clip()
    assert not read_weights_file(save(model.state_dict())).openai
    convert_weights_to_lp(model)  # open_clip's copy of OpenAI's convert_weights
    state = model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float16, torch.float32}
    assert read_weights_file(save({"state_dict": {f"module.{n}": v for n, v in state.items()}})).openai
    safetensors.torch.save_file(state, "w.safetensors")
    assert read_weights_file("w.safetensors").openai
    assert not read_weights_file(save({n: v for n, v in state.items() if not n.startswith("visual.")})).openai
    assert not read_weights_file(save({n: v.half() for n, v in state.items()})).openai


# --- memory of their own

DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)


def test_safetensors_are_read_into_memory_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    values = torch.arange(35).reshape(5, 7) % 2
    weights = {dtype: values.to(getattr(torch, dtype)) for dtype in DTYPES}
    weights |= {"scalar": torch.tensor(3.5), "empty": torch.ones(0, 4), "large": torch.randn(1000, 300)}
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    found = read_weights(str(path))
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name].double(), value.double())
    owners = {value.untyped_storage().data_ptr() for value in found.values() if value.numel()}
    assert len(owners) == len(weights) - 1


def test_damaged_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = safetensors.torch.save({"a": torch.ones(100)})
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    for data in (whole[:-1], whole[:50], b"", len(header).to_bytes(8, "little") + header):
        Path("w.safetensors").write_bytes(data)
        assert refusal("w.safetensors").startswith("cannot read weights: w.safetensors: found ")


# --- how they fit


def test_errors_name_three_weights_of_each_kind() -> None:
    module = nn.Sequential(*(nn.Linear(2, 3) for _ in range(5)))
    state = module.state_dict()

    def message(weights: dict[str, Tensor], **options: Any) -> str:
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.raises(InputError) as error:
            fit_weights(module, weights, what="it", where="f", **options)
        assert same(module.state_dict(), before)
        return str(error.value).removeprefix("weights do not fit it: f: ")

    wrong = {name: torch.ones(9, 2) if name.endswith("weight") else value for name, value in state.items()}
    assert message(wrong) == (
        "expected 0.weight (3, 2), 1.weight (3, 2), 2.weight (3, 2), …, "
        "found 0.weight (9, 2), 1.weight (9, 2), 2.weight (9, 2), … (5 of another shape)"
    )
    assert message({"z": torch.ones(1), **wrong, "y": torch.ones(())}, consume=True).endswith(
        "… (5 of another shape); z (1,), y () (2 unknown)"
    )
    few = {name: value for name, value in wrong.items() if name not in ("0.weight", "1.bias", "2.weight")}
    assert message(few) == (
        "expected 1.weight (3, 2), 3.weight (3, 2), 4.weight (3, 2); 0.weight (3, 2), 1.bias (3,), 2.weight (3, 2), "
        "found 1.weight (9, 2), 3.weight (9, 2), 4.weight (9, 2) (3 of another shape); none (3 missing)"
    )
    assert message({**state, "z": torch.ones(1)}, partly=True) == "expected no other weights, found z (1,) (1 unknown)"
    assert message({}).endswith(", …, found none (10 missing)")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.one.bias.requires_grad_(False)
        self.alias = self.norm.running_mean


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_become_the_modules(consume: bool, dtype: torch.dtype) -> None:
    module, source = Tied(), Tied()
    weights = {n: v.to(dtype) if v.is_floating_point() else v.clone() for n, v in source.state_dict().items()}
    weights["conv.weight"] = weights["conv.weight"].contiguous()
    weights["two.weight"] = weights["one.weight"].clone()
    weights["norm.running_mean"] += 2
    expected, given = {name: value.clone() for name, value in weights.items()}, dict(weights)
    parameters = dict(module.named_parameters())
    fit_weights(module, weights, what="it", where="f", consume=consume)
    assert weights == ({} if consume else given)
    for name, value in module.state_dict().items():
        assert value.dtype == (torch.int64 if name.endswith("tracked") else torch.float32)
        assert torch.equal(value, expected[name].to(value.dtype)), name
    assert all(parameters[name] is value for name, value in module.named_parameters())
    assert module.two.weight is module.one.weight
    assert [name for name, value in parameters.items() if not value.requires_grad] == ["one.bias"]
    assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert module.alias is module.norm.running_mean
    taken = {n for n, v in given.items() if v.data_ptr() == module.state_dict()[n].data_ptr()}
    own = {"one.bias", "two.weight", "two.bias", "conv.bias", "norm.weight", "norm.bias"}
    assert taken == (own if consume and dtype == torch.float32 else set())


def test_memory_that_two_names_share_becomes_nobodys() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    both, large = torch.randn(3, 3), torch.randn(100)
    weights = {"0.weight": both, "1.weight": both, "0.bias": large[:3], "1.bias": torch.zeros(3)}
    fit_weights(module, weights, what="it", where="f", consume=True)
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(module[1].weight, both)  # type: ignore[arg-type]
    assert both.abs().sum() > 0
    assert module[0].bias.untyped_storage().nbytes() == 12


def test_consuming_a_part_leaves_the_rest() -> None:
    module = nn.Linear(2, 2)
    before = module.bias.detach().clone()
    weights = {"weight": torch.ones(2, 2)}
    fit_weights(module, weights, what="it", where="f", partly=True, consume=True)
    assert (weights, module.weight.sum().item()) == ({}, 4.0)
    assert torch.equal(module.bias, before)
    module(torch.ones(1, 2)).sum().backward()
    assert module.weight.grad is not None

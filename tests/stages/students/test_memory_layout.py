"""How students lie in memory: channels last where that is faster, with nothing there that oneDNN writes past."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from teachonce.stages.models.layout import overruns_channels_last, use_channels_last
from teachonce.stages.students.head import Head
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.student import Student
from torch import nn

NETS_THAT_OVERRAN = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "fastvit_mci1", "gernet_s")
NETS_THAT_DID_NOT = (
    "resnet18",
    "resnet26d",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnety_002",
    "levit_128s",
)


@pytest.fixture
def mobile_clip(tmp_path) -> Path:
    """An open_clip `local-dir:` folder with MobileCLIP's kind of image tower, on timm's smallest FastViT."""
    folder = tmp_path / "mobile"
    folder.mkdir()
    vision = dict(open_clip.get_model_config("MobileCLIP-S1")["vision_cfg"])
    vision |= {"timm_model_name": "fastvit_t8", "image_size": 128}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def student_of(name: str, size: int) -> Student:
    backbone = family_of(name).create(name, "random", seed=0, size=size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Head(width=backbone.width, embed_dim=6, projector="linear", normalized=True)
        return Student(backbone.module, backbone.preprocess, head)


def thin_and_strided(module: nn.Module) -> list[str]:
    """The convolutions that oneDNN writes past, counted anew: 1x1, strided, ungrouped, of less than 16 channels."""
    return [
        name
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d)
        and max(m.kernel_size) == 1
        and max(m.stride) > 1
        and m.groups == 1
        and m.weight.shape[1] < 16
    ]


# --- the rule


@pytest.mark.parametrize("name", NETS_THAT_OVERRAN)
def test_nets_that_overran_have_no_such_convolution_left(name: str) -> None:
    module = timm.create_model(name, num_classes=0)
    before = list(module.state_dict())
    assert len(thin_and_strided(module)) == 1
    assert use_channels_last(module)
    assert thin_and_strided(module) == []
    assert list(module.state_dict()) == before


@pytest.mark.parametrize("name", NETS_THAT_DID_NOT)
def test_other_nets_are_computed_as_they_were(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, drop_path_rate=0.0).train()
    ours = timm.create_model(name, num_classes=0, drop_path_rate=0.0).train()
    ours.load_state_dict(plain.state_dict())
    plain.to(memory_format=torch.channels_last)
    assert use_channels_last(ours)
    size = 224 if name == "levit_128s" else 64
    images = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    for module in (plain, ours):
        torch.manual_seed(1)  # dropout
        module(images).square().mean().backward()
    for (weight_name, ours_weight), plain_weight in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert ours_weight.stride() == plain_weight.stride()
        assert torch.equal(ours_weight.grad, plain_weight.grad), weight_name


def test_patch_embeddings_are_left_alone() -> None:
    module = timm.create_model("test_vit", num_classes=0)
    strides = [p.stride() for p in module.parameters()]
    assert not use_channels_last(module)
    assert [p.stride() for p in module.parameters()] == strides


@pytest.mark.parametrize(
    ("changes", "overruns"),
    [
        ({}, True),
        ({"in_channels": 15}, True),
        ({"in_channels": 16}, False),
        ({"stride": (1, 2)}, True),
        ({"stride": 3}, True),
        ({"padding": "valid"}, True),
        ({"bias": False}, True),
        ({"stride": 1}, False),
        ({"kernel_size": 2}, False),
        ({"kernel_size": (1, 3)}, False),
        ({"padding": 1}, False),
        ({"groups": 3}, False),
    ],
)
@pytest.mark.parametrize("size", [9, 16])
def test_the_rule_and_its_arithmetic(changes: dict, overruns: bool, size: int) -> None:
    torch.manual_seed(0)
    options = {"in_channels": 3, "out_channels": 6, "kernel_size": 1, "stride": 2} | changes
    convolution = nn.Conv2d(**options)
    assert overruns_channels_last(convolution) is overruns
    exact = nn.Conv2d(**options).double()
    exact.load_state_dict(convolution.state_dict())
    net = nn.Sequential(convolution, nn.Conv2d(6, 6, 1))
    assert use_channels_last(net)
    assert use_channels_last(net)  # for a second student of the same backbone, too
    assert (convolution.stride == (1, 1)) is (overruns or changes.get("stride") == 1)
    images = torch.randn(2, options["in_channels"], size, size, requires_grad=True)
    images_exact = images.detach().double().requires_grad_()
    out = convolution(images.contiguous(memory_format=torch.channels_last))
    out_exact = exact(images_exact)
    torch.testing.assert_close(out.double(), out_exact, rtol=1e-5, atol=1e-5)
    out.sin().sum().backward()
    out_exact.sin().sum().backward()
    torch.testing.assert_close(convolution.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(images.grad.double(), images_exact.grad, rtol=1e-5, atol=1e-5)


def test_a_student_on_such_a_trunk_trains_channels_last_in_full(mobile_clip) -> None:
    student = student_of(f"local-dir:{mobile_clip}", 64).train()
    assert thin_and_strided(student) == []
    layouts = {}
    for name, module in student.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: layouts.update(
                    {name: out.shape[2:].numel() == 1 or out.is_contiguous(memory_format=torch.channels_last)}
                )
            )
    student(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert len(layouts) > 50
    assert [name for name, last in layouts.items() if not last] == []


# --- no crash

TRAIN = """
import json, sys, torch
from torch.nn import functional as F
from teachonce.stages.students.registry import family_of
from teachonce.stages.students.head import Head
from teachonce.stages.students.student import Student

losses = []
for threads, precision in ((1, torch.float32), (4, torch.bfloat16)):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    backbone = family_of(sys.argv[1]).create(sys.argv[1], "random", seed=0, size=int(sys.argv[2]))
    head = Head(width=backbone.width, embed_dim=6, projector="linear", normalized=True)
    student = Student(backbone.module, backbone.preprocess, head).train()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-4)
    images = torch.randint(0, 256, (2, 3, backbone.preprocess.size, backbone.preprocess.size), dtype=torch.uint8)
    targets = torch.softmax(torch.randn(2, 6), 1)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            loss = F.kl_div(student(images).log_softmax(1), targets, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
print(json.dumps(losses))
"""


@pytest.fixture
def train_apart(python):
    """The losses of training in a process of its own: what it would crash is not this one."""

    def train(*arguments: str, script: str = TRAIN) -> list[float]:
        done = python.run("-c", script, *arguments)
        assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr[-2000:]}"
        return json.loads(done.stdout)

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:repvgg_a0", "timm:mobileone_s0", "timm:gernet_s", "mobile"])
def test_training_ends_alive(name: str, mobile_clip, train_apart) -> None:
    losses = train_apart(f"local-dir:{mobile_clip}" if name == "mobile" else name, "224")
    assert len(losses) == 4
    assert all(0 < loss < 20 for loss in losses)


COMPILED = """
import json, torch
from torch import nn
from teachonce.stages.models.preprocess import Preprocess
from teachonce.stages.students.head import Head
from teachonce.stages.students.student import Student

class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.thin, self.wide = nn.Conv2d(3, 48, 1, 2), nn.Conv2d(3, 48, 3, 2, 1)

    def forward(self, images):
        return (self.thin(images) + self.wide(images)).relu().mean((2, 3))

torch.set_num_threads(1)
torch.manual_seed(0)
backbone = Stem()
exact = Stem().double()
exact.load_state_dict(backbone.state_dict())
preprocess = Preprocess(size=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
student = Student(backbone, preprocess, Head(width=48, embed_dim=48, projector="none", normalized=False))
images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
torch.compile(student)(images).square().sum().backward()
exact(images.double() / 255).square().sum().backward()
error = (backbone.thin.weight.grad.double() - exact.thin.weight.grad).abs().max() / exact.thin.weight.grad.abs().max()
print(json.dumps([error.item()]))
"""


@pytest.mark.slow
def test_compiled_training_ends_alive_with_the_right_gradient(train_apart) -> None:
    [error] = train_apart(script=COMPILED)
    assert error < 1e-4

"""The recipe `reverse-distillation` against the authors' networks and loop, written out here; trained without an image."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest
import torch
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recipes.recipe import LossInputs
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.students.bundle import load_map_student, load_student
from teachonce.stages.students.decoder import DECODERS, Decoder, check_shapes
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.training.trainer import Trainer
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from torch import nn
from torch.nn import functional as F

FP32 = Compute(device="cpu", precision="fp32", threads=1)
TEACHER = TeacherConfig(model="timm:test_resnet", pretrained="random", size=64, crop_mode="squash", crop_pct=1.0)
LEVELS = ("features.layer1", "features.layer2", "features.layer3")
STUDENT = StudentConfig(model="decoder:resnet18")

#: (channel, y, x) of WideResNet50-2's first three stages for images of 256 × 256.
WIDE = ((256, 64, 64), (512, 32, 32), (1024, 16, 16))
SMALL = ((8, 16, 16), (12, 8, 8), (20, 4, 4))


class Unit(nn.Module):
    """A residual block of the authors' code: `BasicBlock` (base width None) or `Bottleneck`; `up` is their transposed kind."""

    def __init__(self, given: int, own: int, base_width: int | None, stride: int = 1, *, up: bool = False) -> None:
        super().__init__()
        first_kernel = 2 if up and stride == 2 else 3

        def resize(a: int, b: int) -> nn.Module:
            if first_kernel == 2:
                return nn.ConvTranspose2d(a, b, 2, stride=2, bias=False)
            return nn.Conv2d(a, b, 3, stride=stride, padding=1, bias=False)

        if base_width is None:
            self.convs = nn.ModuleList([resize(given, own), nn.Conv2d(own, own, 3, padding=1, bias=False)])
        else:
            width = int(own // 4 * (base_width / 64.0))
            self.convs = nn.ModuleList(
                [nn.Conv2d(given, width, 1, bias=False), resize(width, width), nn.Conv2d(width, own, 1, bias=False)]
            )
        self.norms = nn.ModuleList(nn.BatchNorm2d(_channels(conv)) for conv in self.convs)
        self.skip = None
        if stride != 1 or given != own:
            conv = (
                nn.ConvTranspose2d(given, own, 2, stride=2, bias=False)
                if up
                else nn.Conv2d(given, own, 1, stride=stride, bias=False)
            )
            self.skip = nn.Sequential(conv, nn.BatchNorm2d(own))

    def forward(self, x):
        out = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if number + 1 < len(self.convs):
                out = F.relu(out)
        return F.relu(out + (x if self.skip is None else self.skip(x)))


class Authors(nn.Module):
    """`BN_layer` (without conv4 and bn4, which its forward pass does not use) and the decoder, for three levels."""

    def __init__(self, channels, base_width, stages, code) -> None:
        super().__init__()
        a, b, c = channels
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c)
        self.conv3, self.bn3 = nn.Conv2d(b, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c)
        self.bn_layer = _stage(3 * c, 2 * c, base_width, code, up=False)
        self.layer1 = _stage(2 * c, c, base_width, stages[0], up=True)
        self.layer2 = _stage(c, b, base_width, stages[1], up=True)
        self.layer3 = _stage(b, a, base_width, stages[2], up=True)

    def forward(self, x):
        l1 = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x[0]))))))
        l2 = F.relu(self.bn3(self.conv3(x[1])))
        code = self.bn_layer(torch.cat([l1, l2, x[2]], 1))
        feature_a = self.layer1(code)
        feature_b = self.layer2(feature_a)
        return [self.layer3(feature_b), feature_b, feature_a]


def _stage(given, own, base_width, blocks, *, up):
    first = Unit(given, own, base_width, 2, up=up)
    return nn.Sequential(first, *(Unit(own, own, base_width, up=up) for _ in range(blocks - 1)))


def _channels(conv) -> int:
    return conv.out_channels


def leaves(module, inputs):
    """Convolutions and norms in the order in which a forward pass calls them."""
    called = []
    hooks = [
        part.register_forward_hook(lambda own, *_: called.append(own))
        for part in module.modules()
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))
    ]
    with torch.no_grad():
        module.eval()(inputs)
    for hook in hooks:
        hook.remove()
    return called


def authors_of(decoder: Decoder, name: str, shapes) -> Authors:
    """The authors' networks with the weights of a decoder."""
    kind = DECODERS[name]
    theirs = Authors(
        [c for c, _, _ in shapes], kind.block.base_width if kind.block.bottleneck else None, kind.stages, kind.code
    )
    inputs = [torch.zeros(1, *shape) for shape in shapes]
    pairs = list(zip(leaves(theirs, inputs), leaves(decoder, inputs), strict=True))
    for their_part, our_part in pairs:
        their_part.load_state_dict(our_part.state_dict())
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in decoder.parameters())
    return theirs


@pytest.mark.parametrize("name", list(DECODERS))
def test_a_decoder_computes_what_the_authors_networks_compute(name):
    torch.manual_seed(3)
    decoder = Decoder(DECODERS[name], SMALL)
    theirs = authors_of(decoder, name, SMALL)
    maps = [torch.randn(2, *shape) for shape in SMALL]
    for mode in (True, False):
        for ours, expected, shape in zip(decoder.train(mode)(maps), theirs.train(mode)(maps), SMALL, strict=True):
            assert ours.shape == (2, *shape)
            assert torch.allclose(ours, expected, atol=1e-5)


def test_for_wide_resnet50_2_it_is_the_authors_architecture():
    """Parameters as those of the authors' networks less conv4 and bn4: counted by hand from `de_resnet.py` and `resnet.py`."""
    with torch.device("meta"):
        decoder = Decoder(DECODERS["wide_resnet50_2"], WIDE)

    def unit(given: int, planes: int, kernel: int, skip: int) -> int:
        width, own = 2 * planes, 4 * planes
        convs = given * width + width * width * kernel + width * own
        norms = 2 * (2 * width + own)
        return convs + norms + (given * own * skip + 2 * own if skip else 0)

    first = 256 * 512 * 9 + 2 * 512 + 2 * (512 * 1024 * 9 + 2 * 1024)
    code = unit(3072, 512, 9, 1) + 2 * unit(2048, 512, 9, 0)
    stages = 0
    for given, planes, blocks in ((2048, 256, 3), (1024, 128, 4), (512, 64, 6)):
        stages += unit(given, planes, 4, 4) + (blocks - 1) * unit(4 * planes, planes, 9, 0)
    parameters = sum(p.numel() for p in decoder.parameters())
    assert parameters == first + code + stages == 83_802_624
    unused = 4096 * 2048 + 2 * 2048  # conv4 and bn4: with them it is the 352 MB of the paper's table of model sizes
    assert round((parameters + unused) * 4 / 2**20) == 352
    assert decoder.code[0].through[3].weight.shape == (1024, 1024, 3, 3)
    assert decoder.stages[0][0].through[3].weight.shape == (512, 512, 2, 2)
    out = decoder([torch.empty(2, *shape, device="meta") for shape in WIDE])
    assert [tuple(values.shape[1:]) for values in out] == list(WIDE)


def test_levels_that_skip_a_grid_are_doubled_twice():
    shapes = ((8, 16, 16), (20, 4, 4))
    check_shapes({"a": shapes[0], "b": shapes[1]})
    decoder = Decoder(DECODERS["resnet18"], shapes)
    found = decoder([torch.randn(2, *shape) for shape in shapes])
    assert [tuple(values.shape[1:]) for values in found] == list(shapes)
    assert [part.out_channels for part in decoder.reduce[0].modules() if isinstance(part, nn.Conv2d)] == [20, 20]


def test_the_loss_is_the_cosine_of_whole_maps():
    recipe, generator = recipe_named("reverse-distillation"), torch.Generator().manual_seed(5)
    student, teacher = (
        {name: torch.randn(3, *shape, generator=generator) for name, shape in zip(LEVELS, SMALL, strict=True)}
        for _ in range(2)
    )
    expected = 0.0
    for name in LEVELS:
        a, b = (side[name].double().reshape(3, -1).numpy() for side in (student, teacher))
        expected += (1 - (a * b).sum(1) / (a * a).sum(1) ** 0.5 / (b * b).sum(1) ** 0.5).mean()
    assert float(recipe.loss(LossInputs(student=student, teacher=teacher), recipe.defaults)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def shards(picture_shards, tmp_path_factory):
    """Shards whose tars are gone: nothing can open an image of them."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    shutil.copytree(str(picture_shards.location), out)
    return out


@pytest.fixture(scope="module")
def store(shards, tmp_path_factory):
    """Three maps of a ResNet in fp32; the tars are taken away once it has seen the images."""
    out = tmp_path_factory.mktemp("maps") / "s.zarr"
    stage = plan_cache(
        str(shards),
        TEACHER,
        out=str(out),
        views=None,
        settings=CacheSettings(targets=",".join(LEVELS), encoding="fp32", batch_size=8),
        compute=FP32,
    )
    run_stage(stage, stage.store, SerialExecutor(), progress=False)
    for tar in shards.rglob("*.tar"):
        tar.unlink()
    return out


def planned(shards, store, out, config=STUDENT, recipe="reverse-distillation", **options):
    return plan_distill(
        str(shards),
        str(store),
        config,
        out=str(out),
        recipe=recipe,
        compute=FP32,
        settings=DistillSettings(seed=1),
        options={"epochs": 2, "batch_size": 4} | options,
        show_progress=False,
    )


def run_recording(stage, dtype=torch.float32):
    """Run it in this precision: the loss of each step, and the decoder's weights at the start."""
    losses, step = [], Trainer.step
    stage.built._built.student.to(dtype)
    start = {name: value.clone() for name, value in stage.built._built.student.backbone.state_dict().items()}

    def recorded(self, training, images_NCHW, targets, **kwargs):
        targets = {name: values.to(dtype) for name, values in targets.items()}
        loss = step(self, training, images_NCHW, targets, **kwargs)
        losses.append(float(loss))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", recorded)
        if dtype == torch.float64:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of the student's outputs
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return losses, start


def published_loop(shards, store, start, dtype):
    """The authors' networks, loss and Adam over the maps as plain Zarr has them: the loss of each step, and the networks."""
    root = zarr.open_group(store, mode="r")
    shapes = [root[name].shape[2:] for name in LEVELS]
    decoder = Decoder(DECODERS["resnet18"], shapes)
    decoder.load_state_dict(start)
    theirs = authors_of(decoder, "resnet18", shapes).train().to(dtype)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.005, betas=(0.5, 0.999))
    cosine = torch.nn.CosineSimilarity()
    stream = TargetStream(ShardSet.open(shards), store, image_size=None, batch_size=4, seed=1, targets=LEVELS)
    found = []
    for epoch in range(2):
        for batch in stream.batches(epoch):
            assert batch.images_NCHW.shape == (4, 0)
            maps = [torch.from_numpy(root[name][:][batch.rows_N.numpy(), 0]).to(dtype) for name in LEVELS]
            loss = torch.zeros((), dtype=dtype)
            for a, b in zip(maps, theirs(maps), strict=True):
                loss = loss + torch.mean(1 - cosine(a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found, theirs


@pytest.fixture(scope="module")
def trained(shards, store, tmp_path_factory):
    """A bundle, the loss of each step, and the decoder's weights at the start."""
    out = tmp_path_factory.mktemp("trained") / "student"
    return out, *run_recording(planned(shards, store, out))


def test_ten_steps_are_those_of_the_published_loop(shards, store, tmp_path):
    """In fp64: Adam at this learning rate makes so much of rounding that in fp32 two orders of the same sums part after some steps."""
    losses, start = run_recording(planned(shards, store, tmp_path / "student"), torch.float64)
    found, _ = published_loop(shards, store, start, torch.float64)
    assert len(losses) == len(found) >= 10
    assert losses == pytest.approx(found, rel=2e-7)  # a step tells its loss in fp32
    assert losses[-1] < losses[0]


def test_in_fp32_they_begin_as_those_of_the_published_loop(shards, store, trained):
    _, losses, start = trained
    found, _ = published_loop(shards, store, start, torch.float32)
    assert losses[0] == pytest.approx(found[0], rel=1e-6)
    assert losses == pytest.approx(found, rel=0.1)


def test_a_bundle_says_what_it_reads(trained, tmp_path):
    out, _, _ = trained
    assert sorted(file.name for file in out.iterdir() if file.is_file()) == ["config.json", "model.safetensors"]
    with pytest.raises(InputError) as error:
        load_student(str(out))
    assert str(error.value).startswith("this student reads a teacher's maps, not images")
    assert f"teachonce anomalies SHARDS STORE {out} --out" in str(error.value)
    for command in (["evaluate", str(out), str(tmp_path)], ["predict", str(out), str(tmp_path)]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 1
        assert "this student reads a teacher's maps, not images" in done.output


def test_a_damaged_bundle_is_no_student(trained, tmp_path):
    out, _, _ = trained
    for number, (entry, value) in enumerate(
        [(("student", "name"), "resnet999"), (("student", "name"), "resnet50"), (("head", "levels"), [])]
    ):
        copy = tmp_path / str(number)
        shutil.copytree(out, copy)
        config = json.loads((copy / "config.json").read_text())
        config[entry[0]][entry[1]] = value
        del config["seal"]
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(DamagedError):
            load_map_student(str(copy))


def test_maps_of_another_size_are_refused(trained, store):
    student, _ = load_map_student(str(trained[0]))
    shapes = {level.target: tuple(level.shape) for level in student.head.levels}
    student.check(shapes, where=store)
    (name, shape), other = next(iter(shapes.items())), dict(shapes)
    other[name] = (shape[0], 7, 7)
    with pytest.raises(MismatchError) as error:
        student.check(other, where=store)
    assert str(error.value) == (
        f"the student was made for maps of other shapes: {store}: {name}: expected {shape[0]} x {shape[1]} x {shape[2]}, found "
        f"{shape[0]} x 7 x 7. Next: cache these images as those were that the student learned from: the same teacher, "
        "--teacher-size and --targets"
    )
    with pytest.raises(MismatchError, match="no such target"):
        student.check({}, where=store)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"feature_targets": "features.layer2,features.layer9"},
            "the store holds no such maps: --feature-targets: expected features.layer1, features.layer2, features.layer3, found "
            "features.layer9",
        ),
        ({"temperature": 2.0}, "an option that recipe reverse-distillation does not have: --temperature"),
        (
            {"config": StudentConfig(model="timm:test_resnet", size=64)},
            "recipe reverse-distillation trains a decoder, which reads the teacher's maps: --student timm:test_resnet",
        ),
        ({"recipe": "features"}, "recipe features trains a student that reads images, and a decoder reads maps"),
        (
            {"config": StudentConfig(model="decoder:resnet81")},
            "no such decoder: --student decoder:resnet81: expected decoder:resnet18 or",
        ),
        (
            {"config": StudentConfig(model="decoder:resnet18", pretrained="default")},
            "a decoder starts from random weights: --student-pretrained default",
        ),
        (
            {"config": StudentConfig(model="decoder:resnet18", size=32)},
            "a decoder reads maps, and has their size: --student-size 32",
        ),
    ],
)
def test_what_is_refused(shards, store, tmp_path, options, expected):
    with pytest.raises(InputError) as error:
        planned(shards, store, tmp_path / "s", **options)
    assert str(error.value).startswith(expected)


@pytest.mark.parametrize(
    ("shapes", "where", "found"),
    [
        ({"a": (8, 16, 8), "b": (8, 8, 8)}, "a", "16 rows, 8 columns"),
        ({"a": (8, 14, 14), "b": (8, 7, 7)}, "b", "7x7"),
        ({"a": (8, 24, 24), "b": (8, 8, 8)}, "a", "24"),
        ({"a": (8, 8, 8), "b": (16, 8, 8)}, "a", "8"),
    ],
)
def test_grids_that_no_decoder_can_be_made_for(shapes, where, found):
    with pytest.raises(InputError) as error:
        check_shapes(shapes)
    assert (error.value.code, str(error.value.where), error.value.found) == ("maps-not-halving", where, found)


def test_a_store_without_maps(picture_shards, known_store, tmp_path):
    with pytest.raises(InputError) as error:
        planned(picture_shards.location, known_store.location, tmp_path / "s")
    assert str(error.value).startswith("the store holds no maps: --recipe reverse-distillation")


def test_levels_are_a_setting(shards, store, tmp_path):
    stage = planned(shards, store, tmp_path / "s", feature_targets="features.layer3,features.layer1", epochs=1)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    student, config = load_map_student(str(tmp_path / "s"))
    assert [level.target for level in student.head.levels] == ["features.layer1", "features.layer3"]
    assert config.origin["settings"]["betas"] == [0.5, 0.999]
    sides = [level.shape[1] for level in student.head.levels]
    assert all(fine > coarse for fine, coarse in pairwise(sides))

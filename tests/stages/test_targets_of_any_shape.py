"""Tokens and feature maps: equal to plain passes with hooks, written chunk by chunk, streamed in their shape."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import timm
import torch
import webdataset as wds
import xarray
import zarr
from PIL import Image
from teachonce import TargetStream, join_targets
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.inspect import inspect_store
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.store import open_store, read_description
from teachonce.stages.pairs.target_rows import TargetRows
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.teachers.offers import target_names
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas import store_description
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from teachonce.storage_schemas.store_description import CHUNK_BYTES, LARGE_CHUNK_BYTES, TargetSpec

FP32 = Compute(device="cpu", precision="fp32", threads=1)
MIRRORED = ViewSpec(kind="random_resized_crop", count=2, seed=3, flip=1.0, interpolation="bicubic")
VIT = TeacherConfig(model="timm:test_vit", pretrained="random", size=48)
RESNET = TeacherConfig(model="timm:test_resnet", pretrained="random", size=64)


def run(stage) -> None:
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


def plan(shards, config, out, targets, *, encoding="fp32", views=MIRRORED):
    return plan_cache(
        str(shards.location),
        config,
        out=str(out),
        views=views,
        settings=CacheSettings(targets=targets, encoding=encoding, batch_size=8),
        compute=FP32,
    )


def opened(out) -> xarray.Dataset:
    return xarray.open_zarr(str(out), consolidated=False).load()


def view_pixels(
    pictures, shards, data, row: int, view: int, size: int, resample=Image.Resampling.BICUBIC
) -> np.ndarray:
    """The pixels of a stored view, cut with Pillow alone: uint8 (3, size, size)."""
    columns = data["view_params"].attrs["columns"]
    stored = dict(zip(columns, data["view_params"].values[row, view].tolist(), strict=True))
    image = Image.open(pictures / list(shards.manifest())[row].path).convert("RGB")
    top, left, height, width = (stored[name] for name in ("top", "left", "height", "width"))
    image = image.crop((left, top, left + width, top + height)).resize((size, size), resample)
    if stored["flip"]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).transpose(2, 0, 1)


def normalised(pixels_CHW: np.ndarray, mean=0.5, std=0.5) -> torch.Tensor:
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (mean, std))
    return ((torch.from_numpy(pixels_CHW.copy()).float() / 255 - mean) / std)[None]


def rows_of(data) -> list[int]:
    return [row for row in range(data.sizes["sample"]) if bool(data["valid"][row])][:6]


@torch.no_grad()
def test_tokens_and_maps_of_timm_models_equal_a_plain_pass_of_the_very_view(pictures, picture_shards, tmp_path):
    run(plan(picture_shards, VIT, tmp_path / "vit.zarr", "embedding,tokens,features.blocks.2"))
    data, model = opened(tmp_path / "vit.zarr"), load_teacher(VIT)._model  # type: ignore[attr-defined]
    assert data["tokens"].dims == ("sample", "view", "token", "channel")
    assert data["features.blocks.2"].dims == ("sample", "view", "channel", "y", "x")
    kept = []
    hook = model.blocks[2].register_forward_hook(lambda *arguments: kept.append(arguments[2]))
    for row in rows_of(data):
        for view in range(2):
            kept.clear()
            pixels = normalised(view_pixels(pictures, picture_shards, data, row, view, 48))
            tokens = model.forward_features(pixels)[0, model.num_prefix_tokens :]
            grid = kept[0][0, model.num_prefix_tokens :].T.reshape(-1, 3, 3)
            for name, plain in (("tokens", tokens), ("features.blocks.2", grid)):
                assert data[name].values[row, view] == pytest.approx(plain.numpy(), rel=1e-4, abs=1e-4)
    hook.remove()


@torch.no_grad()
def test_maps_of_convolutional_nets_equal_a_plain_pass(pictures, picture_shards, tmp_path):
    run(plan(picture_shards, RESNET, tmp_path / "s.zarr", "features.layer2,features.layer3"))
    data, model = opened(tmp_path / "s.zarr"), load_teacher(RESNET)._model  # type: ignore[attr-defined]
    assert data["features.layer2"].dims == ("sample", "view", "channel", "y", "x")
    other = tuple(f"{axis}_features.layer3" for axis in ("channel", "y", "x"))
    assert data["features.layer3"].dims == ("sample", "view", *other)
    for row in rows_of(data):
        x = normalised(view_pixels(pictures, picture_shards, data, row, 1, 64, Image.Resampling.BILINEAR))
        x = model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x))))))
        for name, plain in (("features.layer2", x), ("features.layer3", model.layer3(x))):
            assert data[name].values[row, 1] == pytest.approx(plain[0].numpy(), rel=1e-4, abs=1e-4)


@torch.no_grad()
def test_tokens_and_maps_of_open_clip_models_equal_a_plain_pass(tiny_clip_teacher, pictures, picture_shards, tmp_path):
    config = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")
    run(plan(picture_shards, config, tmp_path / "s.zarr", "tokens,features.resblocks.0"))
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip_teacher}")
    visual, data = model.eval().visual, opened(tmp_path / "s.zarr")
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    mean, std = load_teacher(config).spec.preprocess.mean, load_teacher(config).spec.preprocess.std
    kept: dict[str, torch.Tensor] = {}
    first, last = visual.transformer.resblocks[0], visual.transformer.resblocks[-1]
    first.register_forward_hook(lambda *arguments: kept.update(first=arguments[2]))
    last.register_forward_hook(lambda *arguments: kept.update(last=arguments[2]))
    for row in rows_of(data):
        visual(normalised(view_pixels(pictures, picture_shards, data, row, 0, size), mean, std))
        tokens = visual.ln_post(kept["last"])[0, 1:]
        side = int(len(tokens) ** 0.5)
        grid = kept["first"][0, 1:].T.reshape(-1, side, side)
        for name, plain in (("tokens", tokens), ("features.resblocks.0", grid)):
            assert data[name].values[row, 0] == pytest.approx(plain.numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("config", [VIT, RESNET, "open_clip"])
def test_the_embedding_is_the_same_with_maps_beside_it_and_without(config, tiny_clip_teacher):
    """One pass gives both; what comes out must not depend on what else was asked for."""
    if config == "open_clip":
        config = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")
    teacher = load_teacher(config)
    size = teacher.spec.preprocess.size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with FP32.inference():
        alone = teacher.embed(images)
        offers = {offer.name: offer for offer in teacher.offers()}
        beside = teacher.outputs(images, list(offers))
    assert torch.equal(alone, beside["embedding"])
    assert {name: tuple(values.shape[1:]) for name, values in beside.items()} == {
        name: offer.shape for name, offer in offers.items()
    }
    assert {values.dtype for values in beside.values()} == {torch.float32}


def test_every_timm_kind_that_is_tried_offers_what_it_computes():
    for name in ("test_convnext", "test_efficientnet", "test_mambaout", "test_nfnet"):
        if not timm.is_model(name):
            continue
        teacher = load_teacher(TeacherConfig(model=f"timm:{name}", pretrained="random"))
        images = torch.zeros(2, 3, *(teacher.spec.preprocess.size,) * 2, dtype=torch.uint8)
        with FP32.inference():
            found = teacher.outputs(images, [offer.name for offer in teacher.offers()])
            assert torch.equal(found["embedding"], teacher.embed(images))
        for offer in teacher.offers():
            assert tuple(found[offer.name].shape) == (2, *offer.shape)


# --- chunks


@pytest.mark.parametrize("shard_rows", [1000, 997, 13, 7])
@pytest.mark.parametrize("shape", [(768,), (196, 768), (256, 64, 64), (2048, 64, 64)])
def test_chunks_are_a_few_mib_at_most_and_never_cross_a_shard(shard_rows, shape):
    axes = ("channel",) if len(shape) == 1 else ("token", "channel") if len(shape) == 2 else ("channel", "y", "x")
    target = TargetSpec.of(
        "t", axes, shape, shard_size=shard_rows, num_rows=10 * shard_rows, num_views=4, encoding=ENCODINGS["fp16"]
    )
    rows, views, *rest = target.chunk or (shard_rows, 1, *shape)
    assert shard_rows % rows == 0
    assert shape[0] % rest[0] == 0
    assert rest[1:] == list(shape[1:])
    assert rows * views * np.prod(rest) * 2 <= (CHUNK_BYTES if len(shape) == 1 else LARGE_CHUNK_BYTES)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 4 KiB, so that small pictures make many."""
    monkeypatch.setattr(store_description, "LARGE_CHUNK_BYTES", 4096)


def test_a_store_of_many_chunks_holds_what_one_of_few_holds(picture_shards, tmp_path, monkeypatch):
    targets = "embedding,tokens,features.blocks.1"
    run(plan(picture_shards, VIT, tmp_path / "few.zarr", targets, encoding="fp16"))
    monkeypatch.setattr(store_description, "LARGE_CHUNK_BYTES", 4096)
    run(plan(picture_shards, VIT, tmp_path / "many.zarr", targets, encoding="fp16"))
    few, many = opened(tmp_path / "few.zarr"), opened(tmp_path / "many.zarr")
    xarray.testing.assert_equal(few, many)
    chunks = {name: zarr.open_array(tmp_path / f"{name}.zarr/tokens").chunks for name in ("few", "many")}
    assert chunks == {"few": (13, 1, 9, 64), "many": (1, 1, 9, 64)}
    receipts = [
        [len(receipt.outputs) for receipt in Ledger(Location.of(tmp_path / f"{name}.zarr"), "cache").receipts()]
        for name in ("few", "many")
    ]
    assert receipts[0] == [
        8,
        8,
        8,
        8,
    ]  # 3 arrays of rows, and for each of 2 views a chunk of two maps; one embedding
    assert receipts[1][0] == 4 + 2 * 2 * 13


def test_a_shard_that_is_done_again_has_the_same_bytes(picture_shards, tmp_path, small_chunks):
    out = tmp_path / "s.zarr"

    def files() -> dict[str, bytes]:
        return {
            str(f.relative_to(out)): f.read_bytes()
            for f in out.rglob("*")
            if f.is_file() and not {"timings", "failures"} & set(f.parts)
        }

    run(plan(picture_shards, VIT, out, "tokens", encoding="fp16"))
    before = files()
    (out / "ledger/cache/receipts/000001.json").unlink()
    for chunk in list((out / "tokens/c/13").rglob("*")):
        if chunk.is_file():
            chunk.unlink()
    run(plan(picture_shards, VIT, out, "tokens", encoding="fp16"))
    assert files() == before


def test_a_store_keeps_the_chunks_that_it_was_begun_with(picture_shards, tmp_path, monkeypatch):
    out = tmp_path / "s.zarr"
    monkeypatch.setattr(store_description, "LARGE_CHUNK_BYTES", 4096)
    run(plan(picture_shards, VIT, out, "tokens"))
    (out / "ledger/cache/receipts/000001.json").unlink()
    monkeypatch.undo()
    run(plan(picture_shards, VIT, out, "tokens"))
    assert zarr.open_array(out / "tokens").chunks == (1, 1, 9, 64)
    assert not inspect_store(Stored.open(str(out), None))["problems"]


def test_a_flipped_bit_in_a_chunk_names_its_shard(picture_shards, tmp_path, small_chunks):
    run(plan(picture_shards, VIT, tmp_path / "s.zarr", "tokens"))
    chunk = tmp_path / "s.zarr/tokens/c/14/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 4
    chunk.write_bytes(bytes(data))
    stream = TargetStream(picture_shards.location, tmp_path / "s.zarr", image_size=32, batch_size=4, targets=["tokens"])
    with pytest.raises(DamagedError) as error:
        for _ in stream:
            pass
    assert error.value.code == "chunk-changed"
    assert error.value.what.endswith("the receipt of shard 1 vouches for")
    stream.close()


def test_numbers_that_fp16_cannot_hold_are_refused(picture_shards, tmp_path, monkeypatch):
    teacher = load_teacher(RESNET)
    plain = type(teacher).outputs
    monkeypatch.setattr(
        type(teacher),
        "outputs",
        lambda self, images, names: {n: v + 1e5 for n, v in plain(self, images, names).items()},
    )
    with pytest.raises(Exception, match=r"numbers that fp16 has no room for: features\.layer3 in shard 0"):
        run(plan(picture_shards, RESNET, tmp_path / "s.zarr", "features.layer3", encoding="fp16"))
    run(plan(picture_shards, RESNET, tmp_path / "t.zarr", "features.layer3", encoding="fp32"))


# --- reading


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_streams_and_pipelines_bring_targets_in_their_shape(picture_shards, tmp_path, small_chunks):
    out = tmp_path / "s.zarr"
    run(plan(picture_shards, VIT, out, "embedding,tokens"))
    data = opened(out)
    for workers in (0, 1):
        with TargetStream(
            picture_shards.location,
            out,
            image_size=32,
            batch_size=5,
            targets=["tokens", "embedding"],
            num_workers=workers,
        ) as stream:
            seen = 0
            for batch in stream:
                rows = batch.rows_N.numpy()
                assert np.array_equal(batch.targets["tokens"].numpy(), data["tokens"].values[rows, 0])
                assert np.array_equal(batch.targets["embedding"].numpy(), data["embedding"].values[rows, 0])
                seen += len(rows)
            assert seen == 45  # of 46; the last batch is shorter, and left out
    tars = sorted(str(tar) for tar in picture_shards.location.path.glob("*.tar"))
    pipeline = wds.WebDataset(tars, shardshuffle=False).compose(join_targets(out, view=1, targets=["tokens"]))
    for sample in pipeline:
        row = json.loads(sample["json"])["row"]
        assert np.array_equal(sample["tokens"], data["tokens"].values[row, 1])


def test_rows_in_any_order_come_from_chunks_of_several(pictures, make_shards, tmp_path, monkeypatch):
    """Shards of 12 rows in chunks of 4: places within a chunk, over several, and one row alone."""
    monkeypatch.setattr(store_description, "LARGE_CHUNK_BYTES", 4 * 9 * 64 * 4)
    shards = make_shards(pictures, tmp_path / "shards", shard_size=12)
    run(plan(shards, VIT, tmp_path / "s.zarr", "tokens"))
    assert zarr.open_array(tmp_path / "s.zarr/tokens").chunks == (4, 1, 9, 64)
    root, data = open_store(Location.of(tmp_path / "s.zarr")), opened(tmp_path / "s.zarr")["tokens"].values
    spec = read_description(root, Location.of(tmp_path / "s.zarr")).spec
    for shard in range(spec.num_shards):
        rows, expected = TargetRows(root, spec, shard, "tokens", 1), data[12 * shard : 12 * shard + 12, 1]
        for positions in ([11, 0, 5, 6, 3], [6, 4, 7], [2], list(range(12))):
            assert np.array_equal(rows[np.array(positions)], expected[positions], equal_nan=True)
        assert np.array_equal(rows[10], expected[10], equal_nan=True)


def test_inspect_measures_every_target(picture_shards, tmp_path, small_chunks):
    out = tmp_path / "s.zarr"
    run(plan(picture_shards, VIT, out, "tokens,features.blocks.1"))
    facts, data = inspect_store(Stored.open(str(out), None)), opened(out)
    assert facts["schema_version"] == 2
    assert not facts["problems"]
    for name in ("tokens", "features.blocks.1"):
        values = data[name].values[data["valid"].values]
        assert facts["values"][name]["mean"] == pytest.approx(float(values.mean()), abs=1e-6)
        assert facts["values"][name]["max"] == pytest.approx(float(values.max()))


def test_what_a_teacher_does_not_offer(picture_shards, tmp_path):
    with pytest.raises(InputError) as error:
        plan(picture_shards, VIT, tmp_path / "s.zarr", "tokens,features.layer3")
    assert error.value.where == "--targets"
    assert str(error.value.found) == "features.layer3"
    assert "features.blocks.5, tokens" in str(error.value.expected)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("auto", ("auto",)),
        ("both", ("embedding", "logits")),
        ("tokens, embedding,tokens", ("tokens", "embedding")),
        ("features.both,both", ("features.both", "embedding", "logits")),
    ],
)
def test_names_of_targets(targets, names):
    assert target_names(targets) == names


def test_plain_vectors_are_written_as_version_1_and_others_as_2(picture_shards, tmp_path):
    for targets, version in (("embedding", 1), ("embedding,tokens", 2)):
        stage = plan(picture_shards, VIT, tmp_path / f"{version}.zarr", targets)
        root = open_store(stage.store)
        assert root.attrs["teachonce"]["schema_version"] == version
        assert stage.fingerprint.fields["schema_version"] == version


def test_a_target_without_a_shape_is_refused(picture_shards, tmp_path):
    stage = plan(picture_shards, VIT, tmp_path / "s.zarr", "embedding,tokens")
    root = zarr.open_group(tmp_path / "s.zarr", mode="a")
    fields = root.attrs["cache"]
    fields["spec"]["targets"][1]["axes"] = ["sample", "view", "token"]
    fields.pop("seal")
    root.attrs["cache"] = fields
    with pytest.raises((DamagedError, MismatchError), match="axes of 'tokens' with a size each"):
        read_description(open_store(stage.store), stage.store)


@pytest.mark.parametrize(
    ("width", "views", "expected"),
    [
        (768, 1, None),
        (768, 4, None),
        (768, 5, (1000, 1, 768)),
        (640, 4, (1000, 2, 640)),
        (640, 9, None),
        (640, 7, (1000, 1, 640)),
    ],
)
def test_no_chunk_is_padded_with_views_that_do_not_exist(width, views, expected):
    """4 MiB have room for 2 views of 1,000 rows of 768 channels, and for 3 of 640; what that divides is as in version 1."""
    target = TargetSpec.of(
        "embedding",
        ("channel",),
        (width,),
        shard_size=1000,
        num_rows=5000,
        num_views=views,
        encoding=ENCODINGS["fp16"],
    )
    assert target.chunk == expected

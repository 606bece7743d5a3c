"""Views in a store: colours from the draw to the student's pixels; and machines that render otherwise."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import xarray
import zarr
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.reports.inspect_text import sample_text, store_text
from teachonce.stages.samples import images
from teachonce.stages.samples.pixel_sample import PixelSample
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.views.spec import INTERPOLATIONS, ViewSpec
from teachonce.stages.views.versions import pixel_versions
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from teachonce.storage_schemas.store_description import StoreDescription
from teachonce.storage_schemas.target_store import open_root, read_block
from teachonce.storage_schemas.view_params import VIEW, from_columns

JITTER = (0.4, 0.6, 0.3, 0.2)
VIEWS = ViewSpec(kind="random_resized_crop", count=3, seed=1, jitter=JITTER, jitter_probability=0.8, grayscale=0.2)


def plan(shards, teacher, out, *, views=VIEWS, **options):
    config = TeacherConfig(model=f"local-dir:{teacher}")
    compute = Compute(device="cpu", precision="fp32", threads=1)
    return plan_cache(
        str(shards.location),
        config,
        out=str(out),
        views=views,
        settings=CacheSettings(targets="auto", encoding="fp32", batch_size=8),
        compute=compute,
        **options,
    )


def run(stage) -> None:
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


@pytest.fixture(scope="module")
def colored(picture_shards, tiny_clip_teacher, tmp_path_factory):
    """A finished store of three coloured views, by a teacher of 32 pixels."""
    out = tmp_path_factory.mktemp("colored") / "s.zarr"
    run(plan(picture_shards, tiny_clip_teacher, out))
    return out


@pytest.fixture
def begun(picture_shards, tiny_clip_teacher, tmp_path):
    """`begun()` plans a store again that has one shard to do."""
    out = tmp_path / "s.zarr"
    views = ViewSpec(kind="random_resized_crop")
    run(plan(picture_shards, tiny_clip_teacher, out, views=views))
    (
        Ledger(plan(picture_shards, tiny_clip_teacher, out, views=views).store, "cache").folder
        / "receipts"
        / "000001.json"
    ).remove()
    return lambda **changes: plan(picture_shards, tiny_clip_teacher, out, **({"views": views} | changes))


def records(data) -> np.ndarray:
    """The views of a store as anyone reads them: by the columns that its arrays name."""
    params, colors = data["view_params"], data["view_colors"]
    found = np.empty(params.shape[:2], VIEW)
    for array in (params, colors):
        for index, name in enumerate(array.attrs["columns"]):
            found[name] = array.values[..., index]
    return found


def test_a_plain_loop_over_the_stored_colours_says_what_the_teacher_said(
    colored, picture_shards, pictures, tiny_clip_teacher, by_torchvision
):
    data = xarray.open_zarr(str(colored), consolidated=False).load()
    assert (data["view_params"].shape, data["view_params"].dtype) == ((48, 3, 7), "int32")
    assert (data["view_colors"].dims, data["view_colors"].shape) == (
        ("sample", "view", "view_color"),
        (48, 3, 4),
    )
    assert data["view_colors"].dtype == "float32"
    views, valid = records(data), data["valid"].values.astype(bool)
    assert np.isnan(data["view_colors"].values[~valid]).all()
    assert (data["view_params"].values[~valid] == -1).all()
    assert {0, 1} == set(views["grayscale"][valid].ravel().tolist())
    model = open_clip.create_model(f"local-dir:{tiny_clip_teacher}").eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    entries, rendered = list(picture_shards.manifest()), []
    for row in np.flatnonzero(valid):
        image = Image.open(pictures / entries[row].path).convert("RGB")
        rendered += [by_torchvision(image, view, 32, JITTER) for view in views[row]]
    images = torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        embedding_ND = model.encode_image((images - mean) / std, normalize=True).numpy()
    np.testing.assert_allclose(data["embedding"].values[valid].reshape(-1, 16), embedding_ND, atol=1e-6)


def test_a_student_of_another_size_sees_the_same_boxes_and_colours(colored, picture_shards, pictures, by_torchvision):
    """The teacher takes 32 pixels, the student 20: parameters are those of the store, by plain Zarr."""
    views = records(xarray.open_zarr(str(colored), consolidated=False))
    entries = list(picture_shards.manifest())
    with TargetStream(
        picture_shards, colored, image_size=20, batch_size=16, targets=["embedding"], drop_last=False
    ) as stream:
        assert stream.note == ""
        for epoch in range(3):
            for batch in stream.batches(epoch):
                for row, image_CHW in zip(batch.rows_N.tolist(), batch.images_NCHW.numpy(), strict=True):
                    image = Image.open(pictures / entries[row].path).convert("RGB")
                    expected = by_torchvision(image, views[row, epoch], 20, JITTER)
                    assert np.array_equal(expected.transpose(2, 0, 1), image_CHW), row


def test_colours_that_are_gone_are_noticed(colored, picture_shards, tmp_path):
    """A chunk file that is gone would read as fill values."""
    shutil.copytree(colored, tmp_path / "s")
    (tmp_path / "s" / "view_colors" / "c" / "1" / "0" / "0").unlink()
    stream = TargetStream(picture_shards, tmp_path / "s", image_size=8, batch_size=8, targets=["embedding"])
    with pytest.raises(DamagedError) as caught:
        list(stream)
    receipt = tmp_path / "s/ledger/cache/receipts/000001.json"
    assert str(caught.value) == (
        "a chunk of the store is not the one that the receipt of shard 1 vouches for: "
        f"{tmp_path / 's'}/view_colors/c/1/0/0: found no such chunk. "
        "Next: restore the store from a copy; or, to ask the teacher about this shard again, "
        f"mv {receipt} {receipt}.old, then run the same `teachonce cache` command again"
    )


def test_blocks_with_colours_come_back(colored, picture_shards):
    root = open_root(str(colored))
    spec = StoreDescription.read(root, "here").spec
    assert spec.colors
    data = xarray.open_zarr(str(colored), consolidated=False)
    block = read_block(root, spec, 1)
    assert block.view_params.tobytes() == records(data)[13:26].tobytes()
    receipt = Ledger(plan_location(colored), "cache").receipt("000001")
    assert block.digest == receipt.digest
    assert {"view_params/c/1/0/0", "view_colors/c/1/0/0"} <= {output.path for output in receipt.outputs}
    other = block.view_params.copy()
    other["hue"][0, 0] += 1e-6
    assert replace(block, view_params=other).digest != block.digest


def plan_location(path):
    from teachonce.pipeline.storage import Location

    return Location.of(path)


def test_records_and_columns_are_the_same_numbers():
    rng = np.random.default_rng(0)
    ints = rng.integers(0, 9, (4, 2, 7)).astype(np.int32)
    floats = rng.random((4, 2, 4)).astype(np.float32)
    views = from_columns(ints, floats)
    assert views.dtype == VIEW
    assert [list(view)[:7] for view in views.ravel().tolist()] == ints.reshape(-1, 7).tolist()
    assert [list(view)[7:] for view in views.ravel().tolist()] == floats.reshape(-1, 4).tolist()


def test_inspect_tells_colours_and_versions(colored, picture_shards):
    from teachonce.stages.inspect import inspect_store
    from teachonce.stages.measures.stored import Stored
    from teachonce.stages.reports.inspect_sample import inspect_sample

    stored = Stored.open(str(colored))
    facts = inspect_store(stored)
    text = " ".join(store_text(facts).split())
    assert (
        "views 3 random resized crops: 0.08 to 1 of the area, ratio 0.75 to 1.333, mirrored with probability 0.5, "
        "colours jittered by brightness 0.4, contrast 0.6, saturation 0.3, hue 0.2 with probability 0.8, "
        "gray with probability 0.2, bicubic, seed 1"
    ) in text
    digest = facts["fingerprint"]["pixels"]
    assert f"pixels 128 rendered views recorded, digest {digest}; this machine renders the same" in text
    versions = text[text.index("versions ") :]
    for name, version in pixel_versions().items():
        assert f"{name} {version}" in versions
    assert f"torch {torch.__version__.split('+')[0]}" in versions
    views = records(xarray.open_zarr(str(colored), consolidated=False))
    names = ("brightness", "contrast", "saturation", "hue")
    seen = set()
    for row in range(12):
        sample = inspect_sample(stored, str(row))
        text = " ".join(sample_text(sample).split())
        for view, said in zip(views[row] if sample["valid"] else (), sample["views"], strict=True):
            assert said["grayscale"] == bool(view["grayscale"])
            assert {c["operation"]: c["factor"] for c in said["colors"]} == (
                {n: float(view[n]) for n in names} if view["color_order"] >= 0 else {}
            )
            words = [f"{c['operation']} {'×' if c['operation'] != 'hue' else ''}" for c in said["colors"]]
            assert all(word.strip() in text for word in words)
            if view["color_order"] == 0:
                assert [c["operation"] for c in said["colors"]] == list(names)
            seen.add((bool(words), said["grayscale"]))
            if not words:
                assert ("gray" if said["grayscale"] else "as they are") in text
    assert len(seen) > 2


def test_inspect_says_where_this_machine_renders_otherwise(colored, monkeypatch):
    monkeypatch.setitem(INTERPOLATIONS, "bicubic", Image.Resampling.HAMMING)
    monkeypatch.setattr(images, "pixel_versions", lambda: {"Pillow": "99.0.1"})
    result = CliRunner().invoke(main, ["inspect", str(colored)])
    assert "THIS MACHINE RENDERS OTHERS: row 0, view 0 and 127 more; " in " ".join(result.stdout.split())
    facts = json.loads(CliRunner().invoke(main, ["inspect", str(colored), "--json"]).stdout)
    assert (facts["pixels"]["same_here"], len(facts["pixels"]["differences"])) == (False, 128)


def test_inspect_reads_a_store_of_centre_views(picture_shards, tiny_clip_teacher, tmp_path):
    run(plan(picture_shards, tiny_clip_teacher, tmp_path / "s", views=None))
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "s")])
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "views 1, the centre: 1 of the shorter side, bicubic" in lines


# A store that was begun where pixels are others.


def test_a_store_is_not_finished_by_a_machine_that_renders_otherwise(begun, monkeypatch):
    stage = begun()
    assert len(stage.notes) == 1, "the teacher alone"
    assert stage.fingerprint.fields["pixels"] == stage.pixels.digest
    recorded = zarr.open_group(str(stage.store), mode="r").attrs["cache"]["pixels"]
    assert recorded == stage.pixels.to_json()
    monkeypatch.setitem(INTERPOLATIONS, "bicubic", Image.Resampling.HAMMING)
    there = pixel_versions()["Pillow"]
    monkeypatch.setattr(images, "pixel_versions", lambda: {**stage.pixels.versions, "Pillow": "99.0.1"})
    with pytest.raises(MismatchError) as caught:
        begun()
    assert caught.value.fields == {
        "code": "pixels-differ-here",
        "where": f"{stage.store}, row 0, view 0 (and 127 more of 128 views)",
        "expected": str(recorded["digests"][0][0]),
        "found": f"{str(caught.value.found).split()[0]} (Pillow {there} there, 99.0.1 here)",
        "hint": f"install Pillow {there}, or give another --out; a store is finished by machines that render as the first one",
    }
    with pytest.raises(MismatchError) as caught:  # a worker on another node
        stage.open()
    assert str(caught.value).endswith(
        f"Next: install Pillow {there}, or give every node the same versions of everything"
    )
    # Another view spec is what is wrong then, not the pixels.
    with pytest.raises(MismatchError) as caught:
        run(begun(views=ViewSpec(kind="random_resized_crop", seed=9)))
    assert caught.value.code == "output-other-settings"
    assert caught.value.what.endswith("holds the output of another cache")
    assert str(caught.value.where).endswith("field 'views.seed'")
    assert str(caught.value.expected).startswith("9")


def test_other_versions_of_the_same_pixels_are_told(begun):
    stage = begun()
    root = open_root(str(stage.store), mode="a")
    recorded = StoreDescription.read(root, stage.store)
    old = {**recorded.pixels, "versions": {**recorded.pixels["versions"], "Pillow": "1.0"}}
    replace(recorded, pixels=old, versions={**recorded.versions, "torch": "0.9"}).write(root)
    here = {**pixel_versions(), **recorded.versions}
    resumed = begun()
    assert resumed.notes[1:] == (
        f"the store was begun with other versions (Pillow 1.0 there, {here['Pillow']} here; torch 0.9 there, "
        f"{here['torch']} here); pixels are the same, but low bits of targets may differ",
    )
    assert resumed.fingerprint == stage.fingerprint
    run(resumed)
    assert zarr.open_group(str(stage.store), mode="r").attrs["cache"]["versions"]["torch"] == "0.9"


def test_a_store_from_before_there_were_samples_is_refused_by_name(begun):
    stage = begun()
    root = open_root(str(stage.store), mode="a")
    recorded = StoreDescription.read(root, stage.store)
    before = {name: value for name, value in recorded.fingerprint.items() if name != "pixels"}
    replace(recorded, pixels=None, fingerprint=before).write(root)
    location = stage.store / "ledger" / "cache" / "plan.json"
    fields = json.loads(location.read_bytes())
    del fields["fingerprint"]["pixels"], fields["seal"]
    location.write_bytes(json.dumps(fields).encode())
    with pytest.raises(
        MismatchError,
        match=f"field 'pixels': expected '{stage.pixels.digest}' .this command., found nothing .the folder.",
    ):
        run(begun())


def test_the_filter_is_the_teachers_unless_another_is_asked_for(begun, picture_shards, tiny_clip_teacher, tmp_path):
    assert begun().views.interpolation == "bicubic"
    other = plan(picture_shards, tiny_clip_teacher, tmp_path / "other", view_interpolation="bilinear")
    assert other.views.interpolation == "bilinear"
    assert other.pixels.digest != PixelSample.take(picture_shards, VIEWS, 32).digest


# The command's options.


def command(shards, teacher, out, *options):
    return CliRunner().invoke(
        main,
        [
            "cache",
            str(shards.location),
            "--teacher",
            f"local-dir:{teacher}",
            "--out",
            str(out),
            "--executor",
            "serial",
            "--threads",
            "1",
            *options,
        ],
    )


def test_options_are_the_spec(picture_shards, tiny_clip_teacher, tmp_path):
    result = command(
        picture_shards,
        tiny_clip_teacher,
        tmp_path / "s",
        "--views",
        "2",
        "--view-jitter",
        "0.4,0.4,0.2,0.1",
        "--view-jitter-probability",
        "0.8",
        "--view-grayscale",
        "0.2",
        "--view-seed",
        "4",
        "--view-interpolation",
        "bilinear",
        "--view-flip",
        "0",
    )
    assert result.exit_code == 0, result.output
    assert zarr.open_group(str(tmp_path / "s"), mode="r").attrs["cache"]["views"] == {
        "kind": "random_resized_crop",
        "count": 2,
        "interpolation": "bilinear",
        "seed": 4,
        "scale": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip": 0.0,
        "jitter": [0.4, 0.4, 0.2, 0.1],
        "jitter_probability": 0.8,
        "grayscale": 0.2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--view-scale", "0.5,1", "--view-seed", "0"],
            "these options are for random views: --view-seed, --view-scale: expected --views K, found --views center [option-for-random-views]. "
            "Next: give a number of views, or leave them out",
        ),
        (
            ["--view-interpolation", "bilinear"],
            "these options are for random views: --view-interpolation: expected --views K, found --views center [option-for-random-views]. "
            "Next: give a number of views, or leave them out; a centre view's filter is --teacher-interpolation",
        ),
        (
            ["--views", "2", "--view-jitter-probability", "0.5"],
            "a probability of a colour jitter that there is not: --view-jitter-probability: found 0.5 [option-needs-another]. "
            "Next: add --view-jitter, such as 0.4,0.4,0.2,0.1",
        ),
        (
            ["--views", "many"],
            "impossible number of views: --views: expected a number or `center`, found many [setting-impossible]",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, picture_shards, tiny_clip_teacher, tmp_path):
    result = command(picture_shards, tiny_clip_teacher, tmp_path / "s", *options)
    assert (result.exit_code, result.stderr) == (1, f"Error: {message}\n")
    assert not (tmp_path / "s").exists()


def test_four_numbers_are_four(picture_shards, tiny_clip_teacher, tmp_path):
    result = command(picture_shards, tiny_clip_teacher, tmp_path / "s", "--views", "2", "--view-jitter", "0.4,0.4")
    assert result.exit_code == 2
    assert "'0.4,0.4' is not 4 numbers with commas between them" in result.stderr


def test_centre_views_keep_their_colours():
    with pytest.raises(InputError) as error:
        ViewSpec(jitter=JITTER)
    assert error.value.code == "option-for-random-views"

"""Vectors and targets in the store against plain open_clip and timm loops, written here independently."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import torch
import xarray
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.join import open_pair
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.status import folder_status
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.errors import (
    DamagedError,
    IncompleteError,
    InputError,
    MismatchError,
    TeachonceError,
    UnitsFailed,
)
from torchvision.transforms import functional as tvf

FP32 = Compute(device="cpu", precision="fp32", threads=1)
CLASSES = ("red fox", "Blue_Jay", "house-cat")
TEMPLATES = ("a photo of a {}.", "a sketch of the {}.")


@pytest.fixture
def class_file(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    return tmp_path / "classes.txt"


def run(stage) -> None:
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


def vectors(config, out, class_file) -> None:
    run(
        plan_vectors(
            config,
            out=str(out),
            settings=VectorsSettings(classes=str(class_file), templates=str(class_file.parent / "templates.txt")),
            compute=FP32,
        )
    )


def cache(shards, config, out, *, views=None, targets="auto", encoding="fp32", compute=FP32, batch_size=8):
    stage = plan_cache(
        str(shards.location),
        config,
        out=str(out),
        views=views,
        settings=CacheSettings(targets=targets, encoding=encoding, batch_size=batch_size),
        compute=compute,
    )
    run(stage)
    return xarray.open_zarr(str(out), consolidated=False).load()


def clip_config(tiny_clip_teacher, **overrides) -> TeacherConfig:
    return TeacherConfig(model=f"local-dir:{tiny_clip_teacher}", **overrides)


def images(pictures, shards, data) -> list[tuple[int, Image.Image]]:
    """(row, RGB image) of the valid rows, found by path and not by anything that the store says."""
    entries = list(shards.manifest())
    rows = [row for row in range(len(entries)) if bool(data["valid"][row])]
    assert len(rows) == 46
    return [(row, Image.open(pictures / entries[row].path).convert("RGB")) for row in rows]


def test_the_centre_view_equals_a_plain_open_clip_loop(
    pictures, picture_shards, tiny_clip_teacher, class_file, tmp_path
):
    out = tmp_path / "s.zarr"
    vectors(clip_config(tiny_clip_teacher), out, class_file)
    data = cache(picture_shards, clip_config(tiny_clip_teacher), out, targets="both")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip_teacher}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip_teacher}")
    with torch.no_grad():
        text_CD = []
        for name in CLASSES:
            texts = tokenizer([t.format(name.replace("_", " ")) for t in TEMPLATES])
            features = model.encode_text(texts, normalize=True).mean(0)
            text_CD.append(features / features.norm())
        np.testing.assert_allclose(data["class_vectors"], torch.stack(text_CD), atol=1e-6)
        assert list(data["class_names"].values) == list(CLASSES)
        for row, image in images(pictures, picture_shards, data):
            embedding = model.encode_image(preprocess(image)[None], normalize=True)
            np.testing.assert_allclose(data["embedding"][row, 0], embedding[0], atol=1e-6)
            logits = model.logit_scale.exp() * embedding @ torch.stack(text_CD).T
            np.testing.assert_allclose(data["logits"][row, 0], logits[0], atol=2e-5)


def test_random_views_equal_a_plain_loop_over_the_stored_boxes(pictures, picture_shards, tiny_clip_teacher, tmp_path):
    views = ViewSpec(kind="random_resized_crop", count=3, seed=1)
    data = cache(picture_shards, clip_config(tiny_clip_teacher), tmp_path / "s.zarr", views=views)
    assert "logits" not in data  # no class vectors yet: auto keeps embeddings
    model = open_clip.create_model(f"local-dir:{tiny_clip_teacher}").eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    params = data["view_params"].values
    for row, image in images(pictures, picture_shards, data):
        for view in range(3):
            top, left, height, width, flip = (int(p) for p in params[row, view])
            crop = tvf.resized_crop(image, top, left, height, width, [32, 32], tvf.InterpolationMode.BICUBIC)
            pixels = tvf.to_tensor(tvf.hflip(crop) if flip else crop)
            with torch.no_grad():
                embedding = model.encode_image(((pixels - mean) / std)[None], normalize=True)
            np.testing.assert_allclose(data["embedding"][row, view], embedding[0], atol=1e-6)
    keys = ["".join(map(chr, key)) for key in data["keys"].values]
    assert keys == [entry.key for entry in picture_shards.manifest()]
    invalid = data["valid"].values == 0
    assert invalid.sum() == 2
    assert np.isnan(data["embedding"].values[invalid]).all()
    assert (params[invalid] == -1).all()


def test_a_timm_teacher_equals_a_plain_timm_loop(pictures, picture_shards, tmp_path):
    config = TeacherConfig(model="timm:test_vit", pretrained="random", size=160)
    out = tmp_path / "s.zarr"
    run(plan_vectors(config, out=str(out), compute=FP32))
    data = cache(picture_shards, config, out, targets="both")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
    assert data["class_names"].values[1].startswith("goldfish")
    with torch.no_grad():
        for row, image in images(pictures, picture_shards, data)[::5]:
            pixels = transform(image)[None]
            expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
            np.testing.assert_allclose(data["embedding"][row, 0], expected[0], atol=1e-5)
            np.testing.assert_allclose(data["logits"][row, 0], model(pixels)[0], atol=1e-5)


def test_fp16_keeps_its_kl_budget_and_bf16_stays_close(picture_shards, tiny_clip_teacher, class_file, tmp_path):
    config = clip_config(tiny_clip_teacher)
    stores = {}
    for name, encoding, precision in (
        ("a", "fp32", "fp32"),
        ("b", "fp16", "fp32"),
        ("c", "fp16", "bf16"),
        ("d", "fp16", "bf16_weights"),
    ):
        vectors(config, tmp_path / name, class_file)
        compute = Compute(device="cpu", precision=precision, threads=1)
        stores[name] = cache(picture_shards, config, tmp_path / name, encoding=encoding, compute=compute)
    valid = stores["a"]["valid"].values

    def log_probabilities(data) -> np.ndarray:
        logits = data["logits"].values.astype(np.float32)
        if "logits_max" in data:
            logits = logits + data["logits_max"].values[..., None]
        return torch.log_softmax(torch.from_numpy(logits[valid]).double(), -1).numpy()

    p, q, *in_bf16 = (log_probabilities(stores[name]) for name in "abcd")
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert kl.max() <= ENCODINGS["fp16"].kl_budget
    for r in in_bf16:
        assert 0 < (np.exp(p) * (p - r)).sum(-1).max() < 0.02
    activations, weights = in_bf16
    assert not np.array_equal(activations, weights), "layer norms and attention round otherwise"


@pytest.mark.parametrize("precision", ["fp32", "bf16_weights"])
def test_the_same_bytes_whatever_is_killed_or_lost(picture_shards, tiny_clip_teacher, tmp_path, precision):
    def files(folder) -> dict[str, bytes]:
        return {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and "timings" not in p.parts
        }

    more = {
        "views": ViewSpec(kind="random_resized_crop", count=2),
        "compute": Compute(device="cpu", precision=precision, threads=1),
    }
    cache(picture_shards, clip_config(tiny_clip_teacher), tmp_path / "a", **more)
    cache(picture_shards, clip_config(tiny_clip_teacher), tmp_path / "b", **more)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    ledger = Ledger(plan_cache_location(tmp_path / "b"), "cache")
    (ledger.folder / "receipts" / "000002.json").remove()
    (tmp_path / "b" / "embedding" / "c" / "1" / "0" / "0").unlink()
    (tmp_path / "b" / "valid" / "c" / ("1." + "ab" * 16 + ".partial")).touch()
    cache(picture_shards, clip_config(tiny_clip_teacher), tmp_path / "b", **more)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def plan_cache_location(path):
    from teachonce.pipeline.storage import Location

    return Location.of(path)


def test_whatever_differs_is_refused_by_name(
    picture_shards, tiny_clip_teacher, class_file, tmp_path, make_shards, pictures
):
    out, config = tmp_path / "s.zarr", clip_config(tiny_clip_teacher)
    vectors(config, out, class_file)
    cache(picture_shards, config, out)
    other_teacher = TeacherConfig(model="timm:test_vit", pretrained="random")
    with pytest.raises(MismatchError) as error:
        cache(picture_shards, other_teacher, out)
    assert error.value.code == "vectors-other-teacher"
    assert ": field 'teacher.weights'" in str(error.value.where)
    for field, options in {
        "views.kind": {"views": ViewSpec(kind="random_resized_crop")},
        "encoding": {"encoding": "fp16"},
        "compute.batch_size": {"batch_size": 9},
        "compute.precision": {"compute": Compute(device="cpu", precision="bf16", threads=1)},
        "targets": {"targets": "both"},
    }.items():
        with pytest.raises(MismatchError, match=f"holds the output of another cache: .*field '{field}'"):
            cache(picture_shards, config, out, **options)  # type: ignore[arg-type]
    other_corpus = make_shards(pictures / "red fox", tmp_path / "other")
    with pytest.raises(MismatchError) as error:
        cache(other_corpus, config, out)
    assert error.value.code == "output-other-settings"
    assert str(error.value.where).endswith("field 'corpus_id'")
    with pytest.raises(MismatchError) as error:
        cache(picture_shards, TeacherConfig(model=config.model, mean=(0.5, 0.5, 0.5)), out)
    assert error.value.code == "output-other-settings"
    assert str(error.value.where).endswith("field 'teacher.preprocess.mean'")
    class_file.write_text("\n".join(reversed(CLASSES)))
    with pytest.raises(MismatchError) as error:
        vectors(config, out, class_file)
    assert error.value.code == "output-other-settings"
    assert error.value.what.endswith("holds the output of another vectors")
    assert str(error.value.where).endswith("field 'classes'")


def test_logits_need_vectors_and_say_so(picture_shards, tiny_clip_teacher, tmp_path):
    with pytest.raises(IncompleteError) as caught:
        cache(picture_shards, clip_config(tiny_clip_teacher), tmp_path / "s", targets="logits")
    assert caught.value.fields == {
        "code": "vectors-missing",
        "where": str(tmp_path / "s"),
        "hint": f"teachonce vectors --teacher … --out {tmp_path / 's'}",
    }


def test_a_teacher_that_says_nan_is_refused(picture_shards, tiny_clip_teacher, tmp_path, monkeypatch):
    with pytest.raises(InputError) as error:
        cache(picture_shards, clip_config(tiny_clip_teacher, std=(1e-50, 0.3, 0.25)), tmp_path / "s")
    assert error.value.code == "teacher-not-finite"
    assert str(error.value.where).startswith("local-dir:tiny-clip")
    assert not (tmp_path / "s").exists()
    config = clip_config(tiny_clip_teacher)
    teacher = load_teacher(config)  # which says it of real images only
    monkeypatch.setattr(teacher, "embed", lambda images: torch.full((len(images), 16), torch.nan))
    with pytest.raises(UnitsFailed) as failure:
        cache(picture_shards, config, tmp_path / "s")
    assert failure.value.code == "teacher-not-finite"
    assert str(failure.value.where).startswith("the teacher gave NaN or infinity: embedding of ")


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        (
            "ViT-B-32",
            None,
            "^a teacher needs weights: ViT-B-32. Next: add --teacher-pretrained: one of .*openai.*random",
        ),
        ("ViT-B-99", "openai", "^open_clip has no such model: ViT-B-99. Next: did you mean ViT-B-"),
        ("ViT-B-32", "openia", "^ViT-B-32 has no such weights: openia. Next: did you mean openai"),
        (
            "local-dir:/nowhere",
            None,
            "^no open_clip model in this folder: /nowhere: expected open_clip_config.json",
        ),
        (
            "timm:test_vit",
            None,
            "^a teacher needs weights: timm:test_vit. Next: add --teacher-pretrained: `default`",
        ),
        ("timm:tset_vit", "random", "^timm has no such model: tset_vit. Next: did you mean test_vit"),
        ("timm:test_vit", "/nowhere.pth", "^no such file of weights: --teacher-pretrained /nowhere.pth"),
    ],
)
def test_teachers_that_cannot_be_loaded(model, pretrained, message, tmp_path):
    with pytest.raises(InputError, match=message):
        plan_vectors(
            TeacherConfig(model=model, pretrained=pretrained),
            out=str(tmp_path / "s"),
        )
    assert not (tmp_path / "s").exists()


def test_a_fine_tuned_teacher_brings_its_own_classes(tmp_path):
    torch.manual_seed(1)
    tuned = timm.create_model("test_vit", num_classes=3).eval()
    weights = tmp_path / "tuned.safetensors"
    safetensors.torch.save_file(tuned.state_dict(), weights)
    teacher = load_teacher(TeacherConfig(model="timm:test_vit", pretrained=str(weights)))
    config = timm.data.resolve_data_config(model=tuned)
    images_NCHW = torch.randint(0, 256, (2, *config["input_size"]), dtype=torch.uint8)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected_NC = tuned((images_NCHW.float() / 255 - mean) / std).numpy()
        embedding_ND = teacher.embed(images_NCHW).numpy()
    named = teacher.class_vectors(("crane", "heron", "stork"), ())
    np.testing.assert_allclose(named.logits(embedding_ND), expected_NC, atol=1e-4)
    with pytest.raises(InputError) as error:
        teacher.class_names(None)
    assert (error.value.code, str(error.value.where)) == ("classes-needed", "test_vit")
    assert str(error.value.hint).startswith("add --classes")


# --- arrays of one run, books of another


def test_a_store_with_the_arrays_of_another_run_is_refused_by_all(
    picture_shards, tiny_clip_teacher, class_file, tmp_path
):
    """As two commands that raced made it: the plan of one, the arrays of the other."""
    config = clip_config(tiny_clip_teacher)
    for name, seed in (("a", 1), ("b", 2)):
        vectors(config, tmp_path / name, class_file)
        views = ViewSpec(kind="random_resized_crop", count=2, seed=seed)
        cache(picture_shards, config, tmp_path / name, views=views, targets="both")
    mixed = tmp_path / "a"
    (mixed / "zarr.json").write_bytes((tmp_path / "b" / "zarr.json").read_bytes())
    words = "^the arrays of this store were made for another run than its ledger's: .*zarr.json: field 'pixels'"
    with pytest.raises(MismatchError, match=words):
        cache(
            picture_shards,
            config,
            mixed,
            views=ViewSpec(kind="random_resized_crop", count=2, seed=1),
            targets="both",
        )
    with pytest.raises(MismatchError, match=words):
        open_pair(picture_shards, Location.of(mixed))
    for command in (
        ["inspect", mixed],
        [
            "distill",
            picture_shards.location,
            mixed,
            "--student",
            "timm:test_resnet",
            "--recipe",
            "kd",
            "--out",
            tmp_path / "b2",
        ],
    ):
        result = CliRunner().invoke(main, [str(word) for word in command])
        assert (result.exit_code, result.stdout) == (1, "")
        assert "made for another run than its ledger's" in result.stderr
    stage = plan_cache(
        str(picture_shards.location),
        config,
        out=str(tmp_path / "c"),
        views=None,
        settings=CacheSettings(targets="embedding", encoding="fp32", batch_size=8),
        compute=FP32,
    )
    (tmp_path / "c" / "zarr.json").write_bytes((tmp_path / "b" / "zarr.json").read_bytes())
    with pytest.raises(TeachonceError) as error:
        run(stage)
    assert error.value.code == "store-other-run"


def test_a_store_that_lost_its_description_says_so(picture_shards, tiny_clip_teacher, tmp_path):
    config = clip_config(tiny_clip_teacher)
    cache(picture_shards, config, tmp_path / "s")
    kept = (tmp_path / "s" / "zarr.json").read_bytes()
    fields = json.loads(kept)
    del fields["attributes"]["cache"]
    (tmp_path / "s" / "zarr.json").write_text(json.dumps(fields))
    words = "^the store has lost what describes its targets: .*zarr.json"
    for read in (
        lambda: cache(picture_shards, config, tmp_path / "s"),
        lambda: open_pair(picture_shards, Location.of(tmp_path / "s")),
    ):
        with pytest.raises(DamagedError, match=words):
            read()
    (tmp_path / "s" / "zarr.json").write_bytes(kept)
    open_pair(picture_shards, Location.of(tmp_path / "s"))


@pytest.mark.parametrize("left", ["nothing", "another"])
def test_a_store_that_lost_its_root_is_answered_the_same_by_everyone(picture_shards, tiny_clip_teacher, tmp_path, left):
    config, store = clip_config(tiny_clip_teacher), Location.of(tmp_path / "s")
    cache(picture_shards, config, store.path)
    kept = (store / "zarr.json").read_bytes()
    (store / "zarr.json").remove()
    if left == "another":  # what zarr makes of a folder where it finds none
        (store / "zarr.json").write_bytes(b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    there = (store / "zarr.json").size()
    said = set()
    for use in (
        lambda: cache(picture_shards, config, store.path),
        lambda: plan_vectors(config, out=str(store.path)),
        lambda: open_pair(picture_shards, store),
        lambda: folder_status(store),
        lambda: folder_status(tmp_path),
        lambda: Stored.open(str(store.path), None),
    ):
        with pytest.raises(DamagedError) as caught:
            use()
        said.add(str(caught.value))
    assert said == {
        f"the store has lost its root: {store}/zarr.json: expected that of the store that `teachonce cache` began, found {left}. "
        "Next: restore it from a copy; the arrays beside it need it, and stay as they are"
    }
    assert (store / "zarr.json").size() == there
    (store / "zarr.json").write_bytes(kept)
    open_pair(picture_shards, store)

"""`anomalies` end to end: maps, scores and figures against SciPy and scikit-learn, resumed runs, pictures, what is refused."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from PIL import Image
from scipy import ndimage
from sklearn import metrics
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.anomalies import finish_anomalies, plan_anomalies
from teachonce.stages.anomaly.pictures import GAP, heat
from teachonce.stages.anomaly.shard_maps import ShardMaps
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.anomalies import AnomalySettings
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.students.bundle import load_map_student
from teachonce.stages.teachers import TeacherConfig
from teachonce.storage_schemas.errors import InputError, MismatchError
from torch.nn import functional as F

FP32 = Compute(device="cpu", precision="fp32", threads=1)
SIZE = 64
TEACHER = TeacherConfig(model="timm:test_resnet", pretrained="random", size=SIZE, crop_mode="squash", crop_pct=1.0)
LEVELS = ("features.layer1", "features.layer2", "features.layer3")


def run(stage, out):
    run_stage(stage, out, SerialExecutor(), progress=False)


def draw(path, seed, defect=None):
    """A striped picture of 80 × 50 pixels; `defect` is a box that is dark."""
    rng = np.random.default_rng(seed)
    stripes = 128 + 60 * np.sin(np.arange(80) / 2 + rng.random() * 6)[None, :, None] + rng.normal(0, 5, (50, 80, 3))
    mask = np.zeros((50, 80), np.uint8)
    if defect is not None:
        left, top, right, bottom = defect
        stripes[top:bottom, left:right] = 20
        mask[top:bottom, left:right] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(stripes, 0, 255).astype(np.uint8)).save(path)
    return mask


def cached(corpus, folder, teacher=TEACHER, levels=LEVELS):
    stage = plan_shard([corpus], out=str(folder / "shards"), settings=ShardSettings(shard_size=5))
    run(stage, stage.out)
    cache = plan_cache(
        str(folder / "shards"),
        teacher,
        out=str(folder / "maps.zarr"),
        views=None,
        settings=CacheSettings(targets=",".join(levels), encoding="fp32", batch_size=8),
        compute=FP32,
    )
    run(cache, cache.store)
    return folder / "shards", folder / "maps.zarr"


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    """Faultless pictures, and such with holes and a spot; one defect has no mask."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    for number in range(8):
        draw(root / f"train/good/{number:03d}.png", number)
        if number < 4:
            draw(root / f"test/good/{number:03d}.png", 100 + number)
    for number, box in enumerate([(10, 10, 30, 30), (40, 5, 70, 25), (60, 30, 78, 48)]):
        mask = draw(root / f"test/hole/{number:03d}.png", 200 + number, box)
        (root / "ground_truth/hole").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / f"ground_truth/hole/{number:03d}_mask.png")
    draw(root / "test/spot/000.png", 300, (30, 30, 40, 40))
    return root


@pytest.fixture(scope="module")
def student(category, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    shards, store = cached(f"mvtec:stripes/train={category.parent}", folder)
    stage = plan_distill(
        str(shards),
        str(store),
        StudentConfig(model="decoder:resnet18"),
        out=str(folder / "student"),
        recipe="reverse-distillation",
        compute=FP32,
        settings=DistillSettings(),
        options={"epochs": 6, "batch_size": 4},
        show_progress=False,
    )
    run(stage, stage.out)
    return folder / "student"


@pytest.fixture(scope="module")
def tested(category, tmp_path_factory):
    return cached(f"mvtec:stripes/test={category.parent}", tmp_path_factory.mktemp("test"))


@pytest.fixture(scope="module")
def expected(tested, student, category):
    """(path, label, map, mask) of each test image, by the published code's arithmetic."""
    shards, store = tested
    root, found = zarr.open_group(store, mode="r"), []
    model, _ = load_map_student(str(student))
    maps = {name: torch.from_numpy(root[name][:][:, 0]) for name in LEVELS}
    with torch.no_grad():
        outputs = model.outputs(maps)
    manifest = ShardSet.open(str(shards)).manifest()
    entries = [entry for shard in range(2) for entry in manifest.shard(shard)]
    for row, entry in enumerate(entries):
        total = np.zeros((SIZE, SIZE), np.float32)
        for name in LEVELS:
            level = (1 - F.cosine_similarity(maps[name][row : row + 1], outputs[name][row : row + 1]))[:, None]
            total += F.interpolate(level, SIZE, mode="bilinear", align_corners=True)[0, 0].numpy()
        mask_file = category / "ground_truth" / entry.path.replace(".png", "_mask.png")
        mask = None
        if mask_file.exists():
            small = Image.open(mask_file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            mask = np.asarray(small)[..., 0] > 127
        found.append((entry.path, entry.label, ndimage.gaussian_filter(total, sigma=4), mask))
    return found


def planned(tested, student, out, **settings):
    shards, store = tested
    return plan_anomalies(
        str(shards), str(store), str(student), out=str(out), compute=FP32, settings=AnomalySettings(**settings)
    )


@pytest.fixture(scope="module")
def done(tested, student, category, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "anomalies"
    masks = f"mvtec:stripes/test={category.parent}"
    stage = planned(tested, student, out, masks=masks)
    run(stage, stage.out)
    return out, finish_anomalies(stage, AnomalySettings(masks=masks, pictures=8))


def test_maps_and_scores_are_those_of_the_published_code(done, expected):
    out, _ = done
    found = np.concatenate([ShardMaps.read(Location.of(str(out)), shard).maps_NYX for shard in range(2)])
    assert np.allclose(found, np.stack([map_ for _, _, map_, _ in expected]), atol=2e-3)
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"]) for row in rows] == [(path, label) for path, label, _, _ in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([m.max() for _, _, m, _ in expected], abs=1e-4)


def test_figures_are_scikit_learns(done, expected):
    _, facts = done
    defect = [label != "good" for _, label, _, _ in expected]
    scores = [map_.max() for _, _, map_, _ in expected]
    assert facts["image_auroc"] == pytest.approx(metrics.roc_auc_score(defect, scores))
    known = [(map_, mask) for _, label, map_, mask in expected if label == "good" or mask is not None]
    truth = np.concatenate([(np.zeros((SIZE, SIZE), bool) if m is None else m).ravel() for _, m in known])
    values = np.concatenate([map_.ravel() for map_, _ in known])
    assert facts["pixel_auroc"] == pytest.approx(metrics.roc_auc_score(truth, values), abs=1e-4)
    assert (facts["images"], facts["with_defects"], facts["defects_without_mask"], facts["regions"]) == (8, 4, 1, 3)
    holes = [(s, label) for s, (_, label, _, _) in zip(scores, expected, strict=True) if label != "spot"]
    by_hole = facts["by_defect"]["hole"]["image_auroc"]
    assert by_hole == pytest.approx(
        metrics.roc_auc_score([label == "hole" for _, label in holes], [s for s, _ in holes])
    )


def test_pictures_show_the_highest_scores(done, expected):
    out, _ = done
    names = sorted(file.name for file in (out / "pictures").iterdir())
    best = sorted(expected, key=lambda found: -found[2].max())[:8]
    assert names == [
        f"{rank:04d}-{path.replace('/', '-').removesuffix('.png')}.png" for rank, (path, *_) in enumerate(best, 1)
    ]
    for name, (_, label, _, mask) in zip(names, best, strict=True):
        picture = np.asarray(Image.open(out / "pictures" / name))
        assert picture.shape == (SIZE, 3 * SIZE + 2 * GAP, 3)
        assert (picture[:, SIZE : SIZE + GAP] == 255).all()
        wanted = np.full((SIZE, SIZE), 0 if label == "good" else 128) if mask is None else np.where(mask, 255, 0)
        assert np.array_equal(picture[:, 2 * (SIZE + GAP) :, 1], wanted), label
    assert {label for _, label, _, _ in best} > {"spot"}, "one without a mask is among them"
    colours = heat(np.array([[0.0, 1.0, 3.0]]), 1.0, 3.0)
    assert colours.tolist() == [[[0, 0, 96], [0, 0, 96], [224, 0, 0]]]


def test_a_run_that_was_begun_is_finished_with_the_same_bytes(done, tested, student, category, tmp_path):
    first, facts = done
    copy, masks = tmp_path / "copy", f"mvtec:stripes/test={category.parent}"
    shutil.copytree(first, copy)
    (copy / ".teachonce/anomalies/shard-000001.json").unlink(missing_ok=True)
    for lost in (*copy.rglob("*000001*.json"), *copy.rglob("000001.safetensors"), copy / "results.json"):
        lost.unlink()
    stage = planned(tested, student, copy, masks=masks)
    run(stage, stage.out)
    assert finish_anomalies(stage, AnomalySettings(masks=masks, pictures=8)) == facts
    for name in ("maps/000000.safetensors", "maps/000001.safetensors", "scores.csv", "results.json"):
        assert (copy / name).read_bytes() == (first / name).read_bytes()


def test_without_masks_images_are_told_apart_by_labels_alone(tested, student, done, tmp_path):
    shards, store = tested
    words = ["anomalies", str(shards), str(store), str(student), "--out", str(tmp_path / "out"), "--pictures", "0"]
    words += ["--executor", "serial"]
    ended = CliRunner().invoke(main, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)["results"]
    assert found["image_auroc"] == pytest.approx(done[1]["image_auroc"])
    assert (found["pixel_auroc"], found["aupro"], found["regions"]) == (None, None, 0)
    assert not (tmp_path / "out/pictures").exists()
    shown = CliRunner().invoke(main, words)
    assert "AUROC of images" in shown.stdout
    assert "hole" in shown.stdout


def test_masks_of_a_folder(tested, student, category, done, tmp_path):
    stage = planned(tested, student, tmp_path / "out", masks=str(category / "ground_truth"))
    run(stage, stage.out)
    assert finish_anomalies(stage, AnomalySettings(pictures=0)) == done[1]


def test_what_is_refused(tested, student, category, tmp_path):
    shards, store = tested
    for masks, expected in (
        (str(tmp_path / "none"), f"no such folder of masks: --masks {tmp_path / 'none'}"),
        (f"tilda:c1r1/test={category}", "no image of TILDA's here"),
    ):
        with pytest.raises(InputError) as error:
            planned(tested, student, tmp_path / "a", masks=masks)
        assert str(error.value).startswith(expected)
    with pytest.raises(InputError) as refused:
        plan_anomalies(str(store), str(shards), str(student), out=str(tmp_path / "b"), compute=FP32)
    assert "teachonce anomalies" in str(refused.value)


@pytest.mark.parametrize(
    ("teacher", "levels", "expected"),
    [
        (
            TeacherConfig(model="timm:test_resnet", pretrained="random", size=128, crop_mode="squash", crop_pct=1.0),
            LEVELS,
            "the student was made for maps of other shapes: ",
        ),
        (TEACHER, LEVELS[:2], "the student was made for maps of other shapes: "),
        (
            TeacherConfig(model="timm:test_resnet", pretrained="random", size=SIZE, crop_pct=1.0),
            LEVELS,
            "these maps are another teacher's than those that the student learned from: ",
        ),
    ],
)
def test_maps_that_the_student_does_not_know(category, student, tmp_path, teacher, levels, expected):
    tested = cached(str(category / "test/spot"), tmp_path, teacher, levels)
    with pytest.raises(MismatchError) as error:
        planned(tested, student, tmp_path / "out")
    assert str(error.value).startswith(expected)
    if levels != LEVELS:
        assert "features.layer3: expected" in str(error.value)
        assert "found no such target" in str(error.value)

"""Data sets of defects in their own layouts: which images are learned from and tested on, their labels and masks, what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora.defects.spelled import LAYOUTS, open_defects
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.corpora.spelling import DEFECT_PREFIXES, is_dataset
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.errors import InputError


def picture(path, size=(32, 32), value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    array = (rng.integers(0, 40, (size[1], size[0])) + value).astype(np.uint8)
    Image.fromarray(array).save(path)


def mask(path, size, box):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((size[1], size[0]), np.uint8)
    left, top, right, bottom = box
    array[top:bottom, left:right] = 255
    Image.fromarray(array).save(path)


def found(source):
    return {file.path: file.label for file in source.walk() if file.is_image}


def test_every_spelling_is_known():
    assert {f"{name}:" for name in LAYOUTS} == set(DEFECT_PREFIXES)
    assert all(is_dataset(f"{name}:a/train=b") for name in LAYOUTS)


@pytest.fixture
def mvtec(tmp_path):
    for number in range(3):
        picture(tmp_path / f"carpet/train/good/{number:03d}.png")
    picture(tmp_path / "carpet/test/good/000.png")
    picture(tmp_path / "carpet/test/hole/000.png")
    mask(tmp_path / "carpet/ground_truth/hole/000_mask.png", (32, 32), (4, 4, 8, 9))
    return tmp_path


def test_mvtec(mvtec):
    assert found(open_defects(f"mvtec:carpet/train={mvtec}")) == {f"good/{n:03d}.png": "good" for n in range(3)}
    test = open_defects(f"mvtec:carpet/test={mvtec}")
    assert found(test) == {"good/000.png": "good", "hole/000.png": "hole"}
    assert (test.name, test.mask("good/000.png")) == ("carpet-test", None)
    data = test.mask("hole/000.png")
    assert data is not None
    assert np.asarray(Image.open(io.BytesIO(data))).sum() == 255 * 20


@pytest.fixture
def aitex(tmp_path):
    """Strips of four tiles; the second fabric has no strip to test on but those with defects."""
    for number in range(6):
        picture(tmp_path / f"NODefect_images/2306881-210020u/{number:04d}_000_00.png", (128, 32))
    picture(tmp_path / "NODefect_images/2306894-210033u/0100_000_01.png", (128, 32))
    for name in ("0007_002_00", "0008_019_00", "0009_025_00", "0010_006_01"):
        picture(tmp_path / f"Defect_images/{name}.png", (128, 32))
    mask(tmp_path / "Mask_images/0007_002_00_mask.png", (128, 32), (30, 2, 40, 9))
    mask(tmp_path / "Mask_images/0008_019_00_mask1.png", (128, 32), (0, 0, 4, 4))
    mask(tmp_path / "Mask_images/0008_019_00_mask2.png", (128, 32), (100, 0, 104, 4))
    mask(tmp_path / "Mask_images/0010_006_01_mask.png", (128, 32), (64, 0, 96, 32))
    return tmp_path


def test_aitex(aitex):
    train = found(open_defects(f"aitex:00/train={aitex}"))
    strips = {path.rpartition("/")[0] for path in train}
    assert strips == {f"NODefect_images/2306881-210020u/{number:04d}_000_00" for number in (0, 1, 2, 3, 5)}
    assert set(train.values()) == {"good"}
    assert len(train) == 20
    source = open_defects(f"aitex:00/test={aitex}")
    test = found(source)
    assert list(test) == sorted(test)
    assert {path: label for path, label in test.items() if label != "good"} == {
        "Defect_images/0007_002_00/00.png": "002",
        "Defect_images/0007_002_00/01.png": "002",
        "Defect_images/0008_019_00/00.png": "019",
        "Defect_images/0008_019_00/03.png": "019",
    }
    assert len(test) == 4 + 8
    left_out = [(file.path, file.left_out) for file in source.walk() if not file.is_image]
    assert left_out == [("Defect_images/0009_025_00.png", "a strip with a defect and without a mask")]
    tile = Image.open(io.BytesIO(source.read("Defect_images/0007_002_00/01.png", -1, -1)))
    strip = Image.open(aitex / "Defect_images/0007_002_00.png").convert("RGB")
    assert np.array_equal(np.asarray(tile), np.asarray(strip)[:, 32:64])
    data = source.mask("Defect_images/0007_002_00/01.png")
    assert data is not None
    assert np.argwhere(np.asarray(Image.open(io.BytesIO(data)))).max(0).tolist() == [8, 7]
    assert source.mask("Defect_images/0007_002_00/02.png") is None
    assert source.mask("NODefect_images/2306881-210020u/0004_000_00/02.png") is None
    assert len(found(open_defects(f"aitex:all/test={aitex}"))) == 12 + 4


@pytest.mark.parametrize("spelled", ["c1r1/C1R1E{}N{}.tif", "c1r1e{}/n{}.png", "c1/r1/e{}/n{}.png", "c1r1/e{}_n{}.png"])
def test_tilda(tmp_path, spelled):
    for number in range(1, 11):
        picture(tmp_path / spelled.format(0, number))
    picture(tmp_path / spelled.format(3, 1))
    picture(tmp_path / "c2r2/c2r2e0n1.png")
    picture(tmp_path / "readme.png")
    train, test = (open_defects(f"tilda:c1r1/{split}={tmp_path}") for split in ("train", "test"))
    assert len(found(train)) == 8
    expected = {spelled.format(0, number): "good" for number in (5, 10)} | {spelled.format(3, 1): "e3"}
    assert found(test) == expected
    assert not test.has_masks
    assert [file.left_out for file in test.walk() if not file.is_image] == ["a name that does not say cCrReEnN"]
    assert len(found(open_defects(f"tilda:all/train={tmp_path}"))) == 9


@pytest.mark.parametrize("spelling", ["aitex:00/test={}", "aitex:all/train={}"])
def test_shards_of_tiles(aitex, tmp_path_factory, spelling):
    """Tiles are images like others: with rows, labels and bytes that are read back."""
    out = tmp_path_factory.mktemp("shards") / "s"
    stage = plan_shard([spelling.format(aitex)], out=str(out), settings=ShardSettings(shard_size=5))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    shards = ShardSet.open(str(out))
    entries = [entry for shard in range(shards.corpus.num_shards) for entry in shards.manifest().shard(shard)]
    assert {entry.path: entry.label for entry in entries} == found(open_defects(spelling.format(aitex)))
    tile = Image.open(io.BytesIO(shards.reader(0).read(0)))
    assert tile.size == (32, 32)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (
            "mvtec:carpet={}",
            "not the name of a split of a data set of defects: mvtec:carpet={}: expected mvtec:PART/train",
        ),
        ("mvtec:carpet/val={}", "not the name of a split of a data set of defects"),
        ("aitex:/train={}", "not the name of a split of a data set of defects"),
        (
            "mvtec:wood/train={}",
            "not a category in MVTec AD's layout: {}/wood: expected {}/wood/train/good, found nothing",
        ),
        ("aitex:00/train={}", "not AITEX's layout, or no such fabric: {}: expected NODefect_images, found carpet"),
        ("tilda:c1r1/train={}", "no image of TILDA's here: {}: expected files such as c1r1e0n1.tif, found carpet"),
        ("tilda:c1r1/train={}/none", "no such folder: {}/none"),
    ],
)
def test_what_is_refused(mvtec, spelling, expected):
    with pytest.raises(InputError) as error:
        open_defects(spelling.format(mvtec))
    assert str(error.value).startswith(expected.replace("{}", str(mvtec)))

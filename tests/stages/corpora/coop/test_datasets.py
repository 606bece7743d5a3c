"""The data sets of CoOp and PromptKD in their layouts: images, labels, classes, splits, and shards of them."""

from __future__ import annotations

import pytest
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora.coop.layouts import LAYOUTS
from teachonce.stages.corpora.coop.source import dataset_classes
from teachonce.stages.corpora.images import BadImage, decode
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.inputs.classes import read_classes
from teachonce.stages.inputs.image_set import open_images
from teachonce.stages.inputs.sources import open_sources
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.samples import sample_key

PER_CLASS = {"train": 3, "val": 1, "test": 2}
NAMES = tuple(LAYOUTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("coop")


@pytest.fixture(scope="module")
def built(miniature, data):
    """The miniature of each data set, all of them below `data`."""
    return {name: miniature.build(data, name, per_class=PER_CLASS) for name in miniature.NAMES}


def test_all_fifteen_are_known(miniature):
    assert miniature.NAMES == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_split_is_walked_in_bytewise_order_with_labels_and_places(built, data, name):
    known = built[name]
    for split, images in known.images.items():
        (source,) = open_sources([f"coop:{name}/{split}={data}"])
        assert source.name == f"{name}-{split}"
        found = [f for f in source.walk() if f.is_image]
        assert len(found) == PER_CLASS[split] * len(known.classes)
        assert [(f.path, f.label) for f in found] == sorted(images, key=lambda i: i[0].encode())
        places = [images.index((f.path, f.label)) if known.ordered else -1 for f in found]
        assert [f.place for f in found] == places
        for f in found:
            data_read = source.read(f.path, f.offset, f.size)
            assert len(data_read) == f.size
            assert data_read == (known.folder / f.path).read_bytes()
            decode(data_read)


@pytest.mark.parametrize("name", NAMES)
def test_class_names_come_in_the_order_of_the_label_ids(built, data, name):
    known = built[name]
    assert read_classes(f"coop:{name}={data}") == known.classes
    assert read_classes(f"coop:{name}/test={data}") == known.classes
    assert {label for images in known.images.values() for _, label in images} == set(known.classes)


@pytest.mark.parametrize("name", NAMES)
def test_shards_carry_paths_and_class_names(built, data, name, tmp_path):
    known = built[name]
    stage = plan_shard([f"coop:{name}/test={data}"], out=str(tmp_path / "out"), settings=ShardSettings(shard_size=4))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    shards = ShardSet.open(str(tmp_path / "out"))
    assert shards.corpus.name == f"{name}-test"
    pictures = list(open_images(str(tmp_path / "out")).pictures())
    assert sorted((p.path, p.label) for p in pictures) == sorted(known.images["test"])
    assert {p.place for p in pictures} == {-1}
    for picture in pictures:
        decode(picture.read())
    # The same images, not in shards: the same keys.
    direct = list(open_images(f"coop:{name}/test={data}").pictures())
    assert {p.path: p.key for p in direct} == {p.path: p.key for p in pictures}


def test_an_image_set_knows_places_and_takes_a_name(built, data):
    images = built["oxford_pets"].images["val"]
    image_set = open_images(f"coop:oxford_pets/val={data}")
    assert image_set.name == "oxford_pets-val"
    assert {p.place: (p.path, p.label) for p in image_set.pictures()} == dict(enumerate(images))
    named = open_images(f"mine=coop:oxford_pets/val={data}")
    assert next(named.pictures()).key == sample_key("mine", next(image_set.pictures()).path)
    renamed = open_images(f"coop:oxford_pets/val={data}", name="other")
    assert renamed.name == "other"


def test_the_root_of_data_sets_may_be_a_folder_of_shards_too(built, data, miniature, tmp_path):
    # A corpus.json beside the data sets makes no shards of them.
    miniature.build(tmp_path, "dtd", per_class={"test": 1})
    (tmp_path / "corpus.json").write_text("{}")
    assert len(list(open_images(f"coop:dtd/test={tmp_path}").pictures())) == 3


def test_splits_are_sources_among_others(built, data, tmp_path):
    (tmp_path / "more").mkdir()
    sources = open_sources(
        [
            f"coop:dtd/test={data}",
            str(tmp_path / "more"),
            f"coop:dtd/train={data}",
            f"val=coop:dtd/val={data}",
        ]
    )
    assert [s.name for s in sources] == ["dtd-test", "dtd-train", "more", "val"]


def test_a_listed_image_that_is_not_there_keeps_its_row(miniature, tmp_path):
    known = miniature.build(tmp_path, "food101", per_class={"test": 2})
    gone = sorted(known.images["test"])[1][0]
    (known.folder / gone).unlink()
    pictures = list(open_images(f"coop:food101/test={tmp_path}").pictures())
    assert [p.path for p in pictures] == sorted(path for path, _ in known.images["test"])
    with pytest.raises(BadImage, match="^cannot be read: No such file or directory$"):
        pictures[1].read()
    stage = plan_shard(
        [f"coop:food101/test={tmp_path}"], out=str(tmp_path / "out"), settings=ShardSettings(shard_size=4)
    )
    summary = run_stage(stage, stage.out, SerialExecutor(), progress=False)
    assert (summary.rows, summary.invalid_rows) == (6, 1)
    shards = ShardSet.open(str(tmp_path / "out"))
    invalid = {bad.path: bad.reason for shard in range(2) for bad in shards.receipt(shard).invalid_rows}
    assert invalid == {gone: "cannot be read: No such file or directory"}


def test_a_path_below_a_file_is_an_image_that_cannot_be_read(miniature, tmp_path):
    known = miniature.build(tmp_path, "dtd", per_class={"train": 1, "test": 1})
    path = known.folder / "split_zhou_DescribableTextures.json"
    path.write_text(path.read_text().replace("banded/banded_0001.jpg", "blotchy/blotchy_0002.jpg/x.jpg"))
    pictures = list(open_images(f"coop:dtd/train={tmp_path}").pictures())
    with pytest.raises(BadImage, match="^cannot be read: Not a directory$"):
        pictures[1].read()


def test_imagenets_double_names_are_told_apart_and_readme_is_no_image(miniature, tmp_path):
    for name in ("imagenet", "imagenetv2", "imagenet_sketch"):
        known = miniature.build(tmp_path, name, classes=("missile", "sunglasses"), per_class={"test": 1})
        text = (known.folder / "classnames.txt").read_text().replace("sunglasses", "missile")
        (known.folder / "classnames.txt").write_text(text)
        assert dataset_classes(f"coop:{name}={tmp_path}") == ("missile (0)", "missile (1)")
        labels = [p.label for p in open_images(f"coop:{name}/test={tmp_path}").pictures()]
        assert labels == ["missile (0)", "missile (1)"]
    known = miniature.build(tmp_path, "imagenet_r", classes=("missile",), per_class={"test": 1})
    text = (known.folder / "classnames.txt").read_text().replace("toilet tissue", "missile")
    (known.folder / "classnames.txt").write_text(text)
    # The other class of that name has no images in this variant.
    assert dataset_classes(f"coop:imagenet_r={tmp_path}") == ("missile",)
    (source,) = open_sources([f"coop:imagenet_r/test={tmp_path}"])
    assert [(f.path, f.label) for f in source.walk() if not f.is_image] == [("imagenet-r/README.txt", None)]


def test_classes_of_imagenet_need_no_images(miniature, tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n\n")
    assert read_classes(f"coop:imagenet={tmp_path}") == ("tench", "goldfish")

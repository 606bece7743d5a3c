"""The pixel sample: which views it holds, that other pixels are noticed, and what is said of them."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from teachonce.stages.corpora.images import decode
from teachonce.stages.pairs.join import check_pixels, open_pair
from teachonce.stages.samples import images
from teachonce.stages.samples.pixel_sample import PixelSample
from teachonce.stages.views.spec import INTERPOLATIONS, ViewSpec
from teachonce.stages.views.versions import pixel_versions, versions_text
from teachonce.storage_schemas.errors import DamagedError, MismatchError

SPEC = ViewSpec(kind="random_resized_crop", count=3, seed=5, jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.2)


def take(shards, spec=SPEC, size=20) -> PixelSample:
    return PixelSample.take(shards, spec, size)


@pytest.fixture(scope="module")
def sample(picture_shards) -> PixelSample:
    return take(picture_shards)


@pytest.fixture(scope="module")
def sampled_store(picture_shards, sample, make_store, tmp_path_factory):
    """A finished store that records the sample."""
    out = tmp_path_factory.mktemp("sampled") / "s.zarr"
    return make_store(picture_shards, out, views=SPEC, description={"pixels": sample.to_json()})


@pytest.fixture
def other_filter(monkeypatch):
    """A resampler that changed between two versions."""
    monkeypatch.setitem(INTERPOLATIONS, "bicubic", Image.Resampling.HAMMING)


@pytest.fixture
def other_decoder(monkeypatch):
    """A JPEG decoder that rounds otherwise between two versions: one step, in red, everywhere."""

    def other(data, max_pixels):
        image = decode(data, max_pixels)
        if data[:2] == b"\xff\xd8":
            red, green, blue = image.split()
            image = Image.merge("RGB", (red.point([*range(1, 256), 255]), green, blue))
        return image

    monkeypatch.setattr(images, "decode", other)


@pytest.fixture
def other_pillow(monkeypatch):
    """What this machine says of its versions."""
    here = {**pixel_versions(), "Pillow": "99.0.1", "libjpeg_turbo": "9.9.9"}
    monkeypatch.setattr(images, "pixel_versions", lambda: here)


def test_the_digests_are_those_of_torchvision(picture_shards, pictures, sample, by_torchvision):
    """16 rows, evenly spaced, and 8 views of each."""
    entries = list(picture_shards.manifest())
    unusable = {i for i, entry in enumerate(entries) if entry.path.endswith("b.jpg")}
    expected = [3 * i if 3 * i not in unusable else 3 * i + 1 for i in range(16)]
    assert len(unusable) == 2
    assert sample.rows == tuple(expected)
    for row, digests in zip(sample.rows, sample.digests, strict=True):
        image = Image.open(pictures / entries[row].path).convert("RGB")
        views = replace(SPEC, count=8).params(entries[row].key, *image.size)
        assert np.array_equal(views[:3], SPEC.params(entries[row].key, *image.size))  # the first three are stored
        rendered = [by_torchvision(image, view, 20, SPEC.jitter) for view in views]
        assert tuple(hashlib.blake2b(r.tobytes(), digest_size=8).hexdigest() for r in rendered) == digests


def test_the_same_machine_finds_no_difference(picture_shards, sample):
    assert take(picture_shards) == sample
    assert sample.differences(picture_shards, SPEC) == []
    again = PixelSample.from_json(sample.to_json())
    assert again == sample
    assert again.digest == sample.digest
    assert [len(views) for views in take(picture_shards, ViewSpec()).digests] == [1] * 16  # the centre
    assert len({take(picture_shards, SPEC, 21).digest, take(picture_shards, ViewSpec()).digest, sample.digest}) == 3


def write(folder, count, *, broken):
    folder.mkdir()
    for i in range(count):
        data = io.BytesIO()
        Image.effect_noise((30, 20 + i), 50).convert("RGB").save(data, "PNG")
        whole = data.getvalue()
        # Broken in the middle of its pixels: only who decodes them finds out.
        cut = whole[:60] + bytes(40) + whole[100:] if i in broken else whole
        (folder / f"{i:02d}.png").write_bytes(cut)


@pytest.mark.parametrize(
    ("count", "broken", "rows"),
    [
        (5, {2}, (0, 1, 3, 4)),
        (40, {*range(40)} - {1, 2, 3}, (1, 2, 3)),
        (20, {0, 19}, (1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 4)),
        (3, {0, 1, 2}, ()),
    ],
)
def test_unusable_rows_are_passed_over_and_usable_ones_found(count, broken, rows, make_shards, tmp_path):
    write(tmp_path / "images", count, broken=broken)
    shards = make_shards(tmp_path / "images", tmp_path / "shards", shard_size=7)
    sample = take(shards)
    assert sorted(sample.rows) == sorted(rows)
    assert [len(views) for views in sample.digests] == [8] * len(rows)
    sample.check(shards, SPEC, where="here", hint="")


def test_large_images_take_no_longer(make_shards, tmp_path):
    """Views of an image count its pixels each time: 4 million in all, but one view at least."""
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(700, 700), (1000, 1000), (2100, 2000), (800, 400)]):
        Image.new("RGB", size, (index, 90, 30)).save(tmp_path / "images" / f"{index}.jpg")
    shards = make_shards(tmp_path / "images", tmp_path / "shards")
    sample = take(shards)
    assert [len(views) for views in sample.digests] == [8, 4, 1, 8]
    assert sample.num_views == 21
    assert sample.differences(shards, SPEC) == []


def test_a_changed_resampler_is_named(sampled_store, sample, picture_shards, other_filter, other_pillow):
    facts = open_pair(picture_shards, sampled_store.location)[1]
    with pytest.raises(MismatchError) as caught:
        check_pixels(picture_shards, facts)
    there, here = sample.versions, images.pixel_versions()
    found = sample.differences(picture_shards, SPEC)
    assert len(found) == 128
    assert caught.value.fields == {
        "code": "pixels-differ-here",
        "where": f"{sampled_store.location}, row 0, view 0 (and 127 more of 128 views)",
        "expected": str(sample.digests[0][0]),
        "found": f"{found[0].found} (Pillow {there['Pillow']} there, 99.0.1 here; libjpeg_turbo {there['libjpeg_turbo']} there, 9.9.9 here)",
        "hint": f"install Pillow {there['Pillow']}, or run `teachonce cache` again into another store, or add --accept-other-pixels",
    }
    assert here["Pillow"] == "99.0.1"


def test_a_changed_decoder_is_named(sampled_store, sample, picture_shards, other_decoder):
    """One step in one channel, of the JPEG images only, by libraries that call themselves the same."""
    facts = open_pair(picture_shards, sampled_store.location)[1]
    with pytest.raises(MismatchError) as caught:
        check_pixels(picture_shards, facts)
    entries = list(picture_shards.manifest())
    jpegs = [row for row in sample.rows if entries[row].path.endswith(".jpg")]
    found = sample.differences(picture_shards, SPEC)
    assert list(dict.fromkeys(difference.row for difference in found)) == jpegs
    assert caught.value.fields == {
        "code": "pixels-differ-here",
        "where": f"{sampled_store.location}, row {jpegs[0]}, view {found[0].view} (and {len(found) - 1} more of 128 views)",
        "expected": str(found[0].expected),
        "found": f"{found[0].found} (with the same versions of all libraries)",
        "hint": "run `teachonce cache` again into another store, or add --accept-other-pixels",
    }


def test_other_pixels_may_be_accepted(sampled_store, picture_shards, other_filter, other_pillow):
    facts = open_pair(picture_shards, sampled_store.location)[1]
    there = facts.pixels.versions
    assert check_pixels(picture_shards, facts, accept_other=True) == (
        f"accepted: this machine renders other pixels than the teacher saw: {sampled_store.location}, row 0, view 0 "
        f"(and 127 more of 128 views), Pillow {there['Pillow']} there, 99.0.1 here; "
        f"libjpeg_turbo {there['libjpeg_turbo']} there, 9.9.9 here"
    )


def test_other_versions_of_the_same_pixels_are_no_matter(sampled_store, picture_shards, other_pillow):
    assert check_pixels(picture_shards, open_pair(picture_shards, sampled_store.location)[1]) == ""


def test_a_store_without_a_sample_says_so(known_store):
    facts = open_pair(known_store.shards, known_store.location)[1]
    assert check_pixels(known_store.shards, facts) == (
        f"{known_store.location} records no rendered views: whether this machine renders the same pixels is not known"
    )


def test_an_image_that_no_longer_decodes_is_a_difference(picture_shards, sample, monkeypatch):
    from teachonce.stages.corpora.images import BadImage

    def refuses(data, max_pixels):
        raise BadImage("not an image that Pillow reads")

    monkeypatch.setattr(images, "decode", refuses)
    with pytest.raises(MismatchError, match=re.escape("found no image (not an image that Pillow reads) (with the")):
        sample.check(picture_shards, SPEC, where="s", hint="")


def test_an_image_that_is_unusable_in_other_shards_of_the_corpus_is_a_difference(picture_shards, sample):
    """Shards that another machine made anew may lack images that it could not read."""
    bad = next(iter(picture_shards.reader(0).invalid))
    others = replace(sample, rows=(bad, *sample.rows[1:]))
    found = others.differences(picture_shards, SPEC)
    assert {(difference.row, difference.found) for difference in found} == {(bad, "no image (truncated image)")}


def test_a_changed_tar_is_damage_and_no_other_machine(sampled_store, picture_shards, tmp_path):
    import shutil

    from teachonce.stages.corpora.shards import ShardSet

    shutil.copytree(picture_shards.location.path, tmp_path / "shards")
    shards = ShardSet.open(str(tmp_path / "shards"))
    tar = tmp_path / "shards" / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamagedError) as error:
        check_pixels(shards, open_pair(shards, sampled_store.location)[1])
    assert error.value.code == "image-in-tar-changed"


def test_versions_name_what_decodes_and_renders():
    found = pixel_versions()
    assert {"Pillow", "numpy", "jpg", "zlib", "webp"} <= set(found)
    assert found["Pillow"] == __import__("PIL").__version__
    assert found["numpy"] == np.__version__
    assert versions_text({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "5"}) == (
        "b 2 there, 4 here; c 3 there, absent here; d absent there, 5 here"
    )


def test_hints_name_what_can_be_installed(sample, picture_shards, other_filter, monkeypatch):
    others = replace(sample, versions={**sample.versions, "numpy": "1.0", "libjpeg_turbo": "2.0"})
    with pytest.raises(MismatchError) as caught:
        others.check(picture_shards, SPEC, where="s", hint="cache again")
    assert caught.value.hint == "install numpy 1.0, or cache again"
    others = replace(sample, versions={**sample.versions, "libjpeg_turbo": "2.0"})
    with pytest.raises(MismatchError) as caught:
        others.check(picture_shards, SPEC, where="s", hint="cache again")
    assert caught.value.hint == "use a Pillow with libjpeg_turbo 2.0, or cache again"

"""Odd metadata costs no pixels, and an error that nobody foresaw costs one row."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora import images
from teachonce.stages.corpora.images import BadImage, decode, one_image, shrink
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.errors import Unreachable

#: An EXIF block with orientation 6 beside a resolution unit of an impossible type.
ODD = (
    b"Exif\0\0II*\0\x08\0\0\0"
    + struct.pack("<HHHI4sHHI4s", 2, 0x112, 3, 1, b"\6\0\0\0", 0x128, 1, 1, b"\2\0\0\0")
    + bytes(4)
)


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(10))
def test_small_and_large_photographs_are_turned_alike(orientation):
    data = jpeg(picture(99, 61), exif=oriented(orientation))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    large = turned.resize([round(side * 32 / 61) for side in turned.size], Image.Resampling.BICUBIC)
    assert shrink(data, 32) == jpeg(large)
    if 2 <= orientation <= 8:
        assert shrink(data, 61) == shrink(data, 4000) == jpeg(turned)
    else:
        assert shrink(data, 61) is data


@pytest.mark.parametrize("side", [16, 4000])
def test_odd_exif_keeps_the_photograph_and_its_orientation(side):
    data = jpeg(picture(99, 88), exif=ODD)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    plain = jpeg(picture(99, 88), exif=oriented(6))
    assert np.array_equal(pixels(shrink(data, side)), pixels(shrink(plain, side)))
    assert np.array_equal(decode(data), decode(plain))  # type: ignore[arg-type]


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 60])
def test_exif_that_cannot_be_read_turns_nothing(exif):
    data = jpeg(picture(40, 30), exif=exif)
    assert shrink(data, 30) is data
    assert np.array_equal(pixels(shrink(data, 15)), pixels(jpeg(decode(data).resize((20, 15)))))


def test_any_exception_is_one_images_misfortune():
    cases = {
        "cannot be decoded: struct.error: odd": struct.error("odd"),
        "cannot be decoded: AssertionError": AssertionError(),
        "cannot be decoded: broken data stream": OSError("broken data stream"),
        "cannot be decoded: KeyError": KeyError(),
        "its own": BadImage("its own"),
    }
    for reason, error in cases.items():
        with pytest.raises(BadImage) as caught, one_image():
            raise error
        assert str(caught.value) == reason
    with pytest.raises(KeyboardInterrupt), one_image():
        raise KeyboardInterrupt
    with pytest.raises(Unreachable) as unreachable, one_image("a.jpg"):
        raise MemoryError
    assert (unreachable.value.code, str(unreachable.value.where)) == ("image-out-of-memory", "a.jpg")


def test_an_unforeseen_exception_costs_one_row_with_its_path(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    for i in range(4):
        (tmp_path / "c" / f"{i}.jpg").write_bytes(jpeg(picture(40 + i, 30), exif=ODD))
    turn = images._turn

    def fails_once(image: Image.Image) -> object:
        if image.width == 42:
            raise AssertionError("never seen before")
        return turn(image)

    monkeypatch.setattr(images, "_turn", fails_once)
    stage = plan_shard(
        [str(tmp_path / "c")], out=str(tmp_path / "out"), settings=ShardSettings(resize=16, order="source")
    )
    summary = run_stage(stage, stage.out, SerialExecutor(), progress=False)
    assert (summary.rows, summary.invalid_rows) == (4, 1)
    (bad,) = ShardSet.open(str(tmp_path / "out")).receipt(0).invalid_rows
    assert (bad.row, bad.path, bad.reason) == (
        2,
        "2.jpg",
        "cannot be decoded: AssertionError: never seen before",
    )

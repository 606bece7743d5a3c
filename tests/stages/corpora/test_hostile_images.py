"""What a stranger's image file can do: start a program, ask for memory, change the process. It can do none of these."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from teachonce.stages.corpora.images import BadImage, decode, image_extensions, probe, shrink
from teachonce.stages.corpora.pillow_guard import FORMATS, formats, guard
from teachonce.stages.views import centering
from teachonce.stages.views.render import render_views
from teachonce.stages.views.spec import ViewSpec

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """The head of a PNG of any size: 57 bytes that ask for width x height pixels."""
    small = encoded(Image.new("1", (8, 8)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def icon(inner: bytes) -> bytes:
    """An icon whose one picture says 16x16 in the icon's list, whatever it is."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def test_postscript_by_any_name_starts_no_program(tmp_path, monkeypatch):
    log, program = tmp_path / "log", tmp_path / "gs"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # what an earlier search found
    for check in (probe, decode, lambda data: shrink(data, 4)):
        with pytest.raises(BadImage, match="^not an image that Pillow reads$"):
            check(POSTSCRIPT)
    assert not log.exists()
    with pytest.raises(OSError, match="."), Image.open(io.BytesIO(POSTSCRIPT)) as image:
        image.load()  # Pillow itself does start it
    assert log.exists()


def test_only_named_formats_are_opened():
    assert set(formats()) <= set(FORMATS)
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO"} <= set(formats())
    assert {".jpg", ".png", ".webp", ".tif", ".gif", ".bmp", ".jp2", ".ppm", ".mpo"} <= image_extensions()
    Image.init()  # what else the process has loaded changes nothing
    assert not image_extensions() & {".eps", ".ps", ".pdf", ".psd", ".wmf", ".tga", ".fits", ".icns"}
    for format_ in ("TGA", "PCX", "SGI", "EPS"):
        with pytest.raises(BadImage, match="^not an image that Pillow reads$"):
            decode(encoded(picture(20, 10), format_))
    for format_ in ("JPEG2000", "PPM", "ICO"):
        assert decode(encoded(picture(16, 16), format_)).size == (16, 16)


def test_pillows_own_limit_is_the_users():
    """It holds for their calls, also while ours are under way, and not for ours."""
    import teachonce.stages.corpora.images  # noqa: F401  # it set the limit to None

    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3
    bomb = png_of_size(20_000, 10_000)
    said = []

    def theirs() -> None:
        try:
            Image.open(io.BytesIO(bomb))
        except Image.DecompressionBombError as error:
            said.append(str(error))

    with guard(10**9):
        assert Image.open(io.BytesIO(bomb)).size == (20_000, 10_000)
        thread = threading.Thread(target=theirs)
        thread.start()
        thread.join()
    theirs()
    assert len(said) == 2
    assert all("exceeds limit of 178956970 pixels" in line for line in said)


@pytest.mark.parametrize("limit", [100, None])
def test_images_are_used_whatever_the_users_limit(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    options = {"TIFF": {"compression": "jpeg"}, "WEBP": {"lossless": True}}
    for format_ in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "JPEG2000"):
        data = encoded(picture(64, 64), format_, **options.get(format_, {}))  # type: ignore[arg-type]
        image = decode(data, 64 * 64)
        for spec in (ViewSpec(), ViewSpec(kind="random_resized_crop", count=2)):
            render_views(image, spec.params("k", *image.size), 32, spec, range(spec.count))
        with pytest.raises(BadImage, match="^too many pixels: 64x64, more than 4095$"):
            decode(data, 64 * 64 - 1)


def test_sizes_within_a_file_are_limited_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="^too many pixels: 60000x60000, more than 89478485$"):
        decode(icon(png_of_size(60_000, 60_000)))
    # The frame of a GIF may be larger than its canvas.
    gif = bytearray(encoded(Image.new("L", (8, 8)), "GIF"))
    at = gif.index(b"\x2c\0\0\0\0")
    gif[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(BadImage, match="^too many pixels: 60000x60000"):
        decode(bytes(gif))


def test_warnings_filters_are_what_they_were_after_overlapping_threads():
    before = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with guard(100):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with guard(100):
        thread.start()
        inside.wait(10)
    leave.set()
    thread.join()
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)


@pytest.mark.parametrize("size", [(3, 2000), (1, 5000), (2000, 3), (5000, 1)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_what_is_shown_of_a_thin_image_is_what_the_whole_one_would_show(size, interpolation, monkeypatch):
    image = picture(*size)
    for crop_pct in (1.0, 0.875, 1.15):
        spec = ViewSpec(crop_pct=crop_pct, interpolation=interpolation)
        views = []
        for limit in (1 << 40, 0):
            monkeypatch.setattr(centering, "MAX_RESIZED", limit)
            views.append(render_views(image, spec.params("k", *size), 64, spec, range(1)).astype(int))
        assert np.abs(views[0] - views[1]).max() <= 1


THIN = """
import io, resource, sys
import numpy as np
from PIL import Image
from teachonce.stages.corpora.images import decode
from teachonce.stages.views.render import render_views
from teachonce.stages.views.spec import ViewSpec
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for size in ((1, 8_000_000), (8_000_000, 1)):
    buffer = io.BytesIO()
    Image.new("L", size, 77).save(buffer, "PNG")
    image = decode(buffer.getvalue())
    for kind in ("center", "squash", "border"):
        spec = ViewSpec(kind=kind)
        view = render_views(image, spec.params("k", *size), 224, spec, range(1))
        assert (view[view > 0] == 77).all() and (view > 0).sum() == 3 * 224 * (1 if kind == "border" else 224), kind
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory that holds")
def test_a_view_of_eight_million_by_one_pixels_takes_little_memory():
    """Resized whole, it would have 1.8 billion pixels."""
    run = subprocess.run(
        [sys.executable, "-c", THIN],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr

"""Compares decoders of JPEG with Pillow's: pixels on every image at hand and on made ones, and speed."""

from __future__ import annotations

import ctypes.util
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))

from corpora import files
from teachonce.stages.models.compute import keep_freed_memory
from teachonce.stages.views.render import draw, fill_planes
from teachonce.stages.views.spec import ViewSpec

SIZE, SPEED_IMAGES, LARGE_IMAGES = 224, 400, 40

#: RGB uint8 (height, width, 3) of a JPEG.
Decode = Callable[[bytes], np.ndarray]


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as file:
        return np.asarray(file.convert("RGB"))


def pillow_draft(data: bytes) -> np.ndarray:
    """At the smallest of 1/1, 1/2, 1/4, 1/8 that is not smaller than a view: the shorter side stays at least SIZE."""
    with Image.open(io.BytesIO(data)) as file:
        shorter = min(file.size)
        wanted = (SIZE * file.width // shorter, SIZE * file.height // shorter)
        file.draft("RGB", wanted)
        return np.asarray(file.convert("RGB"))


def _simplejpeg() -> tuple[Decode, str]:
    import simplejpeg

    return (lambda data: simplejpeg.decode_jpeg(data, "RGB")), _version("simplejpeg")


def _simplejpeg_fast() -> tuple[Decode, str]:
    import simplejpeg

    return (lambda data: simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True)), _version("simplejpeg")


def _turbojpeg() -> tuple[Decode, str]:
    from turbojpeg import TJPF_RGB, TurboJPEG

    decoder = TurboJPEG()
    library = ctypes.util.find_library("turbojpeg")
    return (lambda data: decoder.decode(data, pixel_format=TJPF_RGB)), f"{_version('PyTurboJPEG')} with {library}"


def _turbojpeg_half() -> tuple[Decode, str]:
    """At half scale where the shorter side stays at least SIZE."""
    from turbojpeg import TJPF_RGB, TurboJPEG

    decoder = TurboJPEG()

    def decode(data: bytes) -> np.ndarray:
        width, height, *_ = decoder.decode_header(data)
        factor = next((f for f in ((1, 8), (1, 4), (1, 2)) if min(width, height) * f[0] // f[1] >= SIZE), None)
        return decoder.decode(data, pixel_format=TJPF_RGB, scaling_factor=factor)

    return decode, _version("PyTurboJPEG")


def _imagecodecs() -> tuple[Decode, str]:
    import imagecodecs

    text = f"{_version('imagecodecs')} with {imagecodecs.jpeg8_version()}"
    return (lambda data: imagecodecs.jpeg8_decode(data, outcolorspace="RGB")), text


def _opencv() -> tuple[Decode, str]:
    import cv2

    cv2.setNumThreads(1)

    def decode(data: bytes) -> np.ndarray:
        # Pillow leaves the EXIF orientation to its caller, and so must this.
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        assert found is not None, "cannot decode"
        return found

    return decode, _version("opencv-python-headless")


def _torchvision() -> tuple[Decode, str]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)

    def decode(data: bytes) -> np.ndarray:
        found = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return found.permute(1, 2, 0).numpy()

    return decode, _version("torchvision")


def _nvjpeg() -> tuple[Decode, str]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    assert torch.cuda.is_available(), "needs CUDA, which is not here"

    def decode(data: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda").permute(1, 2, 0).cpu().numpy()

    return decode, _version("torchvision")


#: Each makes its decoder, or fails where it is not to be had.
DECODERS: dict[str, Callable[[], tuple[Decode, str]]] = {
    "simplejpeg": _simplejpeg,
    "simplejpeg, fast DCT and upsampling": _simplejpeg_fast,
    "PyTurboJPEG": _turbojpeg,
    "imagecodecs": _imagecodecs,
    "OpenCV": _opencv,
    "torchvision": _torchvision,
    "nvJPEG by torchvision": _nvjpeg,
    "Pillow with draft": lambda: (pillow_draft, PIL.__version__),
    "PyTurboJPEG at reduced scale": _turbojpeg_half,
}


def made() -> Iterator[tuple[str, bytes]]:
    """JPEGs of every kind that Pillow writes, of one noisy picture with odd sides."""
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (24, 32, 3), np.uint8))
    picture = coarse.resize((643, 481), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right
    for name, image, options in (
        ("4:4:4", picture, {"subsampling": 0}),
        ("4:2:2", picture, {"subsampling": 1}),
        ("4:2:0", picture, {"subsampling": 2}),
        ("grayscale", picture.convert("L"), {}),
        ("CMYK", picture.convert("CMYK"), {}),
        ("progressive", picture, {"progressive": True}),
        ("EXIF orientation", picture, {"exif": exif}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, **options)
        yield name, buffer.getvalue()


class Difference:
    """How far pixels are from Pillow's, over some images."""

    def __init__(self) -> None:
        self.images = self.differ = self.largest = 0
        self.means: list[float] = []
        self.psnr, self.failed = float("inf"), ""

    def add(self, decode: Decode, data: bytes) -> None:
        self.images += 1
        expected = pillow(data)
        try:
            found = decode(data)
        except Exception as error:
            self.differ += 1
            self.failed = f"{type(error).__name__}: {error}"[:60]
            return
        if found.shape != expected.shape:
            # Reduced scale: what a view made of the whole image would show.
            size = (found.shape[1], found.shape[0])
            expected = np.asarray(Image.fromarray(expected).resize(size, Image.Resampling.BICUBIC))
        elif np.array_equal(found, expected):
            return
        self.differ += 1
        apart = np.abs(found.astype(np.int16) - expected)
        self.largest = max(self.largest, int(apart.max()))
        self.means.append(float(apart.mean()))
        self.psnr = min(self.psnr, 10 * np.log10(255**2 / max(1e-9, float((apart.astype(np.float64) ** 2).mean()))))

    def to_json(self) -> dict:
        mean = float(np.mean(self.means)) if self.means else 0.0
        return {"images": self.images, "differ": self.differ, "mean": mean, "largest": self.largest} | {
            "psnr": self.psnr if self.means else 0.0,
            "failed": self.failed,
        }


def whole_view(decode: Decode | None, data: bytes, key: str, out: np.ndarray) -> None:
    """Decode, draw one random view as `cache` and `distill` do, planes first."""
    if decode is None:
        with Image.open(io.BytesIO(data)) as file:
            image = file.convert("RGB")
    else:
        image = Image.fromarray(decode(data))
    fill_planes(out, draw(image, SPEC.params(key, *image.size)[0], SIZE, SPEC))


SPEC = ViewSpec(kind="random_resized_crop", count=1)


def decode_all(decode: Decode, images: list[bytes]) -> None:
    for data in images:
        decode(data)


def views_of_all(decode: Decode | None, images: list[bytes]) -> None:
    out = np.empty((3, SIZE, SIZE), np.uint8)
    for number, data in enumerate(images):
        whole_view(decode, data, f"{number:032d}", out)


def enlarged(images: list[bytes]) -> list[bytes]:
    """Some of the images at 4 times their sides, as large as a camera's: only these can be decoded at reduced scale."""
    found = []
    for data in images[:LARGE_IMAGES]:
        image = Image.fromarray(pillow(data))
        buffer = io.BytesIO()
        image.resize((4 * image.width, 4 * image.height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def paired(one: Callable[[], object], other: Callable[[], object], repeats: int) -> list[float]:
    """The other's CPU time by the one's, in pairs whose order alternates, after an unmeasured turn each."""
    one(), other()
    found = []
    for turn in range(repeats):
        if turn % 2:
            theirs, mine = cpu(other), cpu(one)
        else:
            mine, theirs = cpu(one), cpu(other)
        found.append(theirs / mine)
    return found


_decode: Decode | None = None


def _start(name: str) -> None:
    global _decode
    _decode = DECODERS[name]()[0] if name else pillow


def _stretch(images: list[bytes]) -> None:
    assert _decode is not None
    decode_all(_decode, images)


def in_processes(name: str, images: list[bytes], repeats: int) -> list[float]:
    """Wall time of Pillow by this decoder's, in as many processes as cores, all started before."""
    count = os.cpu_count() or 1
    stretches = [images[i::count] for i in range(count)]
    with ProcessPoolExecutor(count, initializer=_start, initargs=("",)) as theirs:
        list(theirs.map(_stretch, stretches))
        with ProcessPoolExecutor(count, initializer=_start, initargs=(name,)) as mine:
            list(mine.map(_stretch, stretches))

            def wall(pool: ProcessPoolExecutor) -> float:
                start = time.perf_counter()
                list(pool.map(_stretch, stretches))
                return time.perf_counter() - start

            return [wall(theirs) / wall(mine) for _ in range(repeats)]


def _version(name: str) -> str:
    return f"{name} {version(name)}"


def main(given: dict) -> None:
    keep_freed_memory()  # as `cache` does: large arrays would be page faults again each time
    images = [data for path, data in files(Path(given["corpus"])) if path.lower().endswith((".jpg", ".jpeg"))]
    some = images[:: max(1, len(images) // SPEED_IMAGES)][:SPEED_IMAGES]
    large = enlarged(some)
    repeats = given["repeats"]
    found: dict = {"decoders": {}, "missing": {}, "pillow": PIL.__version__}
    for name, make in DECODERS.items():
        try:
            decode, text = make()
        except Exception as error:
            found["missing"][name] = f"{type(error).__name__}: {error}"
            continue
        print(f"decoders: {name}", file=sys.stderr, flush=True)
        on_corpus = Difference()
        for data in images:
            on_corpus.add(decode, data)
        on_made = {}
        for kind, data in made():
            difference = Difference()
            difference.add(decode, data)
            on_made[kind] = difference.to_json()
        found["decoders"][name] = {
            "version": text,
            "corpus": on_corpus.to_json(),
            "made": on_made,
            "speeds": {
                "decode": paired(lambda d=decode: decode_all(d, some), lambda: decode_all(pillow, some), repeats),
                "whole view": paired(lambda d=decode: views_of_all(d, some), lambda: views_of_all(None, some), repeats),
                "decode, 4 times the sides": paired(
                    lambda d=decode: decode_all(d, large), lambda: decode_all(pillow, large), repeats
                ),
                "whole view, 4 times the sides": paired(
                    lambda d=decode: views_of_all(d, large), lambda: views_of_all(None, large), repeats
                ),
                "decode, in as many processes as cores, wall": in_processes(name, some, repeats),
            },
        }
    whole, alone = cpu(lambda: views_of_all(None, some)), cpu(lambda: decode_all(pillow, some))
    found["decode_share"], found["pillow_rate"] = [alone / whole], [len(some) / alone]
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

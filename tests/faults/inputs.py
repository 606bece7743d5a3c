"""Faults: images and tars that are cut, lie about their sizes, or are meant to harm."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from .fault import Fault, check
from .programs import check_one_line, wait
from .room import Room, copied
from .ways import TEACHER

#: No command may take more memory, in MiB, whatever it is given.
_MOST_MB = 1500


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + data
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def _long_text() -> bytes:
    """A PNG whose comment unpacks to a gigabyte."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    content = b"Comment\0\0" + packed
    text = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return _png(16, 16, text)


def _huge_jpeg(whole: bytes) -> bytes:
    """A JPEG that says it has 65,500 × 65,500 pixels."""
    at = next(i for i in range(len(whole)) if whole[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return whole[: at + 5] + struct.pack(">HH", 65500, 65500) + whole[at + 9 :]


def _bomb() -> bytes:
    """A PNG of 20,000 × 20,000 zeros in 390 kB."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(20001)) for _ in range(20000)) + rows.flush()
    return _png(20000, 20000).replace(_idat(zlib.compress(b"\0" * 99)), _idat(packed))


def _idat(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + b"IDAT" + content + struct.pack(">I", zlib.crc32(b"IDAT" + content))


def _hostile(whole: bytes) -> dict[str, bytes]:
    return {
        "cut.jpg": whole[: len(whole) // 3],
        "empty.png": b"",
        "zeros.jpg": bytes(4096),
        "bomb.png": _bomb(),
        "huge.jpg": _huge_jpeg(whole),
        "huge.png": _png(2**31 - 1, 2**31 - 1),
        "comment.png": _long_text(),
        "script.jpg": b"#!/bin/sh\ntouch /tmp/harmed\n",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "page.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='99999999' height='99999999'/>",
        "bomb.jpg": gzip.compress(bytes(50 << 20)),
    }


def hostile_images(room: Room) -> str:
    """Beside images that are right: each is a row with a reason, or an image; in bounded memory."""
    folder = room.case("hostile")
    source = copied(room.images, folder / "images")
    kind = next(at for at in sorted(source.iterdir()) if at.is_dir())
    whole = next(one for one in sorted(kind.iterdir()) if one.stat().st_size > 1000).read_bytes()
    bad = _hostile(whole)
    for name, data in bad.items():
        (kind / f"hostile-{name}").write_bytes(data)
    before = sum(1 for one in source.rglob("*") if one.is_file())
    shard = ["shard", source, "--name", "c", "--shard-size", 16, "--out", folder / "out", "--executor", "serial"]
    cache = ["cache", folder / "out", *TEACHER, "--targets", "embedding", "--threads", 1, "--decode-workers", 0]
    largest = 0.0
    for words in (shard, [*cache, "--out", folder / "store", "--executor", "serial"]):
        process = room.cold(words)
        done = wait(process)
        check("Traceback" not in done.stderr, f"a traceback: {done.last}")
        check(done.code == 0, f"exit code {done.code}: {done.last}")
        largest = max(largest, process.largest_mb)
    check(largest < _MOST_MB, f"{largest:.0f} MiB of memory")
    listed = wait(room.cold(["retry-failed", folder / "out", folder / "store", "--list"])).stdout
    told = [name for name in bad if f"hostile-{name}" in listed]
    check(f"{before} images" in done.stderr or f"{before}/{before}" in done.stderr, f"not {before} rows: {done.last}")
    used = sorted(set(bad) - set(told))
    check(set(used) <= {"comment.png"}, f"used as images: {used}")
    return f"{len(told)} rows with a reason, {len(used)} used (its pixels are right), at most {largest:.0f} MiB"


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _outside(room: Room, image: bytes) -> bytes:
    """Members whose names lead out of any folder."""
    names = ["../../outside.jpg", "/outside.jpg", "a/../../outside2.jpg", "ok/1.jpg"]
    return _tar([(tarfile.TarInfo(name), image) for name in names])


def _lying(room: Room, image: bytes) -> bytes:
    """A header that says its member has 8 GiB less one byte."""
    data = bytearray(_tar([(tarfile.TarInfo("a/1.jpg"), image)]))
    data[124:136] = b"77777777777\0"
    data[148:156] = b"        "
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data)


def _cut(room: Room, image: bytes) -> bytes:
    """A tar that ends in the middle of its second image."""
    data = _tar([(tarfile.TarInfo(f"a/{i}.jpg"), image) for i in range(3)])
    return data[: 512 + -(-len(image) // 512) * 512 + 512 + len(image) // 2]


def _packed(room: Room, image: bytes) -> bytes:
    """A .tar.gz that unpacks to a hundred times its size."""
    return _tar([(tarfile.TarInfo("a/1.jpg"), bytes(100 << 20))], "w:gz")


def hostile_tar(room: Room, make: Callable[[Room, bytes], bytes], refused: bool) -> str:
    """Refused on one line, or its members are rows; nothing is written outside, in bounded memory."""
    folder = room.case("tars")
    image = next(one for one in sorted(room.images.rglob("*.jpg")) if one.stat().st_size > 1000).read_bytes()
    (folder / "a.tar").write_bytes(make(room, image))
    words = ["shard", folder / "a.tar", "--name", "c", "--out", folder / "deep" / "out", "--executor", "serial"]
    process = room.cold(words)
    done = wait(process)
    check(process.largest_mb < _MOST_MB, f"{process.largest_mb:.0f} MiB of memory")
    strangers = list(room.folder.rglob("outside*"))
    check(not strangers and not Path("/outside.jpg").exists(), f"written outside: {strangers}")
    if not refused:
        check(done.code == 0, f"exit code {done.code}: {done.last}")
        return f"its members are rows; nothing was written outside; {process.largest_mb:.0f} MiB"
    line = check_one_line(done)
    files = [at for at in (folder / "deep").rglob("*") if at.is_file()]
    check(not files, f"a refused tar left files: {files[:3]}")
    return f"`{line.rpartition('[')[2].partition(']')[0]}`; nothing was written; {process.largest_mb:.0f} MiB"


_TARS = (
    ("names that lead outside", _outside, False, "members named `../../x.jpg`, `/x.jpg`, `a/../../x.jpg`"),
    ("a size that is a lie", _lying, True, "a header that says 8 GiB"),
    ("cut in an image", _cut, True, "a tar cut in its second image"),
    ("packed a hundredfold", _packed, True, "a .tar.gz of 100 kB that unpacks to 100 MB"),
)

FAULTS = (
    Fault(
        name="hostile images",
        kind="Inputs",
        provoked="among photographs: cut, empty, all zeros, 20,000 × 20,000 pixels in 390 kB, sizes that are lies, a comment of 1 GiB, a script, "
        "PostScript, SVG and gzip by the name of an image",
        must="each keeps a row with its reason; the others are used; memory stays bounded; nothing is run",
        run=hostile_images,
    ),
    *(
        Fault(
            name=f"a tar: {name}",
            kind="Inputs",
            provoked=provoked,
            must="one line and exit code 1, and nothing is written"
            if refused
            else "rows like others; nothing is written outside the output",
            run=functools.partial(hostile_tar, make=make, refused=refused),
        )
        for name, make, refused, provoked in _TARS
    ),
)

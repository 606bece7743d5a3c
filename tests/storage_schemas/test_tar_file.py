"""The tars' bytes against webdataset's own writer."""

from __future__ import annotations

import hashlib
import io
import random

import pytest
import webdataset
from teachonce.storage_schemas.tar_file import TarFile, member_header


@pytest.mark.parametrize("samples", [0, 1, 3, 40])
def test_a_tar_equals_that_of_webdatasets_writer(samples):
    draw = random.Random(samples)
    expected, found = io.BytesIO(), io.BytesIO()
    writer, tar = webdataset.TarWriter(expected, mtime=0, encoder=False), TarFile(found)
    for _ in range(samples):
        key = f"{draw.getrandbits(128):032x}"
        data = draw.randbytes(draw.choice([0, 1, 511, 512, 513, 40_000, 1_500_000]))
        offset = writer.tarstream.offset + 512
        writer.write({"__key__": key, "jpg": data})
        writer.write({"__key__": key, "json": b"{}"})
        assert tar.add(f"{key}.jpg", data) == offset
        tar.add(f"{key}.json", b"{}")
    writer.close()
    tar.finish()
    assert found.getvalue() == expected.getvalue()
    assert (tar.size, tar.sha256.digest()) == (
        len(found.getvalue()),
        hashlib.sha256(found.getvalue()).digest(),
    )


@pytest.mark.parametrize(("name", "size"), [("k" * 100, 1), ("k.jpg", 8**11), ("k.jpg", -1), ("ä.jpg", 1)])
def test_what_needs_more_than_a_plain_header_is_refused(name, size):
    with pytest.raises(ValueError, match=r"no plain tar member|can't encode"):
        member_header(name, size)

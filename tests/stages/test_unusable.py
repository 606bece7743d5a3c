"""Images that cannot be used: counted by kind, told where they are many, an error where there is nothing else."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.storage_schemas.receipt import InvalidRow


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def broken(seed: int) -> bytes:
    """A PNG that ends as one, so that only decoding finds it broken."""
    data = png(seed)
    return data[:200] + bytes(200) + data[400:]


def corpus(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def teachonce(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr.splitlines()


def shard(folder, out, *options):
    return teachonce("shard", folder, "--out", out, "--order", "source", "--executor", "serial", *options)


def cache(shards, out):
    return teachonce(
        "cache",
        shards,
        "--teacher",
        "timm:test_vit",
        "--teacher-pretrained",
        "random",
        "--out",
        out,
        "--threads",
        1,
        "--executor",
        "serial",
    )


def test_a_reasons_kind_is_what_several_images_share():
    kinds = {
        "empty file": "empty file",
        "too many pixels: 60000x60000, more than 10": "too many pixels",
        "cannot be decoded: struct.error: odd: x": "cannot be decoded",
    }
    assert {reason: InvalidRow(row=0, path="a", reason=reason).kind for reason in kinds} == kinds


def test_not_one_usable_image_is_an_error_in_shard_and_cache_again_and_again(tmp_path):
    files = {f"{i}.jpg": b"" for i in range(3)} | {"x.png": b"<html>", "y.png": b"404"}
    folder, out = corpus(tmp_path / "c", files), tmp_path / "s"
    for _ in range(2):
        code, _, lines = shard(folder, out, "--shard-size", 2)
        assert (code, lines[-1]) == (
            1,
            f"Error: not one image can be used: {out}: expected at least one usable image, found 3 × empty file, "
            f"2 × not an image that Pillow reads [images-none-usable]. Next: see `teachonce status {out}`",
        )
    code, _, lines = cache(out, tmp_path / "t")
    assert (code, lines) == (
        1,
        [
            f"Error: not one image can be used: {out}: expected at least one usable image, found 5 unusable [images-none-usable]. "
            f"Next: see `teachonce status {out}`"
        ],
    )
    assert not (tmp_path / "t" / "zarr.json").exists()


def test_images_that_only_decoding_finds_broken_end_cache_in_an_error(tmp_path):
    folder, out = corpus(tmp_path / "c", {f"{i}.png": broken(i) for i in range(3)}), tmp_path / "s"
    assert shard(folder, out)[0] == 0
    for _ in range(2):
        code, _, lines = cache(out, tmp_path / "t")
        assert code == 1
        assert lines[-1] == (
            f"Error: not one image can be used: {tmp_path / 't'}: expected at least one usable image, found "
            f"3 × cannot be decoded [images-none-usable]. Next: see `teachonce status {tmp_path / 't'}`"
        )


@pytest.mark.parametrize(("good", "loud"), [(9, True), (10, False)])
def test_a_large_share_is_told_with_its_reasons_also_when_nothing_is_left_to_do(good, loud, tmp_path):
    files = {f"{i}.png": png(i) for i in range(good)} | {"bad.jpg": b""}
    folder, out = corpus(tmp_path / "c", files), tmp_path / "s"
    warning = f"Warning: 1 of {good + 1} images cannot be used: 1 × empty file. See `teachonce status {out}`."
    for _ in range(2):
        code, _, lines = shard(folder, out, "--shard-size", 3)
        assert (code, warning in lines) == (0, loud)
    told = json.loads(shard(folder, out, "--shard-size", 3, "--json")[1])
    assert (told["all_rows"], told["unusable"]) == (good + 1, {"empty file": 1})


def test_status_names_some_of_each_kind_and_all_in_json(tmp_path):
    files = {f"{i}.png": png(i) for i in range(3)} | {f"e{i}.jpg": b"" for i in range(5)}
    files |= {"large.png": png(0), "n.jpg": b"none"}
    folder, out = corpus(tmp_path / "c", files), tmp_path / "s"
    buffer = io.BytesIO()
    Image.new("L", (50, 50)).save(buffer, "PNG")
    (folder / "large.png").write_bytes(buffer.getvalue())
    assert shard(folder, out, "--max-pixels", 2000)[0] == 0
    code, text, _ = teachonce("status", out)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    at = lines.index("unusable images")
    assert code == 0
    assert lines[at + 1 : at + 10] == [
        "5 × empty file",
        "row 3 e0.jpg",
        "row 4 e1.jpg",
        "row 5 e2.jpg",
        "and 2 more (`teachonce status --json` names all)",
        "1 × not an image that Pillow reads",
        "row 9 n.jpg",
        "1 × too many pixels",
        "row 8 large.png 50x50, more than 2000",
    ]
    (stage,) = json.loads(teachonce("status", out, "--json")[1])["stages"]
    assert stage["invalid_rows"] == 7
    assert [(kind["kind"], kind["count"]) for kind in stage["unusable"]] == [
        ("empty file", 5),
        ("not an image that Pillow reads", 1),
        ("too many pixels", 1),
    ]
    assert [image["path"] for image in stage["unusable"][0]["images"]] == [f"e{i}.jpg" for i in range(5)]
    assert stage["unusable"][2]["images"] == [
        {"row": 8, "path": "large.png", "reason": "too many pixels: 50x50, more than 2000"}
    ]

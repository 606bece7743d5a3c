"""What earlier versions wrote opens, and says the same."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.prompts.folder import read_prompts
from teachonce.stages.students.bundle import load_student
from teachonce.stages.training.checkpoint import Best, Training, load_best, load_checkpoint
from teachonce.storage_schemas.fingerprint import Fingerprint

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(path.name for path in DATA.iterdir() if path.name[0].isdigit())

#: The first store and bundle of version 2 of their formats, beside the shards of 0.1.0.
MAPS = DATA / "maps"

#: A store in bf16, from when that was autocast, with its shards and its teacher.
AUTOCAST = DATA / "autocast"


@pytest.fixture(params=VERSIONS)
def old(request, tmp_path) -> Path:
    """A copy: nothing writes to the files themselves."""
    return Path(shutil.copytree(DATA / request.param, tmp_path / "old"))


@pytest.fixture
def expected(old) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((old / "expected.json").read_bytes())
    return found


def test_pairs(old):
    """Against plain tarfile and zarr."""
    images: dict[str, bytes] = {}
    for tar in sorted((old / "shards").glob("*.tar")):
        with tarfile.open(tar) as members:
            for member in members:
                if not member.name.endswith(".json"):
                    file = members.extractfile(member)
                    assert file is not None
                    images[member.name.split(".")[0]] = file.read()
    plain: Any = zarr.open_group(str(old / "store.zarr"), mode="r")
    keys = [bytes(key).decode() for key in plain["keys"][:]]
    assert (len(keys), len(images), int(plain["valid"][:].sum())) == (12, 11, 11)
    rows = []
    with TargetStream(
        str(old / "shards"),
        str(old / "store.zarr"),
        image_size=16,
        batch_size=4,
        seed=0,
        targets=["logits", "embedding"],
        drop_last=False,
        accept_other_pixels=True,
    ) as stream:
        for batch in stream.batches(0):
            for place, row in enumerate(batch.rows_N.tolist()):
                rows.append(row)
                logits = plain["logits"][row, 0].astype(np.float32) + plain["logits_max"][row, 0]
                np.testing.assert_array_equal(batch.targets["logits"][place].numpy(), logits)
                embedding = plain["embedding"][row, 0].astype(np.float32)
                np.testing.assert_array_equal(batch.targets["embedding"][place].numpy(), embedding)
                assert Image.open(io.BytesIO(images[keys[row]])).size == (
                    24 + int(_number(old, keys[row])),
                    30,
                )
        assert stream.class_vectors.names == ("Blue_Jay", "house-cat", "red fox")
    assert sorted(rows) == np.flatnonzero(plain["valid"][:]).tolist()


def _number(old: Path, key: str) -> str:
    for tar in sorted((old / "shards").glob("*.tar")):
        with tarfile.open(tar) as members:
            if f"{key}.json" in members.getnames():
                file = members.extractfile(f"{key}.json")
                assert file is not None
                return Path(json.loads(file.read())["path"]).stem
    raise KeyError(key)


def test_a_student(old, expected):
    loaded = load_student(str(old / "student"))
    images_NCHW = (torch.arange(2 * 3 * 16 * 16) * 7 % 256).to(torch.uint8).reshape(2, 3, 16, 16)
    logits_NC = loaded.vectors.logits(loaded.student(images_NCHW))
    np.testing.assert_allclose(logits_NC.numpy(), expected["logits"], rtol=1e-4, atol=1e-4)


def test_prompts(old, expected):
    loaded = read_prompts(str(old / "prompts"))
    assert {name: value.sum(-1).flatten().tolist() for name, value in loaded.prompts.items()} == {
        name: pytest.approx(values) for name, values in expected["prompts"].items()
    }


class Line(torch.nn.Linear):
    def trained(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.named_parameters())

    def changing(self) -> dict[str, torch.Tensor]:
        return dict(self.state_dict())


def test_a_checkpoint(old, expected):
    line = Line(3, 2)
    training = Training(trainee=line, optimizer=torch.optim.AdamW(line.parameters(), lr=0.5), average=None)
    run = Fingerprint(fields={"recipe": "kd", "lr": 0.5})
    reached = load_checkpoint(Location.of(old / "run"), training, run)
    assert (reached.step, reached.best) == (3, Best(epoch=1, step=2, accuracy=0.25))
    assert {name: value.tolist() for name, value in line.changing().items()} == expected["weights"]
    assert int(training.optimizer.state[line.weight]["step"]) == 2
    load_best(Location.of(old / "run"), training, reached.best)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command",
    [
        "status {old}/shards",
        "status {old}/store.zarr",
        "status {old}/student",
        "inspect {old}/store.zarr --shards {old}/shards",
        "evaluate {old}/student {old}/shards --store {old}/store.zarr --accept-other-pixels",
        "distill {old}/shards {old}/store.zarr --student timm:test_resnet --student-pretrained random --recipe kd "
        "--epochs 1 --batch-size 4 --accept-other-pixels --out {old}/new",
    ],
)
def test_commands(old, command):
    done = CliRunner().invoke(main, command.format(old=old).split())
    assert done.exit_code == 0, done.output


def test_a_store_of_maps(tmp_path):
    """Version 2 of the store: tokens and maps in chunks of a few rows, against plain zarr."""
    store = shutil.copytree(MAPS / "maps.zarr", tmp_path / "maps.zarr")
    plain: Any = zarr.open_group(str(store), mode="r")
    assert plain.attrs["teachonce"]["schema_version"] == 2
    assert plain["tokens"].chunks[0] < 5
    names, rows = ["embedding", "tokens", "features.resblocks.0"], []
    with TargetStream(
        str(DATA / "0.1.0/shards"),
        str(store),
        image_size=16,
        batch_size=4,
        targets=names,
        drop_last=False,
        accept_other_pixels=True,
    ) as stream:
        for batch in stream.batches(1):
            rows += batch.rows_N.tolist()
            for name in names:
                expected = plain[name][:, 1][batch.rows_N.numpy()].astype(np.float32)
                np.testing.assert_array_equal(batch.targets[name].numpy(), expected)
    assert sorted(rows) == np.flatnonzero(plain["valid"][:]).tolist()


def test_a_student_of_maps():
    """Version 2 of the bundle: levels, and no class vectors."""
    loaded, expected = load_student(str(MAPS / "student")), json.loads((MAPS / "expected.json").read_bytes())
    assert loaded.class_vectors is None
    images_NCHW = (torch.arange(2 * 3 * 16 * 16) * 7 % 256).to(torch.uint8).reshape(2, 3, 16, 16)
    found = loaded.student.outputs(images_NCHW)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-4, atol=1e-4)


def _stored(store: Path) -> dict[str, bytes]:
    files = (path for path in store.rglob("*") if path.is_file() and "timings" not in path.parts)
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def half_finished(tmp_path) -> Path:
    """A copy of the store that was begun in bf16, killed in its second shard of two."""
    old = Path(shutil.copytree(AUTOCAST, tmp_path / "old"))
    (old / "store.zarr/ledger/cache/receipts/000001.json").unlink()
    for array in ("embedding/c/1/0/0", "keys/c/1/0", "valid/c/1", "view_params/c/1/0/0"):
        (old / "store.zarr" / array).unlink()
    return old


def _cache(old: Path, out: Path, *more: str) -> tuple[int, str]:
    words = f"cache {old}/shards --teacher local-dir:{old}/teacher --threads 1 --batch-size 4 --executor serial"
    done = CliRunner().invoke(main, [*words.split(), "--out", str(out), *more])
    return done.exit_code, done.stderr


@pytest.mark.parametrize("more", ["--precision bf16", "--precision amp_bf16", ""])
def test_a_store_that_was_begun_under_autocast_is_finished_so(half_finished, monkeypatch, more):
    """By the command that began it, by its present name, and by what `auto` is where bf16 is faster."""
    monkeypatch.setattr("teachonce.stages.models.compute._bf16_is_faster", lambda device: True)
    store, again = half_finished / "store.zarr", half_finished / "again.zarr"
    before = _stored(store)
    assert _cache(half_finished, again, "--precision", "amp_bf16") == (0, ANY)
    code, stderr = _cache(half_finished, store, *more.split())
    assert code == 0, stderr
    assert ("the store was begun under autocast, and is continued so (--precision amp_bf16)" in stderr) == (
        more != "--precision amp_bf16"
    )
    finished, kept = _stored(store), _stored(AUTOCAST / "store.zarr")
    assert {name: finished[name] for name in before} == before, "what was there stays"
    assert finished.keys() == kept.keys()
    plan = "ledger/cache/plan.json"
    assert finished[plan] == kept[plan] == _stored(again)[plan]
    second = "embedding/c/1/0/0"
    assert finished[second] == _stored(again)[second]
    # Another processor may have rounded otherwise: one unit of bf16.
    found, expected = (np.frombuffer(files[second][:80], np.float16) for files in (finished, kept))
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=2**-8)


def test_weights_in_bf16_and_autocast_never_mix(half_finished):
    out = half_finished / "new.zarr"
    assert _cache(half_finished, out, "--precision", "bf16")[0] == 0
    for other, recorded in (("amp_bf16", "bf16"), ("fp32", "fp32")):
        code, stderr = _cache(half_finished, out, "--precision", other)
        assert code != 0
        assert (
            f"field 'compute.precision': expected '{recorded}' (this command), found 'bf16_weights' (the folder)"
            in stderr
        )
    code, stderr = _cache(half_finished, half_finished / "store.zarr", "--precision", "fp32")
    assert code != 0
    assert "field 'compute.precision'" in stderr


def test_the_first_tars_in_place(tmp_path):
    """Version 3 of shards, with a history: what it names, against plain tarfile."""
    root = Path(shutil.copytree(DATA / "in_place", tmp_path / "kept"))
    shards = ShardSet.open(root / "index")
    assert (shards.corpus.version, shards.corpus.name, len(shards.corpus.states)) == (3, "kept", 2)
    images: dict[str, bytes] = {}
    for shard in range(2):
        reader = shards.reader(shard)
        rows = zip(shards.corpus.rows(shard), shards.manifest().shard(shard), strict=True)
        images |= {entry.path: reader.read(row) for row, entry in rows if row not in reader.invalid}
        reader.close()
    expected = {}
    for tar in sorted((root / "tars").iterdir()):
        with tarfile.open(tar) as members:
            for member in members:
                if member.name.endswith(".jpg"):
                    file = members.extractfile(member)
                    assert file is not None
                    expected[f"{tar.stem}/{member.name}"] = file.read()
    assert expected.pop("001/000001.jpg") == b"no image"
    assert images == expected
    kept = {path: path.read_bytes() for path in sorted((root / "index").rglob("*")) if path.is_file()}
    words = ["shard", str(root / "tars"), "--in-place", "--executor", "serial", "--out", str(root / "index"), "--json"]
    again = CliRunner().invoke(main, words)
    assert json.loads(again.stdout)["done_before"] == 1, again.output
    assert {path: path.read_bytes() for path in kept} == kept

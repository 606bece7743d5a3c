"""Files for other programs, each read back by the reader that its layout is for, or by that program's documented format."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
import yaml
import zarr
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.runner import run_stage
from teachonce.stages.recode import plan_recode
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError, TeachonceError
from torchvision import transforms

BOX = ("top", "left", "height", "width")


def export(store, out, **settings) -> None:
    stage = plan_recode(str(store), out=str(out), settings=RecodeSettings(**settings))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)


@pytest.fixture(scope="module")
def listed(taught_store) -> list:
    return list(taught_store.shards.manifest())


@pytest.fixture(scope="module")
def boxes(taught_store) -> np.ndarray:
    """int32 (row, view, 5), as plain Zarr reads them."""
    return np.asarray(zarr.open_group(str(taught_store.location), mode="r")["view_params"][:])


def usable(store) -> list[int]:
    return np.flatnonzero(store.valid).tolist()


def contents(folder: Path) -> dict[str, bytes]:
    """Files without notes on the run."""
    found = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return {name: data for name, data in found.items() if "timings" not in name and "driver" not in name}


def test_parquet_as_a_table(taught_store, listed, boxes, tmp_path):
    export(taught_store.location, tmp_path / "out", to="parquet", views="2,0")
    table = pyarrow.dataset.dataset(tmp_path / "out" / "data").to_table()
    rows = usable(taught_store)
    assert table["row"].to_pylist() == [row for row in rows for _ in range(2)]
    assert table["view"].to_pylist() == [2, 0] * len(rows)
    assert table["key"].to_pylist() == [listed[row].key for row in rows for _ in range(2)]
    assert table["path"].to_pylist() == [listed[row].path for row in rows for _ in range(2)]
    assert table["label"].to_pylist() == [listed[row].label for row in rows for _ in range(2)]
    params = np.stack([table[name].to_numpy().astype(np.int32) for name in (*BOX, "flip")], axis=-1)
    np.testing.assert_array_equal(params, boxes[rows][:, [2, 0]].reshape(-1, 5))
    for name, width in (("logits", 7), ("embedding", 6)):
        assert table.schema.field(name).type.list_size == width
        assert table.schema.field(name).type.value_type == pyarrow.float32()
        values = np.array(table[name].to_pylist(), np.float32)
        np.testing.assert_array_equal(values, taught_store.targets[name][rows][:, [2, 0]].reshape(-1, width))
    about = json.loads((tmp_path / "out" / "description.json").read_text())
    assert about["classes"]["names"] == list("abcdefg")
    assert (about["view_numbers"], about["views"]["chosen"]) == ([2, 0], [2, 0])
    assert about["recoded"]["store"] == Ledger(taught_store.location, "cache").plan().fingerprint.digest
    assert about["targets"]["embedding"] == {"axes": ["channel"], "shape": [6]}


def test_parquet_in_half_precision(taught_store, tmp_path):
    export(taught_store.location, tmp_path / "out", to="parquet", targets="embedding", dtype="fp16", only_shards=(1,))
    assert [f.name for f in (tmp_path / "out" / "data").iterdir()] == ["000001.parquet"]
    lists: Any = pq.read_table(tmp_path / "out" / "data" / "000001.parquet")["embedding"]
    values = lists.combine_chunks().flatten().to_numpy()
    assert values.dtype == np.float16
    expected = taught_store.targets["embedding"][13:26][taught_store.valid[13:26]]
    np.testing.assert_array_equal(values, expected.astype(np.float16).ravel())


def test_numpy_arrays_that_are_mapped_into_memory(taught_store, listed, boxes, tmp_path):
    out = tmp_path / "out"
    export(taught_store.location, out, to="npy")
    arrays = sorted((out / "img_emb").glob("*.npy"))
    tables = sorted((out / "metadata").glob("*.parquet"))
    assert [f.name for f in arrays] == [f"img_emb_{n:06d}.npy" for n in range(4)]
    assert [f.name for f in tables] == [f"metadata_{n:06d}.parquet" for n in range(4)]
    mapped = [np.load(f, mmap_mode="r", allow_pickle=False) for f in arrays]
    assert all(isinstance(a, np.memmap) and a.dtype == np.float32 for a in mapped)
    rows = usable(taught_store)
    np.testing.assert_array_equal(np.concatenate(mapped).reshape(-1, 3, 6), taught_store.targets["embedding"][rows])
    logits = [np.load(f, mmap_mode="r", allow_pickle=False) for f in sorted((out / "logits").glob("logits_*.npy"))]
    np.testing.assert_array_equal(np.concatenate(logits).reshape(-1, 3, 7), taught_store.targets["logits"][rows])
    # What clip-retrieval's index looks up: the n-th row of all tables is the n-th row of all arrays.
    assert {len(a.shape) for a in mapped} == {2}
    metadata = [row for f in tables for row in pq.read_table(f).to_pylist()]
    assert [m["image_path"] for m in metadata] == [listed[row].path for row in rows for _ in range(3)]
    drawn = boxes[rows].reshape(-1, 5)[:, :4].tolist()
    assert [[m[name] for name in BOX] for m in metadata] == drawn


def read_dr_tar(path: Path) -> dict[str, dict]:
    """Members by sample, as the authors' program reads them: JSON objects and arrays of npz join one dictionary."""
    samples: dict[str, dict] = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            key, extension = member.name.split(".", 1)
            data = tar.extractfile(member).read()
            sample = samples.setdefault(key, {})
            if extension.endswith("json"):
                sample.update(json.loads(data))
            else:
                assert extension == "npz"
                sample.update(np.load(io.BytesIO(data), allow_pickle=False))
    return samples


def decompressed(compressed: list, names: list[str]) -> dict[str, tuple]:
    """ml-dr's parameters of each transform, of the list that stands for those with random parameters, in their order."""
    return {name: (parameter,) for name, parameter in zip(names, compressed, strict=True)}


def test_tars_after_dataset_reinforcement(taught_store, listed, boxes, tmp_path):
    out = tmp_path / "out"
    export(taught_store.location, out, to="tars", top=3)
    samples = {key: s for f in sorted(out.glob("*.tar")) for key, s in read_dr_tar(f).items()}
    rows = usable(taught_store)
    assert list(samples) == [listed[row].key for row in rows]
    config = json.loads((out / "config.json").read_text())
    augmentation = config["reinforce"]["image_augmentation"]
    # Those that have random parameters, in the order of the authors' table of transforms.
    names = [name for name in ("random_resized_crop", "random_horizontal_flip") if name in augmentation]
    assert (config["reinforce"]["num_samples"], len(names)) == (3, 2)
    for row in rows:
        sample = samples[listed[row].key]
        assert (sample["uid"], sample["path"], sample["row"]) == (listed[row].key, listed[row].path, row)
        np.testing.assert_array_equal(sample["image_emb"], taught_store.targets["embedding"][row])
        for view in range(3):
            params = decompressed(sample["param_aug"][view], names)
            assert params["random_resized_crop"][0] == boxes[row, view, :4].tolist()
            assert params["random_horizontal_flip"][0] is bool(boxes[row, view, 4])
            # `dr.utils.densify`, by "smooth": what is left over is shared out among the other classes.
            probabilities, ids = sample["prob"][view]
            dense = np.full(7, (1 - sum(probabilities)) / 4)
            dense[ids] = probabilities
            true = torch.softmax(torch.tensor(taught_store.targets["logits"][row, view]).double(), 0).numpy()
            assert set(ids) == set(np.argsort(-true)[:3].tolist())
            np.testing.assert_allclose(dense[ids], true[ids], rtol=1e-5)
            assert dense.sum() == pytest.approx(1)


def test_a_tar_s_parameters_give_the_teacher_s_view(taught_store, listed, pictures, by_torchvision, tmp_path):
    """torchvision's own transform, given its parameters as ml-dr gives them again, against the stored view."""
    export(taught_store.location, tmp_path / "out", to="tars", only_shards=(0,), targets="embedding")
    samples = read_dr_tar(tmp_path / "out" / "00000000.tar")
    flips = []
    for row in usable(taught_store)[3:6]:
        image = Image.open(pictures / listed[row].path).convert("RGB")
        stored = taught_store.views.params(listed[row].key, *image.size)
        for view, (box, flip) in enumerate(samples[listed[row].key]["param_aug"]):
            crop = transforms.RandomResizedCrop(16, interpolation=transforms.InterpolationMode.BICUBIC)
            crop.get_params = lambda *_, box=box, **__: tuple(box)
            again = transforms.functional.hflip(crop(image)) if flip else crop(image)
            np.testing.assert_array_equal(np.asarray(again), by_torchvision(image, stored[view], 16))
            flips.append(flip)
    assert 0 < sum(flips) < 9


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_webdataset_reads_the_tars(taught_store, listed, tmp_path):
    export(taught_store.location, tmp_path / "out", to="tars", only_shards=(0,))
    url = str(tmp_path / "out" / "00000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples] == [listed[row].key for row in usable(taught_store) if row < 13]
    assert samples[0]["npz"]["image_emb"].shape == (3, 6)
    assert len(samples[0]["paug.json"]["param_aug"]) == 3


def true_logs(store, row: int) -> np.ndarray:
    return torch.log_softmax(torch.tensor(store.targets["logits"][row]).double(), -1).numpy()


def test_top_classes_as_plain_lists(taught_store, listed, tmp_path):
    export(taught_store.location, tmp_path / "out", to="topk", top=3)
    table = pyarrow.dataset.dataset(tmp_path / "out" / "data").to_table().to_pylist()
    assert [entry["row"] for entry in table] == usable(taught_store)
    for entry in table:
        assert (entry["key"], entry["views"]) == (listed[entry["row"]].key, [0, 1, 2])
        true = true_logs(taught_store, entry["row"])
        order = np.argsort(-true, axis=-1)[:, :3]
        np.testing.assert_array_equal(entry["token_ids"], order)
        np.testing.assert_allclose(entry["top_values"], np.take_along_axis(true, order, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "term", "top"), [("fp32", "<f4", 3), ("fp16", "<f2", 5)])
def test_top_classes_as_distillkit_packs_them(taught_store, tmp_path, dtype, term, top):
    """Unpacked by what DistillKit documents: k exact values, and ids in ceil(log2 d) bits, most significant first."""
    export(taught_store.location, tmp_path / "out", to="topk", top=top, packed=True, dtype=dtype)
    config = yaml.safe_load((tmp_path / "out" / "compression_config.yaml").read_text())
    assert (config["d"], config["k"], config["exact_k"]) == (7, top, top)
    assert (config["polynomial_terms"], config["residual_bins"], config["delta_encoding"]) == (None, [], False)
    assert np.dtype(config["exact_dtype"]) == np.dtype(term)
    bits = math.ceil(math.log2(config["d"]))
    for entry in pyarrow.dataset.dataset(tmp_path / "out" / "data").to_table().to_pylist():
        true = true_logs(taught_store, entry["row"])
        for view in range(3):
            logs = np.frombuffer(bytes(entry["compressed_logprobs"][view]), term)
            stream = "".join(f"{byte:08b}" for byte in entry["bytepacked_indices"][view])
            ids = [int(stream[i * bits : (i + 1) * bits], 2) for i in range(top)]
            assert len(stream) == -(-top * bits // 8) * 8
            assert ids == np.argsort(-true[view])[:top].tolist()
            np.testing.assert_allclose(logs, true[view][ids], rtol=1e-3 if dtype == "fp16" else 1e-5, atol=1e-6)


def test_more_top_classes_than_there_are(taught_store, tmp_path):
    export(taught_store.location, tmp_path / "out", to="topk", top=50)
    first = pq.read_table(tmp_path / "out" / "data" / "000000.parquet").to_pylist()[0]
    assert sorted(first["token_ids"][0]) == list(range(7))
    np.testing.assert_allclose(np.exp(first["top_values"]).sum(-1), 1, rtol=1e-5)


def test_colours_have_columns_of_their_own(taught_store, make_store, tmp_path):
    views = ViewSpec(kind="random_resized_crop", count=2, seed=5, jitter=(0.4, 0.4, 0.2, 0.1), grayscale=0.5)
    store = make_store(taught_store.shards, tmp_path / "s.zarr", views=views)
    export(store.location, tmp_path / "p", to="parquet")
    export(store.location, tmp_path / "n", to="npy")
    table = pyarrow.dataset.dataset(tmp_path / "p" / "data").to_table()
    row = usable(store)[0]
    with Image.open(io.BytesIO(store.shards.reader(0).read(row))) as image:
        drawn = store.views.params(table["key"].to_pylist()[0], *image.size)
    for name in drawn.dtype.names:
        np.testing.assert_array_equal(table[name].to_pylist()[:2], drawn[name])
    assert pq.read_schema(tmp_path / "n" / "metadata" / "metadata_000000.parquet").names[-1] == "hue"
    with pytest.raises(InputError) as error:
        export(store.location, tmp_path / "t", to="tars")
    assert str(error.value).endswith(
        "--to tars: expected boxes inside the image, and mirroring, found views with colours. Next: use --to parquet or npy"
    )
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("to", ["parquet", "npy", "tars", "topk"])
def test_killed_anywhere_files_end_with_the_same_bytes(taught_store, tmp_path, monkeypatch, to):
    export(taught_store.location, tmp_path / "whole", to=to)
    assert len(contents(tmp_path / "whole")) >= 4 + 4 + 2
    commit, done = Ledger.commit, []

    def dies(self, receipt, seconds):
        done.append(receipt.key)
        if len(done) % 2:
            raise KeyboardInterrupt
        commit(self, receipt, seconds)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "commit", dies)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                export(taught_store.location, tmp_path / "out", to=to)
    export(taught_store.location, tmp_path / "out", to=to)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(TeachonceError, match="holds the output of another recode"):
        export(taught_store.location, tmp_path / "out", to=to, views="1")


def test_without_the_shards_there_are_keys_and_no_paths(make_shards, make_store, pictures, tmp_path):
    shards = make_shards(pictures, tmp_path / "shards")
    store = make_store(shards, tmp_path / "s.zarr", num_views=1)
    (tmp_path / "shards").rename(tmp_path / "moved")
    export(store.location, tmp_path / "a", to="parquet")
    table = pyarrow.dataset.dataset(tmp_path / "a" / "data").to_table()
    assert set(table["path"].to_pylist()) == {None}
    assert None not in table["key"].to_pylist()
    export(store.location, tmp_path / "b", to="parquet", shards=str(tmp_path / "moved"))
    assert None not in pyarrow.dataset.dataset(tmp_path / "b" / "data").to_table()["path"].to_pylist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"top": 5, "to": "npy"},
            "an option of other layouts: --top: expected --to tars or topk, found --to npy. Next: leave it out",
        ),
        (
            {"packed": True},
            "an option of other layouts: --packed: expected --to topk, found a target store. Next: leave it out",
        ),
        (
            {"to": "npy", "encoding": "fp16"},
            "files for other programs have no encoding: --encoding, --to: found --encoding fp16 --to npy. "
            "Next: use --dtype for the type of their numbers",
        ),
        (
            {"to": "topk", "targets": "embedding"},
            "this layout has room for logits alone: {store}, --to topk: expected logits, found embedding. "
            "Next: leave out --targets",
        ),
    ],
)
def test_options_that_do_not_fit_the_layout(taught_store, tmp_path, settings, message):
    with pytest.raises(InputError) as error:
        export(taught_store.location, tmp_path / "out", **settings)
    assert str(error.value) == message.format(store=taught_store.location)
    assert not (tmp_path / "out").exists()


def test_files_and_stores_never_share_a_folder(taught_store, tmp_path):
    export(taught_store.location, tmp_path / "out", to="parquet")
    with pytest.raises(InputError, match="the output folder holds something else"):
        export(taught_store.location, tmp_path / "out")
    export(taught_store.location, tmp_path / "s.zarr")
    with pytest.raises(InputError, match="the output folder holds something else"):
        export(taught_store.location, tmp_path / "s.zarr", to="parquet")


def test_a_number_too_large_for_half_precision(make_store, taught_store, tmp_path):
    large = np.full((48, 1, 7), 1e6, np.float32)
    store = make_store(
        taught_store.shards, tmp_path / "s.zarr", num_views=1, widths={"embedding": 7}, targets={"embedding": large}
    )
    with pytest.raises(
        TeachonceError, match="numbers that fp16 has no room for: embedding: expected at most 65504, found 1e"
    ):
        export(store.location, tmp_path / "out", to="npy", dtype="fp16")


def test_the_command(taught_store, tmp_path):
    arguments = ["recode", str(taught_store.location), "--to", "topk", "--top", "2", "--executor", "serial"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "recode: 4 of 4 units done; 48 images now" in done.stderr
    assert CliRunner().invoke(main, ["status", str(tmp_path / "out")]).exit_code == 0

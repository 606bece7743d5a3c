"""What stands where a label should and is none: counted in the corpus, told by whoever needs labels, and no image lost by it."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.distill import plan_distill
from teachonce.stages.measures.labelled import LabelledImages
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pretrain import plan_pretrain
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.teachers import TeacherConfig
from teachonce.storage_schemas.errors import InputError

CPU = Compute(device="cpu", precision="fp32", threads=1)

TOLD = "labels are text or whole numbers; left out as none: 2 × NaN (first: 1.png), 1 × a number with a fraction (first: 4.png)"


@pytest.fixture
def table(tmp_path):
    """Seven images with labels 1, NaN, 2, NaN, 0.5, none, 1."""
    labels = [1.0, float("nan"), 2.0, float("nan"), 0.5, None, 1.0]
    for i in range(len(labels)):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (i, i, i)).save(buffer, "PNG")
        (tmp_path / f"{i}.png").write_bytes(buffer.getvalue())
    pq.write_table(
        pa.table({"path": [f"{i}.png" for i in range(len(labels))], "label": labels}), tmp_path / "t.parquet"
    )
    return tmp_path / "t.parquet"


def shard(corpus, out):
    result = CliRunner().invoke(
        main,
        [
            "shard",
            str(corpus),
            "--out",
            str(out),
            "--shard-size",
            "4",
            "--order",
            "source",
            "--executor",
            "serial",
        ],
    )
    assert result.exit_code == 0, result.output
    return result.stderr.splitlines()


def test_shard_counts_and_tells_them_again_and_again(table, tmp_path):
    out = tmp_path / "s"
    for _ in range(2):
        assert shard(table, out)[-1] == f"Warning: {TOLD}."
    shards = ShardSet.open(str(out))
    assert [label for _, label in shards.manifest().labels()] == ["1", None, "2", None, None, None, "1"]
    assert json.loads((out / "corpus.json").read_bytes())["no_labels"] == [
        {"kind": "NaN", "images": 2, "first": "1.png"},
        {"kind": "a number with a fraction", "images": 1, "first": "4.png"},
    ]
    assert sum(len(shards.receipt(i).invalid_rows) for i in range(2)) == 0


def test_sidecars_in_a_tar_cost_no_image_and_no_other_label(tmp_path):
    sidecars = {
        "0.cls": b"7\n",
        "1.cls": b"\xef\xbb\xbf3\r\n",
        "2.json": b'{"label": true}',
        "3.json": b'{"label": "smile \\ud83d"}',
        "4.json": b"[" * 60_000,
        "5.cls": b"",
        "6.json": b'{"label": "red fox"}',
    }
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in {**{f"{i}.png": buffer.getvalue() for i in range(7)}, **sidecars}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    told = shard(tmp_path / "t.tar", tmp_path / "s")[-1]
    assert [label for _, label in ShardSet.open(str(tmp_path / "s")).manifest().labels()] == [
        "7",
        "3",
        None,
        None,
        None,
        None,
        "red fox",
    ]
    assert told == (
        "Warning: labels are text or whole numbers; left out as none: 1 × a file that is not JSON (first: 4.png), "
        "1 × a truth value (first: 2.png), 1 × empty text (first: 5.png), 1 × text with a lone surrogate (first: 3.png)."
    )


def test_a_corpus_whose_labels_are_labels_says_nothing_of_them(tmp_path):
    (tmp_path / "c" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "c" / "cat" / "a.png")
    assert not [line for line in shard(tmp_path / "c", tmp_path / "s") if "labels" in line.split(". Output")[0]]
    assert "no_labels" not in json.loads((tmp_path / "s" / "corpus.json").read_bytes())


def test_labelled_images_say_so(table):
    labelled = LabelledImages.open(str(table), ("1", "2"), what="check")
    assert labelled.class_ids_N.tolist() == [0, -1, 1, -1, -1, -1, 0]
    assert labelled.notes == (TOLD,)
    pq.write_table(pa.table({"path": ["1.png"], "label": [True]}), table)
    with pytest.raises(InputError) as caught:
        LabelledImages.open(str(table), ("1", "2"), what="check")
    assert "found labels are text or whole numbers; left out as none: 1 × a truth value (first: 1.png)." in str(
        caught.value
    )


def test_labelled_images_say_what_their_folder_holds_that_is_left_out(tmp_path):
    (tmp_path / "1").mkdir()
    for name in ("1/a.png", "1/._a.png", "1/b.heic"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    labelled = LabelledImages.open(str(tmp_path), ("1", "2"), what="check")
    assert labelled.class_ids_N.tolist() == [0]
    assert labelled.notes == ("left out: 1 × hidden (first: 1/._a.png), 1 × no image name (first: 1/b.heic)",)


def test_pretrain_and_distill_say_so_before_they_begin(table, tiny_clip_teacher, tiny_clip, taught_store, tmp_path):
    paths = [f"{i}.png" for i in range(7)]
    odd = "labels are text or whole numbers; left out as none: 1 × a truth value (first: 2.png)"

    def lines(labels):
        file = tmp_path / "l.jsonl"
        file.write_text("".join(json.dumps({"path": p, "label": v}) + "\n" for p, v in zip(paths, labels, strict=True)))
        return str(file)

    tuned = plan_pretrain(
        lines(["cat", "dog", True, "cat", None, "dog", None]),
        TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"),
        out=str(tmp_path / "p"),
        few=FewShotSettings(shots=1),
        settings=PretrainSettings(batch_size=2),
        compute=CPU,
    )
    assert odd in tuned.notes
    trained = plan_distill(
        str(taught_store.shards.location),
        str(taught_store.location),
        StudentConfig(model=f"local-dir:{tiny_clip}"),
        out=str(tmp_path / "b"),
        recipe="kd",
        options={"epochs": 1, "batch_size": 8},
        compute=CPU,
        show_progress=False,
        settings=DistillSettings(validation=lines(["a", "b", True, "c", None, "d", None])),
    )
    assert odd in trained.notes

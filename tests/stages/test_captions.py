"""`teachonce captions`: which texts belong to which rows, what is stored of them, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.contents import Kind, kind_of
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.captions import CaptionsStage, plan_captions
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.pairs.caption_store import OpenCaptions
from teachonce.stages.settings.captions import CaptionSettings
from teachonce.storage_schemas.errors import DamagedError, IncompleteError, InputError, MismatchError

CPU = Compute(device="cpu", precision="fp32", threads=1)
WORDS = ("a fox", "two birds, blue", "der Löwe", 'a cat, "asleep"', "gone\nfishing", "snow")

Rows = list[tuple[str, str]]


def paths_of(shards: Any) -> list[str]:
    manifest = shards.manifest()
    return [path for shard in range(manifest.num_shards) for path in manifest.paths_of(shard)]


@pytest.fixture(scope="module")
def rows(picture_shards) -> Rows:
    """Captions: every image has row mod 4 of them, some images none; in an order of their own."""
    found = [
        (path, f"{WORDS[(row + place) % 6]} {row % 3}")
        for row, path in enumerate(paths_of(picture_shards))
        for place in range(row % 4)
    ]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


@pytest.fixture(scope="module")
def expected(rows, picture_shards) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    places = {path: row for row, path in enumerate(paths_of(picture_shards))}
    for path, text in rows:
        found.setdefault(places[path], []).append(text)
    return found


def write(rows: Rows, file: Path, names: tuple[str, str] = ("path", "caption")) -> Path:
    ending = file.suffix
    if ending == ".parquet":
        columns = {names[0]: [path for path, _ in rows], "size": [1] * len(rows), names[1]: [text for _, text in rows]}
        pq.write_table(pa.table(columns), file)
    elif ending == ".jsonl":
        file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if ending == ".tsv" else ",")
            writer.writerows([names, *rows])
    return file


@pytest.fixture
def plan(picture_shards, tiny_clip_teacher, tmp_path):
    def make(*files: Any, shards: Any = None, out: str = "captions", teacher: Any = None, **settings: Any):
        return plan_captions(
            (shards or picture_shards).location,
            TeacherConfig.of(f"local-dir:{teacher or tiny_clip_teacher}", None),
            out=str(tmp_path / out),
            settings=CaptionSettings(files=tuple(map(str, files)), **settings),
            compute=CPU,
        )

    return make


def run(stage: CaptionsStage) -> OpenCaptions:
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return OpenCaptions.of(stage.out)


def texts_of(found: OpenCaptions) -> dict[int, list[str]]:
    table = pq.read_table(found.location.path / "texts/captions.parquet").to_pydict()
    texts: dict[int, list[str]] = {}
    for row, text in zip(table["row"], table["caption"], strict=True):
        texts.setdefault(row, []).append(text)
    return texts


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl"])
def test_captions_come_from_tables(plan, rows, expected, tmp_path, ending) -> None:
    stage = plan(write(rows, tmp_path / f"t.{ending}"))
    assert texts_of(run(stage)) == expected
    assert stage.spec.captions == 3
    without = 48 - len(expected)
    assert stage.notes[1:] == (
        f"{len(rows)} captions of {len(expected)} of 48 images",
        f"{without} images without a caption: such images add nothing to a loss",
    )


def test_embeddings_are_those_of_plain_open_clip(plan, rows, expected, tiny_clip_teacher, tmp_path) -> None:
    found = run(plan(write(rows, tmp_path / "t.parquet")))
    model = open_clip.create_model(f"local-dir:{tiny_clip_teacher}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip_teacher}")
    root: Any = zarr.open_group(found.location.path, mode="r")
    embedding, count = root["embedding"][:], root["count"][:]
    assert (embedding.dtype, embedding.shape) == (np.float16, (48, 3, 16))
    assert root["embedding"].metadata.dimension_names == ("sample", "caption", "channel")
    assert count.tolist() == [len(expected.get(row, ())) for row in range(48)]
    for row, texts in expected.items():
        with torch.no_grad():
            plain = torch.nn.functional.normalize(model.encode_text(tokenizer(texts)), dim=1)
        np.testing.assert_allclose(embedding[row, : len(texts)].astype(np.float32), plain.numpy(), atol=5e-4)
    taken = np.arange(3) < count[:, None]
    assert np.isnan(embedding[~taken]).all()
    assert found.spec.logit_scale == pytest.approx(20.0)
    assert found.spec.tokenizer["context_length"] == 77
    assert kind_of(found.location) == Kind.CAPTIONS


def test_the_order_of_the_table_and_its_kind_decide_no_bytes(plan, rows, expected, tmp_path) -> None:
    """But the order of one image's captions does."""
    in_order = [(path, text) for path, text in sorted(rows, key=lambda row: row[0])]
    first = run(plan(write(rows, tmp_path / "a.csv")))
    second = run(plan(write(in_order, tmp_path / "b.parquet"), out="other"))
    assert texts_of(second) == expected
    assert tree(first.location.path) == tree(second.location.path)


def tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and "timings" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if p.name != "driver.json"}


def test_further_captions_unknown_images_and_blank_texts_are_counted(plan, rows, tmp_path) -> None:
    odd = [*rows, ("none/such.jpg", "x"), ("none/other.jpg", "y"), (rows[0][0], "  ")]
    stage = plan(write(odd, tmp_path / "t.csv"), captions=2)
    counts = stage.spec.counts
    assert (counts.unknown, counts.blank, counts.beyond) == (2, 1, 12)  # a quarter of the images has three
    assert counts.captions + counts.beyond == len(rows)
    assert stage.notes[3:] == (
        "2 captions of images that are not in the corpus, the first: none/such.jpg",
        "1 entry without text",
        "12 captions left out: more than 2 of an image (--captions)",
    )


def test_a_list_of_texts_in_a_row(plan, expected, picture_shards, tmp_path) -> None:
    paths = paths_of(picture_shards)
    table = {"file_name": [paths[row] for row in expected], "captions": list(expected.values())}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    assert texts_of(run(plan(tmp_path / "t.parquet"))) == expected


def test_tables_of_img2dataset_have_keys(plan, rows, expected, tmp_path) -> None:
    """Here the stems of the images, which are all different but for their folders."""
    keys = [(Path(path).stem, text) for path, text in rows]
    for number in range(2):
        write(keys[number::2], tmp_path / f"0000{number}.parquet", ("key", "caption"))
    found = texts_of(run(plan(tmp_path / "0000*.parquet")))
    assert {row: sorted(texts) for row, texts in found.items()} == {
        row: sorted(texts) for row, texts in expected.items()
    }


def test_a_name_of_several_images_is_refused(plan, make_shards, tmp_path) -> None:
    from PIL import Image

    for folder in ("a", "b"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        Image.new("RGB", (20, 20), (folder == "a" and "red") or "blue").save(tmp_path / "pictures" / folder / "x.png")
    shards = make_shards(tmp_path / "pictures", tmp_path / "shards")
    with pytest.raises(InputError) as error:
        plan(write([("x.png", "red")], tmp_path / "t.csv"), shards=shards, match="name")
    assert error.value.fields["code"] == "caption-path-ambiguous"
    found = run(plan(write([("a/x.png", "red")], tmp_path / "t.csv"), shards=shards))
    assert texts_of(found) == {0: ["red"]}


def test_captions_come_from_the_original_tars(plan, pictures, tmp_path) -> None:
    """Members `.txt`, and `caption` in `.json`; several tars have their names in front of the paths."""
    from teachonce.stages.corpora.shards import ShardSet
    from teachonce.stages.settings.shard import ShardSettings
    from teachonce.stages.shard import plan_shard

    images = sorted((pictures / "red fox").glob("*.jpg"))[:4]
    for number, half in enumerate((images[:2], images[2:])):
        with tarfile.open(tmp_path / f"0000{number}.tar", "w") as out:
            for place, image in enumerate(half):
                texts = {"jpg": image.read_bytes(), "json": json.dumps({"caption": f"json {number}"}).encode()}
                if place == 0:
                    texts["txt"] = f"text {number} é".encode()
                for ending, data in texts.items():
                    member = tarfile.TarInfo(f"{place:09d}.{ending}")
                    member.size = len(data)
                    out.addfile(member, io.BytesIO(data))
    pattern = str(tmp_path / "0000*.tar")
    stage = plan_shard([pattern], out=str(tmp_path / "s"), settings=ShardSettings(order="source", name="t"))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    found = texts_of(run(plan(pattern, shards=ShardSet.open(stage.out))))
    assert found == {0: ["text 0 é"], 1: ["json 0"], 2: ["text 1 é"], 3: ["json 1"]}


def test_a_shard_without_any_caption(plan, rows, picture_shards, tmp_path) -> None:
    """Its rows have counts of 0, and nothing goes through the text tower for it."""
    first = set(paths_of(picture_shards)[:13])
    found = run(plan(write([row for row in rows if row[0] in first], tmp_path / "t.csv")))
    root = found.open()
    assert [int(found.read(root, shard)[1].sum()) > 0 for shard in range(4)] == [True, False, False, False]
    assert np.isnan(found.read(root, 3)[0]).all()


def test_inspect_counts_and_checks_them(plan, rows, expected, tmp_path) -> None:
    found = run(plan(write(rows, tmp_path / "t.csv")))
    shown = CliRunner().invoke(main, ["inspect", str(found.location)])
    assert shown.exit_code == 0, shown.output
    assert f"Captions in {found.location}" in shown.stdout
    assert "logit scale 20" in shown.stdout
    facts = json.loads(CliRunner().invoke(main, ["inspect", str(found.location), "--json"]).stdout)
    assert facts["images_by_captions"] == {"0": 12, "1": 12, "2": 12, "3": 12}
    assert facts["counts"]["captions"] == sum(map(len, expected.values()))
    chunk = found.location.path / "embedding/c/2/1/0"
    shutil.copyfile(found.location.path / "embedding/c/1/1/0", chunk)
    broken = CliRunner().invoke(main, ["inspect", str(found.location)])
    assert broken.exit_code == 1
    assert "captions-damaged" in broken.output


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(python, picture_shards, rows, tiny_clip_teacher, tmp_path) -> None:
    table = write(rows, tmp_path / "t.csv")

    def start(out: str) -> Any:
        options = ("--from", table, "--teacher", f"local-dir:{tiny_clip_teacher}", "--threads", 1, "--out", out)
        return python.start("-m", "teachonce", "captions", picture_shards.location.path, *options)

    assert start(str(tmp_path / "calm")).wait() == 0
    receipts, kills = tmp_path / "killed/ledger/captions/receipts", 0
    for goal in range(4):
        process = start(str(tmp_path / "killed"))
        while process.poll() is None and len(list(receipts.glob("*.json"))) < goal:
            time.sleep(0.001)
        process.kill()
        kills += process.wait() < 0
    assert kills >= 2
    assert start(str(tmp_path / "killed")).wait() == 0
    assert tree(tmp_path / "calm") == tree(tmp_path / "killed")


def test_an_interrupted_run_goes_on_and_reads_nothing_of_it_before(plan, rows, tmp_path) -> None:
    table = write(rows, tmp_path / "t.csv")
    found = run(plan(table))
    before = tree(found.location.path)
    (found.location.path / "ledger/captions/receipts/000001.json").unlink()
    (found.location.path / "embedding/c/1/0/0").write_bytes(b"half")
    (found.location.path / "texts/captions.parquet").write_bytes(b"half")
    with pytest.raises(IncompleteError):
        OpenCaptions.of(found.location)
    assert tree(run(plan(table)).location.path) == before


def test_a_changed_chunk_is_noticed(plan, rows, tmp_path) -> None:
    found = run(plan(write(rows, tmp_path / "t.csv")))
    chunk = found.location.path / "embedding/c/2/1/0"
    shutil.copyfile(found.location.path / "embedding/c/1/1/0", chunk)
    with pytest.raises(DamagedError) as error:
        found.read(found.open(), 2)
    assert error.value.fields["code"] == "captions-damaged"
    assert found.read(found.open(), 1)[1].shape == (13,)


def test_other_texts_in_the_same_folder_are_refused(plan, rows, tmp_path) -> None:
    run(plan(write(rows, tmp_path / "t.csv")))
    stage = plan(write(rows[1:], tmp_path / "t.csv"))
    with pytest.raises(MismatchError) as error:
        run(stage)
    assert error.value.fields["code"] == "output-other-settings"
    assert "'texts'" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "settings", "line"),
    [
        ("t.csv", b"path,caption\nother/a.jpg,x\n", {}, "no caption is of an image of this corpus: {file}: expected paths such as "
         "Blue_Jay/01.jpg, found other/a.jpg. Next: --match stem compares names without folders and endings, --match name whole names"),
        ("t.csv", b"path,caption\nBlue_Jay/01.jpg,\n", {}, "no caption has text: {file}: expected text in the column of captions, found "
         "1 entry without text. Next: name the column of captions: --caption-column NAME"),
        ("t.csv", b"path,caption\n", {}, "no captions in it: {file}: expected a row for each caption, found no row"),
        ("t.csv", b"path,caption\nBlue_Jay/01.jpg,L\xf6we\n", {}, "not text in UTF-8: {file}, line 2. Next: save it as UTF-8; if it is "
         "Latin-1: iconv -f LATIN1 -t UTF-8 {file} > {folder}/t-utf8.csv"),
        ("t.csv", b"path,words\nBlue_Jay/01.jpg,x\n", {}, "a table of captions needs a column: {file}: expected caption or captions or "
         "text or title, found path, words. Next: name it: --caption-column NAME"),
        ("t.csv", b"where,caption\nBlue_Jay/01.jpg,x\n", {"path_column": "wher"}, "a table of captions needs a column: {file}: expected "
         "wher, found where, caption. Next: did you mean where?"),
        ("t.csv", b"path,caption\nBlue_Jay/01.jpg,a,b\n", {}, "a row of a table has more or fewer cells than its first line: {file}, line "
         '2: expected 2 cells, found 3. Next: put captions with a comma or a line break in quotes: "a cat, asleep"'),
        ("t.jsonl", b'{"path": "a", "caption": "x"}\n[1]\n', {}, "not a line of a JSON object: {file}, line 2: expected "
         '{{"path": …, "caption": …}}, found a value of type list'),
        ("t.parquet", b"none" * 9, {}, "not a Parquet file that can be read: {file}: found Parquet magic bytes not found in footer. Either the "
         "file is corrupted or this is not a parquet file."),
        ("t.xlsx", b"none", {}, "captions are read from tables and tars: {file}: expected .parquet, .csv, .tsv, .jsonl or .tar, found "
         ".xlsx. Next: name it by its kind, or quote a pattern of files: 'DIR/*.parquet'"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_line(plan, tmp_path, name, content, settings, line) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        run(plan(file, **settings))
    assert str(error.value) == line.format(file=file, folder=tmp_path)
    assert not (tmp_path / "captions").exists()


def test_parquet_text_that_is_not_utf8_is_one_line(plan, tmp_path) -> None:
    text = pa.array([b"L\xf6we"]).view(pa.string())
    pq.write_table(pa.table({"path": ["Blue_Jay/01.jpg"], "caption": text}), tmp_path / "t.parquet")
    with pytest.raises(InputError) as error:
        plan(tmp_path / "t.parquet")
    assert error.value.fields["code"] == "text-not-utf8"


def test_a_teacher_without_text_is_refused(picture_shards, rows, tmp_path) -> None:
    table = write(rows, tmp_path / "t.csv")
    with pytest.raises(InputError) as error:
        plan_captions(
            picture_shards.location,
            TeacherConfig.of("timm:test_resnet", "random"),
            out=str(tmp_path / "captions"),
            settings=CaptionSettings(files=(str(table),)),
            compute=CPU,
        )
    assert error.value.fields["code"] == "teacher-without-text"


def test_the_command_reports_and_a_dry_run_writes_nothing(picture_shards, rows, tiny_clip_teacher, tmp_path) -> None:
    table, out = write(rows, tmp_path / "t.csv"), tmp_path / "captions"
    words = [
        "captions",
        str(picture_shards.location),
        "--from",
        str(table),
        "--out",
        str(out),
        "--threads",
        "1",
        "--json",
    ]
    words += ["--teacher", f"local-dir:{tiny_clip_teacher}", "--precision", "fp32"]
    dry = CliRunner().invoke(main, [*words, "--dry-run"])
    assert (dry.exit_code, out.exists()) == (0, False), dry.output
    facts = json.loads(dry.stdout)
    assert facts["bytes"] == 48 * 3 * 16 * 2 + 48 * 4
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["captions"] == facts["captions"]
    status = CliRunner().invoke(main, ["status", str(out), "--json"])
    assert (json.loads(status.stdout)["kind"], json.loads(status.stdout)["state"]) == ("captions", "complete")
    assert "--recipe affinity --captions" in json.loads(status.stdout)["next"]

"""`teachonce verify` of captions: no alarm on whole ones, a cause for each planted fault, the teacher again, and repair."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger, record_outputs
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.captions import plan_captions
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.pairs.caption_store import open_caption_root
from teachonce.stages.settings.captions import CaptionSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas import caption_store
from teachonce.storage_schemas.caption_store import read_caption_spec, stored_captions
from teachonce.storage_schemas.json_file import seal

CPU = Compute(device="cpu", precision="fp32", threads=1)
WORDS = ("a fox", "two birds, blue", "a lion", "a cat, asleep", "snow", "an old car", "a tree in the fog")

Change = Callable[[NDArray[Any], NDArray[np.int32]], None]


@dataclass(frozen=True)
class Captioned:
    """Shards, and captions of them."""

    shards: Path
    store: Path

    @property
    def receipts(self) -> Path:
        return self.store / "ledger" / "captions" / "receipts"

    def verify(self, *words: str) -> Result:
        return CliRunner().invoke(main, ["verify", str(self.shards), str(self.store), *words])

    def found(self, *words: str) -> tuple[int, list[tuple[str, int | None]]]:
        """The exit code, and code and shard of each finding."""
        done = self.verify(*words, "--json")
        assert done.exit_code in (0, 3, 4, 5), done.output
        return done.exit_code, [(one["code"], one["shard"]) for one in json.loads(done.stdout)["findings"]]

    def chunk(self, shard: int, place: int = 1) -> Path:
        return self.store / f"embedding/c/{shard}/{place}/0"

    def rewrite(self, shard: int, change: Change, *, digest: str | None = None) -> None:
        """Write other rows with a receipt that vouches for them: what no digest of a file can find."""
        place = Location.of(self.store)
        root, ledger = open_caption_root(place, mode="a"), Ledger(place, "captions")
        spec = read_caption_spec(root, place)
        embedding, count = (np.array(values) for values in stored_captions(root, spec, shard, place))
        change(embedding, count)
        for name, values in (("embedding", embedding), ("count", count)):
            array: Any = root[name]
            array.with_config({"write_empty_chunks": True})[spec.rows(shard)] = values
        receipt = ledger.receipt(f"{shard:06d}")
        assert receipt is not None
        found = digest or caption_store.captions_digest(embedding, count)
        outputs = record_outputs(place, caption_store.caption_chunks(spec, shard))
        ledger.commit(replace(receipt, outputs=outputs, digest=found), {})

    def tree(self) -> dict[str, bytes]:
        files = [f for f in self.store.rglob("*") if f.is_file() and "timings" not in f.parts]
        return {str(f.relative_to(self.store)): f.read_bytes() for f in files if f.name != "driver.json"}


def make(shards: Any, out: Path, teacher: str, *, texts: Callable[[int], list[str]], **settings: Any) -> Captioned:
    compute = settings.pop("compute", CPU)
    manifest = shards.manifest()
    paths = [path for shard in range(manifest.num_shards) for path in manifest.paths_of(shard)]
    rows = [(path, text) for row, path in enumerate(paths) for text in texts(row)]
    table = out.with_suffix(".parquet")
    pq.write_table(pa.table({"path": [p for p, _ in rows], "caption": [t for _, t in rows]}), table)
    stage = plan_captions(
        shards.location,
        TeacherConfig.of(f"local-dir:{teacher}", None),
        out=str(out),
        settings=CaptionSettings(files=(str(table),), batch_size=16, **settings),
        compute=compute,
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return Captioned(Path(shards.location.path), out)


def some(row: int) -> list[str]:
    """Row mod 4 captions: some images have none."""
    return [f"{WORDS[(row + place) % len(WORDS)]} {row % 5}" for place in range(row % 4)]


@pytest.fixture(scope="session")
def whole(picture_shards, tiny_clip_teacher, tmp_path_factory) -> Captioned:
    """Captions of four shards of pictures. Nobody changes them."""
    return make(picture_shards, tmp_path_factory.mktemp("captioned") / "captions", tiny_clip_teacher, texts=some)


@pytest.fixture
def copy(whole, tmp_path) -> Captioned:
    """A copy, to be spoilt."""
    found = Captioned(tmp_path / "shards", tmp_path / "captions")
    shutil.copytree(whole.shards, found.shards)
    shutil.copytree(whole.store, found.store)
    return found


@pytest.fixture(scope="session")
def model(tiny_clip_teacher) -> str:
    return f"local-dir:{tiny_clip_teacher}"


@pytest.mark.parametrize("settings", [{"texts": some}, {"texts": some, "encoding": "fp32"}, {"texts": some, "captions": 1},
    {"texts": lambda row: ["the same"] * 2}, {"texts": lambda row: some(row) if row < 13 else []},
    {"texts": some, "compute": replace(CPU, precision="amp_bf16")}],
    ids=["fp16", "fp32", "one place", "all alike", "three shards without", "bf16"])  # fmt: skip
def test_whole_captions_are_no_alarm(picture_shards, tiny_clip_teacher, model, tmp_path, settings) -> None:
    made = make(picture_shards, tmp_path / "captions", tiny_clip_teacher, **settings)
    assert made.found("--quick") == (0, [])
    assert made.found("--full", "--teacher", "20", "--teacher-model", model) == (0, [])


def test_what_it_prints(whole, model) -> None:
    quick = whole.verify("--quick")
    assert (quick.exit_code, quick.stdout) == (0, f"{whole.store}: clean (quick; 4 shards, 48 rows)\n")
    facts = json.loads(whole.verify("--json").stdout)
    chunks = [f for name in ("embedding", "count") for f in (whole.store / name / "c").rglob("*") if f.is_file()]
    tars = [*whole.shards.glob("*.tar"), *whole.shards.glob("*.index.npy")]
    assert facts["bytes_read"] == sum(f.stat().st_size for f in [*chunks, *tars])
    again = whole.verify("--teacher", "8", "--teacher-model", model)
    assert again.exit_code == 0, again.output
    assert "teacher again on 8 rows: caption: 1 - cosine " in again.stdout


def flip(file: Path, byte: int) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 4
    file.write_bytes(data)


def test_a_flipped_bit_is_named_by_its_place(copy) -> None:
    flip(copy.chunk(2), 9)
    assert copy.found("--quick") == (0, [])
    assert copy.found() == (3, [("file-bit-flipped", 2)])
    (finding,) = json.loads(copy.verify("--json").stdout)["findings"]
    assert finding["what"] == "a bit of a chunk of 'embedding' is flipped"
    assert (finding["where"], finding["found"]) == (str(copy.chunk(2)), "bit 2 of byte 9")
    assert finding["hint"] == f"restore it from a copy, or teachonce verify {copy.shards} {copy.store} --repair"
    assert finding["mendable"] is True


def test_files_of_chunks(copy) -> None:
    copy.chunk(0).unlink()
    copy.chunk(1).write_bytes(copy.chunk(1).read_bytes()[:-1])
    with copy.chunk(2).open("ab") as file:
        file.write(b"x")
    expected = [("file-missing", 0), ("file-cut", 1), ("file-longer", 2)]
    assert copy.found("--quick") == (3, expected)
    assert copy.found() == (3, expected)


def test_chunks_of_other_shards_and_places(copy) -> None:
    shutil.copyfile(copy.chunk(1), copy.chunk(2))
    shutil.copyfile(copy.chunk(3, 0), copy.chunk(3, 1))
    code, found = copy.found()
    assert (code, found[0]) == (3, ("file-of-another-shard", 2))
    assert found[1][1] == 3


def test_a_receipt_of_another_shard(copy) -> None:
    shutil.copyfile(copy.receipts / "000001.json", copy.receipts / "000002.json")
    for words in (("--quick",), ()):
        assert copy.found(*words) == (3, [("receipt-other-unit", 2)])


def test_a_receipt_of_other_captions(copy, picture_shards, tiny_clip_teacher, tmp_path) -> None:
    """Each chunk of its shard is whole, and none is the one that it vouches for."""
    other = make(picture_shards, tmp_path / "other", tiny_clip_teacher, texts=lambda row: some(row + 1))
    for name in ("embedding/c/2", "count/c"):
        for file in (other.store / name).rglob("*"):
            if file.is_file() and (name != "count/c" or file.name == "2"):
                shutil.copyfile(file, copy.store / file.relative_to(other.store))
    assert copy.found() == (3, [("receipt-stale", 2)])


def test_a_receipt_of_no_shard(copy) -> None:
    (copy.receipts / "000009.json").write_bytes(b"{}")
    assert copy.found("--quick") == (4, [("receipt-of-no-shard", None)])


def test_captions_of_other_shards(whole, pictures, make_shards, tmp_path) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    next((tmp_path / "pictures").rglob("*.jpg")).unlink()
    other = make_shards(tmp_path / "pictures", tmp_path / "shards", shard_size=13)
    found = Captioned(Path(other.location.path), whole.store)
    assert found.found("--quick") == (4, [("captions-other-corpus", None)])
    assert "field 'corpus_id'" in found.verify("--quick").stdout


def test_half_written_captions_cannot_be_told(copy) -> None:
    (copy.receipts / "000003.json").unlink()
    shutil.rmtree(copy.store / "embedding/c/3")
    assert copy.found("--quick") == (5, [("stage-unfinished", None), ("shard-unfinished", 3)])
    assert "run the same `teachonce captions` command again" in copy.verify("--quick").stdout
    shutil.rmtree(copy.store / "ledger")
    code, found = copy.found("--quick")
    assert (code, found[0]) == (5, ("stage-not-run", None))


def test_a_damaged_tar_is_found_beside_captions_too(copy) -> None:
    flip(copy.shards / "000001.tar", 700)
    assert copy.found() == (3, [("file-bit-flipped", 1)])


def test_what_describes_them(copy) -> None:
    root = copy.store / "zarr.json"
    text, array = root.read_text(), (copy.store / "embedding/zarr.json").read_text()
    root.write_text(text.replace('"captions": 3', '"captions": 2', 1))
    assert copy.found("--quick") == (3, [("description-changed", None)])
    root.write_bytes(b"{")
    assert copy.found("--quick") == (3, [("captions-damaged", None)])
    root.unlink()
    assert copy.found("--quick") == (3, [("captions-damaged", None)])
    root.write_text(text)
    (copy.store / "embedding/zarr.json").write_text(array.replace("48", "47", 1))
    assert copy.found("--quick") == (3, [("captions-damaged", None)])
    (copy.store / "embedding/zarr.json").unlink()
    assert copy.found("--quick") == (3, [("captions-damaged", None)])


def test_a_description_of_another_run(copy, picture_shards, tiny_clip_teacher, tmp_path) -> None:
    other = make(picture_shards, tmp_path / "other", tiny_clip_teacher, texts=lambda row: some(row + 1))
    shutil.copyfile(other.store / "zarr.json", copy.store / "zarr.json")
    code, found = copy.found("--quick")
    assert (code, found) == (4, [("description-contradicts-fingerprint", None)])


def test_texts_that_are_gone_or_others(copy, picture_shards, tiny_clip_teacher, tmp_path) -> None:
    texts = copy.store / "texts/captions.parquet"
    other = make(picture_shards, tmp_path / "other", tiny_clip_teacher, texts=lambda row: some(row)[::-1])
    shutil.copyfile(other.store / "texts/captions.parquet", texts)
    assert copy.found("--quick") == (0, [])
    assert copy.found() == (3, [("caption-texts-damaged", None)])
    texts.write_bytes(texts.read_bytes()[:-9])
    assert copy.found("--quick") == (3, [("caption-texts-damaged", None)])
    texts.unlink()
    assert copy.found("--quick") == copy.found() == (3, [("caption-texts-damaged", None)])


def nan_in_a_caption(embedding: NDArray[Any], count: NDArray[np.int32]) -> None:
    embedding[int(np.flatnonzero(count > 1)[0]), 1, 3] = np.nan


def number_behind_the_count(embedding: NDArray[Any], count: NDArray[np.int32]) -> None:
    embedding[int(np.flatnonzero(count == 1)[0]), 2] = 0.25


def one_more(embedding: NDArray[Any], count: NDArray[np.int32]) -> None:
    row = int(np.flatnonzero(count == 1)[0])
    embedding[row, 1], count[row] = embedding[row, 0], 2


def more_than_there_are_places(embedding: NDArray[Any], count: NDArray[np.int32]) -> None:
    count[int(np.flatnonzero(count == 3)[0])] = 4


def longer(embedding: NDArray[Any], count: NDArray[np.int32]) -> None:
    embedding *= 2


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (nan_in_a_caption, ["values-not-finite"]),
        (number_behind_the_count, ["values-of-unusable-rows"]),
        (one_more, ["caption-counts-differ"]),
        (more_than_there_are_places, ["caption-counts-differ"]),
        (longer, ["embedding-not-normalised"] * 3),
    ],
)
def test_rows_that_their_receipt_vouches_for(copy, change, codes) -> None:
    copy.rewrite(1, change)
    assert copy.found("--quick") == (0, [])
    code, found = copy.found()
    assert found == [(name, 1) for name in codes]
    assert code == (4 if codes[0] == "embedding-not-normalised" else 3)


def test_a_digest_of_other_rows(copy) -> None:
    copy.rewrite(1, lambda embedding, count: None, digest="0" * 32)
    assert copy.found() == (3, [("block-digest-differs", 1)])


def test_counts_without_texts_are_compared_with_the_places(copy) -> None:
    (copy.store / "texts/captions.parquet").unlink()
    copy.rewrite(1, more_than_there_are_places)
    assert copy.found() == (3, [("caption-texts-damaged", None), ("caption-counts-differ", 1)])


def shifted(embedding: NDArray[Any], count: NDArray[np.int32]) -> None:
    taken = np.arange(embedding.shape[1]) < count[:, None]
    embedding[taken] = np.roll(embedding[taken], 1, axis=0)


def test_the_teacher_finds_embeddings_of_other_captions(copy, model) -> None:
    copy.rewrite(2, shifted)
    assert copy.found() == (0, [])
    words = ("--teacher", "16", "--teacher-model", model)
    assert copy.found(*words) == (4, [("values-not-of-teacher", 2)])
    (finding,) = json.loads(copy.verify(*words, "--json").stdout)["findings"]
    assert finding["facts"]["caption"]["cosine_median"] > 1e-3
    assert set(finding["rows"]) <= set(range(26, 39))


@pytest.fixture(scope="session")
def other_teacher(tiny_clip_teacher, tmp_path_factory) -> str:
    """The same architecture and tokenizer, with other weights."""
    folder = tmp_path_factory.mktemp("other") / "teacher"
    shutil.copytree(tiny_clip_teacher, folder)
    torch.manual_seed(5)
    config = json.loads((folder / "open_clip_config.json").read_text())
    other = open_clip.CLIP(**config["model_cfg"])
    for weights in folder.glob("open_clip_model.*"):
        weights.unlink()
    from safetensors.torch import save_file

    save_file(
        {name: value.contiguous() for name, value in other.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def test_another_teacher(whole, other_teacher) -> None:
    code, found = whole.found("--teacher", "8", "--teacher-model", other_teacher)
    assert (code, {name for name, _ in found}) == (4, {"another-teacher"})


def test_another_tokenizer(whole, tiny_clip_teacher, tmp_path) -> None:
    """The same weights, and texts that are cleaned otherwise."""
    folder = Path(shutil.copytree(tiny_clip_teacher, tmp_path / "teacher"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    code, found = whole.found("--teacher", "8", "--teacher-model", f"local-dir:{folder}")
    assert (code, found[0]) == (4, ("captions-other-tokenizer", None))


def test_another_logit_scale(copy, model) -> None:
    place = Location.of(copy.store)
    root = open_caption_root(place, mode="a")
    root.attrs["captions"] = seal(asdict(replace(read_caption_spec(root, place), logit_scale=50.0)))
    assert copy.found("--quick") == (4, [("description-contradicts-fingerprint", None)])
    code, found = copy.found("--teacher", "8", "--teacher-model", model)
    assert (code, found) == (4, [("description-contradicts-fingerprint", None), ("logit-scale-other", None)])


def test_a_folder_without_its_place_is_asked_for(whole) -> None:
    done = whole.verify("--teacher", "8")
    assert done.exit_code == 1
    assert "add --teacher-model local-dir:FOLDER, as `captions` was given it" in done.stderr


def test_repair_gives_the_same_bytes(copy, whole, model) -> None:
    before = whole.tree()
    flip(copy.chunk(1), 9)
    copy.chunk(3).unlink()
    done = copy.verify("--repair", "--teacher-model", model)
    assert done.exit_code == 0, done.output
    assert "verify: embedding the captions of 2 shards again; 2 old receipts kept as *.old" in done.stderr
    assert "embedded again: shards 1, 3\n" in done.stdout
    after = copy.tree()
    assert {name for name in after if name not in before} == {
        f"ledger/captions/receipts/00000{shard}.json.old" for shard in (1, 3)
    }
    assert {name: after[name] for name in before} == before
    assert copy.found() == (0, [])


def test_a_killed_repair_is_named(copy) -> None:
    (copy.receipts / "000001.json").rename(copy.receipts / "000001.json.old")
    assert copy.found("--quick") == (3, [("repair-unfinished", 1)])


def test_repair_with_another_teacher_or_other_texts_changes_nothing(copy, model, other_teacher) -> None:
    copy.chunk(1).unlink()
    before = copy.tree()
    done = copy.verify("--repair", "--teacher-model", other_teacher)
    assert done.exit_code == 1
    assert "[repair-other-run]" in done.stderr
    assert copy.tree() == before
    (copy.store / "texts/captions.parquet").unlink()
    before = copy.tree()
    done = copy.verify("--repair", "--teacher-model", model)
    assert done.exit_code == 1
    assert "[caption-texts-damaged]" in done.stderr
    assert copy.tree() == before


def test_generations_are_of_target_stores(whole) -> None:
    done = whole.verify("--quick", "--generation", "1")
    assert done.exit_code == 1
    assert "captions have no generations" in done.stderr
    assert "Next: leave out --generation" in done.stderr


def test_folders_in_the_wrong_order(whole) -> None:
    done = CliRunner().invoke(main, ["verify", str(whole.store), str(whole.shards)])
    assert f"Next: teachonce verify {whole.shards} {whole.store}" in done.stderr


def test_captions_of_a_corpus_that_grew_are_looked_at_as_it_was(pictures, tiny_clip_teacher, model, tmp_path) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    more = [f.rename(tmp_path / f.name) for f in sorted((tmp_path / "pictures").glob("*/*.jpg"))[::9]]

    def shard(**settings: Any) -> ShardSet:
        settings = {"name": "pictures", "shard_size": 13, **settings}
        stage = plan_shard(
            [str(tmp_path / "pictures")], out=str(tmp_path / "shards"), settings=ShardSettings(**settings)
        )
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        return ShardSet.open(stage.out)

    found = make(shard(), tmp_path / "captions", tiny_clip_teacher, texts=some)
    for file in more:
        (tmp_path / "pictures" / "new").mkdir(exist_ok=True)
        file.rename(tmp_path / "pictures" / "new" / file.name)
    before = found.verify("--quick").stdout
    shard(append=True)
    assert found.verify("--quick").stdout == before
    assert found.found("--full", "--teacher", "8", "--teacher-model", model) == (0, [])


@pytest.mark.ray
def test_on_ray_it_finds_the_same(python, copy, cluster) -> None:
    flip(copy.chunk(2), 9)
    words = ("verify", copy.shards, copy.store, "--json", "--executor", "ray", "--ray-address", cluster.address)
    there = python.start("-W", "ignore", "-m", "teachonce", *words, "--workers", 2)
    here = copy.verify("--json")
    assert there.wait() == here.exit_code == 3, there.stderr
    assert json.loads(there.stdout) == json.loads(here.stdout)


def test_neither_level_imports_torch(whole) -> None:
    code = (
        "import sys; from teachonce.cli import main\n"
        f"try: main(['verify', {str(whole.shards)!r}, {str(whole.store)!r}])\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "print(sorted({'torch', 'ray', 'open_clip', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

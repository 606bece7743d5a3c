"""The whole way on a place that has no paths and fails on demand: the same bytes as on the disk, whatever write goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.contents import Kind, kind_of
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.places import schemes
from teachonce.pipeline.places.memory import Fault, MemoryPlace
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages import cache as cache_module
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.distill import plan_distill
from teachonce.stages.inspect import inspect_store
from teachonce.stages.measures.stored import Stored
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.status import folder_status
from teachonce.stages.students.bundle import load_student
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import IncompleteError, TeachonceError, UnitsFailed
from teachonce.storage_schemas.target_store import read_block, read_rows, read_target

CPU = Compute(device="cpu", precision="fp32", threads=1)

#: What no run repeats: seconds, and the moment of a line of the log.
TIMES = ("/timings/", "/run/log.jsonl", "/tensorboard/")


@pytest.fixture
def place() -> Iterator[MemoryPlace]:
    """A place that `Location.of` finds by `memory://NAME`."""
    place = MemoryPlace()
    schemes.register("memory", lambda rest: (place, rest))
    yield place
    schemes.unregister("memory")


@pytest.fixture(scope="module")
def class_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("classes") / "classes.txt"
    file.write_text("red fox\nBlue_Jay\nhouse-cat\n")
    return file


RANDOM_VIEWS = ViewSpec(kind="random_resized_crop", count=2)


def run(stage: Any, out: Location) -> None:
    run_stage(stage, out, SerialExecutor(), progress=False)


def make_shards(pictures: Path, root: Location) -> None:
    stage = plan_shard([str(pictures)], out=root / "shards", settings=ShardSettings(shard_size=13, name="pictures"))
    run(stage, stage.out)


def make_targets(root: Location, teacher: Path, class_file: Path, **options: Any) -> None:
    config = TeacherConfig(model=f"local-dir:{teacher}")
    run(
        plan_vectors(config, out=root / "store", settings=VectorsSettings(classes=str(class_file)), compute=CPU),
        root / "store",
    )
    make_rows(root, config, **options)


def make_rows(root: Location, config: TeacherConfig, views: ViewSpec | None = RANDOM_VIEWS, **options: Any) -> None:
    stage = plan_cache(
        root / "shards",
        config,
        out=root / "store",
        compute=CPU,
        views=views,
        settings=CacheSettings(batch_size=8, encoding="fp16", **options),
    )
    run(stage, stage.store)


def make_student(root: Location, student: Path) -> None:
    stage = plan_distill(
        root / "shards",
        root / "store",
        StudentConfig(model=f"local-dir:{student}"),
        out=root / "student",
        recipe="kd",
        options={"epochs": 2, "batch_size": 8},
        compute=CPU,
        show_progress=False,
        settings=DistillSettings(),
    )
    run(stage, stage.out)
    stage.discard_checkpoint()


def files_of(root: Location) -> dict[str, bytes]:
    """What lies below a folder, without what no run repeats."""
    names = [name for name in root.entries(deep=True) if not any(part in f"/{name}" for part in TIMES)]
    return {name: (root / name).read_bytes() for name in sorted(names)}


@pytest.fixture(scope="module")
def on_disk(pictures, tiny_clip_teacher, tiny_clip, class_file, tmp_path_factory) -> Location:
    """The whole way on the disk."""
    root = Location.of(tmp_path_factory.mktemp("disk"))
    make_shards(pictures, root)
    make_targets(root, tiny_clip_teacher, class_file)
    make_student(root, tiny_clip)
    return root


@pytest.fixture
def in_memory(place, on_disk) -> Location:
    """The same, copied file by file."""
    root = Location(place, "all")
    for name, data in files_of(on_disk).items():
        (root / name).write_bytes(data)
    return root


def test_the_whole_way_writes_the_same_bytes_as_on_the_disk(
    place, on_disk, pictures, tiny_clip_teacher, tiny_clip, class_file
):
    root = Location.of("memory://all")
    make_shards(pictures, root)
    make_targets(root, tiny_clip_teacher, class_file)
    make_student(root, tiny_clip)
    found, expected = files_of(root), files_of(on_disk)
    assert found.keys() == expected.keys()
    # The root of the store says where the shards are.
    assert found.pop("store/zarr.json") != expected.pop("store/zarr.json")
    assert [name for name, data in found.items() if data != expected[name]] == []
    assert {
        "shards/000000.tar",
        "shards/manifest.parquet",
        "store/logits/c/0/0/0",
        "student/model.safetensors",
    } <= found.keys()


def test_what_was_written_on_the_disk_reads_the_same_in_memory(on_disk, in_memory):
    disk, memory = (Stored.open(root / "store", root / "shards") for root in (on_disk, in_memory))
    for shard in range(4):
        blocks = [read_block(stored.root, stored.rows, shard) for stored in (disk, memory)]
        assert blocks[0].digest == blocks[1].digest
    assert disk.entry(17) == memory.entry(17) is not None
    told = [inspect_store(stored) for stored in (disk, memory)]
    assert [facts.pop("store") for facts in told] == [str(root / "store") for root in (on_disk, in_memory)]
    assert told[0] == told[1]
    for name, kind in {
        "shards": Kind.SHARDS,
        "store": Kind.STORE,
        "student": Kind.BUNDLE,
        "none": Kind.NOTHING,
    }.items():
        assert kind_of(in_memory / name) == kind
    facts = folder_status(in_memory)
    assert (facts["path"], facts["kind"], facts["state"], facts["running"]) == (
        "memory://all",
        "run folder",
        "complete",
        {},
    )
    assert [stage["stage"] for stage in facts["stages"]] == ["shard", "vectors", "cache", "distill"]


def test_pairs_and_students_are_read_there(on_disk, in_memory):
    streams = [
        TargetStream(str(root / "shards"), str(root / "store"), image_size=32, batch_size=8, seed=3)
        for root in (on_disk, in_memory)
    ]
    pairs = [[next(batches) for _ in range(4)] for batches in map(iter, streams)]
    for disk, memory in zip(*pairs, strict=True):
        assert torch.equal(disk.images_NCHW, memory.images_NCHW)
        assert all(torch.equal(disk.targets[name], memory.targets[name]) for name in disk.targets)
    for stream in streams:
        stream.close()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    disk, memory = (load_student(root / "student") for root in (on_disk, in_memory))
    assert torch.equal(disk.student(images), memory.student(images))
    assert np.array_equal(disk.vectors.vectors_CD, memory.vectors.vectors_CD)


def test_work_that_is_done_is_not_done_again(place, in_memory, pictures, tiny_clip):
    before = place.files()
    place.written.clear()
    make_shards(pictures, in_memory)
    make_student(in_memory, tiny_clip)
    assert place.files() == before
    assert [name for name in place.written if not name.endswith("/ledger/driver.json")] == []


# --- faults


class Killed(BaseException):
    """The process ends: nothing after this moment happens."""


@pytest.fixture(scope="module")
def few(pictures, tmp_path_factory) -> Path:
    """Five pictures and a broken one."""
    folder = tmp_path_factory.mktemp("few")
    for file in [*sorted(pictures.rglob("0*.jpg"))[:5], pictures / "red fox" / "07b.jpg"]:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def small_cache(place, few, tiny_clip_teacher, monkeypatch) -> Callable[[str], None]:
    """`small_cache(name)` caches three shards of `few` into `memory://NAME/store`. The teacher is loaded once."""
    config = TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")
    teacher = load_teacher(config)
    monkeypatch.setattr(cache_module, "load_teacher", lambda config: teacher)
    stage = plan_shard([str(few)], out=Location(place, "shards"), settings=ShardSettings(shard_size=2, name="few"))
    run(stage, stage.out)

    def cache(name: str) -> None:
        stage = plan_cache(
            Location(place, "shards"),
            config,
            out=Location(place, name),
            views=None,
            settings=CacheSettings(targets="embedding", encoding="fp16", batch_size=8),
            compute=CPU,
        )
        run(stage, stage.store)

    return cache


def undisturbed(place: MemoryPlace, cache: Callable[[str], None]) -> tuple[dict[str, bytes], int]:
    """The files of a run that nothing happens to, and the number of its writes."""
    place.written.clear()
    cache("calm")
    return files_of(Location(place, "calm")), len(place.written)


@pytest.mark.parametrize("error", [None, Killed], ids=["refused", "killed"])
def test_whatever_write_of_a_cache_fails_the_same_command_ends_with_the_same_bytes(place, small_cache, error):
    calm, writes = undisturbed(place, small_cache)
    assert writes > 25
    for nth in range(1, writes + 1):
        name = f"w{nth}"
        fault = Fault(nth=nth, name=f"{name}/*") if error is None else Fault(nth=nth, name=f"{name}/*", error=error)
        place.faults = [fault]
        with pytest.raises(TeachonceError if error is None else error):
            small_cache(name)
        place.faults = []
        small_cache(name)
        assert files_of(Location(place, name)) == calm, f"write {nth}"
        assert not (Location(place, name) / "ledger" / "driver.json").is_held()


def test_a_full_place_leaves_nothing_half_done(place, small_cache):
    calm, _ = undisturbed(place, small_cache)
    chunk = next(name for name in calm if name.startswith("embedding/c/1/"))
    place.faults = [Fault(name=f"full/{chunk}", always=True)]
    with pytest.raises(
        UnitsFailed,
        match=f"^1 of 3 units of cache failed, the first is 000001: refused on demand: memory://full/{chunk}",
    ):
        small_cache("full")
    with pytest.raises(IncompleteError) as error:
        TargetStream("memory://shards", "memory://full", image_size=32, batch_size=1, seed=0)
    assert (error.value.code, str(error.value.found)) == ("stage-unfinished", "2 of 3 units")
    status = folder_status("memory://full")["stages"][0]
    assert (status["done"], status["failed"], status["left"]) == (2, 1, 0)
    # Now nothing more can be written, not even why; then all is as it was.
    (Location(place, "full") / chunk).remove()
    for number in (0, 2):
        (Location(place, "full") / "ledger" / "cache" / "receipts" / f"{number:06d}.json").remove()
    place.faults = [Fault(name="full/embedding/*", always=True), Fault(name="full/*/failures/*", always=True)]
    with pytest.raises(UnitsFailed) as failure:
        small_cache("full")
    assert (failure.value.code, failure.value.what) == (
        "refused-on-demand",
        "3 of 3 units of cache failed, the first is 000000",
    )
    assert str(failure.value.where).startswith("refused on demand")
    place.faults = []
    small_cache("full")
    assert files_of(Location(place, "full")) == calm


def everything(place: MemoryPlace, name: str) -> list[str]:
    """What a store says, read as every reader does."""
    stored = Stored.open(Location(place, name), Location(place, "shards"))
    stored.receipts.require_complete()
    receipts = [receipt.to_bytes().hex() for receipt in stored.receipts.receipts(stored.rows.num_shards)]
    rows = [
        part.tobytes().hex()
        for shard in range(stored.rows.num_shards)
        for part in (
            *read_rows(stored.root, stored.rows, shard, 0),
            read_target(stored.root, stored.rows, shard, "embedding", 0),
        )
    ]
    return [*receipts, *rows]


@pytest.mark.parametrize("torn", [0, 40])
def test_a_torn_write_of_a_cache_is_found_or_mended_and_never_read(place, small_cache, torn):
    """The place says that all is well, and keeps a part: the command or the reader refuses it, or the bytes are right."""
    calm, writes = undisturbed(place, small_cache)
    expected, found, told = everything(place, "calm"), 0, 0
    for nth in range(1, writes + 1):
        name = f"t{nth}"
        place.faults = [Fault(nth=nth, name=f"{name}/*", torn=torn, error=None)]
        try:
            small_cache(name)
            assert everything(place, name) == expected, f"write {nth}"
            found += 1
        except TeachonceError:
            told += 1
    assert found + told == writes
    # Locks, timings and what is written twice may be torn; of chunks and receipts, plan and root nothing may.
    assert told >= len([name for name in calm if "/c/" in name or "receipts" in name])


@pytest.mark.parametrize("nth", range(1, 12))
def test_whatever_write_of_shard_fails_the_same_command_ends_with_the_same_bytes(place, few, nth):
    def shard(name: str) -> None:
        stage = plan_shard([str(few)], out=Location(place, name), settings=ShardSettings(shard_size=3, name="few"))
        run(stage, stage.out)

    shard("calm")
    calm = files_of(Location(place, "calm"))
    place.faults = [Fault(nth=nth, name="out/*", error=Killed if nth % 2 else Fault.error)]
    with pytest.raises((TeachonceError, Killed)):
        shard("out")
    place.faults = []
    shard("out")
    assert files_of(Location(place, "out")) == calm
    assert ShardSet.open(Location(place, "out")).corpus.num_samples == 6


@pytest.mark.parametrize(("torn", "longer"), [(0, 8), (600, 4)])
def test_a_torn_write_of_shard_is_found_or_mended_and_never_read(place, few, torn, longer):
    def shard(name: str) -> None:
        stage = plan_shard([str(few)], out=Location(place, name), settings=ShardSettings(shard_size=3, name="few"))
        run(stage, stage.out)

    def rows(name: str) -> list[bytes]:
        shards = ShardSet.open(Location(place, name))
        entries = [repr(entry).encode() for entry in shards.manifest()]
        readers = [shards.reader(shard) for shard in range(shards.corpus.num_shards)]
        return [*entries, *(reader.read(int(row)) for reader in readers for row in reader.index["row"])]

    place.written.clear()
    shard("calm")
    calm, writes, told = rows("calm"), len(place.written), 0
    for nth in range(1, writes + 1):
        place.faults = [Fault(nth=nth, name=f"t{nth}/*", torn=torn, error=None)]
        try:
            shard(f"t{nth}")
            assert rows(f"t{nth}") == calm, f"write {nth}"
        except TeachonceError:
            told += 1
    assert told >= longer  # of manifest, corpus, plan, and tar, index and receipt of two shards


@pytest.mark.parametrize(
    "name",
    ["checkpoint.safetensors", "model.safetensors", "config.json", "log.jsonl", "receipts/student.json"],
)
def test_a_student_goes_on_where_a_write_failed(place, in_memory, tiny_clip, on_disk, name):
    place.remove_folder("all/student")
    place.faults = [Fault(name=f"all/student/*{name}", error=Killed, nth=2 if name.startswith("checkpoint") else 1)]
    with pytest.raises(Killed):
        make_student(in_memory, tiny_clip)
    with pytest.raises(IncompleteError) if not name.startswith("receipts") else pytest.raises(ZeroDivisionError):
        load_student(in_memory / "student")
        raise ZeroDivisionError  # the bundle is whole; only its receipt is not
    place.faults = []
    make_student(in_memory, tiny_clip)
    assert files_of(in_memory / "student") == files_of(on_disk / "student")


def test_every_command_takes_a_place_by_its_address(
    place, pictures, tiny_clip_teacher, tiny_clip, class_file, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    shards, store, student = "memory://all/shards", "memory://all/store", "memory://all/student"
    serial = ["--executor", "serial"]
    teacher = ["--teacher", f"local-dir:{tiny_clip_teacher}", "--threads", 1, *serial, "--out", store]
    for command in (
        ["shard", pictures, *serial, "--shard-size", 13, "--out", shards],
        ["vectors", *teacher, "--classes", class_file],
        ["cache", shards, *teacher, "--batch-size", 8, "--decode-workers", 0],
        [
            "distill",
            shards,
            store,
            "--student",
            f"local-dir:{tiny_clip}",
            "--recipe",
            "kd",
            "--epochs",
            1,
            "--batch-size",
            8,
            "--threads",
            1,
            "--decode-workers",
            0,
            *serial,
            "--out",
            student,
        ],
        ["inspect", store],
        ["inspect", store, "red fox/03.jpg"],
        ["status", "memory://all"],
        ["evaluate", student, shards, "--store", store],
        ["predict", student, pictures / "red fox" / "03.jpg"],
        [
            "vectors",
            "--teacher",
            f"local-dir:{tiny_clip_teacher}",
            "--threads",
            1,
            *serial,
            "--classes",
            shards,
            "--out",
            "memory://all/again",
        ],
    ):
        told = CliRunner().invoke(main, list(map(str, command)))
        assert told.exit_code == 0, told.output
    assert list(tmp_path.iterdir()) == []
    assert {name.split("/")[1] for name in place.files()} == {"shards", "store", "student", "again"}
    for command, line in (
        (
            ["cache", store, *teacher[:-1], "memory://all/third"],
            "Error: no shards here: memory://all/store: expected a folder of shards, found a target store [shards-missing]. ",
        ),
        (
            [
                "distill",
                store,
                shards,
                "--student",
                f"local-dir:{tiny_clip}",
                "--recipe",
                "kd",
                "--out",
                "memory://new",
            ],
            "Error: two folders are swapped: memory://all/store memory://all/shards: ",
        ),
        (["shard", pictures, "--out", store], "Error: the output folder holds something else: memory://all/store: "),
        (
            ["cache", shards, *teacher[:-1], "memory://all"],
            "Error: the output folder is or holds an input: memory://all: ",
        ),
        (
            ["shard", pictures, "--out", f"{shards}/000000.tar/x"],
            "Error: no folder can be here: memory://all/shards/000000.tar: expected a folder, or nothing, found a file [output-blocked]. ",
        ),
    ):
        told = CliRunner().invoke(main, list(map(str, command)))
        assert told.exit_code == 1
        assert told.output.splitlines()[-1].startswith(line), told.output

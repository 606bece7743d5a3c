"""The contract of a place (`pipeline/places/place.py`), held by the local one, the one in memory, and a bucket of an S3 server."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from teachonce.pipeline.places import schemes
from teachonce.pipeline.places.local import LOCAL
from teachonce.pipeline.places.memory import Fault, MemoryPlace
from teachonce.pipeline.places.zarr_store import PlaceStore
from teachonce.pipeline.storage import Location
from teachonce.storage_schemas.errors import InputError, StorageError
from zarr.abc.store import Store


@pytest.fixture(params=["local", "memory", "bucket"])
def root(request, tmp_path) -> Location:
    """A folder that is empty, or not there yet."""
    if request.param == "bucket":
        return Location.of(request.getfixturevalue("bucket")) / "root"
    return Location.of(tmp_path / "root") if request.param == "local" else Location(MemoryPlace(), "root")


def test_what_is_written_is_read_whole_and_by_ranges(root):
    file = root / "a" / "b.bin"
    assert (file.exists(), file.size(), root.exists()) == (False, None, False)
    file.write_bytes(b"0123456789")
    assert (file.exists(), file.is_file(), file.is_dir(), file.size()) == (True, True, False, 10)
    assert file.read_bytes() == b"0123456789"
    ranges = [(0, 0), (3, 2), (3, 7), (3, 8), (10, 1), (99, 5)]
    expected = [b"0123456789"[at : at + size] for at, size in ranges]
    assert [file.read_range(*asked) for asked in ranges] == expected
    reader = file.open_ranges()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda asked: reader.read(*asked), ranges * 20)) == expected * 20
    reader.close()
    assert b"".join(file.stream()) == b"0123456789"
    file.write_bytes(b"x")
    assert (file.read_bytes(), file.size()) == (b"x", 1)
    file.write_note(b"note")
    assert file.read_bytes() == b"note"


def test_what_is_not_there_is_said_in_one_way(root):
    file = root / "none.bin"
    for read in (
        file.read_bytes,
        lambda: file.read_range(0, 1),
        file.open_ranges,
        file.open,
        file.sync,
        lambda: list(file.stream()),
    ):
        with pytest.raises(FileNotFoundError):
            read()
    assert (file.exists(), file.is_dir(), file.size(), file.changed_at(), file.names()) == (
        False,
        False,
        None,
        None,
        [],
    )
    file.remove()
    root.remove_folder()
    assert list(root.entries(deep=True)) == []


def test_a_library_reads_and_seeks_in_a_file(root):
    table = pa.table({"a": np.arange(5000), "b": [f"{i}" for i in range(5000)]})
    with (root / "t.parquet").create() as file:
        pq.write_table(table, file, row_group_size=500)
    with (root / "t.parquet").open() as opened:
        read = pq.ParquetFile(opened)
        assert read.read().equals(table)
        assert read.read_row_group(7).equals(table.slice(3500, 500))
        assert opened.seek(-4, os.SEEK_END) == opened.tell() == (root / "t.parquet").size() - 4
        assert (opened.read(2), opened.read(), opened.read(), opened.seek(0)) == (b"PA", b"R1", b"", 0)
        buffer = bytearray(4)
        assert (opened.readinto(buffer), bytes(buffer)) == (4, b"PAR1")
        with pytest.raises(ValueError, match="no such place in a file"):
            opened.seek(-1)
    assert opened.closed


def test_names_below_a_folder(root):
    for name in ("b/2.bin", "b/c/3.bin", "1.bin", "b-c.bin", "é/ü.bin"):
        (root / name).write_bytes(b"x")
    assert sorted(root.entries()) == sorted(["1.bin", "b-c.bin", "b/", "é/"])
    assert sorted(root.entries(deep=True)) == sorted(["1.bin", "b-c.bin", "b/2.bin", "b/c/3.bin", "é/ü.bin"])
    for deep, names in ((False, {"1.bin", "b-c.bin"}), (True, set(root.entries(deep=True)))):
        listed = dict(root.listing(deep=deep))
        assert listed.keys() == names
        for name, stat in listed.items():
            seen = (root / name).stat()
            assert (stat.is_folder, stat.size, int(stat.changed_at)) == (False, 1, int(seen.changed_at)), name
    assert list((root / "nothing").listing()) == []
    assert root.names() == ["1.bin", "b", "b-c.bin", "é"]
    assert root.folders() == [root / "b", root / "é"]
    assert ((root / "b").names(), list((root / "1.bin").entries())) == (["2.bin", "c"], [])
    assert [(root / name).is_dir() for name in ("", "b", "b/c", "b/2.bin", "b/c/4")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    (root / "b").remove_folder()
    assert (root.names(), (root / "b").exists()) == (["1.bin", "b-c.bin", "é"], False)


def test_a_folder_that_was_made_is_there_while_nothing_is_in_it(root):
    made = (root / "ledger" / "cache").make_dir()
    assert (made.is_dir(), made.exists(), made.names(), root.names()) == (True, True, [], ["ledger"])
    assert ((root / "ledger").folders(), list(root.entries(deep=True))) == ([made], [])
    assert made.make_dir().names() == []
    made.remove_folder()
    assert not made.exists()


def test_a_file_made_piece_by_piece_is_not_there_before_it_is_whole(root):
    file = root / "a.tar"
    file.write_bytes(b"old")
    with file.create(settle=False) as writer:
        writer.write(b"new")
        assert file.read_bytes() == b"old"
        writer.write(b"er")
    assert file.read_bytes() == b"newer"

    class Broken(Exception):
        pass

    def fail() -> None:
        with file.create() as writer:
            writer.write(b"half")
            raise Broken

    with pytest.raises(Broken):
        fail()
    assert (file.read_bytes(), root.names()) == (b"newer", ["a.tar"])


def test_of_many_first_writers_one_is_the_first(root):
    file, start = root / "deep" / "plan.json", threading.Barrier(8)

    def write(number: int) -> bool:
        start.wait()
        return file.write_if_absent(b"%d" % number)

    with ThreadPoolExecutor(8) as threads:
        first = list(threads.map(write, range(8)))
    assert sum(first) == 1
    assert file.read_bytes() == b"%d" % first.index(True)
    assert not file.write_if_absent(b"later")
    assert (root / "deep").names() == ["plan.json"]


def test_logs_grow_as_they_are_flushed(root):
    log = root / "run" / "log.jsonl"
    for line in (b"1\n", b"2\n"):
        with log.append() as file:
            file.write(line)
            file.flush()
            assert log.read_bytes().endswith(line)
    assert log.read_bytes() == b"1\n2\n"


def test_one_holds_a_name_until_it_lets_go(root):
    lock = root / "ledger" / "driver.json"
    assert not lock.is_held()
    held = lock.hold(b"me")
    assert held is not None
    assert (lock.is_held(), lock.read_bytes(), lock.hold(b"you")) == (True, b"me", None)
    held.release()
    assert (lock.is_held(), lock.exists(), root.exists()) == (False, False, False)
    again = lock.hold(b"you")
    (root / "kept.txt").write_bytes(b"x")
    assert again is not None
    again.release()
    assert root.names() == ["kept.txt"]


def test_zarr_writes_and_reads_there(root):
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    group = zarr.open_group((root / "s").zarr_store(), mode="a", zarr_format=3)
    array = group.create_array("t", shape=values.shape, chunks=(5, 3), dtype="float32", attributes={"a": 1})
    array[:] = values
    group.require_group("ledger")
    (root / "s" / "t" / "c" / "1" / "0").sync()
    assert sorted((root / "s").entries(deep=True)) == [
        "ledger/zarr.json",
        *(f"t/c/{i}/0" for i in range(4)),
        "t/zarr.json",
        "zarr.json",
    ]
    store = (root / "s").zarr_store(read_only=True)
    read = zarr.open_group(store, mode="r")
    assert np.array_equal(read["t"][:], values)  # type: ignore[arg-type]
    assert (sorted(read.array_keys()), sorted(read.group_keys()), read["t"].attrs["a"]) == (
        ["t"],
        ["ledger"],
        1,
    )
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_group(store, mode="a").create_array("u", shape=(1,), dtype="i1")


def store_size(store: Store, key: str) -> int:
    return asyncio.run(store.getsize(key))


def test_the_store_for_places_without_one_of_their_own_is_as_zarrs(tmp_path):
    for folder, store in (
        ("own", LOCAL.zarr_store(str(tmp_path / "own"))),
        ("any", PlaceStore(LOCAL, str(tmp_path / "any"))),
    ):
        group = zarr.open_group(store, mode="a", zarr_format=3)
        group.create_array("t", shape=(9,), chunks=(2,), shards=(4,), dtype="i4")[:] = np.arange(9)
        # Shards are read by ranges: from the end, and from the middle.
        assert zarr.open_group(store, mode="r")["t"][3:8].tolist() == [3, 4, 5, 6, 7], folder
        group.create_array("t", shape=(2,), dtype="i1", overwrite=True)
        group.create_array("t_max", shape=(5,), dtype="i1", compressors=None, fill_value=7)[:] = 1
        assert [group[name].nbytes_stored() - (store_size(store, f"{name}/zarr.json")) for name in ("t", "t_max")] == [
            0,
            5,
        ]
        assert sorted(group.array_keys()) == ["t", "t_max"]
    files = [
        {str(p.relative_to(tmp_path / f)): p.read_bytes() for p in (tmp_path / f).rglob("*") if p.is_file()}
        for f in ("own", "any")
    ]
    assert files[0] == files[1] != {}


def test_what_is_inside_what_and_what_is_in_the_way(root):
    file = root / "a" / "b.bin"
    file.write_bytes(b"x")
    assert [file.is_inside(at) for at in (file, root / "a", root, root / "b", file / "c")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert not (root / "ab").is_inside(root / "a")
    assert (root.obstacle(), (root / "new" / "er").obstacle()) == (None, None)
    assert file.obstacle() == (file / "c").obstacle() == (file, "a file")


def test_an_address_leads_back(root):
    schemes.register("memory", lambda rest: (root.place, rest))
    try:
        assert Location.of((root / "a" / "é.bin").address) == root / "a" / "é.bin"
    finally:
        schemes.unregister("memory")
    assert (root / "a" / "é.bin").name == "é.bin"
    assert (root / "a" / "E.TAR").suffix == ".tar"
    assert (root / "a" / "b").parents[:2] == [root / "a", root]
    assert (root / "a").sibling("b") == root / "b"


def test_near_names_are_offered(root):
    (root / "targets.zarr" / "zarr.json").write_bytes(b"{}")
    assert (root / "target.zarr").near() == [str(root / "targets.zarr")]
    assert (root / "nothing-like-it").near() == []


def test_the_local_place_goes_to_other_processes_and_memory_does_not(tmp_path):
    location = Location.of(tmp_path / "a")
    assert pickle.loads(pickle.dumps(location)) == location
    with pytest.raises(TypeError, match="memory of one process"):
        pickle.dumps(Location(MemoryPlace(), "a"))
    assert location.path == location.local_path() == tmp_path / "a"
    with pytest.raises(InputError) as error:
        _ = Location(MemoryPlace(), "a").path
    assert (error.value.code, str(error.value.where), str(error.value.hint)) == (
        "place-not-local",
        "memory://a",
        "choose a local folder",
    )


def test_links_lead_to_what_they_lead_to(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.bin").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "gone").symlink_to("nothing")
    root = Location.of(tmp_path)
    assert (root / "link" / "deep" / "a.bin").is_inside(root / "real")
    assert sorted((root / "link").entries()) == ["deep/", "gone", "round/"]
    assert sorted((root / "link").entries(deep=True)) == ["deep/a.bin", "gone"]
    assert (root / "real" / "gone" / "x").obstacle() == (root / "real" / "gone", "a link to nothing")


def test_without_hard_links_the_first_writer_is_still_the_first(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    file = Location.of(tmp_path / "plan.json")
    assert [file.write_if_absent(data) for data in (b"1", b"2")] == [True, False]
    assert (file.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (b"1", ["plan.json"])


class Gone(BaseException):
    """The process was killed."""


@pytest.mark.parametrize(
    ("fault", "seen", "left"),
    [
        (Fault(nth=2), {1: StorageError}, {"a": b"one", "c": b"three"}),
        (Fault(name="*/b"), {1: StorageError}, {"a": b"one", "c": b"three"}),
        (Fault(nth=2, always=True), {1: StorageError, 2: StorageError}, {"a": b"one"}),
        (Fault(nth=3, torn=2), {2: StorageError}, {"a": b"one", "b": b"two", "c": b"th"}),
        (Fault(nth=1, torn=1, error=None), {}, {"a": b"o", "b": b"two", "c": b"three"}),
        (Fault(nth=1, error=Gone), {0: Gone}, {"b": b"two", "c": b"three"}),
        (Fault(name="*/d"), {}, {"a": b"one", "b": b"two", "c": b"three"}),
    ],
)
def test_memory_fails_on_demand(fault, seen, left):
    place = MemoryPlace()
    place.faults = [fault]
    for number, (name, data) in enumerate([("a", b"one"), ("b", b"two"), ("c", b"three")]):
        file = Location(place, "r") / name
        write = [file.write_bytes, file.write_if_absent, lambda data, file=file: _create(file, data)][number]  # type: ignore[misc]
        if number in seen:
            with pytest.raises(seen[number]):
                write(data)
        else:
            write(data)
    assert place.files() == {f"r/{name}": data for name, data in left.items()}
    assert place.written == ["r/a", "r/b", "r/c"]


def _create(file: Location, data: bytes) -> None:
    with file.create() as writer:
        writer.write(data)


def test_zarrs_writes_fail_on_demand_too():
    place = MemoryPlace()
    group = zarr.open_group(place.zarr_store("s"), mode="a", zarr_format=3)
    array = group.create_array("t", shape=(4,), chunks=(2,), dtype="i4")
    place.faults = [Fault(name="s/t/c/1")]
    with pytest.raises(StorageError) as error:
        array[:] = 1
    assert (error.value.code, str(error.value.where)) == ("refused-on-demand", "memory://s/t/c/1")
    assert "s/t/c/1" not in place.files()


def test_local_writes_are_durable_in_order(tmp_path, monkeypatch):
    """File to the disk, then its name, then its folder; for notes and all but the last of several files less."""
    done: list[str] = []
    fsync, replace, link = os.fsync, Path.replace, os.link

    def kind(descriptor: int) -> str:
        return "folder" if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir() else "file"

    monkeypatch.setattr(os, "fsync", lambda d: (done.append(f"sync {kind(d)}"), fsync(d))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("rename"), replace(self, to))[1])
    monkeypatch.setattr(os, "link", lambda a, b: (done.append("link"), link(a, b))[1])
    file = Location.of(tmp_path / "a")

    def steps(write: object) -> list[str]:
        done.clear()
        write()  # type: ignore[operator]
        return list(done)

    def unsettled() -> None:
        with file.create(settle=False) as writer:
            writer.write(b"x")

    assert steps(lambda: file.write_bytes(b"x")) == ["sync file", "rename", "sync folder"]
    assert steps(unsettled) == ["sync file", "rename"]
    assert steps(lambda: file.write_note(b"x")) == ["rename"]
    assert steps(file.sync) == ["sync file", "sync folder"]
    group = zarr.open_group(Location.of(tmp_path / "z").zarr_store(), mode="w", zarr_format=3)

    def describe() -> None:
        group.attrs["a"] = 1

    # Nothing vouches for a store's descriptions, so a crash of the machine must leave the old one or the new one.
    assert steps(describe) == ["sync file", "rename", "sync folder"]
    assert steps(lambda: (tmp_path / "b", file.sibling("b").write_if_absent(b"x"))) == [
        "sync file",
        "link",
        "sync folder",
    ]

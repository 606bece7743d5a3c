"""A tar as a corpus: which members are found, which labels they have, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
import webdataset
from teachonce.pipeline.user_files import UserFile
from teachonce.stages.corpora.names import plain_path
from teachonce.stages.corpora.tar_members import tar_members
from teachonce.stages.inputs.sources import open_sources
from teachonce.storage_schemas.errors import InputError, Unreachable


def found(tar) -> dict:
    (source,) = open_sources([str(tar)])
    return {found.path: found for found in source.walk() if found.is_image}


def labels(tar) -> dict[str, str | None]:
    return {path: found.label for path, found in found(tar).items()}


def left_out(tar) -> list[tuple[str, str]]:
    (source,) = open_sources([str(tar)])
    return [(found.path, found.left_out) for found in source.walk() if not found.is_image]


def contents(tar) -> dict[str, bytes | str]:
    """The bytes of each image, or why it has none."""
    (source,) = open_sources([str(tar)])
    return {
        f.path: source.read(f.path, f.offset, f.size) if f.problem is None else f.problem
        for f in source.walk()
        if f.is_image
    }


def member(name: str, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def hard(name: str, target: str) -> tarfile.TarInfo:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def soft(name: str, target: str) -> tarfile.TarInfo:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def make_tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes] | bytes, **options) -> Path:
    """A tar of members; bytes among them stand in it as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for what in members:
            if isinstance(what, bytes):
                buffer.write(what)
                tar.offset += len(what)
                continue
            info, data = (member(what[0], size=len(what[1])), what[1]) if isinstance(what, tuple) else (what, b"")
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(buffer.getvalue())
    return path


def test_sidecars_of_images_are_not_left_out(tmp_path):
    tar = make_tar(
        tmp_path / "t.tar",
        ("a/0.jpg", b"one"),
        ("a/0.json", b"{}"),
        ("a/0.txt", b""),
        ("a/1.cls", b"7"),
        ("a/k.v1.png", b"two"),
        ("a/k.cls", b"3"),
        ("a/.json", b"{}"),
        ("b/0.json", b"{}"),
    )
    assert left_out(tar) == [
        ("a/.json", "hidden"),
        ("a/0.txt", "no image name"),
        ("a/1.cls", "no image name"),
        ("b/0.json", "no image name"),
    ]


def test_members_are_read_in_place(tmp_path):
    tar = make_tar(
        tmp_path / "t.tar",
        ("dog/2.jpg", b"two"),
        ("cat/1.jpg", b"one"),
        ("../../evil.png", b"evil"),
        ("x.txt", b""),
    )
    assert list(found(tar)) == ["../../evil.png", "cat/1.jpg", "dog/2.jpg"]
    assert labels(tar) == {"../../evil.png": None, "cat/1.jpg": "cat", "dog/2.jpg": "dog"}
    assert contents(tar) == {"../../evil.png": b"evil", "cat/1.jpg": b"one", "dog/2.jpg": b"two"}
    assert left_out(tar) == [("x.txt", "no image name")]


def test_webdataset_tars_bring_their_labels(tmp_path):
    path = tmp_path / "w-000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "a", "jpg": b"j", "cls": b"7"})
        writer.write({"__key__": "b", "png": b"p", "json": b'{"label": "cat"}'})
        writer.write({"__key__": "c", "webp": b"w", "json": b"not json"})
        writer.write({"__key__": "d", "left.jpg": b"w", "right.jpg": b"w", "cls": b"8"})
    assert labels(path) == {
        "a.jpg": "7",
        "b.png": "cat",
        "c.webp": None,
        "d.left.jpg": "8",
        "d.right.jpg": "8",
    }


def test_the_sidecar_of_exactly_an_images_name_comes_first(tmp_path):
    tar = make_tar(
        tmp_path / "t.tar",
        ("i.v1.jpg", b"1"),
        ("i.v1.json", b'{"label": "cat"}'),
        ("i.v2.jpg", b"2"),
        ("i.v2.json", b'{"label": "dog"}'),
        ("a.v1.json", b'{"label": "cat"}'),
        ("a.v1.jpg", b"3"),
        ("a.v2.jpg", b"4"),
        ("k.v1.jpg", b"5"),
        ("k.v2.jpg", b"6"),
        ("k.v2.cls", b"own"),
        ("k.cls", b"key"),
        ("c/x.jpg", b"7"),
        ("c/x.cls", b"cls"),
        ("c/x.json", b'{"label": "json"}'),
        ("c/y.jpg", b"8"),
        ("c/y.cls", b"cls"),
        ("c/y.json", b'{"caption": "no label"}'),
        ("c/z.jpg", b"9"),
        ("c/z.cls", b"cls"),
        ("c/z.json", b'{"label": true}'),
        ("c/w.jpg", b"10"),
        ("c/w.json", b'{"label": true}'),
        ("c/v.jpg", b"11"),
    )
    assert labels(tar) == {
        "i.v1.jpg": "cat",
        "i.v2.jpg": "dog",
        "a.v1.jpg": "cat",
        "a.v2.jpg": None,
        "k.v1.jpg": "key",
        "k.v2.jpg": "own",
        "c/x.jpg": "json",
        "c/y.jpg": "cls",
        "c/z.jpg": "cls",
        "c/w.jpg": None,
        "c/v.jpg": "c",
    }
    assert found(tar)["c/w.jpg"].no_label == "a truth value"


def test_a_tar_that_was_cut_is_refused_wherever_it_was_cut(tmp_path):
    whole = make_tar(tmp_path / "t.tar", *((f"{i}.jpg", b"x" * 600) for i in range(4))).read_bytes()
    block = 512 + 1024
    two = whole + make_tar(tmp_path / "u.tar", *((f"{i}.png", b"x" * 600) for i in range(4))).read_bytes()
    for length in (2 * block, 2 * block + 100, 2 * block + 700, block - 10, 4 * block, 4 * block + 500):
        for data in (whole[:length], two[: len(whole) + length]):
            (tmp_path / "cut.tar").write_bytes(data)
            with pytest.raises(InputError, match=r"^(a tar ends without its end mark|not a whole, uncompressed tar)"):
                found(tmp_path / "cut.tar")


def test_what_is_no_plain_tar_is_refused_with_what_it_is(tmp_path):
    whole = make_tar(tmp_path / "t.tar", ("1.jpg", b"x"))
    for name in ("t.tar.gz", "g.tar"):  # by its bytes, not its name
        (tmp_path / name).write_bytes(gzip.compress(whole.read_bytes()))
        with pytest.raises(InputError) as caught:
            found(tmp_path / name)
        assert caught.value.fields == {
            "code": "tar-compressed",
            "where": str(tmp_path / name),
            "found": "a file compressed by gzip",
            "hint": f"unpack it first: gunzip {name}",
        }
    (tmp_path / "plain.tar.gz").write_bytes(whole.read_bytes())
    assert list(found(tmp_path / "plain.tar.gz")) == ["1.jpg"]
    for name in ("PLAIN.TAR", "plain.bin", "000.tar.backup"):
        (tmp_path / name).write_bytes(whole.read_bytes())
        assert list(found(tmp_path / name)) == ["1.jpg"]
    for data, text in ((b"", "byte 0: empty file"), (b"<html>" * 200, "byte 0: ")):
        (tmp_path / "no.tar").write_bytes(data)
        with pytest.raises(InputError) as error:
            found(tmp_path / "no.tar")
        assert error.value.code == "tar-damaged"
        assert f"no.tar, {text}" in str(error.value.where)
    assert found(make_tar(tmp_path / "empty.tar")) == {}
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(InputError) as caught:
        open_sources([str(tmp_path / "pipe.tar")])
    assert (caught.value.code, caught.value.what) == ("not-a-file", "a pipe, not a file")
    assert str(caught.value.where).endswith("pipe.tar")


def test_a_tar_that_cannot_be_read_at_the_moment_is_not_called_bad(tmp_path, monkeypatch):
    tar = make_tar(tmp_path / "t.tar", ("1.jpg", b"x"))

    def fails(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(UserFile, "open", fails)
    with pytest.raises(Unreachable) as error:
        found(tar)
    assert (error.value.code, str(error.value.found)) == ("unreachable-now", "Permission denied")
    assert str(error.value.where).endswith("t.tar")


def test_all_of_concatenated_tars_is_read(tmp_path):
    parts = [
        make_tar(tmp_path / "a.tar", ("cat/1.jpg", b"one"), ("README", b"a")),
        make_tar(tmp_path / "b.tar", ("dog/2.jpg", b"two"), ("README", b"b"), ("dog/2.cls", b"7")),
        make_tar(tmp_path / "empty.tar"),
        make_tar(
            tmp_path / "l.tar",
            ("x/" * 60 + "3.jpg", b"three"),
            hard("dog/link.jpg", "cat/1.jpg"),
            format=tarfile.GNU_FORMAT,
        ),
    ]
    both = tmp_path / "both.tar"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert contents(both) == {
        "cat/1.jpg": b"one",
        "dog/2.jpg": b"two",
        "dog/link.jpg": b"one",
        "x/" * 60 + "3.jpg": b"three",
    }
    assert labels(both)["dog/2.jpg"] == "7"


@pytest.mark.parametrize("zeros", [1, 2, 3, 4000])
def test_what_follows_a_stray_end_mark_is_read(zeros, tmp_path):
    tar = make_tar(tmp_path / "t.tar", ("1.jpg", b"one"), bytes(512 * zeros), ("2.jpg", b"two"))
    assert contents(tar) == {"1.jpg": b"one", "2.jpg": b"two"}


def test_a_global_header_holds_for_its_own_archive_alone(tmp_path):
    first = make_tar(
        tmp_path / "a.tar",
        ("1.jpg", b"one"),
        format=tarfile.PAX_FORMAT,
        pax_headers={"size": "3", "comment": "x"},
    )
    second = make_tar(tmp_path / "b.tar", ("2.jpg", b"second"))
    (tmp_path / "t.tar").write_bytes(first.read_bytes() + second.read_bytes())
    assert contents(tmp_path / "t.tar") == {"1.jpg": b"one", "2.jpg": b"second"}


def test_what_is_no_tar_behind_an_end_mark_or_among_members_is_refused(tmp_path):
    whole = make_tar(tmp_path / "t.tar", ("1.jpg", b"one"), ("2.jpg", b"two")).read_bytes()
    for junk, at in ((b"junk", len(whole)), (b"\0" * 700 + b"junk" * 1000, len(whole) + 512)):
        (tmp_path / "j.tar").write_bytes(whole + junk)
        with pytest.raises(InputError) as caught:
            found(tmp_path / "j.tar")
        assert caught.value.fields == {
            "code": "tar-trailing-data",
            "where": f"{tmp_path / 'j.tar'}, byte {at}",
            "hint": f"to keep what is before it: head -c {at} j.tar > whole.tar",
        }
    (tmp_path / "j.tar").write_bytes(whole[:1024] + b"\xff" + whole[1025:])
    with pytest.raises(InputError) as error:
        found(tmp_path / "j.tar")
    assert error.value.code == "tar-header-damaged"
    assert str(error.value.where).endswith("j.tar, byte 1024")
    assert str(error.value.expected).startswith("a member or the end mark")


def test_two_images_of_one_name_are_refused_and_whatever_does_not_matter_is_not(tmp_path):
    for name, other in (
        ("1.jpg", "1.jpg"),
        ("1.jpg", "./1.jpg"),
        ("a/1.cls", "/a//1.cls"),
        ("1.jpg", "a/../1.jpg"),
    ):
        tar = make_tar(tmp_path / "d.tar", (name, b"x"), (other, b"y"))
        with pytest.raises(InputError) as caught:
            found(tar)
        assert caught.value.fields == {
            "code": "tar-name-twice",
            "where": f"{tar}: {plain_path(name)}",
            "hint": "unpack it and name the folder, where the later one stays; or pack each image under its own name",
        }
    folder = member("a", type=tarfile.DIRTYPE)
    tar = make_tar(
        tmp_path / "d.tar",
        folder,
        ("a/1.jpg", b"x"),
        folder,
        ("README", b"1"),
        ("README", b"2"),
        ("._1.jpg", b""),
        ("._1.jpg", b""),
        hard("a/1.jpg", "a/1.jpg"),
        ("a", b"a file with a folder's name"),
    )
    assert contents(tar) == {"a/1.jpg": b"x"}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        (".//c/./a.jpg", "c/a.jpg"),
        ("/data/c/a.jpg", "data/c/a.jpg"),
        ("c/../a.jpg", "a.jpg"),
        ("../c/a.jpg", "../c/a.jpg"),
        ("../../c/../a.jpg", "../../a.jpg"),
        ("c/../../a.jpg", "../a.jpg"),
        ("./", "."),
        ("", "."),
        ("c/a.jpg/", "c/a.jpg"),
        ("...", "..."),
        (".a/..b/a.jpg", ".a/..b/a.jpg"),
    ],
)
def test_a_members_name_is_a_path_below_what_was_packed(name, path):
    assert plain_path(name) == path


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_in_every_format(format_, tmp_path):
    names = ["c" * 60 + "/" + "n" * 90 + ".jpg", "ü/ö.jpg"]
    if format_ != tarfile.USTAR_FORMAT:
        names += ["d/" + "n" * 300 + ".jpg", "/".join(["e" * 200] * 12) + "/1.jpg"]
    tar = make_tar(tmp_path / "t.tar", *((name, name.encode()) for name in names), format=format_, encoding="utf-8")
    assert contents(tar) == {name: name.encode() for name in names}
    assert set(labels(tar).values()) == {name.split("/")[-2] for name in names}


def test_times_in_gnus_headers_are_no_part_of_a_name(tmp_path):
    """Incremental archives of GNU tar have them where POSIX has the first part of a long name."""
    tar = make_tar(
        tmp_path / "t.tar",
        member("cat", type=b"D"),
        ("cat/1.jpg", b"one"),
        ("c/" * 60 + "2.jpg", b"two"),
        format=tarfile.GNU_FORMAT,
    )
    data = bytearray(tar.read_bytes())
    for at in range(0, len(data), 512):
        if data[at + 257 : at + 263] == b"ustar ":
            data[at + 345 : at + 369] = b"15302067676\0" * 2
            data[at + 148 : at + 156] = b"%06o\0 " % (
                sum(data[at : at + 148]) + 8 * 32 + sum(data[at + 156 : at + 512])
            )
    tar.write_bytes(data)
    assert contents(tar) == {"cat/1.jpg": b"one", "c/" * 60 + "2.jpg": b"two"}


def test_names_that_are_not_utf8_cost_their_rows(tmp_path):
    tar = make_tar(
        tmp_path / "t.tar",
        ("caf\udce9.jpg", b"x"),
        ("b\udcff/1.jpg", b"x"),
        ("b\udcff/1.txt", b"x"),
        ("c/1.jpg", b"one"),
        format=tarfile.GNU_FORMAT,
    )
    problem = "cannot be read: its name is not UTF-8"
    assert contents(tar) == {"b\\xff/1.jpg": problem, "c/1.jpg": b"one", "caf\\xe9.jpg": problem}
    assert left_out(tar) == [("b\\xff/1.txt", "no image name")]


def test_paths_that_no_file_system_takes_are_left_out(tmp_path):
    deep = "d/" * 3000 + "1.jpg"
    tar = make_tar(
        tmp_path / "t.tar",
        (deep, b"x"),
        ("n" * 4093 + ".jpg", b"x"),
        ("n" * 4092 + ".jpg", b"x"),
        format=tarfile.PAX_FORMAT,
    )
    assert list(found(tar)) == ["n" * 4092 + ".jpg"]
    assert {kind for _, kind in left_out(tar)} == {"a path of more than 4096 bytes"}
    assert len(left_out(tar)) == 2


LINKED = [
    (hard("d/1.jpg", "cat/1.jpg"), b"one"),
    (hard("d/1.jpg", "./cat//1.jpg"), b"one"),
    (hard("d/1.jpg", "/cat/1.jpg"), b"one"),  # tar takes the slash away when it unpacks
    (hard("d/1.jpg", "z/later.jpg"), b"later"),
    (hard("d/1.jpg", "soft.jpg"), b"one"),
    (hard("d/1.jpg", "blob"), b"blob"),
    (soft("d/1.jpg", "../cat/1.jpg"), b"one"),
    (soft("d/1.jpg", ".././cat/../cat//1.jpg"), b"one"),
    (soft("d/1.jpg", "../z/later.jpg"), b"later"),
    (soft("d/1.jpg", "../soft.jpg"), b"one"),
    (soft("d/1.jpg", "../hidden/../.git/annex/1"), b"annex"),
    (soft("d/1.jpg", "../dog/1.jpg"), b"one"),  # through a folder's link
    (soft("d/1.jpg", "../dog/../blob"), b"blob"),  # the folder above where that leads
    (soft("d/1.jpg", "../up/x.jpg"), b"up"),
    (soft("d/1.jpg", "../cat/none.jpg"), "a link to nothing in the tar: ../cat/none.jpg"),
    (soft("d/1.jpg", "../none/../cat/1.jpg"), "a link to nothing in the tar: ../none/../cat/1.jpg"),
    (soft("d/1.jpg", "../cat/1.jpg/../1.jpg"), "a link to nothing in the tar: ../cat/1.jpg/../1.jpg"),
    (soft("d/1.jpg", ""), "a link to nothing in the tar: "),
    (soft("d/1.jpg", "/etc/passwd"), "a link out of the tar: /etc/passwd"),
    (soft("d/1.jpg", "/cat/1.jpg"), "a link out of the tar: /cat/1.jpg"),
    (soft("d/1.jpg", "../../cat/1.jpg"), "a link out of the tar: ../../cat/1.jpg"),
    (soft("d/1.jpg", "../out/1.jpg"), "a link out of the tar: ../out/1.jpg"),
    (soft("d/1.jpg", "1.jpg"), "Too many levels of symbolic links"),
    (soft("d/1.jpg", "../loop.jpg"), "Too many levels of symbolic links"),
    (hard("d/1.jpg", "d/1.jpg"), "Too many levels of symbolic links"),
    (hard("d/1.jpg", "none.jpg"), "a link to nothing in the tar: none.jpg"),
    (soft("d/1.jpg", "../pipe"), "a pipe, not a file"),
    (soft("d/1.jpg", "../" + "cat/../" * 1600 + "cat/1.jpg"), b"one"),
    (soft("d/1.jpg", "../" + "cat/../" * 3000 + "cat/1.jpg"), "File name too long"),
]


@pytest.mark.parametrize(
    ("link", "expected"), LINKED, ids=[f"{link.type.decode()} {link.linkname[:40]}" for link, _ in LINKED]
)
def test_links_are_followed_within_the_tar(link, expected, tmp_path):
    tar = make_tar(
        tmp_path / "t.tar",
        ("cat/1.jpg", b"one"),
        ("blob", b"blob"),
        (".git/annex/1", b"annex"),
        ("hidden/x.txt", b""),
        ("../x.jpg", b"up"),
        soft("soft.jpg", "cat/1.jpg"),
        soft("dog", "cat"),
        soft("up", ".."),
        soft("out", "../.."),
        soft("loop.jpg", "loop.jpg"),
        member("pipe", type=tarfile.FIFOTYPE),
        link,
        ("z/later.jpg", b"later"),
    )
    got = contents(tar)["d/1.jpg"]
    assert got == (expected if isinstance(expected, bytes) else f"cannot be read: {expected}")
    assert labels(tar)["d/1.jpg"] == "d"


def test_a_hard_link_is_to_what_was_there_when_it_was_packed(tmp_path):
    """As where the tar is unpacked, where a later member of that name is another file."""
    tar = make_tar(
        tmp_path / "t.tar",
        ("blob", b"one"),
        hard("1.jpg", "blob"),
        ("blob", b"two"),
        hard("2.jpg", "blob"),
        ("3.jpg", b"3"),
        hard("3.jpg", "3.jpg"),
    )
    assert contents(tar) == {"1.jpg": b"one", "2.jpg": b"two", "3.jpg": b"3"}


def test_linked_folders_and_sidecars_are_as_in_a_folder(tmp_path):
    tar = make_tar(
        tmp_path / "t.tar",
        ("cat/1.jpg", b"one"),
        ("cat/2.jpg", b"two"),
        soft("train/tom", "../cat"),
        soft("tom", "train/tom"),
        ("a.jpg", b"a"),
        ("labels/a", b"7"),
        soft("a.cls", "labels/a"),
        ("b.jpg", b"b"),
        hard("b.cls", "a.cls"),
        soft("same", "."),
        soft("none", "nowhere"),
        soft("cat", "labels"),
    )
    assert labels(tar) == {
        "a.jpg": "7",
        "b.jpg": "7",
        "cat/1.jpg": "cat",
        "cat/2.jpg": "cat",
        "tom/1.jpg": "tom",
        "tom/2.jpg": "tom",
        "train/tom/1.jpg": "tom",
        "train/tom/2.jpg": "tom",
    }
    assert contents(tar)["train/tom/2.jpg"] == b"two"
    assert ("same", "a link to a folder above it") in left_out(tar)
    assert ("none", "no image name") in left_out(tar)
    assert ("cat", "no image name") in left_out(tar)  # a folder has that name


def test_links_that_multiply_are_followed_so_far(tmp_path):
    """Twelve folders with two links each to the next are 4,096 paths; thirty would be a billion in thirty kilobytes."""
    members = [soft(f"{i:02d}/{side}", f"../{i + 1:02d}") for i in range(12) for side in "ab"]
    tar = make_tar(tmp_path / "t.tar", *members, ("12/1.jpg", b"x"))
    assert len(found(tar)) == 1001
    assert {kind for _, kind in left_out(tar)} == {"a folder that too many links lead to"}


@pytest.mark.parametrize(
    ("type_", "problem"),
    [
        (tarfile.FIFOTYPE, "cannot be read: a pipe, not a file"),
        (tarfile.CHRTYPE, "cannot be read: a device, not a file"),
        (tarfile.BLKTYPE, "cannot be read: a device, not a file"),
        (b"M", "cannot be read: a tar member of type 'M', not a file"),
        (b"\xff", "cannot be read: a tar member of type '\\\\xff', not a file"),
    ],
)
def test_members_that_are_no_files_cost_their_rows(type_, problem, tmp_path):
    odd = [member("c/odd.jpg", type=type_), member("odd", type=type_)]
    tar = make_tar(tmp_path / "t.tar", ("c/1.jpg", b"one"), *odd, ("c/2.jpg", b"two"))
    assert contents(tar) == {"c/1.jpg": b"one", "c/2.jpg": b"two", "c/odd.jpg": problem}
    assert left_out(tar) == [("odd", "no image name")]


def test_folders_with_images_names_and_old_files_are_what_they_are(tmp_path):
    folder, old = member("c/x.jpg/", type=tarfile.DIRTYPE), member("c/old.jpg", type=tarfile.AREGTYPE)
    tar = make_tar(
        tmp_path / "t.tar",
        folder,
        ("c/x.jpg/1.jpg", b"one"),
        old,
        member("c/cont.jpg", type=tarfile.CONTTYPE),
    )
    assert list(found(tar)) == ["c/cont.jpg", "c/old.jpg", "c/x.jpg/1.jpg"]


def test_sparse_members_cost_their_rows(tmp_path):
    sparse = tarfile.TarInfo("s.jpg")
    sparse.size, sparse.pax_headers = (
        512,
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "real.jpg", "GNU.sparse.realsize": "9"},
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO(b"0\n".ljust(512, b"\0")))
        tar.addfile(member("t.jpg", size=1), io.BytesIO(b"t"))
    (tmp_path / "t.tar").write_bytes(buffer.getvalue())
    assert contents(tmp_path / "t.tar") == {
        "real.jpg": "stored as a sparse file: pack it without --sparse",
        "t.jpg": b"t",
    }


def header(name: bytes, size: bytes, type_: bytes) -> bytes:
    """A header with any bytes as its size, and the right checksum."""
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0"
    rest = type_ + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
    return fields + b"%06o\0 " % (sum(fields) + sum(rest) + 8 * 32) + rest


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(b"a", b"\x80" + (1 << 60).to_bytes(11, "big"), b"x"), "a header of 1152921504606846976 bytes"),
        (header(b"a", b"\x80" + (1 << 60).to_bytes(11, "big"), b"L"), "a header of 1152921504606846976 bytes"),
        (header(b"a", b"\xff" * 10 + b"\xfe\0", b"x"), "a header of -512 bytes"),
        (header(b"1.jpg", b"\xff" * 10 + b"\xfc\0", b"0"), "a header that leads back"),
        (header(b"a", b"00000000000", b"x") * 3000, "RecursionError: "),
        (header(b"a", b"00000777000", b"x") + b"7" * 0o777000, "a header of more than 1024 digits"),  # takes it minutes
        (header(b"a", b"not octal", b"0"), "byte 1024: "),
    ],
)
def test_hostile_headers_are_refused_at_once(data, reason, tmp_path):
    """None makes `tarfile` read the whole file, walk it for ever, or end in an error of its own."""
    whole = make_tar(tmp_path / "t.tar", ("0.jpg", b"zero")).read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[:1024] + data + bytes(1024))
    with pytest.raises(InputError) as caught:
        found(tmp_path / "t.tar")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_members_are_told_one_after_another(tmp_path):
    """Nothing is kept of a tar of millions of members while it is read."""
    tar = make_tar(tmp_path / "t.tar", ("1.jpg", b"x"), bytes(1024), ("2.jpg", b"x" * 600))
    assert [(m.name, m.offset_data, m.size) for m in tar_members(UserFile(tar))] == [
        ("1.jpg", 512, 1),
        ("2.jpg", 2560, 600),
    ]

"""A list as a corpus: text, CSV, JSON, JSON lines and Parquet; what costs a row, what a label, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from teachonce.stages.corpora.images import BadImage
from teachonce.stages.corpora.reading import read_source_file
from teachonce.stages.inputs.sources import open_sources
from teachonce.storage_schemas.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three files of one to three bytes in `im`, and one whose name has an umlaut."""
    (tmp_path / "im").mkdir()
    for i in range(3):
        (tmp_path / "im" / f"{i}.jpg").write_bytes(bytes(range(i + 1)))
    (tmp_path / "im" / "ä.jpg").write_bytes(b"umlaut")
    return tmp_path


def listed(folder, name, content):
    """What a list of this content gives."""
    file = folder / name
    if isinstance(content, pa.Table):
        pq.write_table(content, file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (source,) = open_sources([str(file)])
    return source, list(source.walk())


def labels(found):
    return {one.path: one.label for one in found}


def sizes(found):
    return {one.path: one.size for one in found}


def problems(found):
    return {one.path: one.problem for one in found if one.problem is not None}


def no_labels(found):
    return {one.path: one.no_label for one in found if one.no_label}


def refused(folder, name, content):
    """The error's line, with `…` for the folder."""
    with pytest.raises(InputError) as caught:
        listed(folder, name, content)
    return str(caught.value).replace(str(folder), "…")


TEXT = "im/0.jpg\tcat\nim/1.jpg\tred fox\nim/2.jpg\n"
KNOWN = {"im/0.jpg": "cat", "im/1.jpg": "red fox", "im/2.jpg": None}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", TEXT),
        ("list", f"# mine\n\n  {TEXT}"),
        ("list.txt", TEXT.rstrip("\n")),
        ("windows.txt", b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()),
        ("wide.txt", TEXT.replace("\n", "\r\n").encode("utf-16")),
        ("wide.txt", b"\xfe\xff" + TEXT.encode("utf-16-be")),
        ("wider.txt", TEXT.encode("utf-32")),
        ("joined.txt", b"\xef\xbb\xbfim/0.jpg\tcat\n\xef\xbb\xbfim/1.jpg\tred fox\nim/2.jpg"),
        ("head.txt", "size\tpath\tlabel\n1\tim/0.jpg\tcat\n2\tim/1.jpg\tred fox\n3\tim/2.jpg\t\n"),
        ("head.tsv", 'url\tlabel\n"im/0.jpg"\tcat\nim/1.jpg\tred fox\nim/2.jpg\t\n'),
        ("table.csv", "path,label\nim/0.jpg,cat\nim/1.jpg,red fox\nim/2.jpg,\n"),
        ("table.CSV", b'\xef\xbb\xbf"path", "label"\r\nim/0.jpg,cat\r\n\r\n"im/1.jpg","red fox"\r\nim/2.jpg,\r\n'),
        ("excel.csv", "label;path\ncat;im/0.jpg\nred fox;im/1.jpg\n;im/2.jpg\n"),
        (
            "lines.jsonl",
            '{"path": "im/0.jpg", "label": "cat"}\r\n\n{"label": "red fox", "url": "im/1.jpg"}\n"im/2.jpg"\n',
        ),
        (
            "whole.json",
            json.dumps([{"path": "im/0.jpg", "label": "cat"}, {"path": "im/1.jpg", "label": "red fox"}, "im/2.jpg"]),
        ),
        ("t.parquet", pa.table({"path": list(KNOWN), "label": list(KNOWN.values())})),
        (
            "t.parquet",
            pa.table({"label": pa.array(list(KNOWN.values())).dictionary_encode(), "x": [1, 2, 3], "url": list(KNOWN)}),
        ),
        ("t.parquet", pa.table({"path": [p.encode() for p in KNOWN], "label": [b"cat", b"red fox", None]})),
    ],
)
def test_one_list_in_all_its_forms(folder, name, content):
    source, found = listed(folder, name, content)
    assert labels(found) == KNOWN
    assert sizes(found) == {"im/0.jpg": 1, "im/1.jpg": 2, "im/2.jpg": 3}
    assert (problems(found), no_labels(found)) == ({}, {})
    assert source.read("im/1.jpg", -1, 2) == b"\0\1"


def test_lines_end_at_newlines_only_and_blanks_inside_a_name_stay(folder):
    odd = [f"im/a{mark}b.jpg" for mark in ("\x85", "\u2028", "\x0b", "\x0c", "\x1c", " ", "\r")]
    for name in odd:
        (folder / name).write_bytes(b"odd")
    _, found = listed(folder, "list.txt", "".join(f"{name}\n" for name in odd))
    assert sizes(found) == dict.fromkeys(sorted(odd, key=str.encode), 3)


def test_a_bad_line_costs_its_row_and_nothing_else(folder):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "gone.jpg").symlink_to("nothing.jpg")
    names = [
        "im/0.jpg",
        "x" * 300 + ".jpg",
        "im/0.jpg/b.jpg",
        "pipe.jpg",
        "self.jpg",
        "gone.jpg",
        "/dev/zero",
        "im",
        "n\0l.jpg",
        "im/1.jpg",
    ]
    source, found = listed(folder, "list.txt", "".join(f"{name}\n" for name in names))
    assert [one.path for one in found] == sorted(names, key=str.encode)
    assert {one.path: read_source_file(source, one) for one in found if one.problem is None} == {
        "im/0.jpg": b"\0",
        "im/1.jpg": b"\0\1",
    }
    assert problems(found) == {
        "x" * 300 + ".jpg": "cannot be read: File name too long",
        "im/0.jpg/b.jpg": "cannot be read: Not a directory",
        "pipe.jpg": "cannot be read: a pipe, not a file",
        "self.jpg": "cannot be read: Too many levels of symbolic links",
        "gone.jpg": "cannot be read: No such file or directory",
        "/dev/zero": "cannot be read: a device, not a file",
        "im": "cannot be read: a folder, not a file",
        "n\0l.jpg": "cannot be read: a name with a NUL character",
    }
    assert sum(one.size for one in found) == 3


def test_a_file_that_becomes_a_pipe_after_the_walk_costs_its_row_too(folder):
    source, found = listed(folder, "list.txt", "im/0.jpg\n")
    (folder / "im" / "0.jpg").unlink()
    os.mkfifo(folder / "im" / "0.jpg")
    with pytest.raises(BadImage, match="^cannot be read: a pipe, not a file$"):
        read_source_file(source, found[0])


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("list.txt", b"im/0.jpg\nim/\xff.jpg\nim/1.jpg\n", {r"im/\xff.jpg": "a name that is not UTF-8"}),
        ("list.txt", b"im/0.jpg\n\tcat\nim/1.jpg\n", {"(line 2)": "no path"}),
        (
            "t.csv",
            "path,label\n\nim/0.jpg,cat\n,dog\nim/1.jpg,a,b\nim/1.jpg,cat\n",
            {"(line 4)": "no path", "(line 5)": "3 cells, where the first line has 2"},
        ),
        (
            "l.jsonl",
            '{"path": "im/0.jpg"}\n{"path": "im/1\n{"label": "cat"}\n[1]\n{"path": 7}\n{"path": "a\\ud83d"}\n"im/1.jpg"\n',
            {
                "(line 2)": "not JSON in UTF-8",
                "(line 3)": "no path",
                "(line 4)": "a value of type list, not a path",
                "(line 5)": "a value of type int, not a path",
                r"a\xed\xa0\xbd": "a name that is not UTF-8",
            },
        ),
        pytest.param(
            "l.jsonl", '"im/0.jpg"\n' + "[" * 60_000 + '\n"im/1.jpg"\n', {"(line 2)": "not JSON in UTF-8"}, id="deep"
        ),
        (
            "l.json",
            '["im/0.jpg", null, true, "im/1.jpg"]',
            {"(entry 2)": "no path", "(entry 3)": "a value of type bool, not a path"},
        ),
        (
            "p.parquet",
            pa.table({"path": ["im/0.jpg", None, None, "im/1.jpg", ""]}),
            {f"(row {i})": "no path" for i in (2, 3, 5)},
        ),
        (
            "p.parquet",
            pa.table(
                {
                    "path": pa.Array.from_buffers(
                        pa.string(), 3, pa.array([b"im/0.jpg", b"im/\xff.jpg", b"im/1.jpg"]).buffers()
                    )
                }
            ),
            {r"im/\xff.jpg": "a name that is not UTF-8"},
        ),
        (
            "p.parquet",
            pa.table({"path": [b"im/0.jpg", b"im/\xff.jpg", b"im/1.jpg"]}),
            {r"im/\xff.jpg": "a name that is not UTF-8"},
        ),
    ],
)
def test_a_row_of_which_nothing_can_be_made_is_unusable(folder, name, content, bad):
    _, found = listed(folder, name, content)
    assert problems(found) == bad
    assert {path: size for path, size in sizes(found).items() if path not in bad} == {
        "im/0.jpg": 1,
        "im/1.jpg": 2,
    }


@pytest.mark.parametrize(
    ("column", "known", "odd"),
    [
        (pa.array([1.0, float("nan"), 2.0]), ["1", None, "2"], {1: "NaN"}),
        (pa.array([1.0, 0.5, None]), ["1", None, None], {1: "a number with a fraction"}),
        (pa.array([1, None, 2**40]), ["1", None, str(2**40)], {}),
        (pa.array([np.float16(1), np.float16(2), None], pa.float16()), ["1", "2", None], {}),
        (
            pa.array([Decimal("3.0"), Decimal("3.5"), None]),
            ["3", None, None],
            {1: "a number with a fraction"},
        ),
        (pa.array([True, None, False]), [None] * 3, {0: "a truth value", 2: "a truth value"}),
        (pa.array(["nan", "1.0", ""]), ["nan", "1.0", None], {2: "empty text"}),
        (pa.array([b"a", b"\xff", None]), ["a", None, None], {1: "bytes that are not UTF-8"}),
        (pa.array([["cat"], None, []]), [None] * 3, {0: "a value of type list", 2: "a value of type list"}),
    ],
)
def test_labels_of_a_table(folder, column, known, odd):
    paths = [f"im/{i}.jpg" for i in range(3)]
    _, found = listed(folder, "t.parquet", pa.table({"path": paths, "label": column}))
    assert labels(found) == dict(zip(paths, known, strict=True))
    assert no_labels(found) == {paths[i]: kind for i, kind in odd.items()}


def test_labels_of_json_lines(folder):
    values = ["true", "NaN", "1.0", '"smile \\ud83d"', "null", '"1.0"']
    lines = "".join(f'{{"path": "im/{i}.jpg", "label": {value}}}\n' for i, value in enumerate(values))
    _, found = listed(folder, "l.jsonl", lines)
    assert list(labels(found).values()) == [None, None, "1", None, None, "1.0"]
    assert list(no_labels(found).values()) == ["a truth value", "NaN", "text with a lone surrogate"]


LATIN = "iconv -f LATIN1 -t UTF-8 …/list.txt > …/list-utf8.txt"
CSV = "Next: name it list.csv, with a first line path,label"
JOINED = "expected a path, or a path, a tab and a label, found"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "list.txt",
            "im/0.jpg\nim/ä.jpg\nim/1.jpg\n".encode("latin-1"),
            f"not text in UTF-8: …/list.txt, line 2. Next: save it as UTF-8; if it is Latin-1: {LATIN}",
        ),
        (
            "list.txt",
            "im/0.jpg\tcat\nim/1.jpg\tBär\n".encode("latin-1"),
            f"not text in UTF-8: …/list.txt, line 2. Next: save it as UTF-8; if it is Latin-1: {LATIN}",
        ),
        (
            "list.txt",
            "http://x/ä.jpg\n\nhttp://x/ö.jpg\nim/1.jpg\n".encode("latin-1"),
            f"not text in UTF-8: …/list.txt, line 1. Next: save it as UTF-8; if it is Latin-1: {LATIN}",
        ),
        (
            "list.txt",
            "im/0.jpg\nim/1.jpg\n".encode("utf-16-le"),
            "not text in UTF-8: it looks like UTF-16LE without a byte-order mark: …/list.txt. "
            "Next: iconv -f UTF-16LE -t UTF-8 …/list.txt > …/list-utf8.txt",
        ),
        (
            "list.txt",
            b"\xff\xfei\0m",
            "not text in UTF-16-LE, as its byte-order mark says: …/list.txt. Next: save it as UTF-8",
        ),
        (
            "list.txt",
            b"im/0.jpg\0im/1.jpg\0",
            "not a text file: it holds NUL bytes: …/list.txt. Next: give a file with one entry a line",
        ),
        (
            "list.txt",
            "im/0.jpg\rim/1.jpg\r",
            r"lines that end at carriage returns: …/list.txt. Next: tr '\r' '\n' < …/list.txt > …/list-lines.txt",
        ),
        (
            "photo.jpg",
            b"\xff\xd8\xff\xe0\0\x10JFIF",
            "an image is no corpus: …/photo.jpg. Next: give the folder that it lies in, or a list of paths",
        ),
        ("photos.zip", b"PK\3\4", "a packed file is no list: …/photos.zip. Next: unpack it, then give what was in it"),
        (
            "list.txt",
            "im/9.jpg cat\nim/0.jpg cat\n",
            f"a line of a list is no file, but its beginning is: …/list.txt, line 2: im/0.jpg cat: {JOINED} ' ' between "
            r"them. Next: tr ' ' '\t' < …/list.txt > …/list-tabs.txt",
        ),
        (
            "list.txt",
            "im/0.jpg red fox\n",
            f"a line of a list is no file, but its beginning is: …/list.txt, line 1: im/0.jpg red fox: {JOINED} ' ' between "
            "them. Next: write a tab between path and label, in all lines",
        ),
        (
            "list.txt",
            "https://x.org/a.jpg 7\n",
            "a line of a list is no file, but its beginning is: …/list.txt, line 1: https://x.org/a.jpg 7: "
            rf"{JOINED} ' ' between them. Next: tr ' ' '\t' < …/list.txt > …/list-tabs.txt",
        ),
        (
            "list.txt",
            "path,label\nim/0.jpg,cat\n",
            f"a line of a list is no file, but its beginning is: …/list.txt, line 2: im/0.jpg,cat: {JOINED} ',' between them. {CSV}",
        ),
        (
            "list.txt",
            "im/0.jpg\tcat\t7\n",
            "a line with several tabs: …/list.txt, line 1: expected path<TAB>label, found 3 columns. "
            "Next: name the columns in a first line, one of them path and one label",
        ),
        (
            "list.txt",
            '{"path": "im/0.jpg"}\n',
            "JSON in a file that is not named so: …/list.txt. Next: name it list.jsonl",
        ),
        ("list.txt", '[\n"im/0.jpg"\n]\n', "JSON in a file that is not named so: …/list.txt. Next: name it list.json"),
        (
            "list.csv",
            "im/0.jpg,cat\nim/1.jpg,dog\n",
            "a table of images needs a column: …/list.csv: expected path or url, found im/0.jpg, cat. "
            "Next: write path,label above its first line",
        ),
        (
            "list.csv",
            "file_name,text\nim/0.jpg,cat\n",
            "a table of images needs a column: …/list.csv: expected path or url, found file_name, text. "
            "Next: name the column of the paths: path",
        ),
        (
            "list.csv",
            "",
            "a table of images needs a column: …/list.csv: expected path or url, found nothing. "
            "Next: name the column of the paths: path",
        ),
        (
            "list.csv",
            "path,label,path\na,b,c\n",
            "two columns of a table have one name: …/list.csv: path. Next: rename one of them",
        ),
        pytest.param(
            "list.csv",
            f'path,label\n"{"x" * 200_000}",cat\n',
            "not a CSV table: …/list.csv, line 2: found field larger than field limit (131072)",
            id="long",
        ),
        (
            "l.jsonl",
            '{"image": "im/0.jpg", "label": 1}\n',
            "a table of images needs a column: …/l.jsonl: expected path or url, found image, label. "
            "Next: name the column of the paths: path",
        ),
        (
            "l.json",
            '{"images": []}',
            'not a JSON list of images: …/l.json: expected [{"path": …, "label": …}, …], '
            "found a value of type dict. Next: write such a list, or a .csv with the columns path and label",
        ),
        pytest.param(
            "l.json",
            "[" * 60_000,
            "not JSON: …/l.json: found nested too deeply. Next: JSON lines are l.jsonl",
            id="deep",
        ),
        (
            "l.json",
            '{"path": "a"}\n{"path": "b"}\n',
            "not JSON: …/l.json: found Extra data: line 2 column 1 (char 14). Next: JSON lines are l.jsonl",
        ),
        (
            "t.parquet",
            pa.table({"file": ["im/0.jpg"]}),
            "a table of images needs a column: …/t.parquet: expected path or url, found file. "
            "Next: name the column of the paths: path",
        ),
        (
            "t.parquet",
            b"PAR1",
            "not a Parquet file that can be read: …/t.parquet: found Parquet file size is 4 bytes, "
            "smaller than the minimum file footer (8 bytes)",
        ),
        ("list.txt", "im/0.jpg\nim/1.jpg\nim/0.jpg\n", "a list names the same image twice: …/list.txt: im/0.jpg"),
        (
            "list.txt",
            "im\\none.jpg\nim\\1.jpg\tcat\n",
            r"a list with the paths of Windows: …/list.txt: im\1.jpg: expected im/1.jpg, found "
            "backslashes. Next: write all paths with slashes",
        ),
        ("list.txt", "pipe:cat x\n", "pipe: runs a command from data and is refused: …/list.txt: pipe:cat x"),
    ],
)
def test_other_lists_are_refused_with_what_to_do(folder, name, content, line):
    assert refused(folder, name, content) == line


def test_a_name_with_blanks_is_no_path_and_label(folder):
    (folder / "im" / "0.jpg cat").write_bytes(b"a file of this very name")
    _, found = listed(
        folder, "list.txt", "im/0.jpg cat\nim/0.jpg im/1.jpg\nim/none.jpg cat\nhttps://x.org/my photo.jpg\n"
    )
    assert sizes(found) == {
        "https://x.org/my photo.jpg": -1,
        "im/0.jpg cat": 24,
        "im/0.jpg im/1.jpg": 0,
        "im/none.jpg cat": 0,
    }


def test_folders_and_devices_are_no_lists(tmp_path):
    (source,) = open_sources(["/dev/zero"])
    with pytest.raises(InputError) as error:
        list(source.walk())
    assert (error.value.code, str(error.value.where)) == ("not-a-file", "/dev/zero")


@pytest.mark.parametrize(
    "content",
    [
        "im/0.jpg cat\nim/ä.jpg dog\n".encode(),
        "im/0.jpg\tcat\nim/ä.jpg\tdog\n".encode("latin-1"),
        "im/0.jpg\tcat\nim/ä.jpg\tdog\n".encode("utf-16-le"),
        "im/0.jpg\tcat\rim/ä.jpg\tdog\r".encode(),
    ],
)
def test_what_a_refusal_says_to_type_gives_the_list(folder, content):
    elsewhere = folder / "else where"
    elsewhere.mkdir()
    (folder / "im").rename(elsewhere / "im")
    hint = refused(folder, "else where/my list.txt", content).replace("…", str(folder)).partition(". Next: ")[2]
    command = hint.removeprefix("save it as UTF-8; if it is Latin-1: ")
    subprocess.run(["sh", "-c", command], check=True, cwd=folder)
    (new,) = elsewhere.glob("my list-*.txt")
    (source,) = open_sources([str(new)])
    assert labels(source.walk()) == {"im/0.jpg": "cat", "im/ä.jpg": "dog"}

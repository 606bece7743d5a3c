"""Files of names: the forms in which a class list comes, and what is refused with what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from teachonce.stages.inputs.class_match import base_classes
from teachonce.stages.inputs.classes import read_classes, read_templates
from teachonce.storage_schemas.errors import InputError

WINDOWS = "cat\r\nred fox\r\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", "cat\n\n  red fox \n"),
        ("c.txt", b"\xef\xbb\xbf" + WINDOWS.encode()),
        ("c.txt", WINDOWS.encode("utf-16")),
        ("c.txt", b"\xfe\xff" + WINDOWS.encode("utf-16-be")),
        ("c", "\ufeffcat\n\ufeffred fox"),
        ("c.json", '["cat", "red fox"]'),
        ("c.JSON", b'\xef\xbb\xbf["cat", "red fox"]'),
        ("c.csv", "cat\nred fox\n"),
        ("c.csv", b'\xef\xbb\xbfname\r\n"cat"\r\n"red fox"\r\n'),
    ],
)
def test_one_class_list_in_all_its_forms(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_classes(str(file)) == ("cat", "red fox")
    names = ("dog", "red fox", "cat")
    assert base_classes(str(file), names).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("c.txt", "a\x85b\nc\u2028d\ne\x0cf\n", ("a\x85b", "c\u2028d", "e\x0cf")),
        ("c.txt", "tench, Tinca tinca\n[unused]\n# 1\nname\n", ("tench, Tinca tinca", "[unused]", "# 1", "name")),
        ("c.csv", 'label\n"tench, Tinca tinca"\n"say ""ah"""\n', ("tench, Tinca tinca", 'say "ah"')),
        ("c.json", "[0, 1.0, 20]", ("0", "1", "20")),
        ("c.json", '["nan", "1.0", "True", " padded "]', ("nan", "1.0", "True", " padded ")),
    ],
)
def test_names_stay_what_they_are(tmp_path, name, content, names):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_classes(str(tmp_path / name)) == names


HINT = "Next: keep the column of the names alone, in the order of their ids; quote names that hold commas"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "c.txt",
            "cat\nBär\n".encode("latin-1"),
            "not text in UTF-8: …/c.txt, line 2. Next: save it as UTF-8; if it is "
            "Latin-1: iconv -f LATIN1 -t UTF-8 …/c.txt > …/c-utf8.txt",
        ),
        (
            "c.txt",
            "cat\n".encode("utf-16-be"),
            "not text in UTF-8: it looks like UTF-16BE without a byte-order mark: …/c.txt. "
            "Next: iconv -f UTF-16BE -t UTF-8 …/c.txt > …/c-utf8.txt",
        ),
        (
            "c.parquet",
            b"PAR1\x15\0\0PAR1",
            "not a text file: it holds NUL bytes: …/c.parquet. Next: give a file with one entry a line",
        ),
        (
            "c.txt",
            "cat\rdog\r",
            r"lines that end at carriage returns: …/c.txt. Next: tr '\r' '\n' < …/c.txt > …/c-lines.txt",
        ),
        (
            "c.txt",
            "n1\tcat\nn2\tdog\n",
            r"a class name with a tab in it: this is a table: …/c.txt, line 1: n1 cat: expected "
            "one name a line, found 2 columns. Next: keep the column of the names alone, as with `cut -f 2`",
        ),
        ("c.txt", '["cat", "dog"]\n', "JSON in a file that is not named so: …/c.txt. Next: name it c.json"),
        (
            "c.txt",
            '{"name": "cat"}\n{"name": "dog"}\n',
            "JSON in a file that is not named so: …/c.txt. Next: write it as one JSON list, in a file named .json",
        ),
        (
            "c.csv",
            "id,name\n0,cat\n",
            f"a table of several columns, where one of class names is needed: …/c.csv, line 1: "
            f"expected one name a line, found 2 columns. {HINT}",
        ),
        (
            "c.json",
            '{"0": "cat"}',
            'not a JSON list of names: …/c.json: expected ["cat", "dog"], found a value of type dict. '
            "Next: write the names alone as a list, in the order of their ids",
        ),
        pytest.param("c.json", "[" * 60_000, "not JSON: …/c.json: found nested too deeply", id="deep"),
        (
            "c.json",
            '["cat", true]',
            "not a class name: …/c.json, entry 2: expected text or a whole number, found a truth value",
        ),
        (
            "c.json",
            "[1.5]",
            "not a class name: …/c.json, entry 1: expected text or a whole number, found a number with a fraction",
        ),
        (
            "c.json",
            '["smile \\ud83d"]',
            "not a class name: …/c.json, entry 1: expected text or a whole number, found text with a lone surrogate",
        ),
        ("c.json", "[null]", "not a class name: …/c.json, entry 1: expected text or a whole number, found null"),
        (
            "c.json",
            "[[0, 1]]",
            "not a class name: …/c.json, entry 1: expected text or a whole number, found a value of type list",
        ),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_classes, lambda file: base_classes(file, ("cat", "dog"))):
        with pytest.raises(InputError) as caught:
            read(str(tmp_path / name))
        assert str(caught.value).replace(str(tmp_path), "…") == line


def test_templates_are_read_as_names_are(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes(b"\xef\xbb\xbfa photo of a {}.\r\na {}, outside.\r\n")
    assert read_templates(str(file)) == ("a photo of a {}.", "a {}, outside.")
    file = tmp_path / "t.json"
    file.write_text(json.dumps(["a {}", 7]))
    with pytest.raises(InputError) as error:
        read_templates(str(file))
    assert error.value.code == "template-without-slot"
    assert str(error.value.where).endswith("t.json, entry 2: 7")
    with pytest.raises(InputError) as error:
        read_templates(str(tmp_path))
    assert error.value.code == "file-unreadable"
    assert error.value.where is not None
    assert str(error.value.found).startswith("Is a directory")


def test_base_classes_by_name_may_be_longer_than_a_file_name():
    names = tuple(f"class number {i}" for i in range(50))
    assert np.flatnonzero(base_classes(", ".join(names[:40]), names)).tolist() == list(range(40))

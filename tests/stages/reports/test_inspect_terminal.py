"""`inspect` on a terminal: 80 columns, histograms, pages of samples, and tables for other programs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.tables import histogram, table
from teachonce.pipeline.terminal import encodable


def inspect(*words: object):
    return CliRunner().invoke(main, ["inspect", *map(str, words)])


@pytest.fixture(scope="module")
def expected(known_store):
    """Mean probabilities (row, class), entropies, agreement and disagreement (row,) in float64; NaN where not valid."""
    logits = known_store.targets["logits"].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = probabilities.mean(1)
    entropies = -(probabilities * np.log(probabilities)).sum(-1).mean(1)
    agreement = (probabilities.argmax(-1) == mean.argmax(-1)[:, None]).mean(1)
    return mean, entropies, agreement, -(mean * np.log(mean)).sum(-1) - entropies


@pytest.mark.parametrize("form", ["csv", "parquet", "npy"])
def test_a_table_holds_every_usable_sample(known_store, expected, tmp_path, form) -> None:
    file = tmp_path / f"samples.{form}"
    result = inspect(known_store.location, "--export", file)
    rows = np.flatnonzero(known_store.valid)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"inspect: wrote {len(rows)} samples to {file}" in result.stderr
    if form == "npy":
        array = np.load(file, allow_pickle=False)
        found = {n: [v.decode() if isinstance(v, bytes) else v for v in array[n].tolist()] for n in array.dtype.names}
    elif form == "parquet":
        found = pq.read_table(file).to_pydict()
    else:
        with file.open(newline="", encoding="utf-8") as text:
            lines = list(csv.DictReader(text))
        found = {n: [line[n] for line in lines] for n in lines[0]}
    mean, entropies, agreement, disagreement = expected
    entries = list(known_store.shards.manifest())
    assert list(found) == [
        "row",
        "key",
        "path",
        "label",
        "class_id",
        "first_class",
        "confidence",
        "entropy",
        "agreement",
        "disagreement",
    ]
    assert [int(row) for row in found["row"]] == rows.tolist()
    assert found["key"] == [entries[row].key for row in rows]
    assert found["path"] == [entries[row].path for row in rows]
    assert found["label"] == [entries[row].label for row in rows]
    assert [int(i) for i in found["class_id"]] == mean[rows].argmax(-1).tolist()
    assert found["first_class"] == [f"class {i}" for i in mean[rows].argmax(-1)]
    for name, values in (
        ("confidence", mean.max(-1)),
        ("entropy", entropies),
        ("agreement", agreement),
        ("disagreement", disagreement),
    ):
        assert np.array(found[name], np.float64) == pytest.approx(values[rows], abs=1e-5)


def test_another_ending_is_refused_before_anything_is_read(known_store, tmp_path) -> None:
    result = inspect(known_store.location, "--export", tmp_path / "samples.xlsx")
    assert result.exit_code == 1
    assert (
        f"the table's form is told by the file's ending: {tmp_path}/samples.xlsx: expected .csv, .parquet, .npy, found .xlsx"
        in result.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("order", "column", "sign"), [("confidence", 0, -1), ("unsure", 0, 1), ("entropy", 1, -1), ("disagreement", 3, -1)]
)
def test_pages_of_samples_go_on_where_the_last_one_ended(known_store, expected, order, column, sign) -> None:
    values = expected[column].max(-1) if column == 0 else expected[column]
    rows = np.flatnonzero(known_store.valid)
    wanted = rows[np.argsort(sign * values[rows], kind="stable")]
    pages = [
        json.loads(inspect(known_store.location, "--samples", "--sort", order, "--page", n, "--json").stdout)
        for n in (1, 2, 3, 4)
    ]
    assert [sample["row"] for page in pages for sample in page["samples"]] == wanted.tolist()
    assert {page["matching"] for page in pages} == {len(rows)}
    assert {page["pages"] for page in pages} == {3}


def test_samples_of_a_class_or_a_label(known_store, expected) -> None:
    mean = expected[0]
    rows = np.flatnonzero(known_store.valid)
    found = json.loads(inspect(known_store.location, "--samples", "--class", "class 3", "--json").stdout)
    assert [s["row"] for s in found["samples"]] == rows[mean[rows].argmax(-1) == 3][:20].tolist()
    labelled = json.loads(inspect(known_store.location, "--samples", "--class", "red fox", "--json").stdout)
    assert {s["label"] for s in labelled["samples"]} == {"red fox"}
    text = inspect(known_store.location, "--samples", "--sort", "unsure").stdout
    assert text.splitlines()[0].startswith("Page 1 of 3: 45 samples by unsure")
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--sort", "entropy"), "option-needs-another"),
        (("--page", "2"), "option-needs-another"),
        (("0", "--samples"), "options-exclude-each-other"),
        (("--images", "x"), "option-needs-another"),
        (("--against", "x"), "option-needs-another"),
        (("--html", "x.html", "--export", "x.html"), "given-twice"),
    ],
)
def test_options_that_mean_nothing_there_are_refused(known_store, words, code) -> None:
    result = inspect(known_store.location, *words)
    assert result.exit_code == 1
    assert f"[{code}]" in result.stderr


def test_a_histogram_shows_whatever_is_there() -> None:
    assert histogram([0, 1, 500, 1000], 4) == " ▁▄█"
    assert histogram([1, 0, 0, 0, 2, 2, 0, 0], 4) == "▂ █ "
    assert histogram([0, 0], 2) == "  "


def test_plain_terminals_get_plain_characters() -> None:
    assert encodable("a ▁▄█ × b…", "ascii") == "a .=# x b~"
    assert encodable("▁ ü", "utf-8") == "▁ ü"
    assert encodable("▁ ü", "ascii") == ". \\xfc"


def test_last_cells_go_on_below_themselves() -> None:
    text = table([["name", "one two three four five six seven eight nine ten"], ["b", "short"]], width=40)
    assert text.splitlines() == ["  name  one two three four five six", "        seven eight nine ten", "  b     short"]

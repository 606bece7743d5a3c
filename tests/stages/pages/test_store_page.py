"""The page of a store: complete, without a network, true to the store, and safe whatever names it holds."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.stages.inspect import write_page
from teachonce.stages.measures.stored import Stored
from teachonce.stages.pages.page import MOST_BYTES, script_json
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.target_store import open_root

ELEMENTS = {"src", "href", "action", "data", "poster", "srcset"}


class Elements(HTMLParser):
    """The elements and attributes of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ELEMENTS]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.fixture(scope="module")
def page(evil_store, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    facts = write_page(Stored.open(evil_store.location), str(file))
    assert facts["problems"] == []
    return file


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(found[1])


def test_it_fetches_nothing_and_runs_nothing_of_the_data(page) -> None:
    text = page.read_text()
    assert re.findall(r"Map of the \w+", text)[0] in ("Map of the embeddings", "Map of the logits")
    found = Elements(text)
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert found.handlers == []
    assert found.tags.count("script") == 4
    assert not any(tag in found.tags for tag in ("iframe", "object", "embed", "base"))
    assert "default-src 'none'" in text
    assert "\x1b" not in text
    assert len(text.encode()) < MOST_BYTES


def test_every_sample_is_there_with_its_own_numbers(page, evil_store) -> None:
    data = data_of(page)
    logits = evil_store.targets["logits"].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    valid = np.flatnonzero(evil_store.valid)
    assert sorted(map(int, data["samples"])) == valid.tolist()
    entries = list(evil_store.shards.manifest())
    for row in valid.tolist():
        key, path, label, confidence, entropy, agreement, disagreement, classes, views = data["samples"][str(row)]
        mean = probabilities[row].mean(0)
        entropies = -(probabilities[row] * np.log(probabilities[row])).sum(-1)
        assert (key, path, label) == (entries[row].key, entries[row].path, entries[row].label)
        assert confidence == pytest.approx(mean.max(), abs=6e-4)
        assert entropy == pytest.approx(entropies.mean(), abs=6e-4)
        assert agreement == pytest.approx((probabilities[row].argmax(-1) == mean.argmax()).mean(), abs=6e-4)
        assert disagreement == pytest.approx(-(mean * np.log(mean)).sum() - entropies.mean(), abs=1e-3)
        assert [i for i, _ in classes] == np.argsort(-mean, kind="stable")[:5].tolist()
        assert [i for i, _ in views] == probabilities[row].argmax(-1).tolist()


def test_galleries_are_in_the_order_of_what_they_say(page) -> None:
    data = data_of(page)
    galleries = {gallery["title"]: [group["rows"] for group in gallery["groups"]] for gallery in data["galleries"]}
    of = {int(row): sample for row, sample in data["samples"].items()}
    by = {"Least confident": (3, 1), "Most confident": (3, -1), "Views disagree": (6, -1)}
    for title, (place, sign) in by.items():
        values = [sign * of[rows[0]][place] for rows in galleries[title]]
        assert values == sorted(values)
        assert values[0] == min(sign * sample[place] for sample in of.values())
    assert len(galleries["Random"]) == 24


def test_pictures_are_the_stored_views(page, evil_store) -> None:
    data = data_of(page)
    row = data["galleries"][0]["groups"][0]["rows"][0]
    files = [base64.b64decode(text) for text in data["images"][str(row)]]
    assert len(files) == 3
    reader = evil_store.shards.reader(row // 13)
    image = Image.open(io.BytesIO(reader.read(row))).convert("RGB")
    for file, view in zip(files, evil_store.views.params(reader.key(row), *image.size), strict=True):
        top, left, height, width, flip = (int(view[n]) for n in ("top", "left", "height", "width", "flip"))
        part = image.crop((left, top, left + width, top + height)).resize((96, 96), Image.Resampling.BICUBIC)
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part
        shown = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), int)
        assert np.abs(shown - np.asarray(part)).mean() < 12


def test_without_its_shards_there_are_no_pictures_and_it_says_so(evil_store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("teachonce.stages.measures.stored._find_shards", lambda *_: (None, "the shards are gone"))
    write_page(Stored.open(evil_store.location), str(tmp_path / "page.html"))
    data = data_of(tmp_path / "page.html")
    assert (data["images"], data["whole"], data["sprite"]) == ({}, {}, None)
    assert {sample[1] for sample in data["samples"].values()} == {None}
    assert "No pictures: the shards are gone." in (tmp_path / "page.html").read_text()


def test_a_store_with_class_vectors_only(tmp_path) -> None:
    root = open_root(str(tmp_path / "store"), mode="a")
    vectors_CD = np.eye(3, dtype=np.float32)
    vectors = ClassVectors(names=("a", "b", "c"), vectors_CD=vectors_CD, bias_C=None, logit_scale=1.0, normalized=True)
    write_class_vectors(root, vectors, {"teacher": {"family": "timm", "model": "m"}})
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "store"), "--html", str(tmp_path / "page.html")])
    assert (result.exit_code, result.stdout) == (0, "")
    text = (tmp_path / "page.html").read_text()
    assert "Class vectors of 3 classes; no image has been looked at yet." in text
    assert 'id="find"' not in text


def test_embeddings_without_class_vectors_are_shown_without_soft_labels(
    stage_inputs, describe_store, picture_shards, tmp_path
) -> None:
    stage_inputs.write_known_store(
        picture_shards,
        tmp_path / "s.zarr",
        widths={"embedding": 4},
        description=describe_store(picture_shards, ["embedding"]),
    )
    write_page(Stored.open(str(tmp_path / "s.zarr")), str(tmp_path / "page.html"))
    data = data_of(tmp_path / "page.html")
    titles = [gallery["title"] for gallery in data["galleries"]]
    assert titles[-1] == "Random"
    assert "Least confident" not in titles
    assert all(sample[3] is None and sample[7] == [] for sample in data["samples"].values())
    assert "no soft labels to show" in (tmp_path / "page.html").read_text()


def test_a_shard_without_a_usable_row_is_no_obstacle(stage_inputs, describe_store, picture_shards, tmp_path) -> None:
    vectors_CD = np.eye(4, dtype=np.float32)
    vectors = ClassVectors(
        names=("a", "b", "c", "d"), vectors_CD=vectors_CD, bias_C=None, logit_scale=1.0, normalized=True
    )
    stage_inputs.write_known_store(
        picture_shards,
        tmp_path / "s.zarr",
        widths={"logits": 4},
        vectors=vectors,
        also_invalid=tuple(range(13, 26)),
        description=describe_store(picture_shards, ["logits"]),
    )
    write_page(Stored.open(str(tmp_path / "s.zarr")), str(tmp_path / "page.html"))
    rows = set(map(int, data_of(tmp_path / "page.html")["samples"]))
    assert rows
    assert rows.isdisjoint(range(13, 26))


def test_a_folder_is_no_page(evil_store, tmp_path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(evil_store.location), "--html", str(tmp_path)])
    assert result.exit_code == 1
    assert (
        f"a page is one file: {tmp_path}: found a folder [page-is-folder]. Next: --html {tmp_path}/page.html"
        in result.stderr
    )


@pytest.mark.parametrize(("option", "name"), [("--html", "zarr.json"), ("--export", "table.csv")])
def test_no_file_is_written_into_what_is_looked_at(evil_store, tmp_path, option, name) -> None:
    store = tmp_path / "s.zarr"
    shutil.copytree(evil_store.location.path, store)
    before = (store / "zarr.json").read_bytes()
    result = CliRunner().invoke(main, ["inspect", str(store), option, str(store / name)])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: the file would lie in a folder that is looked at: {store / name}: expected a file elsewhere, found one in {store} [page-in-input]. "
        "Next: name another one\n"
    )
    assert (store / "zarr.json").read_bytes() == before
    shards = Stored.open(str(store)).shards
    assert shards is not None
    result = CliRunner().invoke(main, ["inspect", str(store), option, str(shards.location / name)])
    assert "[page-in-input]" in result.stderr


def test_a_page_of_samples_is_not_asked_for_beside_a_file(evil_store, tmp_path) -> None:
    page = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["inspect", str(evil_store.location), "--samples", "--html", str(page)])
    assert (result.exit_code, page.exists()) == (1, False)
    assert "[options-exclude-each-other]" in result.stderr


def test_a_store_half_written_says_so_and_shows_what_is_done(evil_store, tmp_path) -> None:
    store = tmp_path / "half.zarr"
    shutil.copytree(evil_store.location.path, store)
    receipts = sorted((store / "ledger" / "cache" / "receipts").glob("*.json"))
    receipts[1].unlink()
    write_page(Stored.open(str(store)), str(tmp_path / "page.html"))
    done = [row for row in np.flatnonzero(evil_store.valid).tolist() if row // 13 != 1]
    assert sorted(map(int, data_of(tmp_path / "page.html")["samples"])) == done
    text = (tmp_path / "page.html").read_text()
    assert f"It is not finished: {len(receipts) - 1} of {len(receipts)} shards are done." in text


def test_a_store_of_a_later_version_or_of_another_program_is_refused(evil_store, tmp_path) -> None:
    later, other, page = tmp_path / "later.zarr", tmp_path / "other.zarr", tmp_path / "page.html"
    shutil.copytree(evil_store.location.path, later)
    about = json.loads((later / "zarr.json").read_text())
    about["attributes"]["teachonce"]["schema_version"] = 99
    (later / "zarr.json").write_text(json.dumps(about))
    zarr.create_group(str(other)).create_array("logits", shape=(3, 2), dtype="float32")
    for store, code in ((later, "format-version-unknown"), (other, "store-other-kind")):
        result = CliRunner().invoke(main, ["inspect", str(store), "--html", str(page)])
        assert result.exit_code == 1
        assert f"[{code}]" in result.stderr.splitlines()[-1]
        assert not page.exists()


@pytest.mark.parametrize("text", ["</script><b>", "<!--<script>", "\u2028\x1b[31m\x00", "&lt;", "\U0001f600"])
def test_json_in_a_script_comes_back_and_ends_nothing(text) -> None:
    written = script_json({text: [text, float("nan"), 1.5]})
    assert json.loads(written) == {text: [text, None, 1.5]}
    assert not set(written) & set("<>&\u2028\x1b\x00")


@pytest.mark.slow
def test_chromium_draws_it(page, browser, classes_in) -> None:
    dom = browser.dom(page)
    found = classes_in(dom)
    assert found.drawn == {
        "coverage",
        "confidence",
        "entropy",
        "agreement",
        "classes",
        "confused",
        "similarity",
        "nearest",
        "map",
    }
    assert (found.cards, found.images) == (24, 72)
    assert "<title>targets.zarr</title>" in dom  # no name has run


@pytest.mark.slow
def test_chromium_finds_opens_and_turns_dark(page, browser, classes_in) -> None:
    data = data_of(page)
    row, sample = next(item for item in data["samples"].items() if "onerror" in (item[1][1] or ""))
    dom = browser.dom(page, f"theme=dark&find={sample[0][:12]}&sample={row}&gallery=3")
    assert 'data-theme="dark"' in dom
    assert f"1 of the {len(data['samples'])} samples in this page match." in dom
    assert re.search(r"<dialog[^>]* open", dom)
    assert f"teachonce inspect {data['command'].split(' ', 2)[2]} {sample[0]}" in dom.replace("&amp;", "&")
    selected = re.findall(r'<button type="button" role="tab"[^>]*aria-selected="true"[^>]*>([^<]*)<', dom)
    assert selected == [data["galleries"][3]["title"]]
    assert "<title>targets.zarr</title>" in dom

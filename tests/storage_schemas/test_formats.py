"""Versions of formats: what is read, what is refused and how; and that docs/formats.md names all that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
from teachonce.storage_schemas.errors import MismatchError
from teachonce.storage_schemas.formats import Format

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("found", "what", "hint"),
    [
        (1, "things of another version of teachonce", "make them again"),
        (4, "things of a later version of teachonce", "update teachonce here"),
        (None, "things of another version of teachonce", "make them again"),
        (True, "things of another version of teachonce", "make them again"),
        ("3", "things of another version of teachonce", "make them again"),
    ],
)
def test_other_versions_are_refused(found, what, hint):
    with pytest.raises(MismatchError) as error:
        Format(name="things", version=3, oldest=2).check(found, where="here", hint="make them again")
    assert str(error.value) == (
        f"{what}: here: field 'schema_version': expected 2 to 3 (this version), found {found} (the files). Next: {hint}"
    )


@pytest.mark.parametrize("found", [2, 3])
def test_this_version_and_the_one_before_are_read(found):
    Format(name="things", version=3, oldest=2).check(found, where="here", hint="")


def names_in(value: Any) -> set[str]:
    """Every name of a field, in all depths."""
    if isinstance(value, dict):
        return set(value).union(*(names_in(inside) for inside in value.values()))
    return set().union(*(names_in(inside) for inside in value)) if isinstance(value, list) else set()


#: Free in what they hold; the documentation says so of each.
FREE = {
    "settings",
    "teacher",
    "student",
    "backbone",
    "origin",
    "versions",
    "preprocess",
    "compute",
    "views",
    "fingerprint",
}


def closed(value: Any) -> Any:
    """The value, without what lies in free fields."""
    if isinstance(value, dict):
        return {name: None if name in FREE else closed(inside) for name, inside in value.items()}
    return [closed(inside) for inside in value] if isinstance(value, list) else value


def test_the_documentation_names_everything_that_is_written(tmp_path):
    text = (TESTS.parent / "docs/formats.md").read_text()
    data = TESTS / "data/0.1.0"
    names: set[str] = set(pq.read_schema(data / "shards/manifest.parquet").names)
    names |= set(np.load(data / "shards/000000.index.npy").dtype.names)
    for file in data.rglob("*.json"):
        if file.name == "expected.json":
            continue
        fields = json.loads(file.read_bytes())
        if file.name == "zarr.json":
            if file.parent.name != "ledger":
                names |= {file.parent.name} if "shape" in fields else set()
                names |= names_in(closed(fields["attributes"])) | set(fields.get("dimension_names") or ())
        else:
            names |= names_in(closed(fields))
    for file in data.rglob("*.safetensors"):
        with safetensors.safe_open(file, "pt") as opened:
            names |= set(opened.metadata() or {}) if "run" in file.parts else set()
            names |= set(opened.keys()) if file.parent.name == "prompts" or "class_vectors" in file.name else set()
    names |= {
        "seal",
        "files",
        "manifest_footer",
        "tensors",
        "left_out",
        "no_labels",
        "max_bytes",
        "colors",
        "base_classes",
        *("tars", "samples", "bytes", "place", "version"),
    }
    names -= {"store.zarr"}
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert missing == []

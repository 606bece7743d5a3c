"""A list as a corpus, text or Parquet: which images and labels it names, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from teachonce.stages.corpora.sources import open_sources
from teachonce.storage_schemas.errors import InputError


def paths(source) -> list[str]:
    return [found.path for found in source.walk() if found.is_image]


def labels(source) -> dict[str, str | None]:
    return {found.path: found.label for found in source.walk() if found.is_image}


def test_lists_of_paths_as_text_and_parquet(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"one")
    (tmp_path / "2.jpg").write_bytes(b"two")
    text = tmp_path / "list.txt"
    text.write_text("# mine\n2.jpg\tdog\n\n1.jpg\n")
    table = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["2.jpg", "1.jpg"], "label": ["dog", None]}), table)
    for file in (text, table):
        (source,) = open_sources([str(file)])
        assert labels(source) == {"1.jpg": None, "2.jpg": "dog"}
        assert source.read("2.jpg", -1, 3) == b"two"
    for content, message in {
        "1.jpg\n1.jpg\n": "a list names the same image twice",
        "pipe:cat x\n": "pipe: runs a command from data and is refused",
    }.items():
        text.write_text(content)
        with pytest.raises(InputError, match=f"^{message}"):
            paths(open_sources([str(text)])[0])
    pq.write_table(pa.table({"file": ["1.jpg"]}), table)
    with pytest.raises(
        InputError, match=r"a Parquet list needs a column: .*: expected path or url, found \['file'\]"
    ):
        paths(open_sources([str(table)])[0])

"""The bytes that stand in a tar beside an image."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from teachonce.storage_schemas.samples import sample_metadata

words = st.text(st.characters(exclude_categories=["Cs"]))


@given(path=words, row=st.integers(0, 2**53), digest=words, label=st.none() | words)
def test_metadata_is_canonical_json(path, row, digest, label):
    fields = {"path": path, "row": row, "digest": digest} | ({} if label is None else {"label": label})
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert sample_metadata(path=path, row=row, digest=digest, label=label) == text.encode()

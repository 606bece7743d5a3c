"""Fingerprints, receipts, errors, keys, indexes and manifests: small formats, exact bytes."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.manifest import Corpus, Entry, ManifestReader, write_manifest
from teachonce.storage_schemas.receipt import InvalidRow, Output, Receipt
from teachonce.storage_schemas.samples import KEY_LENGTH, member_key, sample_key
from teachonce.storage_schemas.tar_index import decode_index, encode_index


def test_fingerprints_name_every_difference():
    mine = Fingerprint(fields={"teacher": {"weights": "aa", "size": 224}, "views": 4})
    found = {"teacher": {"weights": "bb", "size": 224}, "seed": 1}
    assert mine.differences(found) == [
        ("teacher.weights", "'aa'", "'bb'"),
        ("seed", "nothing", "1"),
        ("views", "4", "nothing"),
    ]
    assert mine.digest == Fingerprint(fields={"views": 4, "teacher": {"size": 224, "weights": "aa"}}).digest
    mine.check(mine.fields, what="x", code="other-x", where="y", hint="z", whose=("mine", "theirs"))
    with pytest.raises(MismatchError) as caught:
        mine.check(
            found,
            what="another store",
            code="other-store",
            where="out",
            hint="choose another --out",
            whose=("mine", "theirs"),
        )
    assert str(caught.value) == (
        "another store: out: field 'teacher.weights' (and 2 more fields): expected 'aa' (mine), found 'bb' (theirs). Next: choose another --out"
    )


def test_receipts_round_trip_and_refuse_other_bytes():
    receipt = Receipt(
        key="000001",
        outputs=(Output(path="a.tar", bytes=3, sha256="00"),),
        rows=2,
        invalid_rows=(InvalidRow(row=1, path="b/ü.jpg", reason="empty file"),),
        digest="d",
        fingerprint="f",
    )
    assert Receipt.from_bytes(receipt.to_bytes(), "here") == receipt
    with pytest.raises(
        DamagedError,
        match="^not a receipt: here: found Input data was truncated. Next: restore it from a copy, or mv here here.old, then run the same command again$",
    ):
        Receipt.from_bytes(receipt.to_bytes()[:-9], "here")


def test_errors_are_one_line_and_cross_process_borders():
    error = InputError("bad\nthing", code="bad-thing", where="x", expected=1, found=2, hint="do y")
    assert str(error) == "bad thing: x: expected 1, found 2. Next: do y"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (InputError, str(error))


def test_keys_have_fixed_length_no_dots_and_depend_on_both_names():
    keys = {sample_key(c, p) for c in ("a", "b") for p in ("x/1.v1.jpg", "x/1.v2.jpg", "x/1.jpg")}
    assert len(keys) == 6
    assert all(len(k) == KEY_LENGTH and set(k) <= set("0123456789abcdef") for k in keys)
    assert sample_key("a", "b/c") != sample_key("a\0b", "c")[:0] + sample_key("ab", "/c")


def test_a_members_key_is_read_from_its_header():
    key = sample_key("c", "p")
    assert member_key(tarfile.TarInfo(f"{key}.jpg").tobuf(tarfile.USTAR_FORMAT)) == key
    assert member_key(tarfile.TarInfo("other.jpg").tobuf(tarfile.USTAR_FORMAT)) == ""
    assert member_key(b"") == ""


def test_an_index_refuses_pickles_and_other_tables():
    table = decode_index(encode_index([(b"k" * KEY_LENGTH, 5, 512, 10, 7)]), "here")
    assert (int(table["row"][0]), int(table["offset"][0])) == (5, 512)
    hostile = io.BytesIO()
    np.save(hostile, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedError, match="^not an offset index: here"):
        decode_index(hostile.getvalue(), "here")
    other = io.BytesIO()
    np.save(other, np.zeros(3))
    with pytest.raises(DamagedError, match="^not an offset index: here: expected "):
        decode_index(other.getvalue(), "here")


def test_a_manifest_reads_back_shard_by_shard(tmp_path):
    entries = [
        Entry(
            key=sample_key("c", str(i)),
            path=f"é/{i}.jpg",
            source=0,
            offset=-1,
            size=i,
            digest=f"{i}",
            label=None if i == 2 else "cat",
        )
        for i in range(5)
    ]
    path = tmp_path / "m.parquet"
    with path.open("wb") as file:
        digest, count = write_manifest(file, [entries[:2], entries[2:4], entries[4:]])
    reader = ManifestReader(io.BytesIO(path.read_bytes()), None, where=path)
    assert (count, list(reader), reader.shard(1)) == (5, entries, entries[2:4])
    assert list(reader.labels())[2] == (entries[2].key, None)
    with path.open("wb") as file:
        assert write_manifest(file, [entries[:3], entries[3:]])[0] == digest


def test_a_corpus_of_another_version_is_refused():
    corpus = Corpus(
        name="n",
        corpus_id="i",
        listing_id="l",
        num_samples=5,
        shard_size=2,
        num_shards=3,
        resize=None,
        max_pixels=1,
        skipped=0,
    )
    data = corpus.to_bytes()
    assert Corpus.from_bytes(data, "here") == corpus
    assert list(corpus.rows(2)) == [4]
    with pytest.raises(
        MismatchError,
        match="shards of a later version of teachonce: here: field 'schema_version': expected 1 to 3 .this version., found 9 .the files.",
    ):
        Corpus.from_bytes(data.replace(b'"schema_version":1', b'"schema_version":9'), "here")

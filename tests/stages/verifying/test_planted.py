"""Planted disasters that every byte shows: each is found by its cause."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.storage import Location
from teachonce.storage_schemas.class_vectors import read_class_vectors, write_class_vectors
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.json_file import seal
from teachonce.storage_schemas.receipt import Output
from teachonce.storage_schemas.store_description import StoreDescription
from teachonce.storage_schemas.tar_index import decode_index, encode_index
from teachonce.storage_schemas.target_store import open_root
from teachonce.storage_schemas.view_params import NO_VIEW

DISASTERS: dict[str, tuple[Callable, set[str], bool]] = {}


def disaster(*codes: str, quick: bool = False):
    """One that is found with exactly these codes; `quick`: without reading the bytes too."""

    def add(plant: Callable) -> Callable:
        DISASTERS[plant.__name__] = (plant, set(codes), quick)
        return plant

    return add


def flip(path, byte: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


@disaster("file-bit-flipped")
def flipped_bit_in_a_chunk(pair, plant):
    flip(pair.chunk("embedding", 1), 40)


@disaster("file-bit-flipped")
def flipped_bit_in_a_checksum(pair, plant):
    flip(pair.chunk("embedding", 1), -2)


@disaster("file-missing", quick=True)
def missing_chunk(pair, plant):
    pair.chunk("logits", 2).unlink()


@disaster("file-cut", quick=True)
def cut_chunk(pair, plant):
    path = pair.chunk("embedding", 0)
    path.write_bytes(path.read_bytes()[:-7])


@disaster("file-of-another-shard")
def swapped_chunks(pair, plant):
    one, other = pair.chunk("embedding", 0), pair.chunk("embedding", 1)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@disaster("receipt-stale", quick=True)
def stale_receipt(pair, plant):
    old = (pair.ledger.folder / "receipts" / "000001.json").read_bytes()

    def anew(block):
        return replace(
            block,
            keys=block.keys[::-1],
            valid=~block.valid,
            view_params=block.view_params[::-1],
            targets={name: values + 1 for name, values in block.targets.items()},
        )

    pair.rewrite(1, anew)
    (pair.ledger.folder / "receipts" / "000001.json").write_bytes(old)


@disaster("file-not-as-vouched")
def chunk_written_anew(pair, plant):
    old = (pair.ledger.folder / "receipts" / "000001.json").read_bytes()
    pair.rewrite(1, plant.changed("embedding", lambda values: values * 1.01))
    (pair.ledger.folder / "receipts" / "000001.json").write_bytes(old)


@disaster("receipt-other-unit", quick=True)
def shard_of_another_store(pair, plant):
    other = json.loads((pair.ledger.folder / "receipts" / "000002.json").read_bytes())
    del other["seal"]
    other["fingerprint"] = "0" * 32
    (pair.ledger.folder / "receipts" / "000002.json").write_bytes(json.dumps(seal(other)).encode())


@disaster("receipt-other-unit", quick=True)
def receipt_of_another_shard(pair, plant):
    folder = pair.ledger.folder / "receipts"
    (folder / "000001.json").write_bytes((folder / "000002.json").read_bytes())


@disaster("description-changed", quick=True)
def flipped_bit_in_a_receipt(pair, plant):
    path = pair.store / "ledger" / "cache" / "receipts" / "000001.json"
    path.write_text(path.read_text().replace('"rows":13', '"rows":12'))


@disaster("stage-unfinished", "shard-unfinished", quick=True)
def half_written_store(pair, plant):
    (pair.store / "ledger" / "cache" / "receipts" / "000003.json").unlink()


@disaster("receipt-does-not-fit", quick=True)
def receipt_without_a_file(pair, plant):
    receipt = pair.receipt(0)
    pair.ledger.commit(replace(receipt, outputs=receipt.outputs[1:]), {})


@disaster("receipt-of-no-shard", quick=True)
def receipt_of_no_shard(pair, plant):
    receipt = pair.receipt(0)
    pair.ledger.commit(replace(receipt, key="000099"), {})


@disaster("file-cut", quick=True)
def truncated_tar(pair, plant):
    tar = pair.shards / "000000.tar"
    tar.write_bytes(tar.read_bytes()[: 512 * 9])


@disaster("file-missing", quick=True)
def missing_tar(pair, plant):
    (pair.shards / "000001.tar").unlink()


@disaster("file-bit-flipped")
def flipped_bit_in_an_image(pair, plant):
    flip(pair.shards / "000002.tar", 600)


@disaster("file-of-another-shard", "file-cut", quick=True)
def swapped_tars(pair, plant):
    pair.shards.joinpath("000003.tar").write_bytes(pair.shards.joinpath("000001.tar").read_bytes())
    pair.shards.joinpath("000000.tar").write_bytes(pair.shards.joinpath("000000.tar").read_bytes()[:-512])


@disaster("index-changed")
def index_of_another_tar(pair, plant):
    first = decode_index((pair.shards / "000000.index.npy").read_bytes(), "")
    records = [tuple(record) for record in first]
    records[0], records[1] = records[1], records[0]
    (pair.shards / "000000.index.npy").write_bytes(encode_index(records))


def revouch_shard(pair, name: str) -> None:
    """Make the receipt of a shard vouch for what is there."""
    ledger = Ledger(Location.of(pair.shards), "shard")
    outputs = []
    for path in (f"{name}.tar", f"{name}.index.npy"):
        data = (pair.shards / path).read_bytes()
        outputs.append(Output(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    receipt = ledger.receipt(name)
    assert receipt is not None
    ledger.commit(replace(receipt, outputs=tuple(outputs)), {})


@disaster("sample-not-of-manifest")
def image_changed_in_the_tar_after_caching(pair, plant):
    """Of an intact tar's images one in sixteen, the first among them, is digested again."""
    index = decode_index((pair.shards / "000001.index.npy").read_bytes(), "")
    tar = bytearray((pair.shards / "000001.tar").read_bytes())
    begin, end = int(index[0]["offset"]), int(index[0]["offset"] + index[0]["length"])
    tar[begin + 30 : begin + 60] = bytes(30)
    (pair.shards / "000001.tar").write_bytes(tar)
    index[0]["crc32"] = zlib.crc32(tar[begin:end])
    (pair.shards / "000001.index.npy").write_bytes(encode_index([tuple(record) for record in index]))
    revouch_shard(pair, "000001")


@disaster("sample-not-of-manifest")
def image_changed_and_only_the_receipt_made_to_fit(pair, plant):
    """Its digest is not computed again: the checksum in the index tells."""
    index = decode_index((pair.shards / "000001.index.npy").read_bytes(), "")
    tar = bytearray((pair.shards / "000001.tar").read_bytes())
    begin = int(index[5]["offset"])
    tar[begin + 30 : begin + 60] = bytes(30)
    (pair.shards / "000001.tar").write_bytes(tar)
    revouch_shard(pair, "000001")


@disaster("sample-not-of-manifest")
def facts_beside_an_image_changed(pair, plant):
    tar = (pair.shards / "000001.tar").read_bytes()
    place = tar.index(b'"row":15')
    (pair.shards / "000001.tar").write_bytes(tar[:place] + b'"row":16' + tar[place + 8 :])
    revouch_shard(pair, "000001")


@disaster("manifest-damaged", quick=True)
def manifest_of_another_corpus(pair, plant, other_shards):
    shutil.copy(other_shards / "manifest.parquet", pair.shards)


@disaster("corpus-other-run", "store-other-corpus", quick=True)
def corpus_and_manifest_of_another_corpus(pair, plant, other_shards):
    for name in ("manifest.parquet", "corpus.json"):
        shutil.copy(other_shards / name, pair.shards)


@disaster("store-other-corpus", quick=True)
def shards_of_another_corpus(pair, plant, other_shards):
    shutil.rmtree(pair.shards)
    shutil.copytree(other_shards, pair.shards)


@disaster("rows-shifted")
def rows_shifted_by_one(pair, plant):
    def shift(block):
        return replace(block, keys=[block.keys[-1], *block.keys[:-1]])

    pair.rewrite(1, shift)


@disaster("rows-of-another-shard")
def rows_of_another_shard(pair, plant):
    root: Any = open_root(str(pair.store))
    spec = StoreDescription.read(root, "").spec
    other = [bytes(key).decode() for key in root["keys"][spec.rows(2)]]
    pair.rewrite(1, lambda block: replace(block, keys=other))


@disaster("rows-in-another-order")
def rows_in_another_order(pair, plant):
    pair.rewrite(1, lambda block: replace(block, keys=sorted(block.keys, key=lambda key: key[::-1])))


@disaster("keys-differ")
def keys_of_nobody(pair, plant):
    pair.rewrite(1, lambda block: replace(block, keys=["0" * 32, *block.keys[1:]]))


@disaster("values-not-finite")
def nan_rows(pair, plant):
    def nan(values):
        values[3] = np.nan
        return values

    # `write_block` puts valid rows as they are.
    pair.rewrite(1, plant.changed("embedding", nan))


@disaster("values-collapsed")
def collapsed(pair, plant):
    pair.rewrite(1, plant.changed("logits", lambda values: np.where(np.isnan(values), values, values[3])))


@disaster("values-constant")
def constant_rows(pair, plant):
    def zero(values):
        values[3] = 0
        return values

    pair.rewrite(1, plant.changed("logits", zero))


@disaster("values-repeated")
def repeated_row(pair, plant):
    def repeat(values):
        values[3] = values[4]
        return values

    pair.rewrite(1, plant.changed("embedding", repeat))


@disaster("embedding-not-normalised")
def not_normalised(pair, plant):
    pair.rewrite(1, plant.changed("embedding", lambda values: values * 7))


def with_params(change):
    def apply(block):
        params = block.view_params.copy()
        change(params, block)
        return replace(block, view_params=params)

    return apply


@disaster("views-other-seed")
def other_view_seed(pair, plant):
    def reseed(params, block):
        from teachonce.stages.corpora.images import decode

        reader = pair.shard_set.reader(1)
        for offset in np.flatnonzero(block.valid):
            size = decode(reader.read(13 + int(offset))).size
            params[offset] = replace(plant.VIEWS, seed=42).params(block.keys[offset], *size)

    pair.rewrite(1, with_params(reseed))


@disaster("views-mirrored")
def mirrored_views(pair, plant):
    def mirror(params, block):
        params["flip"] = np.where(params["flip"] >= 0, 1 - params["flip"], params["flip"])

    pair.rewrite(1, with_params(mirror))


@disaster("views-in-another-order")
def views_in_another_order(pair, plant):
    def swap(params, block):
        params[:] = params[:, ::-1].copy()

    pair.rewrite(1, with_params(swap))


@disaster("views-differ")
def other_views(pair, plant):
    def move(params, block):
        params["top"] = np.where(params["top"] >= 0, params["top"] + 1, -1)

    pair.rewrite(1, with_params(move))


@disaster("views-not-of-rows")
def valid_row_without_a_view(pair, plant):
    def drop(params, block):
        params[4] = NO_VIEW

    pair.rewrite(1, with_params(drop))


@disaster("rows-not-of-receipt", "block-digest-differs")
def valid_row_marked_unusable(pair, plant):
    def mark(block):
        valid = block.valid.copy()
        valid[4] = False
        return replace(block, valid=valid)

    pair.rewrite(1, mark)


@disaster("rows-without-image", "rows-not-of-receipt", quick=True)
def targets_of_an_unusable_image(pair, plant):
    receipt = next(receipt for receipt in map(pair.receipt, range(4)) if receipt.invalid_rows)
    pair.ledger.commit(replace(receipt, invalid_rows=receipt.invalid_rows[1:]), {})


@disaster("block-digest-differs")
def digest_of_other_rows(pair, plant):
    receipt = pair.receipt(2)
    pair.ledger.commit(replace(receipt, digest="0" * 32), {})


def rewrite_vectors(pair, change) -> None:
    root = open_root(str(pair.store), mode="a")
    vectors = change(read_class_vectors(root, ""))
    write_class_vectors(root, vectors, root["class_vectors"].attrs["origin"])
    ledger = Ledger(Location.of(pair.store), "vectors")
    receipt = ledger.receipt("class_vectors")
    assert receipt is not None
    ledger.commit(replace(receipt, digest=vectors.digest), {})


@disaster("vectors-not-of-logits", quick=True)
def other_class_vectors(pair, plant):
    rewrite_vectors(pair, lambda vectors: replace(vectors, logit_scale=30.0))


@disaster("vectors-not-of-logits", "classes-in-another-order", quick=True)
def classes_in_another_order(pair, plant):
    rewrite_vectors(pair, lambda vectors: replace(vectors, names=vectors.names[::-1]))


@disaster("vectors-lost", quick=True)
def class_vectors_gone(pair, plant):
    shutil.rmtree(pair.store / "class_vectors")


@disaster("vectors-changed", quick=True)
def class_vectors_changed(pair, plant):
    root = open_root(str(pair.store), mode="a")
    root["class_vectors"][0] = 0


@disaster("description-changed", quick=True)
def description_changed(pair, plant):
    path = pair.store / "zarr.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))


@disaster("description-contradicts-fingerprint", "views-other-seed", quick=True)
def description_of_another_seed(pair, plant):
    root = open_root(str(pair.store), mode="a")
    description = StoreDescription.read(root, "")
    replace(description, views={**description.views, "seed": 2}).write(root)


@disaster("store-other-run", quick=True)
def description_of_another_run(pair, plant):
    root = open_root(str(pair.store), mode="a")
    description = StoreDescription.read(root, "")
    replace(description, fingerprint={**description.fingerprint, "encoding": "fp16"}).write(root)


@disaster("store-array-malformed", quick=True)
def array_lost(pair, plant):
    shutil.rmtree(pair.store / "embedding")


@disaster("format-version-unknown", quick=True)
def store_of_another_version(pair, plant):
    path = pair.store / "zarr.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))


@disaster("store-other-kind", quick=True)
def store_of_another_program(pair, plant):
    import zarr

    shutil.rmtree(pair.store)
    zarr.open_group(str(pair.store), mode="w").create_array("x", shape=(3,), dtype="f4")


@disaster("store-root-lost", quick=True)
def root_lost(pair, plant):
    (pair.store / "zarr.json").unlink()


@pytest.fixture(scope="session")
def other_shards(pictures, make_shards, tmp_path_factory):
    """The same pictures as another corpus."""
    return make_shards(pictures, tmp_path_factory.mktemp("other") / "out", name="others").location.path


@pytest.mark.parametrize("name", DISASTERS)
def test_a_planted_disaster_is_found_by_its_cause(name, pair, plant, request):
    spoil, codes, quick = DISASTERS[name]
    also = {n: request.getfixturevalue(n) for n in spoil.__code__.co_varnames[2 : spoil.__code__.co_argcount]}
    spoil(pair, plant, **also)
    assert set(pair.codes()) == codes
    for finding in pair.findings():
        assert finding.error.hint
        assert "\n" not in str(finding.error)
    assert bool(pair.codes(quick=True)) == quick


def test_what_is_right_raises_no_alarm(made):
    report = made.report()
    assert report.findings == []
    assert report.num_bytes > sum(file.stat().st_size for file in made.shards.glob("*.tar"))
    assert made.codes(quick=True) == []


def test_nothing_there_is_an_error(made, tmp_path):
    with pytest.raises(InputError, match="no target store here"):
        replace(made, store=tmp_path / "none").codes()
    with pytest.raises(InputError, match="no shards here"):
        replace(made, shards=tmp_path).codes()


def test_a_flipped_bit_is_named(pair):
    flip(pair.shards / "000002.tar", 600, bit=5)
    (found,) = pair.findings()
    row = int(decode_index((pair.shards / "000002.index.npy").read_bytes(), "")["row"][0])
    assert found.error.found.startswith(f"bit 5 of byte 600, in the image of row {row} (")
    assert found.shard == 2
    assert not found.mendable

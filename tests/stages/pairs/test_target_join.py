"""Targets joined onto a webdataset pipeline equal what the store says, key by key, or are refused."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
import webdataset
from teachonce import TargetStream, join_targets
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import DamagedError, InputError

# webdataset leaves closing its files to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def tars(shards):
    return [str(path) for path in sorted(shards.location.path.glob("*.tar"))]


def pipeline(shards, *stages):
    dataset = webdataset.WebDataset(tars(shards), shardshuffle=False)
    for stage in stages:
        dataset = dataset.compose(stage)
    return dataset


def test_each_sample_gets_what_the_store_says(known_store):
    samples = list(
        pipeline(known_store.shards, join_targets(known_store.location, view=2, targets=("logits", "embedding")))
    )
    assert len(samples) == 45
    plain = {s["__key__"]: s for s in webdataset.WebDataset(tars(known_store.shards), shardshuffle=False)}
    for sample in samples:
        row = json.loads(plain[sample["__key__"]]["json"])["row"]
        for name in ("logits", "embedding"):
            assert sample[name].dtype == np.float32
            assert np.array_equal(sample[name], known_store.targets[name][row, 2])
        assert sample["jpg" if "jpg" in sample else next(iter(set(sample) & {"png", "webp", "bmp"}))]


def test_images_are_those_of_the_stream(known_store):
    """The same view through both ways, after a shuffle and in any order of shards."""
    stream = TargetStream(known_store.shards, known_store.location, image_size=12, batch_size=45, targets=("logits",))
    batch = next(stream.batches(1))
    expected = {
        raw.tobytes(): image
        for raw, image in zip(batch.targets["logits"].numpy(), batch.images_NCHW.numpy(), strict=True)
    }
    dataset = pipeline(known_store.shards, join_targets(known_store.location, view=1, image_size=12)).shuffle(50)
    found = {s["logits"].tobytes(): s["image"] for s in dataset.decode("pil", partial=True)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)


def test_it_may_follow_decoding(known_store):
    """Without `image_size`, where the pipeline renders for itself: `json` is a dictionary by then."""
    dataset = webdataset.WebDataset(tars(known_store.shards), shardshuffle=False).decode("pil")
    assert len(list(dataset.compose(join_targets(known_store.location)))) == 45


def test_it_travels_to_loader_processes(known_store):
    join = pickle.loads(pickle.dumps(join_targets(known_store.location)))
    assert len(list(pipeline(known_store.shards, join))) == 45


def test_logits_are_formed_where_only_embeddings_are_stored(make_store, picture_shards, tmp_path):
    """In both ways to read, by a plain product."""
    rng = np.random.default_rng(0)
    vectors_CD, bias_C = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 4), (7,)))
    vectors = ClassVectors(
        names=tuple("abcdefg"), vectors_CD=vectors_CD, bias_C=bias_C, logit_scale=3.0, normalized=False
    )
    known = make_store(picture_shards, tmp_path / "s", widths={"embedding": 4}, vectors=vectors)
    expected_RC = 3.0 * known.targets["embedding"][:, 1] @ vectors_CD.T + bias_C
    for sample in pipeline(known.shards, join_targets(known.location, view=1)):
        row = json.loads(sample["json"])["row"]
        assert np.allclose(sample["logits"], expected_RC[row], rtol=1e-5, atol=1e-5)
        assert "embedding" not in sample
    with TargetStream(
        known.shards, known.location, image_size=8, batch_size=9, targets=("logits", "embedding")
    ) as stream:
        for batch in stream.batches(1):
            assert list(batch.targets) == ["logits", "embedding"]
            assert np.allclose(batch.targets["logits"], expected_RC[batch.rows_N], rtol=1e-5, atol=1e-5)
        assert stream.class_vectors.names == tuple("abcdefg")


def test_what_does_not_fit_is_refused(known_store, make_shards, pictures, tmp_path):
    def error(kind, samples, join):
        with pytest.raises(kind) as raised:
            list(join(samples))
        return str(raised.value)

    join = join_targets(known_store.location, image_size=8)
    sample = next(iter(pipeline(known_store.shards)))
    extension = next(name for name in sample if not name.startswith("__") and name != "json")
    text = error(InputError, [{k: v for k, v in sample.items() if k != "json"}], join)
    assert text == (
        f"a sample without the members '__key__' and 'json' with its row: {sample['__key__']}: found {extension}. "
        "Next: join the tars that `teachonce shard` wrote, before anything renames or drops their members"
    )
    text = error(DamagedError, [sample | {"__key__": "0" * 32}], join)
    assert text.startswith(
        f"the sample is not the one that the store has in its row: {known_store.location}, row 0: expected "
    )
    assert text.endswith(f"found {'0' * 32}. Next: pass the store that was made from these tars")
    text = error(DamagedError, [sample | {"json": b'{"row": 999}'}], join)
    assert "a sample of a shard that the store does not have" in text
    text = error(InputError, [sample | {extension: io.BytesIO()}], join)
    assert text == (
        f"rendering needs the image's own bytes: {sample['__key__']}: expected one member beside 'json', found {extension}. "
        "Next: join before `.decode(…)`, or leave out image_size"
    )
    other = make_shards(pictures / "red fox", tmp_path / "shards")
    with pytest.raises(DamagedError, match="the sample is not the one that the store has in its row"):
        list(pipeline(other, join))
    with pytest.raises(InputError, match="the store does not have these views"):
        join_targets(known_store.location, view=3)
    with pytest.raises(InputError, match="the store holds no target 'tokens'"):
        join_targets(known_store.location, targets=("tokens",))

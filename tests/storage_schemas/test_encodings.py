"""Encodings against independent computations: what is stored means what the formats page says, and comes back within a budget."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import zarr
from teachonce.stages.encodings.fitting import Fits
from teachonce.stages.encodings.measure import divergence
from teachonce.storage_schemas.encodings import ENCODINGS, Encoding
from teachonce.storage_schemas.encodings.registry import encoding_from_json, unfitted
from teachonce.storage_schemas.encodings.spelling import KNOWN, SpellingError, one, parse
from teachonce.storage_schemas.encodings.table import Table
from teachonce.storage_schemas.errors import DamagedError
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, read_target, write_block
from teachonce.storage_schemas.view_params import no_views

CLASSES, CHANNELS = 120, 20

#: Every encoding, with numbers that suit the small targets here.
OF_LOGITS = ("fp32", "fp16", "int8", "pca:0.3", "pca:0.003", "adaptive", "adaptive:0.9:63", "sampled:30", "sampled:7:3")
OF_EMBEDDINGS = ("fp32", "fp16", "int8", "pca:0.05", "pq:10", "pq:7")


def clip_like_logits(seed: int, scale: float, classes: int = CLASSES) -> np.ndarray:
    """Cosines around 0.2 with a few that stand out, times a logit scale of 100; of correlated classes."""
    rng = np.random.default_rng(seed)
    mixed = np.random.default_rng(0).normal(size=(12, classes))
    cosines = 0.18 + 0.01 * rng.normal(size=(64, 2, 12)) @ mixed + 0.005 * rng.normal(size=(64, 2, classes))
    cosines = cosines + 0.1 * (rng.random((64, 2, classes)) < 0.01)
    return (scale * cosines).astype(np.float32)


def target_of(name: str, width: int) -> TargetSpec:
    return TargetSpec(name=name, axes=("sample", "view", "class" if name == "logits" else "channel"), shape=(width,))


def encoding_of(text: str, target: TargetSpec, values: np.ndarray) -> Encoding:
    return Fits(target, values.reshape(-1, values.shape[-1])).encoding(one(text))


def keys_of(count: int) -> list[str]:
    return [f"{row:032x}" for row in range(count)]


def there_and_back(
    encoding: Encoding, values: np.ndarray, name: str = "logits", **more: Any
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(the arrays, what they are decoded to) of values (row, view, …)."""
    target = target_of(name, values.shape[2])
    arrays = encoding.encode(target, values, keys=keys_of(len(values)), first_view=0, **more)
    views = range(values.shape[1])
    decoded = [encoding.decode(target, {name: array[:, view] for name, array in arrays.items()}) for view in views]
    return arrays, np.stack(decoded, axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", sorted(ENCODINGS))
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_logits_stay_within_the_declared_budget(name, scale):
    encoding = ENCODINGS[name]
    logits = clip_like_logits(1, scale)
    arrays, decoded = there_and_back(encoding, logits)
    assert arrays["logits"].dtype == encoding.dtype
    assert divergence(logits.reshape(-1, CLASSES), decoded.reshape(-1, CLASSES)).max() <= encoding.kl_budget + 1e-12


@pytest.mark.parametrize(
    ("text", "most"),
    [("int8", 1e-3), ("pca:0.3", 0.03), ("pca:0.003", 1e-5), ("adaptive:0.99:63", 0.02), ("adaptive:0.5", 1.0)],
)
def test_divergence_is_small_on_rows_that_it_was_not_fitted_to(text, most):
    fit, fresh = clip_like_logits(1, 100.0), clip_like_logits(2, 100.0)
    encoding = encoding_of(text, target_of("logits", CLASSES), fit)
    _, decoded = there_and_back(encoding, fresh)
    found = divergence(fresh.reshape(-1, CLASSES), decoded.reshape(-1, CLASSES)).mean()
    assert most / 100 < found < most


@pytest.mark.parametrize(("text", "least"), [("int8", 0.9999), ("pca:0.05", 0.999), ("pq:10", 0.95), ("pq:7", 0.9)])
def test_embeddings_keep_their_direction(text, least):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(200, 2, CHANNELS)) * np.linspace(0.2, 1, CHANNELS)).astype(np.float32)
    _, decoded = there_and_back(encoding_of(text, target_of("embedding", CHANNELS), values), values, "embedding")
    cosine = (values * decoded).sum(-1) / np.linalg.norm(values, axis=-1) / np.linalg.norm(decoded, axis=-1)
    assert least < cosine.mean() < 1


@pytest.mark.parametrize("text", OF_LOGITS)
def test_rows_that_are_not_valid_are_nan_and_change_no_other(text):
    logits = clip_like_logits(1, 100.0)
    target = target_of("logits", CLASSES)
    encoding = encoding_of(text, target, logits)
    holed = logits.copy()
    holed[3], holed[5, 1, 7] = np.nan, np.nan
    whole, found = there_and_back(encoding, logits)[1], there_and_back(encoding, holed)[1]
    missing = np.zeros(logits.shape[:2], bool)
    missing[3] = missing[5, 1] = True
    assert np.isnan(found[3]).all()
    assert np.isnan(found[5, 1, 7])
    np.testing.assert_array_equal(found[~missing], whole[~missing])
    fills = {array.name: np.full((1, *array.shape), array.fill, array.dtype) for array in encoding.arrays(target)}
    assert np.isnan(encoding.decode(target, fills)).all(), "rows that are not there"


@pytest.mark.parametrize("text", OF_LOGITS)
def test_portions_of_rows_and_views_have_the_same_bytes(text):
    logits = clip_like_logits(1, 100.0)
    target, keys = target_of("logits", CLASSES), keys_of(64)
    encoding = encoding_of(text, target, logits)
    whole = encoding.encode(target, logits, keys=keys, first_view=0)
    part = encoding.encode(target, logits[10:13, 1:], keys=keys[10:13], first_view=1)
    for name, array in whole.items():
        np.testing.assert_array_equal(part[name], array[10:13, 1:])


@pytest.mark.parametrize(("name", "texts"), [("logits", OF_LOGITS), ("embedding", OF_EMBEDDINGS)])
def test_arrays_are_as_declared_and_the_json_brings_the_encoding_back(name, texts):
    for text in texts:
        values = clip_like_logits(1, 1.0, 24)
        target = target_of(name, 24)
        encoding = encoding_of(text, target, values)
        arrays, decoded = there_and_back(encoding, values, name)
        for array in encoding.arrays(target):
            assert arrays[array.name].dtype == np.dtype(array.dtype), text
            assert arrays[array.name].shape == (64, 2, *array.shape), text
        assert decoded.dtype == np.float32
        table = encoding.table
        again = encoding_from_json(encoding.to_json(), lambda parts: table)  # type: ignore[arg-type,return-value]  # noqa: B023
        assert again == encoding


def test_sampled_shares_are_the_probabilities_on_average():
    """Over many keys; and a view's draws are what the definition says, one by one."""
    logits = np.tile(clip_like_logits(1, 100.0, 11)[:1, :1], (4000, 1, 1))
    p = softmax(logits[0, 0])
    arrays, decoded = there_and_back(unfitted(one("sampled:5:9")), logits)
    counts = np.rint(np.where(decoded > -50, np.exp(decoded), 0) * 5)
    assert (counts.sum(-1) == 5).all()
    assert (np.abs(counts - 5 * p) < 1 + 1e-9).all(), "systematic: never off by a whole draw"
    error = np.sqrt(np.maximum(counts[:, 0].var(axis=0), 1e-3) / 4000) / 5
    assert (np.abs(counts.mean(axis=(0, 1)) / 5 - p) < 5 * error).all()
    for row in range(20):
        name = hashlib.blake2b(f"9/{row:032x}/0/draws".encode(), digest_size=8).digest()
        u = (int.from_bytes(name, "big") >> 11) / 2**53
        drawn = [int(np.searchsorted(np.cumsum(p), (i + u) / 5)) for i in range(5)]
        assert arrays["logits"][row, 0].cumsum().tolist() == drawn


def test_the_expected_gradient_of_draws_is_that_of_the_distribution():
    """Cross entropy at T = 1, by torch, against one that has the probabilities."""
    import torch

    logits = np.tile(clip_like_logits(1, 20.0, 30)[:1, :1], (3000, 1, 1))
    decoded = there_and_back(unfitted(one("sampled:8")), logits)[1][:, 0]
    student = torch.linspace(-1, 1, 30)

    def gradient(teacher: np.ndarray) -> np.ndarray:
        q = student.clone().requires_grad_()
        log_p = torch.log_softmax(torch.from_numpy(teacher), 1)
        loss = torch.nn.functional.kl_div(
            torch.log_softmax(q, 0).expand_as(log_p), log_p, reduction="batchmean", log_target=True
        )
        loss.backward()
        assert q.grad is not None
        return q.grad.numpy()

    exact, drawn = gradient(logits[:1, 0]), gradient(decoded)
    assert np.isfinite(drawn).all()
    np.testing.assert_allclose(drawn, exact, atol=0.004)
    assert np.abs(gradient(decoded[:1]) - exact).max() > 0.01, "one view's alone is off"


def test_adaptive_sets_are_the_smallest_that_hold_the_mass():
    logits = clip_like_logits(3, 100.0)
    arrays, decoded = there_and_back(unfitted(one("adaptive:0.9:63")), logits)
    p, q = softmax(logits), softmax(decoded)
    inside = arrays["logits"] > 0
    for row in range(64):
        order = np.argsort(-p[row, 0])
        count = int(np.searchsorted(np.cumsum(p[row, 0][order]), 0.9)) + 1
        assert set(np.flatnonzero(inside[row, 0])) == set(order[:count].tolist())
    tail_p, tail_q = (np.where(inside, 0, x).sum(-1) for x in (p, q))
    np.testing.assert_allclose(tail_q, tail_p, atol=0.1 / 255)
    np.testing.assert_allclose(decoded.max(-1), np.log(q.max(-1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "text"), [*(("logits", t) for t in OF_LOGITS), *(("embedding", t) for t in OF_EMBEDDINGS)]
)
def test_a_store_of_each_encoding_opens_in_zarr_and_xarray(tmp_path, name, text):
    import xarray

    values = clip_like_logits(1, 10.0, 24)[:7]
    bare = target_of(name, 24)
    encoding = encoding_of(text, bare, clip_like_logits(2, 10.0, 24))
    target = TargetSpec.of(
        name, bare.axes[2:], (24,), shard_size=3, num_rows=7, num_views=2, encoding=encoding, own=True
    )
    spec = StoreSpec(num_samples=7, shard_size=3, num_views=2, targets=(target,), encoding=ENCODINGS["fp16"])
    description = StoreDescription(spec=spec, fingerprint={"corpus_id": "c"}, views={}, teacher={}, shards="s")
    path = str(tmp_path / "store")
    root = open_root(path, mode="a")
    create_arrays(root, description)
    keys = keys_of(7)
    for shard in range(3):
        rows = spec.rows(shard)
        count = rows.stop - rows.start
        block = TargetBlock(
            keys=keys[rows], valid=np.ones(count, bool), view_params=no_views(count, 2), targets={name: values[rows]}
        )
        write_block(root, spec, shard, block)
    again = open_root(path)
    found = StoreDescription.read(again, path)
    assert found == description
    assert root.attrs["teachonce"]["schema_version"] == 3  # type: ignore[index,call-overload]
    expected = there_and_back(encoding, values, name)[1]
    for shard in range(3):
        for view in range(2):
            here = read_target(again, found.spec, shard, name, view)
            np.testing.assert_allclose(here, expected[spec.rows(shard), view], rtol=1e-5, atol=1e-6)
    assert xarray.open_zarr(path, consolidated=False).sizes["view"] == 2
    if encoding.table is not None:
        part = f"encoding_{name}_{next(iter(encoding.table.arrays))}"
        zarr.open_group(path, mode="a")[part][0] = 7  # type: ignore[index]
        with pytest.raises(DamagedError, match="was fitted to is not what the rows were stored with") as error:
            StoreDescription.read(open_root(path), path)
        assert error.value.code == "encoding-table-changed"


def test_every_encoding_is_tried_here():
    # Those of maps have tests of their own.
    assert {one(text).name for text in OF_LOGITS + OF_EMBEDDINGS} == set(KNOWN) - {"int8-channel"}


def test_a_table_is_equal_by_its_bytes():
    ones = np.ones((2, 3), np.float32)
    assert Table({"a": ones}) == Table({"a": ones.copy()})
    assert Table({"a": ones}) != Table({"b": ones})
    assert Table({"a": ones}) != Table({"a": ones.reshape(3, 2)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", {"logits": "int8", "embedding": "int8"}),
        ("logits=sampled:50", {"logits": "sampled:50", "embedding": "fp16"}),
        ("logits=adaptive,embedding=pq:8", {"logits": "adaptive", "embedding": "pq:8"}),
        (" logits=adaptive:0.9:31 ,embedding=fp32", {"logits": "adaptive:0.9", "embedding": "fp32"}),
        ("logits=sampled:50:0", {"logits": "sampled:50", "embedding": "fp16"}),
    ],
)
def test_spellings(text, expected):
    found = parse(text, ("logits", "embedding"))
    assert {name: spelled.text for name, spelled in found.items()} == expected
    assert all(one(spelled.text) == spelled for spelled in found.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "fp32, fp16, int8, int8-channel, pca:STEP, pq:PARTS, adaptive[:MASS[:LEVELS]], sampled:DRAWS[:SEED]"),
        ("sampled", "sampled:DRAWS[:SEED]"),
        ("pca:1:2", "pca:STEP"),
        ("pca:x", "pca:STEP"),
        ("adaptive:1.5", "from 0.001 to 0.999999 in adaptive[:MASS[:LEVELS]]"),
        ("sampled:2.5", "a whole number from 1 to 65536 in sampled:DRAWS[:SEED]"),
        ("pq:8", "fp32, fp16, int8, pca, adaptive, sampled for logits (pq is for embedding)"),
        ("int8-channel", "fp32, fp16, int8, pca, adaptive, sampled for logits (int8-channel is for features.LAYER)"),
        ("tokens=int8", "one of the targets logits, embedding"),
        ("logits=int8,logits=fp16", "one encoding of logits"),
        ("logits=int8,fp16", "TARGET=ENCODING, with commas between them"),
    ],
)
def test_spellings_that_are_none(text, expected):
    with pytest.raises(SpellingError) as error:
        parse(text, ("logits", "embedding"))
    assert error.value.expected == expected

"""Encodings of maps against plain arithmetic: int8 by channel, principal components by channel, and how many maps are looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import zarr
from teachonce.stages.encodings.budget import LADDER, Budget, Rows, choices, fit
from teachonce.stages.encodings.fitting import Fits
from teachonce.stages.encodings.request import MAPS_BYTES, EncodingRequest
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.encodings.registry import encoding_from_json
from teachonce.storage_schemas.encodings.spelling import MAPS, one
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, read_target, write_block
from teachonce.storage_schemas.view_params import no_views

NAME, SHAPE = "features.layer1", (12, 6, 6)
TARGET = TargetSpec(name=NAME, axes=("sample", "view", "channel", "y", "x"), shape=SHAPE)
TEXTS = ("int8-channel", "pca:0.3", "pca:0.1", "int8", "fp16")


def drawn(seed: int, rows: int = 8, views: int = 2) -> np.ndarray:
    """Maps of correlated channels, whose deviations are far apart."""
    rng = np.random.default_rng(seed)
    mixed = np.random.default_rng(0).normal(size=(5, 12)) * np.array([8, 4, 2, 1, 0.5])[:, None]
    maps = rng.normal(size=(rows, views, 5, 6, 6)).transpose(0, 1, 3, 4, 2) @ mixed + 0.3 * rng.normal(
        size=(rows, views, 6, 6, 12)
    )
    return np.ascontiguousarray(maps.transpose(0, 1, 4, 2, 3) + 3, np.float32)


def fitted(text: str):
    values = drawn(1)
    return Fits(TARGET, values.reshape(-1, *SHAPE)).encoding(one(text))


def back(encoding, arrays, views=2):
    decoded = [
        encoding.decode(TARGET, {name: array[:, view] for name, array in arrays.items()}) for view in range(views)
    ]
    return np.stack(decoded, axis=1)


def in_full(coefficients, encoding):
    """Maps (row, view, channel, y, x) by the formula of the formats page."""
    mean, basis = encoding.table.arrays["mean"], encoding.table.arrays["basis"].astype(np.float64)
    return np.einsum("rvkyx,kc->rvcyx", coefficients, basis) * encoding.step + mean[:, None, None]


def whole_steps(values, encoding):
    """Coefficients (row, view, component, y, x) in whole steps."""
    mean, basis = encoding.table.arrays["mean"], encoding.table.arrays["basis"].astype(np.float64)
    return np.rint(np.einsum("kc,rvcyx->rvkyx", basis, values - mean[:, None, None].astype(float)) / encoding.step)


def test_int8_by_channel_is_off_by_half_a_step_of_its_channel():
    encoding, values = fitted("int8-channel"), drawn(2)
    arrays = encoding.encode(TARGET, values, keys=[], first_view=0)
    steps = np.abs(values).max(axis=(3, 4)) / 127
    assert arrays[NAME].dtype == np.int8
    assert np.allclose(arrays[f"{NAME}_scale"], steps)
    assert (np.abs(back(encoding, arrays) - values) <= 0.5001 * steps[..., None, None]).all()


@pytest.mark.parametrize("step", [0.3, 0.1])
def test_components_are_of_channels_and_steps_of_the_values_deviation(step):
    encoding, fitted_to, values = fitted(f"pca:{step}"), drawn(1), drawn(2)
    places = np.moveaxis(fitted_to, 2, -1).reshape(-1, 12).astype(np.float64)
    deviation = np.sqrt(np.square(places - places.mean(0)).mean())
    assert encoding.step == pytest.approx(step * deviation, rel=1e-5)
    assert encoding.text == f"pca:{step}", "as it was asked for: in deviations"
    arrays = encoding.encode(TARGET, values, keys=[], first_view=0)
    mean, basis = encoding.table.arrays["mean"], encoding.table.arrays["basis"].astype(np.float64)
    assert np.allclose(mean, places.mean(0), atol=1e-4)
    assert arrays[NAME].shape == (8, 2, len(basis), 6, 6)
    plain = in_full(arrays[NAME].astype(np.float64) - 32896, encoding)
    decoded = back(encoding, arrays)
    assert np.allclose(decoded, plain, atol=1e-4)
    # Each coefficient is off by a twelfth of a squared step on average at most, so the values are too.
    assert np.square(decoded - values).mean() < 1.2 * encoding.step**2 / 12
    assert len(basis) <= 12


def test_small_coefficients_share_their_upper_byte_and_none_is_too_large():
    encoding, values = fitted("pca:0.3"), drawn(2)
    codes = encoding.encode(TARGET, values, keys=[], first_view=0)[NAME]
    coefficients = whole_steps(values, encoding)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes.astype(int) - 32896, coefficients)
    assert ((codes >> 8 == 128) == (np.abs(coefficients + 0.5) < 128)).all()
    far = values.copy()
    far[0, 0, :, 0, 0] *= 1e6
    far[1, 0, :, 0, 0] *= -1e6
    found = encoding.encode(TARGET, far, keys=[], first_view=0)[NAME]
    assert found.min() == 0
    assert found.max() == 0xFFFE, "the number beyond stands for rows that are not valid"
    assert np.isfinite(back(encoding, {NAME: found})).all()


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_stores_of_earlier_versions_are_read(dtype):
    """They have whole steps as they are, and the least number where a row is not valid, in rows of a chunk one after another."""
    encoding, values = replace(fitted("pca:0.3"), dtype=dtype), drawn(2)
    limits = np.iinfo(dtype)
    codes = np.clip(whole_steps(values, encoding), limits.min + 1, limits.max).astype(dtype)
    codes[2, 1] = limits.min
    expected = in_full(codes.astype(np.float64), encoding)
    expected[2, 1] = np.nan
    np.testing.assert_allclose(back(encoding, {NAME: codes}), expected, atol=1e-4)
    values[2, 1] = np.nan
    np.testing.assert_array_equal(encoding.encode(TARGET, values, keys=[], first_view=0)[NAME], codes)
    assert not encoding.arrays(TARGET)[0].transposed
    facts = {"name": "pca", "step": encoding.step, "dtype": dtype, "table": encoding.table.digest}
    assert encoding_from_json(facts, lambda _: encoding.table) == replace(encoding, unit=1.0)
    with pytest.raises(ValueError, match="pca"):
        encoding_from_json(facts | {"dtype": "uint8"}, lambda _: encoding.table)


def test_rarely_used_components_are_left_out():
    assert len(fitted("pca:0.3").table.arrays["basis"]) < len(fitted("pca:0.1").table.arrays["basis"])


@pytest.mark.parametrize("text", TEXTS)
def test_maps_that_are_not_valid_are_nan_and_change_no_other(text):
    encoding, values = fitted(text), drawn(2)
    whole = back(encoding, encoding.encode(TARGET, values, keys=[], first_view=0))
    broken = values.copy()
    broken[3, 1, 4, 2, 2] = np.nan
    found = back(encoding, encoding.encode(TARGET, broken, keys=[], first_view=0))
    assert np.isnan(found[3, 1]).any()
    kept = np.ones((8, 2), bool)
    kept[3, 1] = False
    assert np.array_equal(found[kept], whole[kept])


@pytest.mark.parametrize("text", TEXTS)
def test_a_store_of_maps_opens_and_holds_what_was_encoded(tmp_path, text):
    values, encoding = drawn(4, rows=7), fitted(text)
    target = TargetSpec.of(
        NAME, TARGET.axes[2:], SHAPE, shard_size=3, num_rows=7, num_views=2, encoding=encoding, own=True
    )
    spec = StoreSpec(num_samples=7, shard_size=3, num_views=2, targets=(target,), encoding=ENCODINGS["fp16"])
    description = StoreDescription(spec=spec, fingerprint={"corpus_id": "c"}, views={}, teacher={}, shards="s")
    root = open_root(str(tmp_path / "s"), mode="a")
    create_arrays(root, description)
    keys = [f"{row:032x}" for row in range(7)]
    for shard in range(3):
        rows = spec.rows(shard)
        count = rows.stop - rows.start
        block = TargetBlock(
            keys=keys[rows], valid=np.ones(count, bool), view_params=no_views(count, 2), targets={NAME: values[rows]}
        )
        write_block(root, spec, shard, block)
    again = open_root(str(tmp_path / "s"))
    assert StoreDescription.read(again, "s") == description
    held = zarr.open_array(str(tmp_path / "s" / NAME), mode="r")
    orders = [codec.order for codec in held.metadata.codecs if hasattr(codec, "order")]
    assert orders == ([(2, 1, 0, 3, 4)] if text.startswith("pca") else []), "axes of a chunk's bytes"
    np.testing.assert_array_equal(held[...], encoding.encode(TARGET, values, keys=keys, first_view=0)[NAME])
    expected = back(encoding, encoding.encode(TARGET, values, keys=keys, first_view=0))
    for shard in range(3):
        for view in range(2):
            here = read_target(again, spec, shard, NAME, view)
            np.testing.assert_allclose(here, expected[spec.rows(shard), view], rtol=1e-5, atol=1e-5)
    table = encoding.table
    assert encoding_from_json(encoding.to_json(), lambda _: table) == encoding


def test_components_take_a_fraction_of_the_bytes():
    rows = Rows(target=TARGET, values=drawn(5, rows=32), keys=[str(row) for row in range(32)])
    by_text = {text: fit(rows, one(text)).measured.bytes_per_view for text in ("fp16", "int8-channel", "pca:0.3")}
    assert by_text["pca:0.3"] < 0.5 * by_text["fp16"]
    assert by_text["int8-channel"] < 0.7 * by_text["fp16"]


def test_a_budget_of_bytes_is_shared_by_all_maps():
    """The least distance of those encodings, the same for both maps, whose bytes together keep it; each measured on its own here."""
    small = TargetSpec(name="features.layer2", axes=TARGET.axes, shape=(12, 3, 3))
    keys = [str(row) for row in range(32)]
    values = drawn(5, rows=32)
    rows = [
        Rows(target=TARGET, values=values, keys=keys),
        Rows(target=small, values=np.ascontiguousarray(values[..., ::2, ::2]), keys=keys),
    ]
    free = {NAME: None, small.name: None}
    most = 500.0
    found = choices(rows, free, Budget(max_bytes=most))
    assert list(found) == [NAME, small.name]
    costs = {}
    for text in LADDER[MAPS]:
        own = [fit(one_of, one(text)).measured for one_of in rows]
        costs[text] = (sum(m.bytes_per_view for m in own), np.mean([m.distance.mean for m in own]))
    within = {text: lost for text, (nbytes, lost) in costs.items() if nbytes <= most}
    best = min(within, key=lambda text: within[text])
    assert best.startswith("pca:")
    assert len(within) < len(costs)
    expected = [fit(one_of, one(best)).encoding for one_of in rows]
    assert [choice.encoding for choice in found.values()] == expected
    assert f"{NAME}, {small.name} in {best}: " in found[NAME].why
    assert not found[small.name].why
    with pytest.raises(InputError) as error:
        choices(rows, free, Budget(max_bytes=10))
    assert error.value.fields["where"] == f"{NAME}, {small.name}: --max-bytes"
    named = choices(rows, {NAME: one("int8"), small.name: None}, Budget(max_bytes=1e6))
    assert [choice.encoding.text for choice in named.values()] == ["int8", "fp32"]


def test_a_budget_in_nats_leaves_maps_as_they_are():
    names = (NAME, "logits")
    request = EncodingRequest.of(names, None, budget=Budget(max_kl=0.01), fit_views=64)
    assert request.spelled == {NAME: one("fp16"), "logits": None}
    request = EncodingRequest.of(names, None, budget=Budget(max_bytes=100), fit_views=64)
    assert request.spelled == {NAME: None, "logits": None}
    with pytest.raises(InputError, match="a budget, and no target"):
        EncodingRequest.of((NAME,), None, budget=Budget(max_kl=0.01), fit_views=64)


def test_few_large_maps_are_looked_at():
    request = EncodingRequest.of((NAME,), "pca:0.5", budget=Budget(), fit_views=4096)
    wide = TargetSpec(name=NAME, axes=TARGET.axes, shape=(256, 64, 64))
    vector = TargetSpec(name="embedding", axes=("sample", "view", "channel"), shape=(512,))
    assert request.rows([TARGET], 1) == 4096
    assert request.rows([wide], 1) == MAPS_BYTES // (4 * 256 * 64 * 64)
    assert request.rows([wide, wide], 16) == 8
    assert request.rows([vector], 3) == 1366

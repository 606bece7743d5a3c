"""`teachonce inspect STORE KEY…`: finds samples by key, row or path; shows the teacher's outputs for each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.samples import KEY_LENGTH
from ...storage_schemas.target_store import read_rows
from ...storage_schemas.view_params import BOX, COLOR_FACTORS
from ..measures.sample_block import softmax
from ..measures.stored import Stored
from ..views.colors import COLOR_ORDERS
from ..views.spec import ViewSpec

#: Shorter beginnings of keys are taken for paths.
MIN_PREFIX = 6

#: Candidates named in the error for an ambiguous name.
_CANDIDATES = 5


def inspect_sample(stored: Stored, name: str, *, top: int = 5) -> dict[str, Json]:
    """Everything that `inspect` reports of one sample, as JSON.

    Args:
        stored: an open store.
        name: a key, the beginning of one (6 characters or more), a row number, a path or the end of one.
        top: how many classes to name, by the mean of their probabilities over the views.

    Raises:
        InputError: no sample, or several, go by that name.
        IncompleteError: its shard is not cached yet.
        DamagedError: a chunk cannot be read.
    """
    row = find_row(stored, name)
    shard = stored.require_done(row)
    offset = row - stored.rows.rows(shard).start
    keys_N, valid_N = stored.keys_and_valid(shard)
    receipt = stored.receipts.receipt(shard)
    bad = next((b for b in receipt.invalid_rows if b.row == row), None) if receipt is not None else None
    entry = stored.entry(row)
    facts: dict[str, Json] = {
        "key": keys_N[offset].decode("ascii"),
        "path": entry.path if entry is not None else bad.path if bad is not None else None,
        "row": row,
        "shard": shard,
        "label": entry.label if entry is not None else None,
        "valid": bool(valid_N[offset]),
        "reason": bad.reason if bad is not None else None,
        "views": [],
        "classes": None,
        "no_classes": stored.no_logits or None,
        "no_path": stored.no_paths or None,
    }
    if facts["valid"]:
        _describe(stored, facts, shard, offset, top)
    return facts


def _describe(stored: Stored, facts: dict[str, Json], shard: int, offset: int, top: int) -> None:
    probabilities = []
    spec = ViewSpec.from_json(stored.description.views, stored.location)
    for view in range(stored.rows.num_views):
        _, _, params_N = read_rows(stored.root, stored.rows, shard, view)
        facts_of_view = {"view": view, **_view(params_N[offset], spec)}
        if not stored.no_logits:
            probability_1C, entropy_1 = softmax(stored.logits(shard, view)[offset : offset + 1])
            probabilities.append(probability_1C[0])
            best = int(probability_1C[0].argmax())
            facts_of_view |= {
                "class": stored.class_name(best),
                "probability": float(probability_1C[0, best]),
                "entropy": float(entropy_1[0]),
            }
        facts["views"].append(facts_of_view)
    if probabilities:
        by_view_VC = np.stack(probabilities)
        mean_C = by_view_VC.mean(axis=0)
        facts["classes"] = [
            {
                "class": stored.class_name(int(i)),
                "mean": float(mean_C[i]),
                "by_view": by_view_VC[:, i].tolist(),
            }
            for i in np.argsort(-mean_C, kind="stable")[:top]
        ]


def _view(params: np.void, spec: ViewSpec) -> dict[str, Json]:
    """A view's parameters, readable; of the colours what is done to them, in the order in which it is done."""
    facts: dict[str, Json] = {name: int(params[name]) for name in BOX}
    facts["flip"] = bool(facts["flip"])
    if spec.has_colors:
        order = COLOR_ORDERS[int(params["color_order"])] if params["color_order"] >= 0 else ()
        done = [COLOR_FACTORS[i] for i in order if spec.jitter[i] > 0]
        facts["colors"] = [{"operation": name, "factor": float(params[name])} for name in done]
        facts["grayscale"] = bool(params["grayscale"])
    return facts


def find_row(stored: Stored, name: str) -> int:
    """The row of the sample that goes by `name`.

    A row number is tried first, then a key or its beginning, then a path or its end.

    Raises:
        InputError: none, or several (some are listed).
    """
    spec = stored.rows
    if name.isdecimal() and len(name) < KEY_LENGTH and spec.layout.has_row(int(name)):
        return int(name)
    found: list[tuple[int, str]] = []
    if MIN_PREFIX <= len(name) <= KEY_LENGTH and set(name.lower()) <= set("0123456789abcdef"):
        found = list(_rows_by_key(stored, name.lower()))
    if not found:
        found = list(_rows_by_path(stored, name))
    if len(found) == 1:
        return found[0][0]
    if found:
        listed = ", ".join(text for _, text in found[:_CANDIDATES]) + (", …" if len(found) > _CANDIDATES else "")
        raise InputError(
            "several samples go by this name",
            code="sample-ambiguous",
            where=name,
            found=f"{len(found)}: {listed}",
            hint="give more of it",
        )
    by_path = "" if stored.shards is not None else f"; {stored.no_paths}"
    raise InputError(
        "no such sample",
        code="sample-unknown",
        where=name,
        hint=f"give a key or its first {MIN_PREFIX} characters, a row from 0 to {spec.num_rows - 1}, "
        f"or an image's path or the end of one{by_path}",
    )


def _rows_by_key(stored: Stored, prefix: str) -> Iterator[tuple[int, str]]:
    """(row, key) of the cached samples whose keys begin so."""
    wanted = prefix.encode("ascii")
    for shard in stored.shards_done():
        keys_N, _ = stored.keys_and_valid(shard)
        start = stored.rows.rows(shard).start
        for offset in np.flatnonzero(np.char.startswith(keys_N, wanted)):
            yield start + int(offset), keys_N[offset].decode("ascii")


def _rows_by_path(stored: Stored, name: str) -> Iterator[tuple[int, str]]:
    """(row, path) of the samples with this path, or whose path ends in it, or that a longer path names."""
    if stored.shards is None:
        return
    wanted = name.removeprefix("./")
    matches = []
    for row, entry in enumerate(stored.shards.manifest()):
        if entry.path == wanted:
            yield row, entry.path  # a whole path is never ambiguous
            return
        if entry.path.endswith(f"/{wanted}") or wanted.endswith(f"/{entry.path}"):
            matches.append((row, entry.path))
    yield from matches

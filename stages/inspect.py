"""`teachonce inspect STORE`: measures a target store, shard by shard: what it holds, and summaries of the targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..pipeline.storage import Location
from ..storage_schemas.class_vectors import read_origin
from ..storage_schemas.errors import TeachonceError
from ..storage_schemas.fingerprint import Json, digest_json
from ..storage_schemas.plain_text import typed
from ..storage_schemas.store_description import StoreDescription
from ..storage_schemas.target_store import all_arrays
from .measures.soft_labels import SoftLabels
from .measures.store_pass import Watcher, measure_store
from .measures.stored import Stored
from .pages.fitting import fitted
from .pages.page import check_installed, page_location
from .pages.run_page import Run, run_page
from .pages.store_page import store_page
from .pages.survey import Survey
from .pairs.beside import teachers_beside
from .samples.pixel_sample import PixelSample
from .samples.registry import kind_named
from .views.spec import ViewSpec
from .views.versions import versions_text

#: Bars of the histograms.
_BARS = 40


def write_page(
    stored: Stored, file: Location | str, *, top: int = 5, watchers: Sequence[Watcher] = ()
) -> dict[str, Json]:
    """Write a page about a store. Returns what `inspect_store` does.

    Args:
        stored: an open store, finished or not.
        file: the page; what is there is replaced.
        top, watchers: as in `inspect_store`.

    Raises:
        MissingDependency: `teachonce[page]` is not installed.
        InputError: `file` is a folder.
    """
    check_installed()
    location = page_location(file)
    survey = None if stored.spec is None else Survey(stored)
    facts, soft = _inspect(stored, top, [*watchers, *([] if survey is None else survey.watchers)])
    from sklearn import manifold  # noqa: F401 (only the threads of what is loaded can be limited)
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    # t-SNE and eigenvectors go in short steps: threads that wait for each other cost more than they bring.
    with threadpool_limits(1):
        page = store_page(stored, facts, soft, survey)
    location.write_bytes(fitted(page))
    return facts


def write_run_page(runs: Sequence[str], file: Location | str, *, images: str | None = None) -> None:
    """Write a page about a training, or about two compared.

    Args:
        runs: one or two student bundles or outputs of trainings.
        file: the page; what is there is replaced.
        images: what both students are run on, as `evaluate` takes it; None compares their trainings alone.

    Raises:
        MissingDependency: `teachonce[page]` is not installed.
        InputError: no training there, or `file` is a folder.
        MismatchError: two students of other classes.
    """
    check_installed()
    location = page_location(file)
    opened = [Run.open(run) for run in runs]
    if images is None:
        page = run_page(opened)
    else:
        from .pages.students import compare_students  # brings torch along

        first, second = opened
        names = (first.name, second.name) if first.name != second.name else (str(first.location), str(second.location))
        sections, data, tiles = compare_students((runs[0], runs[1]), images, names)
        page = run_page(opened, sections, data, tiles)
    location.write_bytes(fitted(page))


def inspect_store(stored: Stored, *, top: int = 5, watchers: Sequence[Watcher] = ()) -> dict[str, Json]:
    """Everything that `inspect` reports of a whole store, as JSON.

    Args:
        stored: an open store, finished or not; only shards that are done are measured.
        top: how many classes, samples and examples to name.
        watchers: what else looks at every shard that is done, on the same reading of it.

    Raises:
        DamagedError: a chunk cannot be read, or its checksum does not match.
    """
    return _inspect(stored, top, watchers)[0]


def _inspect(stored: Stored, top: int, watchers: Sequence[Watcher]) -> tuple[dict[str, Json], SoftLabels | None]:
    """(what `inspect_store` returns, the soft labels it is of)."""
    facts: dict[str, Json] = {
        "store": str(stored.location),
        "schema_version": stored.root.attrs.asdict()["teachonce"]["schema_version"],  # type: ignore[call-overload,index]
        "arrays": [],
        "class_vectors": _class_vectors(stored),
        "problems": [],
        "notes": [f"another teacher's store: {place}" for place in teachers_beside(stored.location).values()],
    }
    if stored.spec is None:
        facts["arrays"] = _arrays(stored, 0.0)
        facts["notes"].append(
            f"no targets are cached yet; run `teachonce cache SHARDS --teacher … --out {typed(stored.location)}`"
        )
        return facts, None
    description = stored.description
    coverage = _coverage(stored, top)
    facts |= {
        "arrays": _arrays(stored, coverage["rows_done"] / stored.spec.num_rows),
        "fingerprint": dict(description.fingerprint),
        "fingerprint_digest": digest_json(dict(description.fingerprint)),
        "teacher": dict(description.teacher),
        "views": dict(description.views),
        "pixels": _pixels(stored),
        "versions": {**(description.pixels or {}).get("versions", {}), **(description.versions or {})},
        "encoding": _encoding(description),
        "recoded": None if description.recoded is None else dict(description.recoded),
        "corpus_name": stored.shards.corpus.name if stored.shards else None,
        "coverage": coverage,
    }
    if stored.no_paths:
        facts["notes"].append(stored.no_paths)
    measured = measure_store(stored, top, watchers)
    facts["problems"] += measured.problems
    facts["values"] = {name: value.to_json() for name, value in measured.values.items()}
    facts["logits_derived"] = measured.logits_derived
    facts["soft_labels"] = None if measured.soft is None else _soft_labels(stored, measured.soft, top)
    if stored.no_logits:
        facts["notes"].append(f"no soft labels to show: {stored.no_logits}")
    return facts, measured.soft


def _encoding(description: StoreDescription) -> Json:
    """The encoding of the whole store, or of each target, with what it was measured to cost."""
    spec = description.spec
    if all(target.encoding is None for target in spec.targets):
        return {"name": spec.encoding.name, "kl_budget": spec.encoding.kl_budget}
    measured = description.measured or {}
    return {"targets": {t.name: {"name": spec.encoding_of(t).text, **measured.get(t.name, {})} for t in spec.targets}}


def _arrays(stored: Stored, share_done: float) -> list[Json]:
    """Schema and size of every array, in name order. Ratios are over the rows that are there."""
    arrays = []
    for name, array in sorted(all_arrays(stored.root, stored.location)):
        axes = array.metadata.dimension_names or ()  # type: ignore[union-attr]
        by_row = axes[:1] == ("sample",)
        raw = array.nbytes * (share_done if by_row else 1.0)
        stored_bytes = array.nbytes_stored()
        arrays.append(
            {
                "name": name,
                "axes": list(axes),
                "shape": list(array.shape),
                "dtype": str(array.metadata.to_dict()["data_type"]),
                "chunks": list(array.chunks),
                "codecs": [codec.to_dict() for codec in array.metadata.codecs],  # type: ignore[union-attr]
                "bytes_on_disk": stored_bytes,
                "bytes_raw": round(raw),
                "ratio": raw / stored_bytes if stored_bytes else None,
            }
        )
    return arrays


def _class_vectors(stored: Stored) -> Json:
    if stored.vectors is None:
        return None
    return {
        "classes": stored.vectors.num_classes,
        "channels": stored.vectors.embed_dim,
        "names": list(stored.vectors.names),
        "logit_scale": stored.vectors.logit_scale,
        "bias": stored.vectors.bias_C is not None,
        "normalized": stored.vectors.normalized,
        "digest": stored.vectors.digest,
        "origin": read_origin(stored.root, stored.location),
    }


def _pixels(stored: Stored) -> Json:
    """The recorded sample of rendered views, and whether this machine renders the same where the shards are at hand."""
    sample = PixelSample.of_store(stored.description, stored.location)
    if sample is None:
        return None
    facts: dict[str, Json] = {
        "rows": list(sample.rows),
        "views": sample.num_views,
        "size": sample.size,
        "digest": sample.digest,
        "same_here": None,
        "not_compared": stored.no_paths or None,
        "differences": [],
        "versions_that_differ": None,
    }
    if stored.shards is not None:
        try:
            found = sample.differences(stored.shards, ViewSpec.from_json(stored.description.views, stored.location))
        except TeachonceError as error:  # a damaged tar is no fault of the store
            facts["not_compared"] = str(error)
            return facts
        facts["same_here"] = not found
        facts["differences"] = [difference.__dict__ for difference in found]
        here = kind_named(stored.description.sample_kind, where=stored.location).versions()
        facts["versions_that_differ"] = versions_text(sample.versions, here) if found else None
    return facts


def _coverage(stored: Stored, top: int) -> dict[str, Any]:
    """Facts from the receipts: shards and rows that are done, and why samples could not be used."""
    spec = stored.rows
    shards_done = rows_done = invalid = 0
    kinds: Counter[str] = Counter()
    examples: list[Json] = []
    for receipt in stored.receipts.receipts(spec.num_shards):
        shards_done += 1
        rows_done += receipt.rows
        invalid += len(receipt.invalid_rows)
        for bad in receipt.invalid_rows:
            kinds[bad.reason.split(":")[0]] += 1
            if len(examples) < top:
                examples.append({"row": bad.row, "path": bad.path, "reason": bad.reason})
    return {
        "shards": spec.num_shards,
        "shards_done": shards_done,
        "rows": spec.num_samples,
        "rows_done": rows_done,
        "valid": rows_done - invalid,
        "invalid": invalid,
        "reasons": dict(kinds.most_common()),
        "examples": examples,
    }


def _soft_labels(stored: Stored, soft: SoftLabels, top: int) -> Json:
    def samples(found: list[tuple[float, int, int]]) -> list[Json]:
        return [
            {"row": row, **_name(stored, row), "probability": p, "class": stored.class_name(index)}
            for p, row, index in found
        ]

    order = np.lexsort((np.arange(len(soft.top1_C)), -soft.top1_C))
    return {
        "samples": soft.samples,
        "classes": len(soft.top1_C),
        "confidence": soft.confidence.to_json(),
        "histograms": {
            name: {"edges": edges, "counts": counts}
            for name, spread in (("confidence", soft.confidence), ("entropy", soft.entropy))
            for edges, counts in (spread.histogram(_BARS),)
        },
        "entropy": soft.entropy.to_json(),
        "entropy_of_uniform": float(np.log(max(len(soft.top1_C), 1))),
        "views_agree": soft.samples_agreed / soft.samples if soft.samples else None,
        "classes_seen": int((soft.top1_C > 0).sum()),
        "top_classes": [
            {"class": stored.class_name(int(i)), "samples": int(soft.top1_C[i])} for i in order[:top] if soft.top1_C[i]
        ],
        "most_confident": samples(soft.most),
        "least_confident": samples(soft.least),
    }


def _name(stored: Stored, row: int) -> dict[str, Json]:
    """Key, and path where the shards are at hand."""
    entry = stored.entry(row)
    if entry is not None:
        return {"key": entry.key, "path": entry.path}
    keys_N, _ = stored.keys_and_valid(row // stored.rows.shard_size)
    return {"key": keys_N[row % stored.rows.shard_size].decode("ascii"), "path": None}

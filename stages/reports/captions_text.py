"""Owns what `inspect` shows of captions: how many images have how many, of what teacher; every chunk is read and checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import numpy as np

from ...pipeline.storage import Location
from ...pipeline.tables import section, table
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from ..pairs.caption_store import OpenCaptions

#: How far from 1 a stored vector's length may be: fp16 rounds each channel by 1/2048 of it at most.
_LENGTH = 1e-3


def captions_facts(location: Location) -> dict[str, Json]:
    """What `teachonce inspect CAPTIONS` reports, as JSON.

    Raises:
        InputError, IncompleteError: no captions, or unfinished ones.
        DamagedError: a chunk is not the one that was written.
    """
    found = OpenCaptions.of(location)
    spec, root = found.spec, found.open()
    by_count: Counter[int] = Counter()
    odd = 0
    for shard in range(-(-spec.num_rows // spec.shard_size)):
        embedding_NKD, count_N = found.read(root, shard)
        by_count.update(count_N[count_N > 0].tolist())
        taken_TD = embedding_NKD[np.arange(spec.captions) < count_N[:, None]]
        odd += int((~(np.abs(np.linalg.norm(taken_TD, axis=1) - 1) < _LENGTH)).sum())
    images: dict[str, Json] = {"0": spec.counts.without, **{str(n): by_count[n] for n in sorted(by_count)}}
    return {
        "kind": "captions",
        "fingerprint": found.fingerprint,
        "corpus_id": spec.corpus_id,
        "teacher": spec.teacher,
        "tokenizer": spec.tokenizer,
        "logit_scale": spec.logit_scale,
        "encoding": spec.encoding,
        "counts": asdict(spec.counts),
        "images_by_captions": images,
        "problems": [f"{counted(odd, 'caption')} whose embedding is not of length 1"] if odd else [],
    }


def captions_text(facts: dict[str, Json], where: object) -> str:
    """The same for people."""
    teacher, counts = facts["teacher"], facts["counts"]
    lines = [
        ["teacher", f"{teacher['model']} {teacher['weights_digest']}, logit scale {facts['logit_scale']:g}"],
        ["embeddings", f"{teacher['embed_dim']} channels, {facts['encoding']}"],
        ["captions", str(counts["captions"])],
        *(
            [name, str(counts[field])]
            for name, field in (
                ("left out: more than an image may have", "beyond"),
                ("left out: of images not in the corpus", "unknown"),
                ("left out: without text", "blank"),
            )
            if counts[field]
        ),
        *([f"images with {number}", str(images)] for number, images in facts["images_by_captions"].items()),
        ["fingerprint", facts["fingerprint"]],
        *(["problem", problem] for problem in facts["problems"]),
    ]
    return section(f"Captions in {where}", table(lines))

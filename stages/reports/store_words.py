"""Owns a store in a sentence or two, for people who find one."""

from __future__ import annotations

from typing import Any

from ...storage_schemas.plain_text import counted, printable


def store_words(facts: dict[str, Any]) -> str:
    """What the store is, from the facts of `inspect_store`."""
    vectors = facts["class_vectors"]
    if "coverage" not in facts:
        return (
            f"Class vectors of {counted(vectors['classes'], 'class')}; no image has been looked at yet."
            if vectors
            else "Empty."
        )
    coverage, views, teacher = facts["coverage"], facts["views"], facts["teacher"]
    corpus = f" of the corpus '{printable(facts['corpus_name'])}'" if facts["corpus_name"] else ""
    how = f"{views['count']} random crops" if views["kind"] == "random_resized_crop" else "one centre view"
    encoding, names = facts["encoding"], facts["fingerprint"]["targets"]
    if "name" in encoding:
        targets = f"{' and '.join(_TARGETS.get(name, name) for name in names)}, in {encoding['name']}"
    else:
        targets = " and ".join(f"{_TARGETS.get(name, name)} in {encoding['targets'][name]['name']}" for name in names)
    words = (
        f"What the teacher {printable(str(teacher['model']))} says of {counted(coverage['valid'], 'image')}{corpus}, seen in {how} each: "
        f"{targets}"
    )
    words += f", for {counted(vectors['classes'], 'class')}." if vectors else "."
    if coverage["shards_done"] < coverage["shards"]:
        words += f" It is not finished: {coverage['shards_done']} of {counted(coverage['shards'], 'shard')} are done."
    return words


_TARGETS = {"logits": "logits", "embedding": "embeddings"}

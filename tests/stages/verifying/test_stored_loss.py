"""What a recoded store's values went through before decides what they can be held to."""

from __future__ import annotations

import pytest
from teachonce.stages.verifying.stored_loss import LostBefore, as_distances, is_comparable, is_fine
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.lost import lost_before
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec


def recoded(lost: object) -> StoreDescription:
    """A store of logits in fp32 that was made of another one."""
    target = TargetSpec(name="logits", axes=("sample", "view", "class"), shape=(3,))
    spec = StoreSpec(num_samples=1, shard_size=1, num_views=1, targets=(target,), encoding=ENCODINGS["fp32"])
    return StoreDescription(
        spec=spec, fingerprint={}, views={}, teacher={}, shards="", recoded={"from": "s", "lost": {"logits": lost}}
    )


@pytest.mark.parametrize(
    ("lost", "fine", "comparable"),
    [
        ({}, True, True),
        ({"cosine_distance": {"mean": 1e-7, "max": 2e-7}, "kl": {"mean": 0.0, "max": 0.0}}, True, True),
        ({"cosine_distance": {"mean": 1e-3, "max": 2e-2}, "kl": {"mean": 0.01, "max": 0.1}}, False, True),
        ({"drawn": True}, False, False),  # few classes were drawn, so images that differ may well have the same
        (None, False, True),
    ],
)
def test_what_was_lost_before(lost, fine, comparable) -> None:
    description = recoded(lost)
    assert lost_before([description], "logits") == lost
    assert is_fine(lost, description.spec, "logits") == fine
    assert is_comparable(lost) == comparable
    if lost and "drawn" not in lost:
        assert as_distances(lost, description.spec, "logits") == LostBefore(
            cosine=lost["cosine_distance"]["mean"],
            cosine_max=lost["cosine_distance"]["max"],
            kl=lost["kl"]["mean"],
            kl_max=lost["kl"]["max"],
        )

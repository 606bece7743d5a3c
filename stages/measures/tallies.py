"""Owns counts over all samples of a store: by shard, by class, and by how many views agree."""

from __future__ import annotations

import numpy as np

from .sample_block import SampleBlock
from .store_pass import Watcher


class Tallies(Watcher):
    """Counts of usable samples.

    Args:
        num_shards, num_views, num_classes: of the store; there is a number for each of them.

    Attributes:
        samples_S, confidence_S: of each shard: samples, and the sum of their confidence.
        confidence_C: of each class: the sum of the confidence of the samples whose first class it is.
        agreeing_V: samples by the number of views whose first class is the sample's, 0 to K.
    """

    def __init__(self, num_shards: int, num_views: int, num_classes: int) -> None:
        self.samples_S, self.confidence_S = np.zeros(num_shards, np.int64), np.zeros(num_shards)
        self.confidence_C = np.zeros(num_classes)
        self.agreeing_V = np.zeros(num_views + 1, np.int64)

    def add(self, block: SampleBlock) -> None:
        self.samples_S[block.shard] = len(block)
        self.confidence_S[block.shard] = block.confidence_N.sum(dtype=np.float64)
        if len(block):
            self.confidence_C += np.bincount(block.first_N, block.confidence_N, len(self.confidence_C))
            agreeing_N = (block.top_VN == block.first_N).sum(axis=0)
            self.agreeing_V += np.bincount(agreeing_N, minlength=len(self.agreeing_V))

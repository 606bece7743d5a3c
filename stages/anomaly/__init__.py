"""Anomalies: where images differ from those that a decoder has learned; one unit a shard, then figures, scores and pictures."""

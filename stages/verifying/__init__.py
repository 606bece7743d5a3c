"""Verifying: whether shards and a store are whole, belong together, and hold what the teacher gives; findings by their causes."""

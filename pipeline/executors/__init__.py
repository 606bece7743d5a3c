"""Executors: siblings that run units, here one after another or on a Ray cluster."""

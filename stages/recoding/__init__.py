"""Recoding: what is taken of a finished store, and what it is written as: another store, or files for other programs."""

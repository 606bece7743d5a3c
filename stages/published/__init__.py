"""Checkpoints that other programs published: which key is what, and what becomes of it here."""

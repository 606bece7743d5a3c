"""Encodings of a store's targets: fitted to the teacher's outputs, measured against them in fp32, and chosen by a budget."""

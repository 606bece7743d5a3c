"""Samples: what turns a file's bytes and a view into an array, one file a kind, and samples decoded ahead."""

"""The library: a target store as an object in somebody's own program. Needs no torch."""

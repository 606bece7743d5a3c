"""Owns the help texts of options that take class lists and base classes."""

from __future__ import annotations

#: What `inputs.classes.read_classes` takes.
CLASS_LIST = "a file (one name a line, or a JSON list), `imagenet`, `coop:NAME=DATA` for a data set's, or a folder of shards for its labels"

#: What `inputs.class_match.base_classes` takes, in short and in full.
BASE_CLASSES = "FILE|NAMES|@half"
BASE_CLASS_LIST = (
    "a file with one name a line, names with commas between them, or @half for the first half of the class ids"
)

"""Owns what a walk leaves out, by kind: how many of each, and the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...storage_schemas.fingerprint import Json
from .tally import Tally

#: Files without an image's extension.
NO_IMAGE_NAME = "no image name"

#: Entries as in `names.is_hidden_name`, with all that is below them.
HIDDEN = "hidden"

#: A link to a folder that holds it would give its files for ever.
LINK_ABOVE = "a link to a folder above it"

#: Links to folders that hold links to folders may give more files than there are bytes.
LINKED_TOO_OFTEN = "a folder that too many links lead to"

#: As in `names.MOST_PATH_BYTES`.
TOO_LONG = "a path of more than 4096 bytes"

#: Two entries would have one path.
SAME_PATH = "another entry has its path"


class LeftOut(Tally):
    """Entries that are neither images nor unusable ones."""

    def to_json(self) -> list[dict[str, Json]]:
        return [{"kind": kind, "entries": count, "first": first} for kind, (count, first) in sorted(self.kinds.items())]

    @property
    def skipped(self) -> int:
        """Files without an image's extension."""
        return self.kinds.get(NO_IMAGE_NAME, (0, ""))[0]


def left_out_text(left_out: Sequence[Mapping[str, Json]], *, skipped: int = 0) -> str:
    """One line of what `LeftOut.to_json` gave; empty where nothing was left out.

    Args:
        skipped: all that early versions kept: how many files had no image name.
    """
    kinds = [f"{k['entries']} × {k['kind']} (first: {k['first']})" for k in left_out]
    if not kinds and skipped:
        kinds = [f"{skipped} × {NO_IMAGE_NAME}"]
    return f"left out: {', '.join(kinds)}" if kinds else ""

"""Owns the table of failed images as people see it: grouped by reason."""

from __future__ import annotations

from collections.abc import Sequence

from ...pipeline.tables import section, table
from ...storage_schemas.plain_text import counted, printable
from ..measures.failed import FailedImage, by_kind


def failed_text(failed: Sequence[FailedImage]) -> str:
    """All failed images, those with one kind of reason together: row, path, what more is known, and where it was found out."""
    if not failed:
        return "no failed images"
    parts = [f"{counted(len({one.row for one in failed}), 'failed image')}"]
    for kind, images in by_kind(failed):
        rows = [
            [
                f"row {one.row}",
                one.path,
                one.stage if one.store is None else f"{one.stage} ({one.store})",
                one.reason.removeprefix(kind).removeprefix(": "),
            ]
            for one in images
        ]
        parts.append(section(f"{len(images)} × {printable(kind)}", table(rows)))
    return "\n\n".join(parts)

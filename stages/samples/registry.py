"""Owns the kinds of samples that there are, by the names that `corpus.json` and stores have for them."""

from __future__ import annotations

from ...storage_schemas.errors import MismatchError
from ...storage_schemas.params_form import DERIVED, STORED
from ...storage_schemas.samples import IMAGE
from .images import IMAGES
from .kind import SampleKind

#: Every kind, by its name.
KINDS: dict[str, SampleKind] = {kind.name: kind for kind in (IMAGES,)}


def kind_named(name: str, where: object) -> SampleKind:
    """The kind of what `where` holds.

    Raises:
        MismatchError: another version's, or an add-on's that is not installed here.
    """
    if name not in KINDS:
        raise MismatchError(
            "samples of a kind that is not known here",
            code="sample-kind-unknown",
            where=where,
            expected=", ".join(sorted(KINDS)),
            found=name,
            hint="install the package that has it, as where this was made",
        )
    return KINDS[name]


def check_derivable(view_params: str | None, kind: str, where: object) -> None:
    """Refuse to derive parameters of views of anything but images: how other kinds draw theirs is their own.

    Args:
        view_params: one of `VIEW_PARAMS`, or None.
        kind: of the samples.
        where: what has them.

    Raises:
        MismatchError: they would be derived of another kind.
    """
    if view_params == DERIVED and kind != IMAGE:
        raise MismatchError(
            "only the views of images can be derived",
            code="views-not-derivable",
            where=where,
            expected=f"{IMAGE} (--view-params {DERIVED})",
            found=kind,
            hint=f"use --view-params {STORED}",
        )


def check_kind(found: str, wanted: str, *, where: object, expected_by: str) -> SampleKind:
    """The kind of what `where` holds, which must be the expected one.

    Args:
        expected_by: what needs the kind, for the error: "the teacher".

    Raises:
        MismatchError: it is another one, or not known here.
    """
    if found != wanted:
        raise MismatchError(
            "samples of another kind",
            code="sample-kind-other",
            where=where,
            expected=f"{wanted} ({expected_by})",
            found=found,
            hint="give samples of that kind",
        )
    return kind_named(found, where)

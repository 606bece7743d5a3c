"""Owns which views of a store are taken, as a user names them."""

from __future__ import annotations

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import counted


def places_of(text: str | None, num_views: int, store: Location) -> tuple[int, ...]:
    """Places of the chosen views among those of a store, in their new order.

    Args:
        text: `2` for the first two, `0,2` for these, `2,` for one alone; None for all.
        num_views: that the store has.
        store: for errors.

    Raises:
        InputError: not numbers of views, one named twice, or the store does not have them.
    """
    if text is None:
        return tuple(range(num_views))
    parts = [part.strip() for part in text.split(",")]
    is_list = len(parts) > 1
    if is_list and parts[-1] == "":
        parts.pop()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(
            "not a choice of views",
            code="views-choice-malformed",
            where="--views",
            expected="a number of views, or numbers of views with commas",
            found=text,
            hint="2 is for the first two, 0,2 for these two, `2,` for one alone",
        )
    numbers = tuple(map(int, parts))
    if len(set(numbers)) < len(numbers):
        raise InputError(
            "a view is named twice", code="views-choice-malformed", where="--views", found=text, hint="name each once"
        )
    fits = max(numbers) < num_views if is_list else 1 <= numbers[0] <= num_views
    if not fits:
        raise InputError(
            "the store does not have these views",
            code="views-not-in-store",
            where=store,
            expected=f"numbers from 0 to {num_views - 1}" if is_list else f"1 to {counted(num_views, 'view')}",
            found=f"--views {text}",
            hint="see `teachonce inspect` for the views that it has",
        )
    return numbers if is_list else tuple(range(numbers[0]))

"""Owns the settings of `teachonce verify`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import seed_setting, setting, with_default
from ...storage_schemas.errors import InputError
from ..models.settings import ComputeSettings
from .store_teacher import StoreTeacherSettings


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """How much is looked at."""

    quick: bool = setting(
        False, help="Look at receipts, names, sizes and counts alone: seconds, whatever the size of the store."
    )
    full: bool = setting(
        False,
        help="Read every byte once, and compare every digest, key, view and value. The default without --teacher.",
    )

    repair: bool = setting(
        False,
        help="Cache those shards again whose rows are wrong and whose tars are right, with the store's own teacher; their old receipts are kept "
        "beside the new ones. Then look at them once more.",
    )

    generation: str | None = setting(
        None,
        default_text="the current one",
        help="Look at this generation of a store that grew, such as 1 for what was there at first.",
    )

    def is_full(self, *, with_teacher: bool) -> bool:
        """Whether every byte is read: unless something less is asked for.

        Raises:
            InputError: both levels are chosen.
        """
        if self.quick and self.full:
            raise InputError(
                "two levels that exclude each other",
                code="options-exclude-each-other",
                where="--quick, --full",
                hint="leave one out",
            )
        return self.full or not (self.quick or with_teacher)


@dataclass(frozen=True, kw_only=True)
class VerifyTeacherSettings(StoreTeacherSettings):
    """Whether the teacher runs again.

    Attributes:
        rows: that it runs on; None for none.
    """

    rows: int | None = setting(
        None,
        least=1,
        option="",
        unit="N",
        help="Also run the teacher again on N rows, evenly from all shards, and compare with what is stored; with --quick unless --full is given.",
    )
    seed: int = seed_setting(0, help="Which rows; the same seed looks at the same ones.")


@dataclass(frozen=True, kw_only=True)
class VerifyComputeSettings(ComputeSettings):
    """How the teacher computes when it runs again."""

    precision: str = with_default(
        ComputeSettings,
        "precision",
        "auto",
        help="auto: as the store records; else as in `cache`. Only with --teacher.",
    )

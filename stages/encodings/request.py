"""Owns what a user asks of the encodings of a store: spelled, or left to a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...storage_schemas.encodings import ENCODINGS, Target
from ...storage_schemas.encodings.floats import FloatEncoding
from ...storage_schemas.encodings.spelling import Spelled, SpellingError, parse
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from .budget import LADDER, MEASURED_VIEWS, Budget

#: Of a store for which nothing else was asked.
DEFAULT = "fp16"

#: Bytes of maps in fp32 that are looked at, and rows at least.
MAPS_BYTES, _LEAST_ROWS = 1 << 28, 8

#: Stands for the encoding of a target that a budget chose, where a store keeps what was asked.
BY_BUDGET = "by budget"


@dataclass(frozen=True, kw_only=True)
class EncodingRequest:
    """The encoding of each target as it was spelled; None leaves it to the budget.

    Attributes:
        fit_views: views that are looked at where something is fitted or chosen.
    """

    spelled: Mapping[str, Spelled | None]
    budget: Budget
    fit_views: int

    @staticmethod
    def of(
        targets: Sequence[str],
        encoding: str | None,
        *,
        budget: Budget,
        fit_views: int,
        option: str = "--encoding",
        unnamed: Mapping[str, Spelled] | None = None,
    ) -> EncodingRequest:
        """
        Args:
            targets: of the store.
            encoding: as `--encoding` takes it; None for the default, or the budget's choice.
            unnamed: of each target for which none is asked; None for the default.

        Raises:
            InputError: not an encoding, or none for such a target; a budget for which nothing is left to choose.
        """
        try:
            named = {} if encoding is None else parse(encoding, tuple(targets))
        except SpellingError as error:
            raise InputError(
                "unknown encoding",
                code="encoding-unknown",
                where=option,
                expected=error.expected,
                found=error.found,
                hint="docs/encodings.md says which there are",
            ) from error
        explicit = {} if encoding is None else {n for n in named if "=" not in encoding or f"{n}=" in encoding}
        default = unnamed or parse(DEFAULT, tuple(targets))
        free = [name for name in targets if name not in explicit and budget.chooses(name)]
        if budget and not free:
            raise InputError(
                "a budget, and no target whose encoding it may choose",
                code="option-needs-another",
                where="--max-kl, --max-bytes",
                expected=f"one of the targets {', '.join(LADDER)} (maps with --max-bytes alone) that {option} does not name",
                found=", ".join(targets),
                hint=f"leave out {option}, or the budget",
            )
        spelled = {
            name: None if name in free else named[name] if name in explicit else default[name] for name in targets
        }
        return EncodingRequest(spelled=spelled, budget=budget, fit_views=fit_views)

    @property
    def of_all(self) -> FloatEncoding | None:
        """The encoding of the whole store, where all targets have the same plain one."""
        names = {None if one is None else one.text for one in self.spelled.values()}
        return ENCODINGS.get(next(iter(names)) or "") if len(names) == 1 else None

    def rows(self, targets: Sequence[Target], num_views: int) -> int:
        """Rows to look at, of so many views each: few of large maps, so that they find room in memory.

        Args:
            targets: those whose encodings are looked for.
        """
        wanted = -(-self.views // num_views)
        maps = sum(4 * math.prod(target.shape) for target in targets if len(target.shape) > 2)
        return max(_LEAST_ROWS, min(wanted, MAPS_BYTES // (maps * num_views))) if maps else wanted

    @property
    def views(self) -> int:
        """Views to look at."""
        fitted = any(one is None or one.known.fitted for one in self.spelled.values())
        return self.fit_views if fitted else MEASURED_VIEWS

    def to_json(self) -> Json:
        """What decides the encodings, beside the data."""
        facts: dict[str, Json] = {
            name: BY_BUDGET if spelled is None else spelled.text for name, spelled in self.spelled.items()
        }
        facts |= {name: value for name, value in vars(self.budget).items() if value is not None}
        return facts | {"views": self.views}

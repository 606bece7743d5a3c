"""Owns what a plan costs, at stated prices."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings.plan import PlanSettings
from .figures import Basis, Figure

#: `--price-requests` is of so many, and `--price-gb-month` of so many bytes.
REQUESTS, GB = 1000, 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Money:
    """In the currency of the prices; None where something of it is not known.

    Attributes:
        teacher_once: all workers, until they are done.
        teacher_online: the same teacher in every step of all students.
        students: their own steps.
        keep_a_month: shards, store and bundles.
        write_requests: one for each object of shards and store.
        read_requests: of all epochs of all students.
    """

    teacher_once: Figure | None
    teacher_online: Figure | None
    students: Figure | None
    keep_a_month: Figure | None
    write_requests: Figure | None
    read_requests: Figure | None

    @property
    def is_empty(self) -> bool:
        return all(part is None for part in self.__dict__.values())


def money(
    prices: PlanSettings,
    *,
    teacher_seconds: Figure | None,
    online_seconds: Figure | None,
    student_seconds: Figure | None,
    kept_bytes: Figure,
    written: int,
    read: int | None,
) -> Money:
    """
    Args:
        teacher_seconds: of all workers together.
        online_seconds, student_seconds: of all students together.
        written, read: objects.
    """

    def priced(amount: Figure | None, price: float | None, unit: float) -> Figure | None:
        if amount is None or price is None:
            return None
        return Figure.of(amount.value / unit * price, amount, Basis.STATED)

    def counted(objects: int | None) -> Figure | None:
        return None if objects is None else Figure.of(objects)

    hour, month, requests = prices.price_gpu_hour, prices.price_gb_month, prices.price_requests
    return Money(
        teacher_once=priced(teacher_seconds, hour, 3600),
        teacher_online=priced(online_seconds, hour, 3600),
        students=priced(student_seconds, hour, 3600),
        keep_a_month=priced(kept_bytes, month, GB),
        write_requests=priced(counted(written), requests, REQUESTS),
        read_requests=priced(counted(read), requests, REQUESTS),
    )

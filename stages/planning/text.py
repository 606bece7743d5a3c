"""Owns a plan as text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ...pipeline.tables import bytes_text, clip, seconds_text, section, table
from .figures import MEANINGS, Figure
from .plan import CachePlan

Rows = list[Sequence[str]]

#: Codecs of all arrays.
_EVERYWHERE = ("bytes", "crc32c")


def plan_text(plan: CachePlan) -> str:
    """All parts that there are."""
    parts = [
        _corpus(plan),
        _bytes(plan),
        _arrays(plan),
        _encodings(plan),
        _targets(plan),
        _teacher(plan),
        _training(plan),
        _break_even(plan),
        _money(plan),
        _legend(),
    ]
    return "\n\n".join(filter(None, parts))


def _corpus(plan: CachePlan) -> str:
    corpus = plan.corpus
    names: Rows = [(name, clip(value, 62)) for name, value in plan.names.items()]
    rows: Rows = [("images", f"{corpus.rows:,}", corpus.num_samples.basis.word)]
    if corpus.unusable:
        rows.append(("of them unusable", f"{corpus.unusable:,}", "counted"))
    if corpus.image_bytes is not None:
        rows.append(("size in the mean", bytes_text(corpus.image_bytes.value), corpus.image_bytes.basis.word))
    rows.append(("views of each", f"{plan.spec.num_views}", "stated"))
    rows.append(
        (
            "shards",
            f"{plan.spec.num_shards:,}",
            f"{'at most ' if len(corpus.parts) > 1 else ''}{corpus.shard_size:,} images each",
        )
    )
    return "\n\n".join([section("Plan", table(names)), section("Corpus", table(rows, align="lr"))])


def _bytes(plan: CachePlan) -> str:
    def row(name: str, objects: int | str, size: Figure) -> Sequence[str]:
        return name, f"{objects:,}" if isinstance(objects, int) else objects, bytes_text(size.value), size.basis.word

    rows: Rows = []
    if plan.shards is not None:
        rows.append(row("shards", plan.shards.objects, plan.shards.bytes))
    rows.append(row("target store", plan.store.objects, plan.store.bytes))
    if plan.bundle is not None:
        rows.append(row("a student's bundle", 3, plan.bundle))
    if len(rows) > 1:
        rows.append(row("together", "", plan.total_bytes))
    if plan.left is not None:
        rows.append(("left to write", "", bytes_text(plan.left.bytes.value), plan.left.bytes.basis.word))
    return section("On disk", table(rows, head=("", "objects", "bytes", "from"), align="lrr"))


def _arrays(plan: CachePlan) -> str:
    rows: Rows = [
        (
            clip(array.name, 36),
            "×".join(map(str, array.chunks)),
            ", ".join([array.dtype, *(codec for codec in array.codecs if codec not in _EVERYWHERE)]),
            f"{array.objects:,}",
            bytes_text(array.bytes.value),
            array.bytes.basis.word,
        )
        for array in plan.store.sizes.all_arrays
    ]
    objects, size = plan.store.vectors
    if objects:
        rows.append(("class vectors", "", "", f"{objects:,}", bytes_text(size.value), size.basis.word))
    sizes = plan.store.sizes
    rest = sizes.metadata_objects + sizes.num_shards + plan.store.ledger[0]
    rest_bytes = sizes.metadata_bytes + sizes.receipt_bytes + plan.store.ledger[1]
    rows.append(("other files", "", "", f"{rest:,}", bytes_text(rest_bytes), "counted"))
    head = ("", "chunk", "type, codecs", "objects", "bytes", "from")
    return section(f"The store, as {clip(plan.encoding, 60)}", table(rows, head=head, align="lllrr"))


def _encodings(plan: CachePlan) -> str:
    rows: Rows = []
    for name, sizes in plan.encodings.items():
        a_view = sizes.chunk_bytes.value / plan.corpus.rows / plan.spec.num_views
        budget = plan.budgets.get(name)
        rows.append(
            (
                clip(name, 60) + (" (planned)" if name == plan.encoding else ""),
                f"{a_view:,.1f}",
                bytes_text(sizes.chunk_bytes.value),
                f"{sizes.chunk_objects:,}",
                "" if budget is None else f"{budget:.2g}",
                sizes.chunk_bytes.basis.word,
            )
        )
    head = ("encoding", "bytes a view", "bytes", "objects", "KL up to", "from")
    return section("The arrays by encoding", table(rows, head=head, align="lrrrr"))


def _targets(plan: CachePlan) -> str:
    """What encodings of each target cost on the sample."""
    rows: Rows = []
    for target, costs in plan.target_costs.items():
        for text, cost in costs.items():
            size, kl, distance = cost.bytes_per_view, cost.kl, cost.cosine_distance
            lost = f"{kl.value:.2g} nats" if kl else f"{distance.value:.2g} of cosine" if distance else ""
            rows.append((clip(target, 28), clip(text, 20), f"{size.value:,.1f}", lost, size.basis.word))
    head = ("target", "encoding", "bytes a view", "lost in the mean", "from")
    lines = [table(rows, head=head, align="llrrr")]
    return section("Targets by encoding, on the sample", *lines, *map(_wrapped, plan.notes)) if rows else ""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _teacher(plan: CachePlan) -> str:
    schedule = plan.schedule
    if schedule is None:
        return section("The teacher", "  hours: give --teacher and a corpus, or state a --rate")
    took, work = schedule.seconds(plan.workers), schedule.work_seconds
    rows: Rows = []
    if plan.left is not None:
        rows.append(("shards left", f"{plan.left.shards:,} of {plan.spec.num_shards:,}", "counted"))
    rows += [
        ("views a second, a worker", f"{schedule.rate.value:,.1f}", schedule.rate.basis.word),
        ("to start", seconds_text(schedule.start.value), schedule.start.basis.word),
        ("the work of one worker", hours_text(work.value), work.basis.word),
        (f"with {plan.workers} worker{'s' if plan.workers > 1 else ''}", hours_text(took.value), took.basis.word),
    ]
    if plan.needed is not None:
        rows.append((f"workers for {plan.deadline:g} hours", f"{plan.needed:,}", took.basis.word))
    lines = [table(rows, align="lr"), *([f"  ({plan.timed})"] if plan.timed else [])]
    return section("The teacher", *lines)


def _training(plan: CachePlan) -> str:
    feed = plan.feed
    if feed is None:
        return ""
    rate, size = feed.images_per_second, feed.bytes_per_second
    rows: Rows = [
        ("images a second", f"{rate.value:,.0f}", rate.basis.word),
        ("to read a second", bytes_text(size.value), size.basis.word),
        ("of it targets", bytes_text(rate.value * feed.target_bytes.value), feed.target_bytes.basis.word),
    ]
    if feed.pairs_per_core is not None and feed.cores is not None:
        rows.append(("pairs a second, a core", f"{feed.pairs_per_core.value:,.0f}", feed.pairs_per_core.basis.word))
        rows.append(("cores that make pairs", f"{feed.cores.value:,.0f}", feed.cores.basis.word))
    return section("What a student's steps need", table(rows, align="lr"))


def _break_even(plan: CachePlan) -> str:
    costs = plan.costs
    if costs is None or plan.schedule is None:
        return ""
    word = plan.schedule.rate.basis.word
    rows: Rows = [
        ("the teacher once", hours_text(costs.once), word),
        (f"in every step, {costs.epochs} epochs", hours_text(costs.online), word),
        ("once pays from", f"{costs.break_even:.2g} students on", word),
    ]
    if costs.students:
        count = f"{plan.students} student{'s' if plan.students > 1 else ''}"
        basis = max(
            plan.schedule.rate.basis, plan.feed.images_per_second.basis if plan.feed else plan.schedule.rate.basis
        )
        rows.append((f"{count}, their own steps", hours_text(sum(costs.students)), basis.word))
        rows.append(("all of it online, by once", f"{costs.speed_up:.2g} times as long", basis.word))
    return section("Against the teacher in every step", table(rows, align="lr"))


def _money(plan: CachePlan) -> str:
    if plan.money is None or plan.money.is_empty:
        return ""
    named = {
        "teacher, once": plan.money.teacher_once,
        "teacher in every step instead": plan.money.teacher_online,
        "students' own steps": plan.money.students,
        "keeping it for a month": plan.money.keep_a_month,
        "requests to write": plan.money.write_requests,
        "requests to read, all epochs": plan.money.read_requests,
    }
    rows: Rows = [(name, f"{part.value:,.2f}", part.basis.word) for name, part in named.items() if part is not None]
    return section("Cost, in the currency of the prices", table(rows, align="lr"))


def _legend() -> str:
    return "\n".join(f"{basis.word}: {meaning}" for basis, meaning in MEANINGS.items())


def hours_text(seconds: float) -> str:
    """`42 s`, `12 min`, `5 h 20 min`, `1,234 hours`."""
    return seconds_text(seconds) if seconds < 100 * 3600 else f"{seconds / 3600:,.0f} hours"

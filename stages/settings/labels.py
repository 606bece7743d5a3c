"""Owns the settings of `teachonce labels`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import seed_setting, setting

PROMPTS, LATER = "Descriptions of names", "Later generations"


@dataclass(frozen=True, kw_only=True)
class LabelsSettings:
    """How clusters get names.

    Attributes:
        classes: clusters, and names that they get; None only with `append`.
        vectors: another store whose class vectors are the vocabulary; None for the store's own.
        generation: of a store that grew; None for the current one.
        starts: of k-means, of which the best counts.
        prompts: file of phrases for each candidate; None leaves that step out.
        teacher, teacher_pretrained: whose text tower reads them.
        append: add the next generation to the labels that are there.
    """

    classes: int | None = setting(
        None, least=2, unit="N", help="Number of clusters; each gets a name of its own. Needed, but with --append."
    )
    vectors: str | None = setting(
        None,
        unit="PATH",
        default_text="the store's own",
        help="The vocabulary: the class vectors of this other store, of the same teacher.",
    )
    generation: str | None = setting(
        None, unit="NAME", default_text="the current one", help="Read this generation of a store that grew."
    )
    seed: int = seed_setting(0, help="Seed of k-means.")
    starts: int = setting(17, least=1, help="Starts of k-means, of which the best counts.")
    prompts: str | None = setting(
        None,
        unit="PATH",
        group=PROMPTS,
        help="JSON file: phrases that describe each name of candidates.json. Without it, that step is left out.",
    )
    teacher: str | None = setting(
        None, group=PROMPTS, help="The store's teacher, whose text tower reads the phrases (as in `cache`)."
    )
    teacher_pretrained: str | None = setting(
        None, group=PROMPTS, help="Its pretrained tag, or path to weights, as `cache` was given it."
    )
    append: bool = setting(
        False,
        group=LATER,
        help="Add the next generation to the labels at --out, from a store of a student's embeddings (`cache --teacher bundle:…`). It "
        "begins with the clusters of generation 0.",
    )

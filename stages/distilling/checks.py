"""Owns what `teachonce distill` refuses before it trains: choices that exclude each other, and trainings that could teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...storage_schemas.errors import InputError
from ..corpora.shards import ShardSet
from ..models.compute import Compute
from ..pairs.manifest_labels import LABEL
from ..pairs.stream import TargetStream
from ..recipes.settings import TrainSettings
from ..settings.distill import DistillSettings
from ..training.build import BuiltStudent
from ..training.targets import TrainingTargets


def refuse_both(hold_out: object) -> None:
    """Refuse a share to hold out that a user chose beside other images to validate on; a recipe's default gives way."""
    if hold_out:
        raise InputError(
            "--validation and --hold-out exclude each other",
            code="options-exclude-each-other",
            where="--hold-out",
            found=hold_out,
            hint="leave one of them out",
        )


def refuse_seen_domains(built: BuiltStudent, shards: ShardSet, leave_out: Sequence[str]) -> None:
    """A student that has learned from a domain is no test of leaving it out."""
    start = built.start or {}
    seen = sorted(set(leave_out) - set(start.get("leave_out", ())))
    if seen and start.get("corpus", {}).get("id") == shards.corpus.corpus_id:
        raise InputError(
            "the student to start from has learned from a domain that is left out",
            code="domain-already-seen",
            where="--student-pretrained",
            expected=" ".join(f"--leave-out {domain}" for domain in sorted(leave_out)),
            found=" ".join(f"--leave-out {domain}" for domain in start.get("leave_out", ())) or "no domain left out",
            hint="start from a student that was trained without it",
        )


def with_batch(settings: TrainSettings, stream: TargetStream, given: int | None) -> TrainSettings:
    """The settings with the samples of a step that the domains make."""
    if given is not None and given != stream.batch_size:
        raise InputError(
            "--per-domain decides how large a batch is",
            code="options-exclude-each-other",
            where="--batch-size",
            expected=f"{stream.batch_size}: {settings.per_domain} of each domain",
            found=given,
            hint="leave out --batch-size",
        )
    settings = replace(settings, batch_size=stream.batch_size)
    settings.check()
    return settings


def check_cuda_graphs(settings: DistillSettings, compute: Compute, processes: int) -> None:
    if compute.device != "cuda":
        raise InputError(
            "CUDA graphs need a GPU",
            code="option-needs-another",
            where="--cuda-graphs",
            expected="--device cuda",
            found=compute.device,
            hint="leave out --cuda-graphs",
        )
    if settings.compiled or processes > 1:
        raise InputError(
            "CUDA graphs are for one process, without --compile",
            code="options-exclude-each-other",
            where="--cuda-graphs",
            found="--compile" if settings.compiled else f"{processes} processes",
            hint="leave out one of them",
        )


def refuse_one_class(chosen: TrainingTargets, settings: TrainSettings, where: object) -> None:
    """A divergence over one class is 0 whatever the student gives, so nothing would be learned from it alone."""
    vectors = chosen.vectors
    if vectors is None or vectors.num_classes > 1 or _other_terms(chosen, settings):
        return
    looks = hasattr(settings, "embedding_loss")
    other = ", or let kd look at embeddings: --embedding-loss cosine" if looks else ""
    raise InputError(
        "nothing can be learned from one class: the loss is 0",
        code="class-only-one",
        where=f"{where}, class {vectors.names[0]!r}",
        expected="2 classes or more",
        found=1,
        hint=f"compute class vectors of more classes into another store and name it with --vectors{other}",
    )


def _other_terms(chosen: TrainingTargets, settings: TrainSettings) -> bool:
    """Whether the loss has a term for other targets than logits, with a weight that is not 0."""
    return not set(chosen.requested) <= {"logits", LABEL} and bool(getattr(settings, "embedding_weight", 1))

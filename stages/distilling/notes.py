"""Owns the lines that a person sees before a student trains, and the one behind it."""

from __future__ import annotations

from ...storage_schemas.encodings.sampled import Sampled
from ...storage_schemas.plain_text import counted
from ..models.names import RANDOM
from ..models.student_config import StudentConfig
from ..pairs.stream import TargetStream
from ..recipes.recipe import Recipe
from ..recipes.settings import TrainSettings
from ..training.build import BuiltStudent
from ..training.targets import TrainingTargets
from ..training.validation import Validation


def notes_before(
    built: BuiltStudent,
    stream: TargetStream,
    settings: TrainSettings,
    recipe: str,
    config: StudentConfig,
    checking: Validation | None,
) -> tuple[str, ...]:
    total = sum(p.numel() for p in built.student.parameters())
    trained = sum(p.numel() for p in built.student.trained().values())
    notes = [
        f"student {built.backbone.to_text(config.model, built.digest)}",
        f"{total:,} parameters, {trained:,} of them trained by recipe {recipe}",
        f"{counted(stream.num_samples, 'sample')}, {counted(stream.steps_per_epoch, 'step')} of {settings.batch_size} an epoch, "
        f"{counted(settings.epochs, 'epoch')}",
    ]
    if stream.note:
        notes.append(stream.note)
    if stream.rows is not None and (note := stream.rows.note()):
        notes.append(note)
    if checking is not None:
        labelled = checking.labelled
        notes.append(
            f"validation on {len(labelled)} of the {counted(labelled.found, 'image')} in {labelled.images}, "
            f"whose labels are {'names of base classes' if checking.by == 'base' else 'class names'}"
        )
        notes += labelled.notes
    depth, wanted = built.student.head.prompt_depth, getattr(settings, "prompt_depth", 0)
    if depth < wanted:
        notes.append(f"prompts go {depth} layers deep, not {wanted}: the student has no more blocks")
    notes += [f"{level.target} is compared with the student's {level.layer}" for level in built.student.head.levels]
    if config.pretrained is None and built.backbone.weights.startswith(RANDOM):
        notes.append("no --student-pretrained: the student starts from random weights")
    return tuple(notes)


def notes_on_draws(chosen: TrainingTargets, settings: TrainSettings) -> tuple[str, ...]:
    """A warning where targets are draws, which are right on average at T = 1 alone."""
    temperature = getattr(settings, "temperature", 1.0)
    drawn = [name for name, target in chosen.specs.items() if isinstance(target.encoding, Sampled)]
    if not drawn or temperature == 1:
        return ()
    return (
        f"{', '.join(drawn)} are draws from the teacher's distribution: at temperature {temperature:g} their gradients are biased; "
        "use --temperature 1, or a store in another encoding",
    )


def notes_on_parts(recipe: Recipe, settings: TrainSettings, parts: int) -> tuple[str, ...]:
    """A word where a loss that compares samples does not see a whole batch at once.

    Args:
        parts: of a batch: processes, each with those of `--accumulate`.
    """
    if parts == 1 or not recipe.compares_samples:
        return ()
    return (
        f"recipe {recipe.name} compares samples of a batch, and each of {parts} parts sees {settings.batch_size // parts} of the "
        f"{settings.batch_size} alone: this trains another student than the whole batch would",
    )


def note_on_reuse(stream: TargetStream, settings: TrainSettings) -> str | None:
    if stream.num_views >= settings.epochs:
        return None
    uses = settings.epochs / stream.num_views
    were = "was" if stream.num_views == 1 else "were"
    return (
        f"{counted(stream.num_views, 'view')} {were} used in {counted(settings.epochs, 'epoch')}, each about {uses:.3g} times; "
        "--reuse-views leaves out this note"
    )

"""Owns the settings of `teachonce distill` beside its recipe's."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import LARGEST_SEED, seed_setting, setting
from ..measures.figures import FIGURES
from ..models.settings import COMPUTING
from ..recipes.settings import SAMPLING, VALIDATION
from ..training.mixes import MIXES
from .checkpoints import CheckpointSettings

COPIES = "Copies of shards that lie far away"
TARGETS, SEVERAL, TRACKING = "Targets", "Several students on one pass over the pairs", "Where figures are shown"


@dataclass(frozen=True, kw_only=True)
class DistillSettings(CheckpointSettings):
    """What is read of the store, what the best epoch is, and how it is run.

    Attributes:
        order_seed: None for that of `seed`. Students of one pass share it.
        vectors: another store whose class vectors are used.
        views: None for all of the store's.
        labels: see `pairs.label_source.ClusterLabels.of`.
        captions: see `pairs.caption_source.Captions.of`.
        generation: None for the one that the run was begun on, or the current one.
        compiled, cuda_graphs: decide low bits.
        local_cache, local_cache_gb: decide no bytes.
    """

    seed: int = seed_setting(0, help="Seed of the order, new weights and dropout.")
    order_seed: int | None = setting(
        None,
        least=0,
        most=LARGEST_SEED,
        unit="SEED",
        default_text="--seed",
        help="Seed of the order of pairs alone: equal for students that differ in --seed only.",
    )
    leave_out: tuple[str, ...] = setting(
        (),
        unit="DOMAIN",
        group=SAMPLING,
        help="Train on no image of this domain; may be given several times. Images must lie at DOMAIN/CLASS/IMAGE.",
    )
    validation: str | None = setting(
        None,
        unit="IMAGES",
        group=VALIDATION,
        help="Labelled images (folder, tar, list, coop:…, shards): measured after each epoch; the bundle gets the best weights.",
    )
    validation_by: str = setting(
        "top1",
        choices=FIGURES,
        group=VALIDATION,
        help="Figure that decides the best epoch: accuracy over all classes, of base images among base classes, or the harmonic "
        "mean of that and of novel images among novel classes (classes as `vectors --base-classes` marked them).",
    )
    vectors: str | None = setting(
        None, unit="PATH", group=TARGETS, help="Use the class vectors of this other store; needs cached embeddings."
    )
    also: tuple[str, ...] = setting(
        (),
        unit="NAME=STORE",
        group=TARGETS,
        help="Another teacher's store of the same shards and views; may be repeated. Recipes that learn logits learn those of all "
        "teachers, mixed; `features` finds its targets by NAME:TARGET.",
    )
    mix: str | None = setting(
        None,
        choices=MIXES,
        default_text=MIXES[0],
        group=TARGETS,
        help="How the logits of several teachers are mixed: the mean of their probabilities, or of the logits.",
    )
    mix_weights: tuple[float, ...] | None = setting(
        None,
        above=0,
        unit="WEIGHT,WEIGHT,…",
        default_text="equal ones",
        group=TARGETS,
        help="Weights of the teachers, that of STORE first.",
    )
    views: int | None = setting(
        None,
        least=1,
        unit="VIEWS",
        default_text="all",
        group=TARGETS,
        help="Number of views to read, the first of the store's K.",
    )
    generation: str | None = setting(
        None,
        unit="NAME",
        default_text="the current one; of a run that was begun, its own",
        group=TARGETS,
        help="Read this generation of a store that grew, such as 1 for what was there at first.",
    )
    labels: str | None = setting(
        None,
        unit="LABELS[@N]",
        group=TARGETS,
        help="Labels that `teachonce labels` wrote, for recipe s3a: the last generation, or generation N.",
    )
    captions: str | None = setting(
        None,
        unit="CAPTIONS",
        group=TARGETS,
        help="Captions that `teachonce captions` embedded, for recipe affinity.",
    )
    reuse_views: bool = setting(
        False, group=TARGETS, help="Fewer views than epochs are intended: print no note on it at the end."
    )
    accept_other_pixels: bool = setting(
        False, group=TARGETS, help="Train even if this machine renders images differently from what the teacher saw."
    )
    compiled: bool = setting(
        False, option="compile", group=COMPUTING, help="Use torch.compile: slow to start, then faster on GPUs."
    )
    cuda_graphs: bool = setting(
        False,
        group=COMPUTING,
        help="Replay each step's forward and backward pass as a CUDA graph: for small batches on a GPU. Not yet tried on one.",
    )
    local_cache: str | None = setting(
        None,
        unit="FOLDER",
        group=COPIES,
        help="Keep copies of the shards at hand, and of those that come next, in this folder of the machine; runs may share it.",
    )
    local_cache_gb: float | None = setting(
        None, above=0, unit="GB", default_text="50", group=COPIES, help="Size of --local-cache at most."
    )
    wandb: str | None = setting(
        None,
        unit="PROJECT",
        group=TRACKING,
        help="Also log to this project of Weights & Biases; WANDB_MODE=offline keeps it in OUT/run.",
    )
    mlflow: str | None = setting(
        None, unit="EXPERIMENT", group=TRACKING, help="Also log to this experiment of MLflow, at MLFLOW_TRACKING_URI."
    )


@dataclass(frozen=True, kw_only=True)
class SeveralStudents:
    """Which students are trained on one pass; None and None for the one that the other options describe."""

    seeds: tuple[int, ...] | None = setting(
        None,
        least=0,
        most=LARGEST_SEED,
        unit="SEED,SEED,…",
        group=SEVERAL,
        help="One student for each seed, in OUT/seed-N. They see the pairs in the same order, that of --order-seed (0).",
    )
    students: str | None = setting(
        None,
        unit="PATH",
        group=SEVERAL,
        help="YAML file of students: a name for each, and options that replace those given here; each in OUT/NAME.",
    )

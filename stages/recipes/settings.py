"""Owns the settings that every recipe has: the numbers of a training. Imports no torch, since options are made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ...pipeline.settings import check, impossible, option_name, setting, settings_of
from ...storage_schemas.errors import InputError
from .schedule import SCHEDULES

if TYPE_CHECKING:
    from ...storage_schemas.fingerprint import Json

#: Groups of `--help`.
TRAINING, VALIDATION, SAMPLING = "Training", "Validation", "Which samples a step sees"
PARTS = "Which parts of the student train, and how fast"

#: Of Adam and AdamW, as torch has them.
BETAS = (0.9, 0.999)

_SWAD = ("select", ("swad",))

Some = TypeVar("Some", bound="TrainSettings")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What a recipe's own settings build on: a subclass adds fields, and gives those without a default one.

    Each field is an option of `teachonce distill`, by its name.
    """

    epochs: int = setting(20, least=1, help="Passes over the corpus; epoch e reads view e mod K.")
    batch_size: int = setting(least=1, unit="SAMPLES", help="Samples per step; a last, shorter batch is left out.")
    lr: float = setting(above=0, help="Highest learning rate.")
    weight_decay: float = setting(
        least=0, group=TRAINING, help="Weight decay: kd on matrices, promptkd on all that trains."
    )
    optimizer: str = setting(
        choices=("sgd", "adam", "adamw"), group=TRAINING, help="SGD with momentum 0.9, Adam, or AdamW."
    )
    betas: tuple[float, float] = setting(
        BETAS,
        least=0,
        below=1,
        off=BETAS,
        unit="B1,B2",
        group=TRAINING,
        needs=("optimizer", ("adam", "adamw")),
        help="Decay of both averages of Adam and AdamW.",
    )
    schedule: str = setting(
        choices=SCHEDULES, group=TRAINING, help="Learning rate: cosine by step, CoOp's by epoch, or constant."
    )
    min_lr: float = setting(
        0.0, least=0, off=0, group=TRAINING, needs=("schedule", ("cosine",)), help="What a cosine schedule ends at."
    )
    warmup_epochs: int = setting(1, least=0, unit="EPOCHS", group=TRAINING, help="Epochs of warm-up.")
    accumulate: int = setting(
        1,
        least=1,
        off=1,
        unit="PARTS",
        group=TRAINING,
        help="Split each batch into this many equal parts, one forward pass each, to save memory.",
    )
    clip_norm: float = setting(0.0, least=0, off=0, group=TRAINING, help="Largest norm of the gradients; 0: no limit.")
    ema: float = setting(
        0.0,
        least=0,
        below=1,
        off=0,
        unit="DECAY",
        group=TRAINING,
        help="Keep a moving average of the weights, and store that in the bundle; 0: none.",
    )
    ema_start: float = setting(
        0.0,
        least=0,
        below=1,
        off=0,
        unit="DECAY",
        group=TRAINING,
        default_text="--ema",
        help="Decay of the moving average at the first step; from there it goes to --ema in --ema-steps.",
    )
    ema_steps: int = setting(
        0,
        least=0,
        off=0,
        unit="STEPS",
        group=TRAINING,
        help="Steps from --ema-start to --ema; 0: --ema from the first.",
    )
    layer_decay: float = setting(
        1.0,
        above=0,
        most=1,
        off=1.0,
        unit="FACTOR",
        group=PARTS,
        help="Learning rate of each layer of the backbone, as a share of that of the layer above it; new parts have the full rate.",
    )
    freeze: str = setting(
        "",
        off="",
        unit="PATTERNS",
        default_text="nothing",
        group=PARTS,
        help="Parts that stay as they are, by name, with commas between patterns: 'blocks.[0-5],patch_embed', 'backbone.*'.",
    )
    lora_rank: int = setting(
        0,
        least=0,
        off=0,
        group=PARTS,
        help="Train low-rank additions of this rank to the backbone's layers instead of its weights (LoRA); 0: none.",
    )
    lora_alpha: float | None = setting(
        None,
        above=0,
        default_text="twice the rank",
        group=PARTS,
        help="The additions count times this, divided by the rank.",
    )
    lora_targets: str = setting(
        "",
        off="",
        unit="PATTERNS",
        default_text="all linear layers; of a net without any, its ungrouped convolutions",
        group=PARTS,
        help="Layers that get additions, by name, with commas between patterns: '*.qkv,*.fc1'.",
    )
    patience: int = setting(
        0,
        least=0,
        off=0,
        unit="EPOCHS",
        group=VALIDATION,
        help="Stop after this many epochs without a better validation accuracy; 0: never.",
    )

    batch_norm: str = setting(
        "train",
        choices=("train", "frozen"),
        off="train",
        group=TRAINING,
        help="frozen: the backbone's batch norms keep their averages and use them in training too; their weights train.",
    )
    per_domain: int = setting(
        0,
        least=0,
        off=0,
        unit="SAMPLES",
        group=SAMPLING,
        help="Draw so many samples of each domain in each step, with replacement; a batch is all of these. 0: each sample once an "
        "epoch. Images must lie at DOMAIN/CLASS/IMAGE.",
    )
    steps_per_epoch: int = setting(
        0,
        least=0,
        off=0,
        unit="STEPS",
        default_text="as many as draw as many samples as there are",
        group=SAMPLING,
        help="With --per-domain: steps from one validation and checkpoint to the next; the views change with them.",
    )
    hold_out: float = setting(
        0.0,
        least=0,
        below=1,
        off=0,
        unit="SHARE",
        group=VALIDATION,
        help="Keep about this share of the samples out of training, chosen by --order-seed and their keys, and validate on them.",
    )
    select: str = setting(
        "best",
        choices=("best", "swad"),
        off="best",
        group=VALIDATION,
        help="What the bundle gets where there is a validation: the best epoch's weights, or the average over the valley of the "
        "validation loss (SWAD).",
    )
    swad_converge: int = setting(
        3,
        least=1,
        off=3,
        unit="EPOCHS",
        group=VALIDATION,
        needs=_SWAD,
        help="SWAD: the valley begins where so many losses in a row are not below the first of them.",
    )
    swad_tolerance: int = setting(
        6,
        least=1,
        off=6,
        unit="EPOCHS",
        group=VALIDATION,
        needs=_SWAD,
        help="SWAD: it ends, and training with it, before so many losses in a row that are above the threshold.",
    )
    swad_ratio: float = setting(
        0.3,
        least=0,
        off=0.3,
        group=VALIDATION,
        needs=_SWAD,
        help="SWAD: the threshold is by this share above the mean of the losses that the valley began with.",
    )

    def to_json(self) -> dict[str, Json]:
        """For fingerprint and origin: all but what is off."""
        off = {field.name: setting.off for field, setting in settings_of(self) if setting.off is not None}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None and not (name in off and value == off[name])
        }

    def override(self: Some, recipe: str, options: Mapping[str, Any]) -> Some:
        """A copy with the options that are not None.

        Raises:
            InputError: an option that means nothing to this recipe, or an impossible value.
        """
        given = {name: value for name, value in options.items() if value is not None}
        own = {field.name for field in fields(self)}
        for name in given:
            if name not in own:
                raise InputError(
                    f"an option that recipe {recipe} does not have",
                    code="recipe-option-unknown",
                    where=option_name(name),
                    hint="leave it out",
                )
        if given.get("per_domain") == 0:
            given.setdefault("steps_per_epoch", 0)  # a recipe's own number is one of draws
        settings = replace(self, **given)
        settings.check()
        settings._check_meaning({name for name, value in given.items() if value != getattr(self, name)})
        return settings

    def _check_meaning(self, changed: Collection[str]) -> None:
        """Refuse what was changed and changes nothing.

        Raises:
            InputError: naming the option, and the one that it needs.
        """
        for field, declared in settings_of(self):
            if field.name not in changed or declared.needs is None:
                continue
            other, values = declared.needs
            if (found := getattr(self, other)) not in values:
                raise InputError(
                    f"{option_name(field.name)} means nothing here",
                    code="option-needs-another",
                    where=option_name(field.name),
                    expected=f"{option_name(other)} {' or '.join(values)}",
                    found=f"{option_name(other)} {found}",
                    hint=f"leave it out, or add {option_name(other)} {values[0]}",
                )

    def check(self) -> None:
        """Refuse values that cannot be, alone or together.

        Raises:
            InputError: naming the option.
        """
        check(self)
        if self.batch_size % self.accumulate:
            raise impossible(
                "batch_size",
                f"a multiple of {self.accumulate}, the parts of --accumulate",
                self.batch_size,
            )
        for name in ("lora_alpha", "lora_targets"):
            if getattr(self, name) and not self.lora_rank:
                raise InputError(
                    f"{option_name(name)} needs --lora-rank",
                    code="option-needs-another",
                    where=option_name(name),
                    hint="add --lora-rank 8",
                )
        if self.min_lr > self.lr:
            raise impossible("min_lr", f"at most {self.lr:g}, the learning rate", self.min_lr)
        if bool(self.ema_start) != bool(self.ema_steps):
            given, other = ("--ema-start", "--ema-steps") if self.ema_start else ("--ema-steps", "--ema-start")
            raise InputError(
                "how the moving average's decay rises needs both of its options",
                code="option-needs-another",
                where=given,
                expected=other,
                found="nothing",
                hint=f"add {other}, or leave out {given}",
            )
        if self.warmup_epochs > self.epochs:
            raise impossible("warmup_epochs", f"at most {self.epochs}, the epochs", self.warmup_epochs)
        for other, what in (("ema", "a moving average"), ("patience", "early stopping")):
            if self.select == "swad" and getattr(self, other):
                raise InputError(
                    f"SWAD and {what} exclude each other",
                    code="options-exclude-each-other",
                    where=f"--select swad {option_name(other)}",
                    hint=f"leave out {option_name(other)}",
                )
        if self.steps_per_epoch and not self.per_domain:
            raise InputError(
                "without --per-domain, an epoch is a pass over the corpus",
                code="option-needs-another",
                where="--steps-per-epoch",
                found=self.steps_per_epoch,
                hint="add --per-domain SAMPLES, or leave it out",
            )

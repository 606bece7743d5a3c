"""`distill --recipe s3a`: labels joined to the rows, views drawn anew, pseudo labels of the moving average; against plain torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.distill import plan_distill
from teachonce.stages.distilling.stage import DistillStage
from teachonce.stages.labels import plan_labels
from teachonce.stages.models.class_head import ClassHead
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.batches import IMAGE
from teachonce.stages.pairs.label_source import ClusterLabels
from teachonce.stages.pairs.label_store import OpenLabels
from teachonce.stages.pairs.store import open_store, read_description
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.recipes.s3a_settings import S3aSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.labels import LabelsSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.training.average_outputs import average_outputs, split_average
from teachonce.stages.training.build import build_student
from teachonce.stages.training.ema import Ema
from teachonce.stages.training.ranks import Ranks
from teachonce.stages.training.trainer import Trainer
from teachonce.stages.views.anew import StrongView, ViewAnew, WeakView
from teachonce.storage_schemas.errors import InputError, MismatchError

CPU = Compute(device="cpu", precision="fp32", threads=1)
CLASSES = 6


def make_labels(store: Any, out: Path) -> Path:
    stage = plan_labels(store.location, out=str(out), settings=LabelsSettings(classes=CLASSES, starts=2), compute=CPU)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return out


@pytest.fixture(scope="module")
def labels(centre_store, tmp_path_factory) -> Path:
    return make_labels(centre_store, tmp_path_factory.mktemp("labels") / "labels")


@pytest.fixture
def plan(centre_store, tiny_clip, labels, tmp_path):
    """`plan(…)`: the stage for the tiny CLIP; every argument can be replaced."""

    def make(*, options: dict | None = None, recipe: str = "s3a", **settings: Any) -> DistillStage:
        return plan_distill(
            str(centre_store.shards.location),
            str(centre_store.location),
            StudentConfig(model=f"local-dir:{tiny_clip}"),
            out=str(tmp_path / "b"),
            recipe=recipe,
            options={"epochs": 2, "batch_size": 8, **(options or {})},
            compute=CPU,
            show_progress=False,
            settings=DistillSettings(**{"labels": str(labels), **settings}),
        )

    return make


def run(stage: DistillStage) -> None:
    run_stage(stage, stage.out, SerialExecutor(), progress=False)


# --- labels and views in the stream


def source(store: Any, labels: Path) -> ClusterLabels:
    root = open_store(store.location)
    from teachonce.stages.pairs.store import read_vectors

    return ClusterLabels.of(str(labels), read_description(root, store.location), read_vectors(root, store.location))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_row_has_its_label_and_its_views(centre_store, labels, workers) -> None:
    anew: dict[str, ViewAnew] = {IMAGE: StrongView(scale=(0.3, 1.0), augment="", fill=(0, 0, 0)), "weak": WeakView()}
    options: dict[str, Any] = {"image_size": 16, "batch_size": 8, "seed": 3, "num_workers": workers, "drop_last": False}
    expected = OpenLabels.of(Location.of(labels)).all_rows()
    with TargetStream(
        centre_store.shards,
        centre_store.location,
        targets=("cluster",),
        sources=(source(centre_store, labels),),
        anew=anew,
        **options,
    ) as stream:
        epochs = [
            {r: i for b in stream.batches(e) for r, i in zip(b.rows_N.tolist(), b.images_NCHW, strict=True)}
            for e in (0, 1)
        ]
        for batch in stream.batches(1):
            assert batch.targets["cluster"].tolist() == expected[batch.rows_N].tolist()
            assert batch.targets["cluster"].dtype == torch.int64
            assert set(batch.targets) == {"cluster", "weak"}
            reader = centre_store.shards.reader(int(batch.rows_N[0]) // 13)
            from teachonce.stages.corpora.images import decode

            image = decode(reader.read(int(batch.rows_N[0])))
            reader.close()
            for name, found in ((IMAGE, batch.images_NCHW), ("weak", batch.targets["weak"])):
                view = anew[name].draw(image, 16, seed=3, row=int(batch.rows_N[0]), epoch=1)
                assert (found[0].numpy().transpose(1, 2, 0) == np.asarray(view)).all()
    assert set(epochs[0]) == set(np.flatnonzero(centre_store.valid).tolist())
    assert sum(epochs[0][row].equal(epochs[1][row]) for row in epochs[0]) < 3  # drawn anew


def test_a_row_without_a_label_has_minus_one(centre_store, labels) -> None:
    """Such as an image that could be used only later."""
    from teachonce.stages.pairs.sources import ShardRows

    found = source(centre_store, labels)
    rows = ShardRows(
        shards=centre_store.shards,
        shard=0,
        view=0,
        keys_N=np.zeros(13, "S32"),
        valid_N=np.ones(13, bool),
        params_N=np.zeros(13, [("x", "i4")]),
    )
    assert found.open(rows, ["cluster"])["cluster"][np.array([5, 0])][0] == -1
    assert found.open(rows, []) == {}


# --- ten steps


class Recorded:
    """What the steps of a training saw and gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[torch.Tensor, dict[str, torch.Tensor], float, float]] = []
        original = Trainer.step

        def step(trainer: Trainer, training: Any, images: torch.Tensor, targets: Any, *, lr: float, step: int) -> Any:
            kept = images.clone(), {name: value.clone() for name, value in targets.items()}
            loss = original(trainer, training, images, targets, lr=lr, step=step)
            self.steps.append((*kept, lr, float(loss)))
            return loss

        monkeypatch.setattr(Trainer, "step", step)


def published_steps(tiny_clip: Path, vectors: Any, batches: Any) -> Iterator[tuple[float, int, Any]]:
    """The authors' loop, written out in fp64: loss, number of sure images, and the moving average, step by step."""
    model = open_clip.create_model(f"local-dir:{tiny_clip}").visual.double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    classifier = torch.from_numpy(vectors.vectors_CD).double()

    def logits(tower: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        features = tower((images.double() / 255 - mean) / std)
        return vectors.logit_scale * (features / features.norm(dim=-1, keepdim=True)) @ classifier.T

    teacher = copy.deepcopy(model).eval()
    model.train()

    def scale(name: str) -> float:
        """get_num_layer_for_vit of the authors' code, for three blocks."""
        lowest = "embedding" in name or "conv1" in name or "ln_pre" in name
        layer = 0 if lowest else int(name.split(".")[2]) + 1 if "resblocks" in name else 4
        return 0.65 ** (4 - layer)

    groups: list[dict[str, Any]] = [
        {"params": [p], "weight_decay": 0.0 if p.ndim == 1 else 0.05, "lr_scale": scale(name)}
        for name, p in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    total = len(batches)
    for step, (images, targets, _, _) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = (1e-4 + 0.5 * (2e-3 - 1e-4) * (1 + math.cos(math.pi * step / total))) * group["lr_scale"]
        with torch.no_grad():
            score, pseudo = logits(teacher, targets["weak"]).softmax(dim=-1).max(dim=-1)
        sure = score > 0.5
        out = logits(model, images)
        own = torch.nn.functional.cross_entropy(out[sure], pseudo[sure]) if sure.any() else torch.zeros(())
        loss = own + 0.25 * torch.nn.functional.cross_entropy(out, targets["cluster"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = 0.5 + (0.9 - 0.5) * min(1, step / 6)
        with torch.no_grad():
            for own_value, value in zip(teacher.state_dict().values(), model.state_dict().values(), strict=True):
                own_value.copy_(own_value * decay + (1 - decay) * value)
        yield float(loss.detach()), int(sure.sum()), teacher


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ten_steps_equal_the_published_ones(plan, tiny_clip, vocabulary, monkeypatch, accumulate) -> None:
    recorded = Recorded(monkeypatch)
    options = {"lr": 2e-3, "min_lr": 1e-4, "ema": 0.9, "ema_start": 0.5, "ema_steps": 6, "accumulate": accumulate}
    stage = plan(options=options)
    run(stage)
    assert len(recorded.steps) == 10
    found = list(published_steps(tiny_clip, vocabulary, recorded.steps))
    for (expected, _, _), (_, _, _, loss) in zip(found, recorded.steps, strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
    sure = [count for _, count, _ in found]
    assert 0 < sum(sure) < 80, sure
    assert any(0 < count < 8 for count in sure), sure
    teacher = found[-1][2]
    student = load_student(stage.out).student
    for name, value in teacher.state_dict().items():
        own = student.state_dict()[f"backbone.{name}"].double()
        if name.endswith("in_proj_bias"):  # the keys' bias has no gradient but rounding, and Adam makes steps of it
            own, value = (torch.cat([part[:32], part[64:]]) for part in (own, value))
        assert torch.allclose(own, value, rtol=1e-4, atol=1e-6), (name, float((own - value).abs().max()))


def test_the_average_looks_without_dropping_anything(dropping_clip, vocabulary) -> None:
    """In evaluation mode, with its own weights; the student goes on as it was."""
    from types import SimpleNamespace

    built = build_student(
        StudentConfig(model=f"local-dir:{dropping_clip}"), recipe_named("s3a"), S3aSettings(), vocabulary, {}, seed=0
    )
    student = built.student.train()
    average = Ema(student, 0.5)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = ClassHead(vocabulary)(copy.deepcopy(student).eval()(images))
        for parameter in student.parameters():
            parameter.add_(0.1)
    trainer: Any = SimpleNamespace(
        student=student,
        student_head=ClassHead(vocabulary),
        recipe=recipe_named("s3a"),
        settings=S3aSettings(),
        compute=CPU,
        ranks=Ranks(),
    )
    found = split_average(average_outputs(trainer, average, images))
    assert torch.allclose(found.outputs["logits"], expected, atol=1e-5)
    assert student.training
    assert student.backbone.training
    sure = expected.softmax(dim=1).amax(dim=1) > 0.5
    assert found.weights_N is not None
    assert found.weights_N.tolist() == (sure / sure.float().mean().clamp(min=1e-9)).tolist()


def test_the_start_is_the_teachers_own_predictions(plan, monkeypatch) -> None:
    """Nothing of it is drawn: no projector, the vocabulary with the teacher's scale."""
    stage = plan()
    built = stage.built.take()
    assert built is not None
    assert built.logit_scale == 20
    assert not list(built.student.projector.parameters())
    assert [view.to_json()["kind"] for view in stage.pairs.anew.values()] == ["strong", "weak"]
    assert stage.pairs.anew[IMAGE] == StrongView(scale=(0.3, 1.0), augment="rand-m9-mstd0.5-inc1", fill=(102, 128, 153))
    assert set(stage.identity["anew"]["image"]) == {"kind", "scale", "augment", "fill", "interpolation", "flip", "timm"}
    assert stage.reuse is None
    assert stage.identity["sources"] == [{"labels": OpenLabels.of(Location.of(str(stage_labels(stage)))).digest}]


def stage_labels(stage: DistillStage) -> Location:
    (found,) = stage.chosen.sources
    assert isinstance(found, ClusterLabels)
    return found.labels.location


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bytes(
    distill_job, centre_store, dropping_clip, vocabulary, labels, tmp_path
) -> None:
    def one(out: str, **changes: Any) -> int:
        job = {
            "shards": str(centre_store.shards.location),
            "store": str(centre_store.location),
            "out": str(tmp_path / out),
            "student": f"local-dir:{dropping_clip}",
            "recipe": "s3a",
            "labels": str(labels),
            "precision": "fp32",
            "checkpoint_every": 2,
            "options": {"epochs": 2, "batch_size": 8, "ema_steps": 7, "ema_start": 0.5, "lr": 1e-3},
            "kill": None,
        }
        return distill_job(job | changes)

    assert one("a") == 0
    assert one("b", kill=("step", 3), decode_workers=1) == -9
    assert one("b") == 0
    names = ("config.json", "model.safetensors", "class_vectors.safetensors", "ledger/distill/receipts/student.json")
    assert [(tmp_path / "b" / name).read_bytes() for name in names] == [
        (tmp_path / "a" / name).read_bytes() for name in names
    ]


# --- what is refused


def message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_labels_of_another_corpus(plan, labels, pictures, make_shards, make_centre_store, vocabulary, tmp_path) -> None:
    shards = make_shards(pictures, tmp_path / "shards", shard_size=13, name="others")
    rows = shards.corpus.num_rows
    embedding = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    others = make_labels(make_centre_store(shards, tmp_path / "s", embedding, vocabulary), tmp_path / "others")
    spec, other = (OpenLabels.of(Location.of(path)).spec for path in (labels, others))
    assert message(MismatchError, lambda: plan(labels=str(others))) == (
        f"the labels are of another corpus: {others}: field 'corpus_id': expected {spec.corpus_id} (this training), found "
        f"{other.corpus_id} (the labels). Next: give the labels that were made from this store"
    )


def test_labels_of_another_vocabulary(plan, picture_shards, make_centre_store, vocabulary, tmp_path) -> None:
    other = replace(vocabulary, names=tuple(reversed(vocabulary.names)))
    rows = picture_shards.corpus.num_rows
    embedding = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    others = make_labels(make_centre_store(picture_shards, tmp_path / "s", embedding, other), tmp_path / "others")
    assert message(MismatchError, lambda: plan(labels=str(others))) == (
        f"the labels are places in another vocabulary: {others}: field 'vocabulary': expected {vocabulary.digest} (this training), found "
        f"{other.digest} (the labels). Next: give the store, or --vectors, that the labels were made with"
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"labels": None},
            "recipe s3a learns the names of clusters: --recipe: expected --labels LABELS, found nothing. Next: teachonce labels STORE "
            "--classes N --out LABELS, then add --labels LABELS",
        ),
        (
            {"recipe": "kd"},
            "recipe kd learns no names of clusters: --labels LABELS: expected `cluster` among its targets, found logits. Next: leave out "
            "--labels, or use --recipe s3a",
        ),
        ({"options": {"ema": 0.0}}, "impossible setting: --ema: expected more than 0, found 0.0"),
        (
            {"options": {"strong_scale": (0.0, 1.0)}},
            "impossible setting: --strong-scale: expected more than 0, found (0.0, 1.0)",
        ),
        (
            {"options": {"ema_start": 0.0}},
            "how the moving average's decay rises needs both of its options: --ema-steps: expected --ema-start, found nothing. "
            "Next: add --ema-start, or leave out --ema-steps",
        ),
        (
            {"options": {"min_lr": 1.0}},
            "impossible setting: --min-lr: expected at most 1e-05, the learning rate, found 1.0",
        ),
        (
            {"options": {"hold_out": 0.1}},
            "s3a has no loss to validate by: its pseudo labels are those of the step: --recipe s3a --hold-out: found 0.1. Next: leave out "
            "--hold-out; --validation IMAGES measures accuracy on images with labels",
        ),
        (
            {"options": {"strong_augment": "rnd-m9"}},
            "not a description of timm's RandAugment: --strong-augment: expected such as rand-m9-mstd0.5-inc1, found rnd-m9",
        ),
    ],
)
def test_options_that_do_not_go(plan, labels, changes, line) -> None:
    assert message(InputError, lambda: plan(**changes)) == line.replace("LABELS:", f"{labels}:")


def test_a_generation_that_is_not_there(plan, labels) -> None:
    assert message(InputError, lambda: plan(labels=f"{labels}@2")) == (
        f"no such generation of labels: {labels}: expected 0, found 2. Next: leave out the number for the last one"
    )
    assert plan(labels=f"{labels}@0").notes[-1] == f"labels of {labels}, generation 0: {names(labels)} names"


def names(labels: Path) -> int:
    return len(OpenLabels.of(Location.of(labels)).about.names)

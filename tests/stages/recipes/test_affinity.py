"""The recipe `affinity`: its loss as plain loops, ten steps as the authors' code has them, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.captions import plan_captions
from teachonce.stages.distill import plan_distill
from teachonce.stages.distilling.stage import DistillStage
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.pairs.caption_store import OpenCaptions
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recipes.affinity import Affinity
from teachonce.stages.recipes.affinity_settings import AffinitySettings
from teachonce.stages.recipes.recipe import LossInputs
from teachonce.stages.settings.captions import CaptionSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.students.bundle import load_student
from teachonce.stages.training.trainer import Trainer
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.errors import IncompleteError, InputError, MismatchError
from teachonce.storage_schemas.target_store import open_root
from torch import Tensor
from torch.nn import functional as F

CPU = Compute(device="cpu", precision="fp32", threads=1)
BATCH, LR, DECAY, SCALE = 8, 1e-4, 0.05, 20.0
TEXTS = ("a red fox", "a jay", "some house cat", "an animal, outdoors", "a drawing of colours")


def captions_of(row: int) -> list[str]:
    """None, one or two, by the row."""
    return [f"{TEXTS[(row + place) % 5]}, {row % 7}" for place in range(row % 3)]


@pytest.fixture(scope="module")
def make_captions(tiny_clip_teacher):
    def make(shards: Any, out: Path, *, teacher: Path = tiny_clip_teacher) -> OpenCaptions:
        manifest = shards.manifest()
        paths = [path for shard in range(manifest.num_shards) for path in manifest.paths_of(shard)]
        rows = [{"path": path, "caption": captions_of(row)} for row, path in enumerate(paths)]
        out.parent.mkdir(parents=True, exist_ok=True)
        table = out.with_suffix(".jsonl")
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = plan_captions(
            shards.location,
            TeacherConfig.of(f"local-dir:{teacher}", None),
            out=str(out),
            settings=CaptionSettings(files=(str(table),), encoding="fp32"),
            compute=CPU,
        )
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        return OpenCaptions.of(stage.out)

    return make


@pytest.fixture(scope="module")
def captions(make_captions, picture_shards, tmp_path_factory) -> OpenCaptions:
    return make_captions(picture_shards, tmp_path_factory.mktemp("captions") / "captions")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def store(make_store, picture_shards, captions, tmp_path_factory) -> Any:
    """Unit embeddings (16) of three views, and class vectors, of the captions' teacher; it could not use row 5."""
    rng = np.random.default_rng(2)
    embedding = rng.normal(size=(picture_shards.corpus.num_rows, 3, 16)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=-1, keepdims=True)
    model, weights = captions.spec.teacher["model"], captions.spec.teacher["weights_digest"]
    out = tmp_path_factory.mktemp("store") / "s.zarr"
    found = make_store(
        picture_shards,
        out,
        widths={"embedding": 16},
        targets={"embedding": embedding},
        also_invalid=(5,),
        description={
            "fingerprint": {
                "corpus_id": picture_shards.corpus.corpus_id,
                "teacher": {"model": model, "weights": weights},
            },
            "teacher": {"model": model, "weights_digest": weights},
        },
    )
    vectors = ClassVectors(
        names=("red fox", "Blue_Jay", "house-cat"),
        vectors_CD=embedding[:3, 0],
        bias_C=None,
        logit_scale=SCALE,
        normalized=True,
    )
    origin = {"teacher": {"model": model, "weights_digest": weights}, "templates": []}
    write_class_vectors(open_root(str(out), mode="a"), vectors, origin)
    return found


@pytest.fixture
def plan(store, captions, tmp_path):
    def make(
        *,
        options: Any = None,
        recipe: str = "affinity",
        given: Any = "its own",
        shards: Any = None,
        at: Any = None,
        **own: Any,
    ) -> DistillStage:
        return plan_distill(
            str((shards or store.shards).location),
            str((at or store).location),
            StudentConfig(model="timm:test_resnet", size=32),
            out=str(tmp_path / "b"),
            recipe=recipe,
            options={"epochs": 2, "batch_size": BATCH, **(options or {})},
            settings=DistillSettings(captions=str(captions.location) if given == "its own" else given, **own),
            compute=CPU,
            show_progress=False,
        )

    return make


def run(stage: DistillStage) -> None:
    run_stage(stage, stage.out, SerialExecutor(), progress=False)


@pytest.fixture
def steps(monkeypatch) -> list[float]:
    """The loss of each step of a training, once it has run."""
    found: list[float] = []
    original = Trainer.step

    def step(trainer: Trainer, *given: Any, **named: Any) -> Tensor:
        loss = original(trainer, *given, **named)
        found.append(float(loss))
        return loss

    monkeypatch.setattr(Trainer, "step", step)
    return found


# --- the loss


def inputs(student_ND: Tensor, teacher_ND: Tensor, caption_NKD: Tensor, count_N: list[int]) -> LossInputs:
    return LossInputs(
        student={"embedding": student_ND},
        teacher={"embedding": teacher_ND, "caption": caption_NKD, "caption_count": torch.tensor(count_N)},
        text_scale=7.0,
    )


def in_loops(found: LossInputs, weight: float) -> float:
    """Sample by sample, in Python's floats, over those that have a caption."""
    count = found.teacher["caption_count"].tolist()
    there = [n for n, number in enumerate(count) if number]
    images, students = (side["embedding"].tolist() for side in (found.teacher, found.student))
    captions = found.teacher["caption"].tolist()
    total = 0.0
    for place in range(len(captions[0])):

        def logits(of: list[list[float]], one: int, other: int, place: int = place) -> float:
            return 7.0 * math.fsum(a * b for a, b in zip(of[one], captions[other][place], strict=True))

        for n in there:
            for direction in range(2):
                pairs = [(n, m) if direction == 0 else (m, n) for m in there]
                ours, theirs = ([logits(of, *pair) for pair in pairs] for of in (students, images))
                p, q = (
                    [math.exp(value - math.log(math.fsum(map(math.exp, row)))) for value in row]
                    for row in (theirs, ours)
                )
                divergence = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
                own = -math.log(q[there.index(n)])
                total += (weight * divergence + (1 - weight) * own) / 2
    return total / len(there) / len(captions[0])


def random_inputs(count_N: list[int], places: int = 3) -> LossInputs:
    torch.manual_seed(1)
    student, teacher = (F.normalize(torch.randn(len(count_N), 5), dim=1) for _ in range(2))
    return inputs(student.requires_grad_(), teacher, F.normalize(torch.randn(len(count_N), places, 5), dim=2), count_N)


@pytest.mark.parametrize("weight", [1.0, 0.75, 0.0])
@pytest.mark.parametrize("count_N", [[3, 1, 2, 3], [0, 2, 0, 3, 1]])
def test_the_loss_is_that_of_plain_loops(weight, count_N) -> None:
    found = random_inputs(count_N)
    loss = Affinity().loss(found, AffinitySettings(affinity_weight=weight))
    assert loss.item() == pytest.approx(in_loops(found, weight), abs=2e-6)


def test_samples_without_a_caption_are_no_part_of_the_batch() -> None:
    whole = random_inputs([0, 2, 0, 3, 1])
    settings = AffinitySettings(affinity_weight=0.5)
    loss = Affinity().loss(whole, settings)
    (gradient,) = torch.autograd.grad(loss, whole.student["embedding"])
    assert gradient[[0, 2]].abs().max() == 0 < gradient[[1, 3, 4]].abs().min()
    there = [1, 3, 4]
    part = inputs(
        whole.student["embedding"][there],
        whole.teacher["embedding"][there],
        whole.teacher["caption"][there],
        [2, 3, 1],
    )
    assert loss.item() == pytest.approx(Affinity().loss(part, settings).item(), abs=1e-6)
    none = random_inputs([0, 0])
    loss = Affinity().loss(none, settings)
    loss.backward()
    assert (loss.item(), none.student["embedding"].grad.abs().max()) == (0, 0)  # type: ignore[union-attr]


def test_a_student_that_is_the_teacher_has_no_loss() -> None:
    found = random_inputs([1, 1, 1])
    same = inputs(found.teacher["embedding"], found.teacher["embedding"], found.teacher["caption"], [1, 1, 1])
    assert Affinity().loss(same, AffinitySettings()).item() == pytest.approx(0, abs=1e-6)


# --- ten steps


def published(start: Any, store: Any, tiny_clip_teacher: Path, weight: float) -> tuple[list[float], torch.nn.Module]:
    """Ten steps of the authors' loop: DRClipLoss of their patch to open_clip, in both slots, with a frozen text side.

    Their loss adds up the slots and has the cross entropy for the divergence; here it is divided by the number of slots and has
    the teacher's entropy taken off, neither of which moves where it is least.
    """
    model = copy.deepcopy(start).train()
    clip = open_clip.create_model(f"local-dir:{tiny_clip_teacher}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip_teacher}")
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=LR
    )
    losses: list[float] = []

    def dist_loss(teacher: Tensor, student: Tensor) -> Tensor:
        chances = teacher.softmax(dim=1)
        entropy = -(chances * teacher.log_softmax(dim=1)).sum(dim=1).mean(dim=0)
        return -(chances * student.log_softmax(dim=1)).sum(dim=1).mean(dim=0) - entropy

    with TargetStream(
        store.shards, store.location, image_size=32, batch_size=BATCH, targets=("embedding",), seed=0
    ) as stream:
        for epoch in range(2):
            for batch in stream.batches(epoch):
                texts = [captions_of(row) for row in batch.rows_N.tolist()]
                there = [n for n, own in enumerate(texts) if own]
                assert 0 < len(there) < BATCH
                pixels = (batch.images_NCHW.float() / 255 - 0.5) / 0.5  # as this model was trained
                features = F.normalize(model.projector(model.backbone(pixels)), dim=-1)[there]
                images = torch.from_numpy(store.targets["embedding"][batch.rows_N.numpy(), epoch])[there]
                loss = torch.zeros(())
                for slot in range(2):
                    with torch.no_grad():
                        ids = tokenizer([texts[n][slot % len(texts[n])] for n in there])
                        words = F.normalize(clip.encode_text(ids), dim=-1)
                    logits, dist_logits = SCALE * features @ words.T, SCALE * images @ words.T
                    labels = torch.arange(len(there))
                    contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
                    distill = (dist_loss(dist_logits, logits) + dist_loss(dist_logits.T, logits.T)) / 2
                    loss = loss + (1 - weight) * contrastive + weight * distill
                loss = loss / 2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("weight", [1.0, 0.75])
def test_ten_steps_are_the_published_ones(plan, store, tiny_clip_teacher, steps, weight) -> None:
    options = {"lr": LR, "schedule": "constant", "warmup_epochs": 0, "weight_decay": DECAY, "affinity_weight": weight}
    stage = plan(options=options)
    start = stage.built.take().student
    losses, model = published(start, store, tiny_clip_teacher, weight)
    run(plan(options=options))
    assert len(steps) == 10
    assert steps == pytest.approx(losses, abs=1e-5)
    state = load_student(stage.out).student.state_dict()
    moved = 0.0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5)
        moved = max(moved, (value - start.state_dict()[name]).abs().max().item())
    assert moved > 1e-4


def test_a_student_knows_the_classes_of_the_store(plan, store) -> None:
    """By the store's class vectors and scale, as students of other recipes that learn embeddings."""
    stage = plan(options={"epochs": 1})
    run(stage)
    student = load_student(stage.out)
    assert student.vectors is not None
    assert student.vectors.names == ("red fox", "Blue_Jay", "house-cat")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    embedding = student.student(images).detach()
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    expected = SCALE * embedding @ torch.from_numpy(store.targets["embedding"][:3, 0]).T
    torch.testing.assert_close(
        torch.from_numpy(student.vectors.logits(embedding.numpy())), expected, rtol=1e-4, atol=1e-4
    )


def test_the_plan_says_what_is_read(plan, captions) -> None:
    stage = plan()
    assert stage.identity["sources"] == [{"captions": captions.fingerprint}]
    assert stage.identity["targets"] == ["embedding", "caption", "caption_count"]
    assert (
        f"captions of {captions.location}: 48 of 32 images, up to 2 of each; 16 images without any, which the loss leaves out"
        in stage.notes
    )


def test_parts_of_a_batch_are_compared_alone_and_it_says_so(plan) -> None:
    assert not any("compares samples" in note for note in plan().notes)
    assert plan(options={"accumulate": 2}).notes[-1] == (
        "recipe affinity compares samples of a batch, and each of 2 parts sees 4 of the 8 alone: this trains another student than "
        "the whole batch would"
    )


# --- what is refused


@pytest.fixture
def job(store, captions) -> Callable[..., dict[str, Any]]:
    """The arguments of a small `distill`; with changes."""

    def make(**changes: Any) -> dict[str, Any]:
        options = {"epochs": 2, "batch_size": 8, "lr": 1e-3, **changes.pop("options", {})}
        return {
            "shards": str(store.shards.location),
            "store": str(store.location),
            "recipe": "affinity",
            "captions": str(captions.location),
            "options": options,
            **changes,
        }

    return make


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bytes(distill_job, job, tiny_clip, tmp_path) -> None:
    def one(out: str, **changes: Any) -> int:
        more = {"student": f"local-dir:{tiny_clip}", "precision": "fp32", "checkpoint_every": 2, "kill": None}
        return int(distill_job(job(out=str(tmp_path / out), **more | changes)))

    assert one("a") == 0
    assert one("b", kill=("step", 3), decode_workers=1) == -9
    assert one("b", kill=("step", 5)) == -9
    assert one("b") == 0
    names = ("config.json", "model.safetensors", "class_vectors.safetensors", "ledger/distill/receipts/student.json")
    assert [(tmp_path / "b" / name).read_bytes() for name in names] == [
        (tmp_path / "a" / name).read_bytes() for name in names
    ]


@pytest.mark.slow
def test_two_ranks_train_what_two_parts_of_each_batch_do(together, job, tiny_clip, monkeypatch, tmp_path) -> None:
    """Affinities are those of a rank's share, and those of a part: not of the whole batch. A rank has a half of a batch, a part every
    other sample: here they come in such an order that these are the same."""
    step, order = Trainer.step, [0, 4, 1, 5, 2, 6, 3, 7]

    def ordered(trainer: Trainer, training: Any, images: Tensor, targets: dict[str, Tensor], **named: Any) -> Tensor:
        in_order = {name: values[order] for name, values in targets.items()}
        return step(trainer, training, images[order], in_order, **named)

    monkeypatch.setattr(Trainer, "step", ordered)
    trained = {}
    for name, parts in (("whole", 1), ("parts", 2)):
        given = job(options={"accumulate": parts, "optimizer": "sgd"}, seed=3)
        stage = plan_distill(
            given.pop("shards"),
            given.pop("store"),
            StudentConfig(model=f"local-dir:{tiny_clip}"),
            out=str(tmp_path / name),
            compute=CPU,
            show_progress=False,
            settings=DistillSettings(captions=given.pop("captions"), seed=given.pop("seed")),
            **given,
        )
        run(stage)
        trained[name] = weights_of(tmp_path / name)
    unit = job(student={"model": f"local-dir:{tiny_clip}"}, options={"optimizer": "sgd"}, seed=3)
    assert together("distill", tmp_path / "ranks", out=str(tmp_path / "two"), unit_options=unit) == [0, 0]
    two = weights_of(tmp_path / "two")
    assert (two - trained["parts"]).norm() <= 1e-5 * two.norm()
    assert (two - trained["whole"]).norm() > 1e-4 * two.norm()


def weights_of(bundle: Path) -> Tensor:
    """All weights and running statistics as one vector."""
    found = load_file(bundle / "model.safetensors")
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


def test_a_recipe_and_its_option_belong_together(plan, captions) -> None:
    with pytest.raises(InputError) as error:
        plan(recipe="features")
    assert str(error.value) == (
        f"recipe features learns no captions: --captions {captions.location}: expected `caption` among its targets, found embedding. "
        "Next: leave out --captions, or use --recipe affinity"
    )
    with pytest.raises(InputError) as error:
        plan(given=None)
    assert str(error.value) == (
        "recipe affinity learns captions: --recipe: expected --captions CAPTIONS, found nothing. "
        "Next: teachonce captions SHARDS --from TABLE --teacher … --out CAPTIONS, then add --captions CAPTIONS"
    )


def test_captions_of_another_corpus_are_refused(plan, make_captions, make_shards, pictures, tmp_path) -> None:
    shards = make_shards(pictures, tmp_path / "shards", name="others")
    other = make_captions(shards, tmp_path / "captions")
    with pytest.raises(MismatchError) as error:
        plan(given=str(other.location))
    assert error.value.fields["code"] == "captions-other-corpus"
    assert error.value.fields["where"] == f"{other.location}: field 'corpus_id'"


def test_captions_of_another_teacher_are_refused(plan, make_captions, store, tiny_clip_teacher, tmp_path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_clip_teacher, tmp_path / "tiny-clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["text_projection"][0, 0] += 1
    save_file(weights, folder / "open_clip_model.safetensors")
    other = make_captions(store.shards, tmp_path / "captions", teacher=folder)
    with pytest.raises(MismatchError) as error:
        plan(given=str(other.location))
    assert error.value.fields["code"] == "captions-other-teacher"
    assert error.value.fields["where"] == f"{other.location}: field 'teacher.weights'"


def test_captions_that_are_none_or_not_finished_are_refused(plan, store, make_captions, tmp_path) -> None:
    with pytest.raises(InputError) as missing:
        plan(given=str(store.location))
    assert missing.value.fields["code"] == "captions-missing"
    captions = make_captions(store.shards, tmp_path / "captions")
    (captions.location.path / "ledger/captions/receipts/000001.json").unlink()
    with pytest.raises(IncompleteError) as error:
        plan(given=str(captions.location))
    assert error.value.fields["hint"] == "run the same `teachonce captions` command again"


def test_a_store_without_embeddings_is_refused(plan, make_store, picture_shards, tmp_path) -> None:
    other = make_store(picture_shards, tmp_path / "s.zarr", widths={"logits": 3})
    with pytest.raises(InputError) as error:
        plan(at=other)
    assert error.value.fields["code"] == "target-not-in-store"

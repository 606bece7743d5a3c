"""The recipe `vl2v`: ten steps of each stage as the published method, written out in plain torch; and what it refuses."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import zarr
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.distill import plan_distill
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.pairs.training_rows import RowRule
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.students.bundle import load_student
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.target_store import open_root

CPU = Compute(device="cpu", precision="fp32", threads=1)
#: Small, since Adam takes full steps of the rounding where a gradient is next to nothing.
STEPS, EACH, LR = 10, 2, 1e-4


@pytest.fixture
def plan(domain_store, student_weights, tmp_path):
    return plan_in(tmp_path, domain_store, student_weights)


def plan_in(folder, domain_store, student_weights, recipe="vl2v"):
    def make(out="b", *, options=None, shards=None, store=None, pretrained=student_weights, **own):
        options = {"steps_per_epoch": 1, "per_domain": EACH, "epochs": STEPS, "lr": LR, **(options or {})}
        return plan_distill(
            str(shards or domain_store.shards.location),
            str(store or domain_store.location),
            StudentConfig(model="timm:test_resnet", size=32, pretrained=pretrained and str(pretrained)),
            out=str(folder / out),
            recipe=recipe,
            options=options,
            settings=DistillSettings(**own),
            compute=CPU,
            show_progress=False,
        )

    return make


@pytest.fixture(scope="module")
def student_weights(tmp_path_factory):
    """A weights file whose batch norms have seen images, so that frozen averages say something."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = timm.create_model("test_resnet", pretrained=False)
    for name, value in model.state_dict().items():
        if "running_mean" in name:
            value.normal_(0, 0.3)
        elif "running_var" in name:
            value.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(model.state_dict(), path)
    return path


def run(stage):
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return [json.loads(line)["loss"] for line in (stage.out / "run/log.jsonl").read_bytes().splitlines()]


def published(student, known, stage, *, lr, weight):
    """Ten steps of the authors' training loop on one batch after another; the losses, and the trained modules.

    Images and embeddings are read by row number; labels are the folders' names.
    """
    backbone, projection = copy.deepcopy(student.backbone), copy.deepcopy(student.projector)
    manifest = known.shards.manifest()
    labels = [e.label for shard in range(manifest.num_shards) for e in manifest.shard(shard)]
    classes = ["blue jay", "house cat", "red fox"]
    text = torch.from_numpy(class_vectors(known))
    for module in (backbone, projection):
        module.requires_grad_(module is (projection if stage == 1 else backbone))
    backbone.eval()  # the batch norms; there is no dropout
    optimizer = torch.optim.Adam((projection if stage == 1 else backbone).parameters(), lr=lr)
    losses = []
    rule = RowRule(per_domain=EACH, steps=1)
    with TargetStream(known.shards, known.location, image_size=32, batch_size=1, rows=rule) as stream:
        for step in range(STEPS):
            (batch,) = stream.batches(step)
            rows = batch.rows_N.tolist()
            image = torch.from_numpy(known.targets["embedding"][rows, step % 3])
            label = [classes.index(labels[row].lower().replace("_", " ").replace("-", " ")) for row in rows]
            pixels = (batch.images_NCHW.float() / 255 - 0.5) / 0.5  # as this model was trained
            projected = projection(backbone(pixels))
            projected = projected / projected.norm(dim=1, keepdim=True)
            loss = torch.zeros(())
            for row in range(len(rows)):
                loss = loss - weight * projected[row] @ image[row] - (1 - weight) * projected[row] @ text[label[row]]
            loss = loss / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, backbone, projection


def class_vectors(known) -> np.ndarray:
    return np.asarray(zarr.open(known.location.path, mode="r")["class_vectors"])


LAST = {"hold_out": 0.0, "select": "best"}  # the last weights are those that count


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory, domain_store, student_weights):
    """The bundle of a stage 1."""
    stage = plan_in(tmp_path_factory.mktemp("one"), domain_store, student_weights)(options={**LAST, "epochs": 3})
    run(stage)
    return stage.out


@pytest.mark.parametrize(("number", "weight"), [(1, 0.5), (2, 0.5), (2, 0.8)])
def test_ten_steps_are_the_published_ones(plan, domain_store, stage_one, student_weights, number, weight):
    given = {
        "options": {"stage": number, "image_weight": weight, **LAST},
        "pretrained": student_weights if number == 1 else stage_one,
    }
    stage, start = plan(**given), plan(**given, out="c").built.take().student
    losses, backbone, projection = published(start, domain_store, number, lr=LR, weight=weight)
    assert run(stage) == pytest.approx(losses, abs=1e-5)
    found = load_student(stage.out).student
    for ours, plain, before in (
        (found.backbone, backbone, start.backbone),
        (found.projector, projection, start.projector),
    ):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
        moved = any(not torch.equal(value, before.state_dict()[name]) for name, value in plain.state_dict().items())
        assert moved == (plain is (projection if number == 1 else backbone))


def test_stage_two_goes_on_from_the_student_of_stage_one(plan, stage_one):
    start = plan(options={"stage": 2, **LAST}, pretrained=stage_one).built.take().student
    first = load_student(stage_one).student.state_dict()
    assert all(torch.equal(value, first[name]) for name, value in start.state_dict().items())
    assert {name.partition(".")[0] for name in start.trained()} == {"backbone"}


def test_stage_two_needs_stage_one(plan, stage_one, domain_store, student_weights, tmp_path):
    other = plan_in(tmp_path, domain_store, student_weights, recipe="kd")(out="kd", options={**LAST, "epochs": 1})
    run(other)
    for pretrained, found in ((student_weights, "another start"), (other.out, "a student of recipe kd")):
        with pytest.raises(InputError) as error:
            plan(options={"stage": 2}, pretrained=pretrained)
        assert str(error.value) == (
            "stage 2 starts from the student of stage 1: --stage 2: "
            f"expected --student-pretrained BUNDLE, of --recipe vl2v --stage 1 with this teacher, found {found}. "
            "Next: teachonce distill SHARDS STORE --recipe vl2v --stage 1 … --out BUNDLE"
        )


def test_a_domain_that_stage_one_has_seen_is_not_left_out(plan, stage_one):
    with pytest.raises(InputError) as error:
        plan(options={"stage": 2}, pretrained=stage_one, leave_out=("art",))
    assert str(error.value) == (
        "the student to start from has learned from a domain that is left out: --student-pretrained: "
        "expected --leave-out art, found no domain left out. Next: start from a student that was trained without it"
    )


def test_a_student_tells_classes_by_cosine_times_the_teachers_scale(plan, domain_store):
    stage = plan(options={"hold_out": 0.0, "select": "best", "epochs": 1})
    run(stage)
    student = load_student(stage.out)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    embedding = student.student(images).detach()
    expected = 20.0 * torch.nn.functional.cosine_similarity(
        embedding[:, None], torch.from_numpy(class_vectors(domain_store))[None], dim=2
    )
    torch.testing.assert_close(
        torch.from_numpy(student.vectors.logits(embedding.numpy())), expected, rtol=1e-4, atol=1e-4
    )


def test_as_published(plan):
    """The defaults, but for the length of the test's own epochs."""
    settings = plan().settings
    published = {"optimizer": "adam", "lr": 5e-5, "weight_decay": 0.0, "schedule": "constant", "per_domain": 32}
    swad = {
        "select": "swad",
        "swad_converge": 3,
        "swad_tolerance": 6,
        "swad_ratio": 0.3,
        "hold_out": 0.2,
        "batch_norm": "frozen",
    }
    defaults = type(settings)()
    assert {name: getattr(defaults, name) for name in published | swad} == published | swad
    assert defaults.epochs * defaults.steps_per_epoch == 5000
    assert settings.batch_size == EACH * 3


def test_a_domain_without_a_class_is_refused(plan, make_shards, domain_pictures, tmp_path, make_taught_store):
    import shutil

    shutil.copytree(domain_pictures, tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures" / "art" / "red fox")
    shards = make_shards(tmp_path / "pictures", tmp_path / "shards", shard_size=6)
    store = make_taught_store(shards, tmp_path / "s.zarr")
    with pytest.raises(InputError) as error:
        plan(shards=shards.location, store=store.location)
    assert str(error.value) == (
        f"a domain has no image of a class that other domains have: {shards.location}, domain art: "
        "expected images of 3 classes, found none of 'red fox'. "
        "Next: add images of it, or train without this domain: --leave-out art"
    )


def test_a_corpus_without_labels_is_refused(plan, taught_store):
    with pytest.raises(InputError) as error:
        plan(shards=taught_store.shards.location, store=taught_store.location)
    assert str(error.value) == (
        f"no label of this corpus is the name of a class: {taught_store.shards.location}: expected names like 'a', "
        "found 'Blue_Jay', 'house-cat', 'red fox'. "
        "Next: shard folders that are named as the classes are, or choose a recipe that needs no labels"
    )


def test_a_corpus_without_domains_is_refused(plan, picture_shards, make_taught_store, tmp_path):
    store = make_taught_store(picture_shards, tmp_path / "s.zarr")
    with pytest.raises(InputError) as error:
        plan(shards=picture_shards.location, store=store.location)
    assert str(error.value) == (
        f"this corpus has no domains: {picture_shards.location}: expected images at DOMAIN/CLASS/IMAGE, of 2 domains or more, "
        "found Blue_Jay/01.jpg. Next: shard the folder that the domains' folders lie in"
    )


def test_a_teacher_without_text_is_refused(plan, domain_store, make_store, tmp_path):
    vectors = ClassVectors(
        names=("blue jay", "house cat", "red fox"),
        vectors_CD=np.ones((3, 6), np.float32),
        bias_C=None,
        logit_scale=1.0,
        normalized=False,
    )
    description = {"teacher": {"model": "T", "weights_digest": "0123"}}
    store = make_store(domain_store.shards, tmp_path / "s.zarr", widths={"embedding": 6}, description=description)
    origin = {"teacher": {"model": "T", "weights_digest": "0123"}, "templates": []}
    write_class_vectors(open_root(store.location.path, mode="a"), vectors, origin)
    with pytest.raises(InputError) as error:
        plan(store=store.location)
    assert str(error.value) == (
        "recipe vl2v needs a teacher of images and text, whose class vectors are compared by cosine: class vectors: "
        "expected those of a CLIP model, found the rows of a classifier. Next: choose an open_clip teacher, or --recipe kd"
    )


def test_a_store_without_embeddings_is_refused(plan, domain_store, make_store, tmp_path):
    store = make_store(domain_store.shards, tmp_path / "s.zarr", widths={"logits": 3})
    with pytest.raises(InputError) as error:
        plan(store=store.location)
    assert str(error.value) == (
        "the store holds no embeddings: --recipe vl2v: expected embedding, found logits. "
        "Next: teachonce cache SHARDS --targets embedding --teacher … --out ANOTHER_STORE"
    )


def test_images_to_validate_on_take_the_place_of_what_is_held_out(plan, domain_pictures, domain_store):
    stage = plan(validation=str(domain_pictures / "photo"))
    assert stage.settings.hold_out == 0
    assert stage.pairs.rows is not None
    assert stage.pairs.rows.num_samples == int(domain_store.valid.sum())
    assert stage.settings.select == "swad"

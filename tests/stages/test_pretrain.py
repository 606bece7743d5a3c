"""`pretrain`: what it writes, killed and resumed, as a teacher, and what it refuses; class vectors that are checked."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import zarr
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline import stopping
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.measures.labelled import LabelledImages
from teachonce.stages.models import picture_pool
from teachonce.stages.models.compute import Compute
from teachonce.stages.pretrain import draw_shots, plan_pretrain
from teachonce.stages.pretraining.averaging import gaussian_weights
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.pretraining.tuner import Tuner
from teachonce.stages.samples.images import IMAGES
from teachonce.stages.samples.kind import draw_views
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.status import folder_status, status_text
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.teachers.class_check import check_spread, measure_models
from teachonce.stages.teachers.open_clip import OpenClipTeacher
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.settings import RandomViews
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.class_vectors import ClassVectors, read_class_vectors
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError, Stopped

CPU = Compute(device="cpu", precision="fp32", threads=1)
NAMES = ("cat", "dog_house", "eagle", "fox")


#: Names of the settings that say which images are learned on.
FEW = {"classes", "base_classes", "shots", "seed"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Five pictures of each class, in class folders."""
    folder = tmp_path_factory.mktemp("labelled") / "images"
    for index, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 36), (60 * index, 40 * i, 120)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def plan(images, tiny_clip_teacher, tmp_path):
    def make(out="p", **changes):
        options = {"epochs": 4, "batch_size": 4, "lr": 0.05, **changes.pop("options", {})}
        few = {"base_classes": "cat,eagle", "shots": 4} | {k: changes.pop(k) for k in FEW & set(changes)}
        arguments = {"compute": CPU, "show_progress": False, **changes}
        config = arguments.pop("config", TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"))
        return plan_pretrain(
            arguments.pop("images", str(images)),
            config,
            out=str(tmp_path / out),
            few=FewShotSettings(**few),  # type: ignore[arg-type]
            settings=PretrainSettings(**options),
            **arguments,
        )

    return make


@pytest.mark.parametrize("order", ["hash", "source"])
def test_shards_give_the_shots_of_their_folder(order, images, tmp_path):
    stage = plan_shard([str(images)], out=str(tmp_path / "shards"), settings=ShardSettings(shard_size=6, order=order))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    teacher = SimpleNamespace(preprocess=SimpleNamespace(size=16))
    base_C = np.array([True, False, True, True])

    def drawn(source) -> list[tuple[str, int]]:
        shots = draw_shots(str(source), NAMES, base_C, 3, 7, teacher, ViewSpec(kind="random_resized_crop"))  # type: ignore[arg-type]
        return [(picture.path, class_id) for picture, class_id in shots.pictures]

    assert drawn(tmp_path / "shards") == drawn(images)
    assert len(drawn(images)) == 9


def run(stage):
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return stage


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not {"run", "timings"} & set(p.parts)
    }


def test_what_it_writes(plan, tmp_path):
    stage = run(plan())
    stage.discard_checkpoint()
    config = json.loads((tmp_path / "p/config.json").read_bytes())
    assert (config["kind"], config["context"], config["class_names"]) == (
        "prompts",
        "a photo of a",
        list(NAMES),
    )
    assert config["base_classes"] == ["cat", "eagle"]
    assert config["shape"] == {"vision_length": 4, "vision_depth": 2, "text_length": 4, "text_depth": 1}
    prompts = safetensors.torch.load_file(tmp_path / "p/prompts.safetensors")
    assert {name: tuple(value.shape) for name, value in prompts.items()} == {
        "vision_prompts_LPD": (2, 4, 32),
        "text_prompts_LPD": (1, 4, 16),
    }
    assert (tmp_path / "p/prompts.safetensors").stat().st_size < 10_000
    log = [json.loads(line) for line in (tmp_path / "p/run/log.jsonl").read_bytes().splitlines()]
    assert [line["step"] for line in log] == [2, 4, 6, 8]
    assert log[0].keys() >= {
        "loss",
        "cross_entropy",
        "text_distance",
        "image_distance",
        "logits_divergence",
        "lr",
    }
    assert log[-1]["loss"] == pytest.approx(
        sum(log[-1][term] for term in ("cross_entropy", "text_distance", "image_distance", "logits_divergence")),
        rel=1e-4,
    )
    assert (stage.out / "run").names() == ["log.jsonl", "tensorboard"]
    assert stage.notes[0].startswith("teacher local-dir:tiny-clip: weights those of local-dir:tiny-clip, digest ")
    assert stage.notes[1] == "8 images of 2 of 4 classes, 2 steps of 4 an epoch, 4 epochs"
    facts = folder_status(str(tmp_path / "p"))
    assert (facts["kind"], facts["state"]) == ("prompts", "complete")
    assert "step 8, epoch 4, loss" in status_text(facts)
    assert status_text(facts).endswith(f"Next: teachonce vectors --teacher teachonce:{stage.out} --out STORE")


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "schedule": "cosine", "clip_norm": 1.0}])
def test_killed_again_and_again(plan, tmp_path, monkeypatch, options):
    """Interrupted in each epoch in turn, inside and at its end: the same bytes as an undisturbed run's."""
    run(plan("whole", options=options))
    original = Tuner.step
    for at in (1, 2, 3, 5, 7):
        calls = []  # type: ignore[var-annotated]

        def step(self, *given, _at=at, _calls=calls, **named):
            _calls.append(1)
            if len(_calls) == 2 or _at == 7:
                raise KeyboardInterrupt
            return original(self, *given, **named)

        monkeypatch.setattr(Tuner, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(plan(options=options, checkpoint_every=1))
    monkeypatch.setattr(Tuner, "step", original)
    run(plan(options=options, checkpoint_every=1))
    assert files(tmp_path / "p") == files(tmp_path / "whole")


def test_a_signal_lets_the_step_end_and_the_next_run_goes_on_behind_it(plan, tmp_path, monkeypatch):
    run(plan("whole"))
    original, calls = Tuner.step, []  # type: ignore[var-annotated]

    def step(self, *given, **named):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given, **named)

    monkeypatch.setattr(Tuner, "step", step)
    stopping.arm(600)
    try:
        with pytest.raises(Stopped, match="found 3 of 8 steps done"):
            run(plan())
    finally:
        stopping.disarm()
    assert not list((tmp_path / "p" / "ledger" / "pretrain" / "failures").iterdir())
    run(plan())
    assert len(calls) == 8
    assert files(tmp_path / "p") == files(tmp_path / "whole")


def test_where_shots_are_decoded_decides_nothing(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_pool, "FEW", 1)
    run(plan("here"))
    run(plan("there", compute=replace(CPU, decode_workers=2)))
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_only_prompts_learn_and_chunks_hardly_matter(plan, tmp_path, tiny_clip_teacher):
    before = (tiny_clip_teacher / "open_clip_model.safetensors").read_bytes()
    found = {}
    for chunk in (0, 1):
        run(plan(f"c{chunk}", options={"class_chunk": chunk}))
        found[chunk] = safetensors.torch.load_file(tmp_path / f"c{chunk}/prompts.safetensors")
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-4)
    assert (tiny_clip_teacher / "open_clip_model.safetensors").read_bytes() == before


def test_bf16_tunes_too(plan):
    run(plan(compute=Compute(device="cpu", precision="bf16", threads=1)))


def test_it_learns_and_is_held(plan, tmp_path):
    """Two classes of flat colours: the cross-entropy falls, less so where the frozen features hold it."""
    last = {}
    for name, held in (("free", 0.0), ("held", 1.0)):
        weights = {"text_weight": 25 * held, "image_weight": 10 * held, "logits_weight": held}
        run(
            plan(
                name,
                options={"epochs": 40, "optimizer": "adamw", "lr": 0.01, "schedule": "constant", **weights},
            )
        )
        log = [json.loads(line) for line in (tmp_path / name / "run/log.jsonl").read_bytes().splitlines()]
        last[name] = (log[0]["cross_entropy"], log[-1]["cross_entropy"])
    assert last["free"][1] < last["free"][0] - 0.1
    assert last["free"][1] < last["held"][1] - 0.1


def test_averaging_weights_are_normalised_gaussians():
    weights = gaussian_weights(20, 15, 1)
    expected = np.exp(-((np.arange(20) - 14) ** 2) / 2)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-12)
    assert sum(gaussian_weights(5, 900, 0.01)) == pytest.approx(1)  # far outside, and still no division by 0


@pytest.fixture
def tuned(plan, tmp_path):
    run(plan())
    return tmp_path / "p"


def test_a_tuned_teacher_brings_its_classes_and_marks(tuned, tmp_path):
    stage = plan_vectors(
        TeacherConfig.of(f"teachonce:{tuned}"),
        out=str(tmp_path / "s"),
        compute=CPU,
    )
    run_stage(stage, stage.store, SerialExecutor(), progress=False)
    vectors = read_class_vectors(zarr.open_group(str(tmp_path / "s"), mode="r"), where="s")
    assert vectors.names == NAMES
    assert vectors.base_names == ("cat", "eagle")
    assert vectors.logit_scale == pytest.approx(20)
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors_CD, axis=1), 1, rtol=1e-6)
    teacher = load_teacher(TeacherConfig.of(f"teachonce:{tuned}"))
    assert teacher.spec.model == "teachonce:p"
    plain = teacher.plain(NAMES)[0][1]
    assert not np.allclose(plain.vectors_CD, vectors.vectors_CD, atol=1e-3)  # computed with the prompts, not before
    other = teacher.class_vectors(("cat", "new"), ())
    np.testing.assert_allclose(other.vectors_CD[0], vectors.vectors_CD[0], atol=1e-6)


def test_another_backbone_is_refused_and_a_moved_one_can_be_named(tuned, tiny_clip, tiny_clip_teacher, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_clip_teacher, moved)
    spec = load_teacher(TeacherConfig.of(f"teachonce:{tuned}")).spec
    assert load_teacher(TeacherConfig.of(f"teachonce:{tuned}", backbone=f"local-dir:{moved}")).spec == spec
    weights = safetensors.torch.load_file(moved / "open_clip_model.safetensors")
    weights["visual.proj"][0, 0] += 1
    safetensors.torch.save_file(weights, moved / "open_clip_model.safetensors")
    config = TeacherConfig.of(f"teachonce:{tuned}", backbone=f"local-dir:{moved}")
    load_teacher.cache_clear()
    with pytest.raises(MismatchError) as error:
        load_teacher(config)
    recorded = json.loads((tuned / "config.json").read_bytes())["backbone"]["weights"]
    assert str(error.value).startswith(
        f"these prompts were learned for another backbone: teachonce:p: expected local-dir:{tiny_clip_teacher} with "
        f"weights {recorded} (the prompts), found local-dir:{moved} with weights "
    )
    assert str(error.value).endswith("Next: name it with --teacher-backbone MODEL and --teacher-pretrained WEIGHTS")
    with pytest.raises(MismatchError, match=f"found local-dir:{tiny_clip} with architecture"):
        load_teacher(TeacherConfig.of(f"teachonce:{tuned}", backbone=f"local-dir:{tiny_clip}"))
    with pytest.raises(InputError) as error:  # type: ignore[assignment]
        TeacherConfig.of("ViT-B-16", "openai", backbone="ViT-L-14")
    assert error.value.fields == {
        "code": "option-needs-another",
        "where": "--teacher-backbone",
        "expected": "--teacher teachonce:FOLDER",
        "found": "--teacher ViT-B-16",
        "hint": "leave it out",
    }


def test_damaged_and_unfinished_prompts_are_refused(tuned, tmp_path):
    (tuned / "prompts.safetensors").write_bytes(b"x")
    with pytest.raises(DamagedError, match="prompts.safetensors is not the file that its config.json was written with"):
        load_teacher(TeacherConfig.of(f"teachonce:{tuned}"))
    (tuned / "config.json").unlink()
    with pytest.raises(Exception, match="the prompts are not finished"):
        load_teacher(TeacherConfig.of(f"teachonce:{tuned}"))
    with pytest.raises(InputError, match="no prompts here: .*nothing: .* Next: teachonce pretrain IMAGES"):
        load_teacher(TeacherConfig.of(f"teachonce:{tmp_path}/nothing"))


def refused(make, *given, **named):
    with pytest.raises(InputError) as error:
        make(*given, **named)
    return str(error.value)


def test_what_is_refused(plan, images, tmp_path):
    assert refused(plan, shots=6) == "a class has too few images: 'cat': expected 6 or more, found 5. Next: --shots 5"
    (tmp_path / "few.txt").write_text("cat\neagle\nfox\n")
    assert refused(plan, classes=str(tmp_path / "few.txt"), base_classes=None) == (
        f"a label of the images is not in the class list: {images}: 'dog_house': found no such class. "
        "Next: add it to --classes, or take its images out"
    )
    (tmp_path / "more.txt").write_text("cat\ndog_house\neagle\nfox\nzebra\n")
    assert refused(plan, classes=str(tmp_path / "more.txt"), base_classes=None) == (
        "a class has too few images: 'zebra': expected 4 or more, found 0. "
        "Next: add images, or take it out of --base-classes"
    )
    (tmp_path / "twice.txt").write_text("cat\ndog_house\neagle\nfox\ncat\n")
    assert refused(plan, classes=str(tmp_path / "twice.txt")) == (
        f"a class name stands twice: {tmp_path}/twice.txt, entry 5: cat"
    )
    assert refused(plan, options={"batch_size": 9}) == (
        "a batch is larger than all shots together: --batch-size: expected at most 8, found 9"
    )
    for options, text in (
        ({"lr": 0.0}, "impossible setting: --lr: expected more than 0, found 0.0"),
        ({"context": " "}, "impossible setting: --context: expected some words, found ' '"),
        ({"warmup_epochs": 5}, "impossible setting: --warmup-epochs: expected at most 4, the epochs, found 5"),
        (
            {"vision_length": 0, "text_length": 0},
            "impossible setting: --vision-length: expected prompts in one tower at least, found none in either",
        ),
    ):
        assert refused(plan, options=options) == text
    assert refused(plan, config=TeacherConfig(model="timm:test_vit", pretrained="random")) == (
        "only an open_clip model can be given prompts: --teacher timm:test_vit: expected ViT-L-14, hf-hub:… or "
        "local-dir:…, found timm:test_vit. Next: name the model without prompts"
    )
    assert list(tmp_path.glob("p*")) == []  # nothing was written


def test_a_shot_that_cannot_be_used_is_named(plan, images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    for i in range(5):
        (tmp_path / f"copy/eagle/{i}.png").write_bytes(b"no image")
    text = refused(plan, images=str(tmp_path / "copy"))
    assert text.startswith("one of the shots cannot be used: eagle/")
    assert text.endswith("found not an image that Pillow reads. Next: take it out of the images, or use another --seed")


def test_other_settings_are_another_run(plan):
    run(plan())
    for changes, field in (
        ({"options": {"lr": 0.1}}, "settings.lr"),
        ({"seed": 2}, "shots.digest"),
        ({"shots": 5}, "shots.digest"),
        ({"base_classes": "@half"}, "base_classes"),
        ({"views": RandomViews(flip=0.0)}, "views.flip"),
    ):
        with pytest.raises(MismatchError, match=f"field '{field}'"):
            run(plan(**changes))


def test_the_commands(images, tiny_clip_teacher, tmp_path):
    """pretrain, vectors with a check, and the refusal of templates, as typed."""

    def invoke(*words):
        return CliRunner().invoke(main, [str(word) for word in words])

    teacher = ("--teacher", f"local-dir:{tiny_clip_teacher}")
    done = invoke(
        "pretrain",
        images,
        *teacher,
        "--base-classes",
        "@half",
        "--shots",
        3,
        "--epochs",
        2,
        "--batch-size",
        3,
        "--lr",
        0.01,
        "--view-scale",
        "0.5,1",
        "--out",
        tmp_path / "p",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["units"] == 1
    prompted = ("--teacher", f"teachonce:{tmp_path}/p")
    refused = invoke("vectors", *prompted, "--templates", "openai-imagenet", "--out", tmp_path / "s")
    assert refused.exit_code == 1
    assert refused.stderr == (
        "Error: this teacher has learned its prompts: --templates: found openai-imagenet [templates-fixed]. Next: leave out --templates\n"
    )
    assert not (tmp_path / "s").exists()
    guess = invoke("vectors", *prompted, "--check", images, "--out", tmp_path / "s")
    assert guess.exit_code == 1  # random weights know nothing of the classes
    assert "the class vectors have collapsed: their accuracy is too low to be true" in guess.stderr
    assert f"on 20 images of {images} (chance 25.0%" in guess.stderr
    assert invoke("vectors", *prompted, "--out", tmp_path / "s").exit_code == 0


def test_a_check_counts_every_model_on_every_usable_image(images, tiny_clip_teacher, tmp_path, monkeypatch):
    """With the models' own function on one image at a time, wherever they are decoded."""
    monkeypatch.setattr(picture_pool, "FEW", 1)
    shutil.copytree(images, tmp_path / "i")
    (tmp_path / "i" / "cat" / "0.png").write_bytes(b"no image")
    teacher = OpenClipTeacher.load(TeacherConfig(model=f"local-dir:{tiny_clip_teacher}"))
    rng = np.random.default_rng(3)
    models = []
    for _ in range(2):
        vectors_CD = rng.normal(size=(4, teacher.spec.embed_dim)).astype(np.float32)
        models.append(
            (teacher, ClassVectors(names=NAMES, vectors_CD=vectors_CD, bias_C=None, logit_scale=1.0, normalized=True))
        )
    labelled = LabelledImages.open(str(tmp_path / "i"), NAMES, what="check")
    size, view = teacher.spec.preprocess.size, teacher.spec.preprocess.center_view()
    correct = [0, 0]
    for index, name in enumerate(NAMES):
        for i in range(index == 0, 5):
            image = Image.open(images / name / f"{i}.png").convert("RGB")
            array = draw_views(IMAGES, image, IMAGES.params(image, "", view), size, view)
            with CPU.inference():
                embedding_1D = teacher.embed(torch.from_numpy(array)).numpy()
            for place, (_, vectors) in enumerate(models):
                correct[place] += int((embedding_1D @ vectors.vectors_CD.T).argmax() == index)
    for workers in (0, 2):
        rates = measure_models(labelled, models, replace(CPU, decode_workers=workers))
        assert [(rate.correct, rate.total) for rate in rates] == [(correct[0], 19), (correct[1], 19)]


def test_vectors_that_have_collapsed_are_refused():
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(6, 8)).astype(np.float32)
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)

    def vectors(values_CD):
        unit_CD = values_CD / np.linalg.norm(values_CD, axis=1, keepdims=True)
        names = tuple(f"c{i}" for i in range(len(unit_CD)))
        return ClassVectors(names=names, vectors_CD=unit_CD, bias_C=None, logit_scale=1.0, normalized=True)

    check_spread(vectors(apart), where="T")
    alike = apart.copy()
    alike[1] = alike[0]  # two names may mean the same
    check_spread(vectors(alike), where="T")
    with pytest.raises(DamagedError) as error:
        check_spread(vectors(apart[:1] + 0.02 * apart), where="T")
    assert str(error.value).startswith(
        "the class vectors have collapsed: they hardly differ: T: expected a spread (1 - |mean|²) of 0.001 or more, and "
        "few classes alike, found "
    )
    assert ", and 0 of 6 classes the same as their neighbour. Next: " in str(error.value)
    with pytest.raises(DamagedError) as error:
        check_spread(vectors(apart[[0, 0, 0, 1, 1, 1]]), where="T")
    assert error.value.code == "vectors-collapsed"
    assert str(error.value.found).endswith("4 of 6 classes the same as their neighbour")
    with pytest.raises(DamagedError) as damage:
        check_spread(vectors(np.full((2, 3), np.nan, np.float32)), where="T")
    assert damage.value.code == "vectors-not-finite"
    assert str(damage.value.where).startswith("T")

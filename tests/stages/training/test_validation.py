"""The best epoch on a validation split: measured as `evaluate` measures, kept, stopped early, and resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.distill import plan_distill
from teachonce.stages.evaluate import evaluate
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.status import folder_status
from teachonce.stages.students.bundle import load_student
from teachonce.stages.training.trainer import Trainer
from teachonce.stages.training.validation import Measured, Validation
from teachonce.storage_schemas.errors import InputError, MismatchError, UnitsFailed

CPU = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Flat pictures in folders named after four of the classes, and one folder that is no class."""
    folder = tmp_path_factory.mktemp("labelled")
    for index, name in enumerate(["a", "b", "c", "e", "nothing"]):
        (folder / name).mkdir()
        for i in range(3):
            Image.new("RGB", (40, 36), (60 * index, 80 * i, 120)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def plan(taught_store, tmp_path, labelled):
    def make(out="b", **changes):
        options = {"epochs": 4, "batch_size": 8, **changes.pop("options", {})}
        arguments = {
            "compute": CPU,
            "show_progress": False,
            "recipe": "kd",
            "validation": str(labelled),
            **changes,
        }
        store = arguments.pop("store", str(taught_store.location))
        own = {name: arguments.pop(name) for name in DistillSettings.__dataclass_fields__ if name in arguments}
        return plan_distill(
            str(taught_store.shards.location),
            store,
            StudentConfig(model="timm:test_resnet", size=32),
            out=str(tmp_path / out),
            options=options,
            settings=DistillSettings(**own),
            **arguments,
        )

    return make


def run(stage):
    run_stage(stage, stage.out, SerialExecutor(), progress=False)


def log(stage):
    return [json.loads(line) for line in (stage.out / "run/log.jsonl").read_bytes().splitlines()]


@pytest.fixture
def scripted(monkeypatch):
    """Accuracies that come out in turn, whatever the student."""

    def use(*accuracies):
        left = list(accuracies)
        monkeypatch.setattr(Validation, "measure", lambda *given: Measured(left.pop(0), 1.0))
        return left

    return use


@pytest.mark.parametrize("decode_workers", [0, 1])
def test_accuracies_are_those_of_evaluate(plan, labelled, decode_workers):
    stage = plan(compute=replace(CPU, decode_workers=decode_workers))
    run(stage)
    accuracies = [line["validation_accuracy"] for line in log(stage) if "validation_accuracy" in line]
    assert len(accuracies) == 4
    assert log(stage)[-1].keys() >= {"loss", "samples_per_second", "wait_share", "validation_accuracy"}
    (told,) = folder_status(str(stage.out))["stages"]
    assert told["rows_per_second"] > 0
    origin = json.loads((stage.out / "config.json").read_bytes())["origin"]
    best = max(range(4), key=lambda epoch: (accuracies[epoch], -epoch))
    assert origin["validation"] == {
        "images": str(labelled),
        "epoch": best,
        "step": 5 * (best + 1),
        "accuracy": pytest.approx(accuracies[best], abs=1e-5),
    }
    measured = evaluate(str(stage.out), str(labelled), compute=CPU)
    assert measured.accuracy.top1.rate == pytest.approx(accuracies[best], abs=1e-5)


def test_the_best_weights_are_kept(plan, scripted, tmp_path):
    """The same run without validation, stopped where the best epoch was, ends with the same weights."""
    scripted(0.1, 0.6, 0.6, 0.2)
    stage = plan()
    run(stage)
    seen = {}

    class Stop(Exception):
        pass

    original = Trainer.step

    def step(self, *given, step, **named):
        if step == 10:
            seen.update({n: v.clone() for n, v in self.student.state_dict().items()})
            raise Stop
        return original(self, *given, step=step, **named)

    other = plan("other", validation=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Exception, match="Stop"):
            run(other)
    kept = load_student(stage.out).student.state_dict()
    assert kept.keys() == seen.keys()
    assert all(torch.equal(kept[name], seen[name]) for name in kept)


def test_training_stops_early(plan, scripted):
    left = scripted(0.1, 0.5, 0.5, 0.4, 0.9, 0.9)
    stage = plan(options={"epochs": 6, "patience": 2})
    run(stage)
    assert len(left) == 2  # of six epochs, four were trained
    origin = json.loads((stage.out / "config.json").read_bytes())["origin"]
    assert (origin["steps"], origin["validation"]["epoch"]) == (20, 1)
    stage.discard_checkpoint()
    assert (stage.out / "run").names() == ["log.jsonl", "tensorboard"]


def test_a_killed_run_keeps_its_best(plan, scripted, tmp_path, monkeypatch):
    """Interrupted in each epoch in turn, with a moving average: the same bundle as undisturbed."""
    options = {"ema": 0.7, "patience": 3}
    accuracies = (0.3, 0.5, 0.1, 0.2)
    scripted(*accuracies)
    run(plan("whole", options=options))
    original = Trainer.step
    left = scripted(*accuracies)
    for at in (3, 7, 12, 19):

        def step(self, *given, step, _at=at, **named):
            if step == _at:
                raise KeyboardInterrupt
            return original(self, *given, step=step, **named)

        monkeypatch.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(plan(options=options))
    monkeypatch.setattr(Trainer, "step", original)
    run(plan(options=options))
    assert left == []
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    trained = safetensors.torch.load_file(tmp_path / "b" / "model.safetensors")
    assert all(value.isfinite().all() for value in trained.values())


def test_what_cannot_validate_is_refused(plan, labelled, tmp_path, taught_store):
    with pytest.raises(InputError) as error:
        plan(validation=str(taught_store.shards.location))
    assert str(error.value) == (
        f"no label of the validation images is the name of a class: {taught_store.shards.location}: expected names "
        "like 'a', found 'Blue_Jay', 'house-cat', 'red fox'. "
        "Next: name the folders as the classes are named, or leave out --validation"
    )
    with pytest.raises(InputError) as error:
        plan(validation=None, options={"patience": 2})
    assert error.value.fields == {
        "code": "option-needs-another",
        "where": "--patience",
        "hint": "add --validation IMAGES, or --hold-out 0.2",
    }
    notes = plan().notes
    assert f"validation on 12 of the 15 images in {labelled}, whose labels are class names" in notes


def test_validation_images_of_which_none_can_be_used_are_an_error(plan, labelled, tmp_path):
    copy = tmp_path / "images"
    shutil.copytree(labelled, copy)
    for file in copy.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UnitsFailed) as caught:
        run(plan(validation=str(copy), options={"epochs": 1}))
    assert str(caught.value).endswith(
        f"not one validation image can be used: {copy}: expected at least one usable image, found 12 unusable. "
        "Next: give other images, or leave out --validation"
    )


def test_other_validation_images_are_another_run(plan, labelled, tmp_path):
    run(plan())
    (tmp_path / "others" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 36)).save(tmp_path / "others" / "a" / "0.png")
    with pytest.raises(MismatchError) as error:
        run(plan(validation=str(tmp_path / "others")))
    assert error.value.code == "output-other-settings"
    assert str(error.value.where).endswith("field 'validation'")


@pytest.fixture
def marked(taught_store, tmp_path):
    """The store with classes a, b and d marked as base classes."""
    from dataclasses import replace

    import numpy as np
    import zarr
    from teachonce.storage_schemas.class_vectors import read_class_vectors, write_class_vectors
    from teachonce.storage_schemas.target_store import open_root

    store = tmp_path / "marked.zarr"
    shutil.copytree(str(taught_store.location), store)
    vectors = read_class_vectors(zarr.open_group(str(store), mode="r"), where=store)
    base_C = np.array([True, True, False, True, False, False, False])
    origin = {"teacher": {"model": "T", "weights_digest": "0123"}, "templates": []}
    write_class_vectors(open_root(str(store), mode="a"), replace(vectors, base_C=base_C), origin)
    return store


def test_the_best_by_base_classes_or_by_the_harmonic_mean(plan, labelled, marked, taught_store):
    """The figures are those of `evaluate` on the last epoch's weights, which knows the marks from the bundle."""
    for by in ("base", "harmonic-mean"):
        stage = plan(by, validation_by=by, options={"epochs": 1, "warmup_epochs": 0, "lr": 0.03}, store=str(marked))
        images = 6 if by == "base" else 12
        words = "names of base classes" if by == "base" else "class names"
        assert f"validation on {images} of the 15 images in {labelled}, whose labels are {words}" in stage.notes
        run(stage)
        (found,) = [line["validation_accuracy"] for line in log(stage) if "validation_accuracy" in line]
        measured = evaluate(str(stage.out), str(labelled), compute=CPU).accuracy
        b, n = measured.base.rate, measured.novel.rate
        assert (measured.base.total, measured.novel.total) == (6, 6)
        assert b != n, (b, n)  # else this would say little
        expected = b if by == "base" else 2 * b * n / (b + n) if b + n else 0
        assert found == pytest.approx(expected, abs=1e-5)
        assert json.loads((stage.out / "config.json").read_bytes())["origin"]["validation"]["by"] == by
    with pytest.raises(MismatchError) as error:
        run(
            plan(
                "base",
                validation_by="harmonic-mean",
                options={"epochs": 1, "warmup_epochs": 0, "lr": 0.03},
                store=str(marked),
            )
        )
    assert error.value.code == "output-other-settings"
    assert str(error.value.where).endswith("field 'validation'")


def test_figures_of_base_classes_need_them(plan, labelled, marked, tmp_path):
    with pytest.raises(InputError) as error:
        plan(validation_by="base")
    assert error.value.fields == {
        "code": "base-classes-unmarked",
        "where": "--validation-by base",
        "hint": "mark them: teachonce vectors … --base-classes FILE|@half",
    }
    with pytest.raises(InputError) as error:
        plan(validation=None, validation_by="base")
    assert error.value.fields == {
        "code": "option-needs-another",
        "where": "--validation-by base",
        "hint": "add --validation IMAGES, or --hold-out 0.2",
    }
    shutil.copytree(labelled / "c", tmp_path / "novel" / "c")
    with pytest.raises(InputError) as error:
        plan(validation=str(tmp_path / "novel"), validation_by="base", store=str(marked))
    assert error.value.fields == {
        "code": "validation-classes-missing",
        "where": f"{tmp_path}/novel",
        "expected": "images of base classes",
        "found": "images of novel classes only",
        "hint": "give other images, or --validation-by top1",
    }

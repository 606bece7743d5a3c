"""PromptSRC checkpoints as teachers, against a small model of the authors' names and arithmetic."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.import_checkpoint import plan_import
from teachonce.stages.published.report import contents_text
from teachonce.stages.settings.import_checkpoint import ImportSettings
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.storage_schemas.errors import InputError, MismatchError, TeachonceError

NAMES = ("red fox", "Blue_Jay", "house-cat", "newt", "yak")
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def bring(file: Path, tiny, classes: str, out: Path, **options):
    """Import a file; returns the stage."""
    stage = plan_import(str(file), out=str(out), settings=ImportSettings(teacher=tiny.name, classes=classes, **options))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return stage


def says(out: Path, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Embeddings, class vectors and scale of the imported teacher."""
    teacher = load_teacher(TeacherConfig.of(f"teachonce:{out}"))
    vectors = teacher.class_vectors(NAMES, ())
    with torch.no_grad():
        return teacher.embed(images).numpy(), vectors.vectors_CD, vectors.logit_scale


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": False}, {"custom_text": True}])
@pytest.mark.parametrize("drift", [0.0, 0.002])
def test_a_whole_file_computes_what_its_authors_ran(
    make_tiny, make_teacher, authors, classes, images, normalized, tmp_path, changes, drift
) -> None:
    tiny = make_tiny(**changes)
    model, state = make_teacher(tiny, drift=drift)
    file = tmp_path / "model.pth.tar-20"
    torch.save(authors.training_state(state), file)
    stage = bring(file, tiny, classes, tmp_path / "p")
    embedding_ND, vectors_CD, scale = says(tmp_path / "p", images)
    assert np.allclose(embedding_ND, model.image_features(normalized), **EXACT)  # type: ignore[arg-type]
    assert np.allclose(vectors_CD, model.text_features(NAMES), **EXACT)  # type: ignore[arg-type]
    assert scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)
    found = stage.found
    assert (found.epoch, found.taken, found.class_texts.count, found.class_texts.known) == (
        20,
        "checkpoint",
        3,
        3,
    )
    assert found.prompts == {"vision": (3, 4, 32), "text": (3, 4, 16)}
    assert found.frozen.tensors == 85
    assert found.frozen.relative == pytest.approx(max(drift, 1e-4), rel=2)
    assert found.left_out == {"fixed token embeddings": 2, "of the frozen copy of the image tower": 44}
    assert bool(changes.get("quick_gelu", True)) == (not any("is built with GELU" in note for note in found.notes))


def test_only_its_prompts_in_the_backbone(tiny, make_teacher, classes, images, normalized, tmp_path) -> None:
    model, state = make_teacher(tiny, drift=0.002)
    torch.save({"state_dict": state}, tmp_path / "whole.pth")
    alone = {n: v for n, v in state.items() if "VPT" in n or n.endswith(".ctx")}
    safetensors.torch.save_file(alone, tmp_path / "prompts.safetensors")
    model.load_state_dict({n: v for n, v in make_teacher(tiny)[0].state_dict().items() if n not in alone}, strict=False)
    for tower, prefix in ((model.image_encoder, "visual."), (model.text_encoder, "")):
        for name, value in tower.state_dict().items():
            if "VPT" not in name:
                value.copy_(tiny.state[prefix + name])  # in fp32, as open_clip has them
    for file, options in (("whole.pth", {"weights": "backbone"}), ("prompts.safetensors", {})):
        out = tmp_path / f"{file}-out"
        found = bring(tmp_path / file, tiny, classes, out, **options).found
        assert found.taken == "backbone"
        assert not (out / "towers.safetensors").exists()
        embedding_ND, vectors_CD, _ = says(out, images)
        assert np.allclose(embedding_ND, model.image_features(normalized), **EXACT)  # type: ignore[arg-type]
        assert np.allclose(vectors_CD, model.text_features(NAMES), **EXACT)  # type: ignore[arg-type]
    assert (found.frozen, found.class_texts, found.epoch) == (None, None, None)
    assert found.notes[0].startswith("teacher local-dir:")
    assert found.notes[1:] == ("the file does not say which classes it was learned on: all of the list",)


def test_the_towers_are_part_of_the_teachers_identity(tiny, make_teacher, classes, tmp_path) -> None:
    _, state = make_teacher(tiny, drift=0.002)
    torch.save(state, tmp_path / "a.pth")
    digest = {}
    for weights in ("checkpoint", "backbone"):
        bring(tmp_path / "a.pth", tiny, classes, tmp_path / weights, weights=weights)
        spec = load_teacher(TeacherConfig.of(f"teachonce:{tmp_path / weights}")).spec
        digest[weights] = spec.weights_digest
        config = json.loads((tmp_path / weights / "config.json").read_bytes())
        assert config["origin"]["checkpoint"]["taken"] == weights
    assert digest["checkpoint"] != digest["backbone"]
    towers = safetensors.torch.load_file(tmp_path / "checkpoint" / "towers.safetensors")
    assert set(towers) == {name for name in tiny.state if "token_embedding" not in name}
    assert torch.equal(towers["visual.proj"], state["image_encoder.proj"])  # fp16, as it was
    assert str(tmp_path / "a.pth") not in (tmp_path / "checkpoint" / "config.json").read_text()
    assert config["origin"]["checkpoint"]["sha256"] == hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert config["base_classes"] == list(NAMES[:3])


def test_the_same_command_writes_the_same_bytes_and_another_is_refused(tiny, make_teacher, classes, tmp_path) -> None:
    _, state = make_teacher(tiny)
    torch.save(state, tmp_path / "m.pth")
    torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}}, tmp_path / "parallel.pth")
    bring(tmp_path / "m.pth", tiny, classes, tmp_path / "a")
    before = digests(tmp_path / "a")
    bring(tmp_path / "m.pth", tiny, classes, tmp_path / "a")
    assert digests(tmp_path / "a") == before
    parallel = tmp_path / "b"
    bring(tmp_path / "parallel.pth", tiny, classes, parallel)
    assert {n: d for n, d in digests(parallel).items() if n != "config.json"} == {
        n: d for n, d in before.items() if n != "config.json"
    }
    with pytest.raises(MismatchError) as error:
        bring(tmp_path / "m.pth", tiny, classes, tmp_path / "a", weights="backbone")
    assert error.value.code == "output-other-settings"
    assert error.value.what.endswith("a holds the output of another import")
    assert str(error.value.where).endswith("field 'weights'")


def test_prompts_in_the_text_tower_alone(tiny, make_teacher, classes, images, normalized, tmp_path) -> None:
    model, state = make_teacher(tiny, vision=(0, 0), text=(2, 1), context="a picture")
    torch.save(state, tmp_path / "m.pth")
    found = bring(tmp_path / "m.pth", tiny, classes, tmp_path / "p", context="a picture").found
    assert found.prompts == {"text": (1, 2, 16)}
    embedding_ND, vectors_CD, _ = says(tmp_path / "p", images)
    assert np.allclose(embedding_ND, model.image_features(normalized), **EXACT)  # type: ignore[arg-type]
    assert np.allclose(vectors_CD, model.text_features(NAMES), **EXACT)  # type: ignore[arg-type]


def message(change, tiny, make_teacher, classes, tmp_path, **options) -> str:
    _, state = make_teacher(tiny)
    change(state)
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    with pytest.raises(TeachonceError) as error:
        bring(tmp_path / "m.pth", tiny, classes, tmp_path / "p", **options)
    assert not (tmp_path / "p").exists()
    return str(error.value)


BLOCK = "transformer.resblocks"
ASK = "Next: give a checkpoint of PromptSRC's or PromptKD's own trainer"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda s: s.update({"prompt_learner.meta_net.weight": torch.ones(1)}),
            "an unknown key in the checkpoint: m.pth: expected keys of a PromptSRC teacher, found "
            f"prompt_learner.meta_net.weight (1 unknown). {ASK}",
        ),
        (
            lambda s: s.update({"image_encoder.extra": torch.ones(1), "text_encoder.more": torch.ones(1)}),
            "an unknown key in the checkpoint: m.pth: expected keys of a PromptSRC teacher, found "
            f"image_encoder.extra (2 unknown). {ASK}",
        ),
        (
            lambda s: s.update({"prompt_learner.ZS_image_encoder.extra": torch.ones(1)}),
            "an unknown key in the checkpoint: m.pth: expected keys of a PromptSRC teacher, found "
            f"prompt_learner.ZS_image_encoder.extra (1 unknown). {ASK}",
        ),
        (
            lambda s: s.pop(f"text_encoder.{BLOCK}.1.ln_1.bias"),
            f"the checkpoint lacks a weight: m.pth: expected text_encoder.{BLOCK}.1.ln_1.bias, found none (1 missing, 0 "
            "unknown). Next: name the model that it was trained with, or give a whole file",
        ),
        (
            lambda s: s.pop(f"image_encoder.{BLOCK}.1.VPT_shallow"),
            f"the checkpoint lacks a layer of prompts: m.pth: expected image_encoder.{BLOCK}.1.VPT_shallow, found layers "
            "0, 2. Next: give a whole file",
        ),
        (
            lambda s: s.pop("image_encoder.VPT"),
            "the checkpoint lacks a layer of prompts: m.pth: expected image_encoder.VPT, found layers 1, 2. Next: give a "
            "whole file",
        ),
        (
            lambda s: s.pop("prompt_learner.ctx"),
            "not a checkpoint that can be imported: m.pth: expected prompt_learner.ctx (a PromptSRC teacher) or "
            "VPT_image_trans.conv1.… (a PromptKD student), found neither, but image_encoder.VPT. " + ASK,
        ),
        (
            lambda s: s.update({f"text_encoder.{BLOCK}.2.VPT_shallow": torch.ones(3, 16)}),
            f"a weight of the checkpoint has another shape: m.pth: expected text_encoder.{BLOCK}.2.VPT_shallow (4, 16), "
            "found (3, 16). Next: name the model that it was trained with",
        ),
        (
            lambda s: s.update({"image_encoder.VPT": torch.ones(4, 48)}),
            "a weight of the checkpoint has another shape: m.pth: expected image_encoder.VPT (4, 32), found (4, 48). "
            "Next: name the model that it was trained with",
        ),
        (
            lambda s: s.update({"image_encoder.VPT": torch.ones(4, 32) / 0}),
            "prompts that are not finite: m.pth: image_encoder.VPT. Next: take an earlier epoch's file",
        ),
        (
            lambda s: s.update({f"text_encoder.{BLOCK}.3.VPT_shallow": torch.ones(4, 16)}),
            "the checkpoint has more layers of text prompts than the model has blocks: m.pth: expected at most 3, found "
            "4. Next: name the model that it was trained with",
        ),
        (
            lambda s: s.update({"prompt_learner.token_suffix": torch.ones(3, 70, 16)}),
            "a weight of the checkpoint has another shape: m.pth: expected prompt_learner.token_suffix (3, 72, 16), found "
            "(3, 70, 16). Next: name the model that it was trained with",
        ),
    ],
)
def test_every_key_is_accounted_for(change, line, tiny, make_teacher, classes, tmp_path) -> None:
    assert message(change, tiny, make_teacher, classes, tmp_path) == line


def test_another_backbone(tiny, make_tiny, make_teacher, classes, tmp_path) -> None:
    def refused(other, keep=lambda name: True) -> str:
        _, state = make_teacher(tiny)
        torch.save({n: v for n, v in state.items() if keep(n)}, tmp_path / "m.pth")
        with pytest.raises(InputError) as error:
            bring(tmp_path / "m.pth", other, classes, tmp_path / "p")
        return str(error.value)

    other = make_tiny(9)
    line = refused(other)
    assert line.startswith("the checkpoint's frozen weights are another model's: m.pth: ")
    assert f"expected those of --teacher {other.name}, but for rounding, found a difference of 1." in line
    assert line.endswith("Next: name the model that it was trained with: --teacher and --teacher-pretrained")
    assert refused(other, lambda n: "VPT" in n or n.startswith("prompt_learner")) == (
        "the checkpoint's token embeddings are another model's: m.pth: prompt_learner.token_prefix: expected the start "
        "token of the teacher, but for rounding, found another. Next: name the model that it was trained with: --teacher "
        "and --teacher-pretrained"
    )
    vision = tiny.cfg["vision_cfg"]
    wider = make_tiny(1, vision_cfg={**vision, "width": 48})
    assert refused(wider) == (
        "a weight of the checkpoint has another shape: m.pth: expected image_encoder.class_embedding (48,), found "
        "(32,). Next: name the model that it was trained with"
    )
    deeper = make_tiny(1, vision_cfg={**vision, "layers": 4})
    assert refused(deeper) == (
        f"the checkpoint lacks a weight: m.pth: expected image_encoder.{BLOCK}.3.attn.in_proj_bias, found none (12 missing, "
        "0 unknown). Next: name the model that it was trained with, or give a whole file"
    )


def test_which_classes_it_was_learned_on(tiny, make_teacher, classes, tmp_path) -> None:
    _, state = make_teacher(tiny, names=("newt", "Red Fox", "house cat"), drift=0.002)
    torch.save(state, tmp_path / "m.pth")

    def config(out: str, **options) -> tuple[list[str], tuple[str, ...]]:
        stage = bring(tmp_path / "m.pth", tiny, classes, tmp_path / out, **options)
        return json.loads((tmp_path / out / "config.json").read_bytes())["base_classes"], stage.found.notes[1:]

    # "house cat" and "house-cat" are other tokens.
    assert config("a") == (
        ["red fox", "newt"],
        (
            "learned on 2 of 5 classes, by the class texts in the file",
            "1 class texts in the file are none of the list's: other classes, other names, or another --context",
        ),
    )
    _, state = make_teacher(tiny)
    torch.save(state, tmp_path / "m.pth")
    assert config("b", base_classes="@half") == (list(NAMES[:3]), ())
    with pytest.raises(MismatchError) as error:
        config("c", base_classes="red fox,newt,yak")
    assert error.value.fields == {
        "code": "checkpoint-other-classes",
        "where": "m.pth: --base-classes red fox,newt,yak",
        "expected": "3 class texts as in the file",
        "found": "3 base classes, first differing at 'Blue_Jay'",
        "hint": "leave out --base-classes to take those whose texts are in the file; --context must be the authors' too",
    }
    base, _ = config("d", context="an image of the")
    assert base == list(NAMES[:3])  # the words behind the prompts do not show: there are none
    with pytest.raises(InputError) as short:
        config("e", context="a photo")
    assert short.value.fields == {
        "code": "context-too-short",
        "where": "--context 'a photo'",
        "expected": "at least 4 tokens",
        "found": "2",
        "hint": "give the words that the prompts were learned from",
    }
    assert config("f", context="a photo of a big")[0] == []


def test_options_of_the_other_kind(tiny, make_teacher, classes, tmp_path) -> None:
    _, state = make_teacher(tiny)
    torch.save(state, tmp_path / "m.pth")

    def line(**options) -> str:
        with pytest.raises(InputError) as error:
            plan_import(str(tmp_path / "m.pth"), out=str(tmp_path / "p"), settings=ImportSettings(**options))
        return str(error.value)

    assert (
        line()
        == "a PromptSRC teacher needs --teacher and --classes: m.pth. Next: teachonce import --help says what for"
    )
    assert line(teacher=tiny.name, classes=classes, vectors="store", student="ViT-B-16") == (
        "a PromptSRC teacher has no use for --student, --vectors: m.pth. Next: leave it out"
    )
    assert line(teacher="timm:vit_base", classes=classes) == (
        "only an open_clip model can be given prompts: --teacher timm:vit_base: expected ViT-L-14, hf-hub:… or "
        "local-dir:…, found timm:vit_base. Next: name the model without prompts"
    )


def test_the_report(tiny, make_teacher, authors, classes, tmp_path) -> None:
    _, state = make_teacher(tiny)
    state["image_encoder.proj"] = (tiny.state["visual.proj"] + 0.03125).half()
    torch.save(authors.training_state(state, epoch=7), tmp_path / "m.pth")
    text = contents_text(bring(tmp_path / "m.pth", tiny, classes, tmp_path / "p").found).splitlines()
    assert text[:5] == [
        "m.pth",
        "  kind            PromptSRC teacher, epoch 7",
        "  vision prompts  3 layers × 4 tokens × 32 channels",
        "  text prompts    3 layers × 4 tokens × 16 channels",
        "  frozen weights  85 tensors; the checkpoint's are used",
    ]
    assert text[5].endswith("of their size, at most 0.031 (image_encoder.proj)")
    assert text[6:] == [
        "  class texts     3, of which 3 are in the class list",
        "  left out        2 fixed token embeddings",
        "  left out        44 of the frozen copy of the image tower",
    ]

"""Which teacher runs: weights by path, activation, image size, and what is refused before anything is written."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.models.compute import Compute
from teachonce.stages.pretrain import plan_pretrain
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.teachers import Teacher, TeacherConfig, load_teacher
from teachonce.storage_schemas.errors import InputError, MissingDependency

NAMES = ("red fox", "blue jay", "house cat")


@pytest.fixture
def built_in(tmp_path, monkeypatch, tiny_clip_teacher) -> str:
    """The name of a tiny model that open_clip builds in while a test runs; its configuration says no activation."""
    config = json.loads((tiny_clip_teacher / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-8", config)
    return "Tiny-8"


def embedding(teacher: Teacher, photographs, pixels_for) -> np.ndarray:
    with torch.no_grad():
        return teacher.embed(torch.from_numpy(pixels_for(teacher, photographs))).numpy()


def plain_embedding(model, transform, photographs) -> np.ndarray:
    with torch.no_grad():
        images_NCHW = torch.stack([transform(image) for image in photographs])
        return torch.nn.functional.normalize(model.eval().encode_image(images_NCHW), dim=-1).numpy()


# --- weights by path


@pytest.mark.parametrize("kind", ["torchscript", "state dict", "matrices in fp16"])
def test_openais_own_weights_run_with_quick_gelu(kind, built_in, tiny_clip_teacher, tmp_path, photographs, pixels_for):
    config = open_clip.get_model_config(built_in)
    model = open_clip.CLIP(**config, quick_gelu=True).eval()
    model.load_state_dict(load_file(tiny_clip_teacher / "open_clip_model.safetensors"))
    state = model.state_dict()
    path = tmp_path / "ViT.pt"
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = {
                "encode_image": torch.ones(1, 3, 32, 32),
                "encode_text": torch.ones(1, 77, dtype=torch.int64),
            }
            torch.jit.trace_module(model, inputs, check_trace=False).save(str(path))
    elif kind == "state dict":
        torch.save(
            {
                **state,
                "input_resolution": torch.tensor(32),
                "context_length": torch.tensor(77),
                "vocab_size": torch.tensor(49408),
            },
            path,
        )
    else:
        open_clip.model.convert_weights_to_fp16(model)
        torch.save(model.state_dict(), path)
        model.float()
    teacher = load_teacher(TeacherConfig.of(built_in, str(path)))
    assert "weights ViT.pt" in teacher.loaded
    assert ", QuickGELU, 32x32 pixels, bicubic," in teacher.loaded
    transform = open_clip.image_transform(32, is_train=False)
    expected_ND = plain_embedding(model, transform, photographs)
    found_ND = embedding(teacher, photographs, pixels_for)
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5)
    model.visual.transformer.resblocks.apply(_with_gelu)
    assert np.abs(plain_embedding(model, transform, photographs) - found_ND).max() > 1e-4


def _with_gelu(module: torch.nn.Module) -> None:
    if hasattr(module, "gelu"):
        module.gelu = torch.nn.GELU()


def test_others_weights_run_as_the_name_says(built_in, tiny_clip_teacher):
    file = str(tiny_clip_teacher / "open_clip_model.safetensors")
    teacher = load_teacher(TeacherConfig.of(built_in, file))
    assert ", GELU, " in teacher.loaded
    assert (
        teacher.spec.weights_digest
        == load_teacher(TeacherConfig.of(f"local-dir:{tiny_clip_teacher}")).spec.weights_digest
    )


@pytest.mark.parametrize("wrapped", ["model", "state_dict", "model_ema", "module"])
def test_a_file_beside_a_folder_is_what_runs(wrapped, tiny_clip_teacher, tmp_path):
    state = {n: v + 0.01 for n, v in load_file(tiny_clip_teacher / "open_clip_model.safetensors").items()}
    saved = (
        {f"module.{n}": v for n, v in state.items()} if wrapped == "module" else {wrapped: state, "epoch": np.int64(3)}
    )
    torch.save(saved, tmp_path / "tuned.pt")
    teacher = load_teacher(TeacherConfig.of(f"local-dir:{tiny_clip_teacher}", str(tmp_path / "tuned.pt")))
    own = teacher.model.state_dict()  # type: ignore[attr-defined]
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in state)
    entry = f" ({wrapped})" if wrapped != "module" else ""
    assert teacher.loaded.startswith(f"local-dir:tiny-clip: weights tuned.pt{entry}, digest ")


def test_weights_of_another_architecture_name_three_that_differ(tiny_clip_teacher, built_in, tmp_path):
    state = load_file(tiny_clip_teacher / "open_clip_model.safetensors")
    wide = {n: torch.cat([v, v]) if n.startswith("visual.transformer.resblocks.0.ln") else v for n, v in state.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of(built_in, str(tmp_path / "wide.safetensors")))
    assert str(error.value).startswith("weights do not fit Tiny-8: wide.safetensors: expected ")
    for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight"):
        assert f"visual.transformer.resblocks.0.{name} (32,)" in str(error.value)
        assert f"visual.transformer.resblocks.0.{name} (64,)" in str(error.value)


def test_weights_of_another_size_are_another_models(tiny_clip_teacher, built_in, tmp_path):
    with torch.random.fork_rng():
        larger = open_clip.create_model(built_in, force_image_size=48)
    torch.save(larger.state_dict(), tmp_path / "48.pt")
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of(built_in, str(tmp_path / "48.pt")))
    assert (error.value.code, str(error.value.expected)) == (
        "weights-do-not-fit",
        "visual.positional_embedding (17, 32)",
    )
    assert "(37, 32)" in str(error.value.found)
    teacher = load_teacher(TeacherConfig.of(built_in, str(tmp_path / "48.pt"), size=48))
    assert teacher.spec.preprocess.size == 48


# --- image size


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "convnext_base"])
def test_another_size_is_the_model_at_that_size(name, clip_kinds, tmp_path, photographs, pixels_for):
    config = clip_kinds.shrink(name, tmp_path / "texts")
    folder = clip_kinds.write_model(tmp_path / "model", config, {})
    size = config["vision_cfg"]["image_size"] + 32
    teacher = load_teacher(TeacherConfig.of(f"local-dir:{folder}", size=size))
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", force_image_size=size)
    assert teacher.spec.preprocess.size == size
    np.testing.assert_allclose(
        embedding(teacher, photographs, pixels_for), plain_embedding(plain, transform, photographs), atol=1e-5
    )


def test_another_size_of_a_timm_teacher(tmp_path, photographs, pixels_for):
    torch.manual_seed(3)
    own = timm.create_model("test_vit")
    torch.save(own.state_dict(), tmp_path / "vit.pt")
    teacher = load_teacher(TeacherConfig.of("timm:test_vit", str(tmp_path / "vit.pt"), size=224))
    plain = timm.create_model("test_vit", img_size=224).eval()
    plain.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(own.state_dict(), plain))
    config = timm.data.resolve_data_config(model=plain)
    transform = timm.data.create_transform(**{**config, "input_size": (3, 224, 224)})
    with torch.no_grad():
        logits_NC = plain(torch.stack([transform(image) for image in photographs])).numpy()
    vectors = teacher.class_vectors(list(map(str, range(1000))), ())
    np.testing.assert_allclose(vectors.logits(embedding(teacher, photographs, pixels_for)), logits_NC, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "timm:test_vit",
            "this model cannot take images of that size: timm:test_vit, --teacher-size: found 33 ",
        ),
        (
            "timm:inception_v3",
            "this model cannot take images of that size: timm:inception_v3, --teacher-size: found 33 ",
        ),
    ],
)
def test_a_size_that_fails_blocks_nothing(model, message, tmp_path):
    out = tmp_path / "s.zarr"
    words = ["vectors", "--teacher", model, "--teacher-pretrained", "random", "--out", str(out)]
    result = CliRunner().invoke(main, [*words, "--teacher-size", "33"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr


def test_a_resnet_of_openais_has_one_size(clip_kinds, tmp_path):
    folder = clip_kinds.write_model(tmp_path / "m", clip_kinds.shrink("RN50", tmp_path / "t"), {})
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of(f"local-dir:{folder}", size=96))
    assert (error.value.code, error.value.what) == ("weights-do-not-fit", "weights do not fit local-dir:m")
    assert str(error.value.expected).startswith("visual.attnpool.positional_embedding")


# --- prompts


def test_a_bias_of_the_model_stays_under_prompts(clip_kinds, tmp_path, pictures, photographs, pixels_for):
    config = clip_kinds.shrink("ViT-B-32-quickgelu", tmp_path / "t") | {"init_logit_bias": -10}
    folder = clip_kinds.write_model(tmp_path / "m", config, {})
    teacher = TeacherConfig.of(f"local-dir:{folder}")
    stage = plan_pretrain(
        str(pictures),
        teacher,
        out=str(tmp_path / "p"),
        few=FewShotSettings(shots=2),
        settings=PretrainSettings(epochs=1, batch_size=2, vision_depth=1, text_depth=1),
        show_progress=False,
        compute=Compute(device="cpu", precision="fp32", threads=1),
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    prompted = load_teacher(TeacherConfig.of(f"teachonce:{tmp_path / 'p'}"))
    vectors = prompted.class_vectors(NAMES, ())
    assert prompted.loaded.startswith("teachonce:p: prompts for local-dir:m: weights those of local-dir:m, digest ")
    assert (vectors.logit_scale, set(vectors.bias_C)) == (pytest.approx(np.exp(2.5)), {-3.0})  # type: ignore[arg-type]
    embedding_ND = embedding(prompted, photographs, pixels_for)
    expected_NC = np.exp(2.5) * embedding_ND @ vectors.vectors_CD.T - 3.0
    np.testing.assert_allclose(vectors.logits(embedding_ND), expected_NC, atol=1e-4)


# --- what is refused


def test_a_teacher_whose_logits_are_not_its_embeddings(tiny_clip_teacher, monkeypatch):
    original = open_clip.CLIP.get_logits
    monkeypatch.setattr(open_clip.CLIP, "get_logits", lambda *a: tuple(x + 0.01 for x in original(*a)))
    load_teacher.cache_clear()
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of(f"local-dir:{tiny_clip_teacher}"))
    assert str(error.value).startswith(
        "this model cannot be a teacher: its logits are not embedding · class vectors + bias: local-dir:tiny-clip: "
        "expected equal to rounding, found a difference of 0.01 in logits of up to "
    )


def test_a_width_that_is_not_the_configurations(tmp_path, clip_kinds):
    config = clip_kinds.shrink("ViT-B-16-SigLIP", tmp_path / "t")
    config["embed_dim"] = config["text_cfg"]["width"] = 48  # the trunk, whose features go on as they are, has 64
    folder = clip_kinds.write_model(tmp_path / "m", config, {})
    with pytest.raises(InputError, match=r"^this model's features are not what its configuration says: .*48 channels"):
        load_teacher(TeacherConfig.of(f"local-dir:{folder}"))


def test_a_model_without_a_text_tower(tmp_path, tiny_clip_teacher, monkeypatch):
    config = json.loads((tiny_clip_teacher / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file({"a": torch.ones(1)}, tmp_path / "open_clip_model.safetensors")
    result = CliRunner().invoke(
        main,
        [
            "vectors",
            "--teacher",
            f"local-dir:{tmp_path}",
            "--classes",
            "imagenet",
            "--out",
            str(tmp_path / "s"),
        ],
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"Error: this model has no text tower: local-dir:{tmp_path.name}: expected text_cfg"
    )
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", ["a whole model", "another object"])
def test_a_pickle_is_refused_on_one_line(kind, tmp_path, tiny_clip_teacher):
    torch.save(torch.nn.Linear(2, 2) if kind == "a whole model" else {"a": Path("x"), "b": print}, tmp_path / "m.pt")
    result = CliRunner().invoke(
        main,
        [
            "vectors",
            "--teacher",
            f"local-dir:{tiny_clip_teacher}",
            "--teacher-pretrained",
            str(tmp_path / "m.pt"),
            "--classes",
            "imagenet",
            "--out",
            str(tmp_path / "s"),
        ],
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: cannot read weights: {tmp_path}/m.pt: found a pickled object (")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "transformers" else object())
    with pytest.raises(MissingDependency) as error:
        load_teacher(TeacherConfig.of("roberta-ViT-B-32", "random"))
    assert str(error.value) == (
        "the text tower of roberta-ViT-B-32 needs transformers. Next: pip install 'teachonce[hf]'"
    )

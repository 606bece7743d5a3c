"""What a command does before its first batch: which libraries it imports, and what they can do when it is asked of them later."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from teachonce.cli import main
from teachonce.stages.models import clip, known_weights
from teachonce.stages.models.weights import weights_digest
from teachonce.stages.teachers import TeacherConfig, load_teacher
from teachonce.stages.teachers import open_clip as teachers_open_clip
from teachonce.stages.training.build import BuiltStudent, StudentToTrain

#: Runs command lines, one after another, as the program does; then prints which of the slow libraries it has imported.
COMMANDS = """
import json, sys
from teachonce.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["teachonce", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
slow = ("transformers", "torch._dynamo.eval_frame", "torch._inductor", "sympy", "open_clip", "timm", "torchvision")
print(json.dumps([name for name in slow if name in sys.modules]))
"""


def fresh_program(code: str, *arguments: str) -> Any:
    """The JSON on the last line that a Python program of its own prints; the test's own process has all libraries."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def command_lines(shards: Path, teacher: Path, out: Path) -> list[list[str]]:
    """`vectors`, `cache` and `distill`, tiny."""
    (out / "names.txt").write_text("red fox\nblue jay\nhouse cat\n")
    named, store = ["--teacher", f"local-dir:{teacher}"], str(out / "s.zarr")
    student = ["--student", "timm:test_vit", "--recipe", "kd", "--epochs", "1", "--batch-size", "16", "--lr", "0.01"]
    return [
        ["vectors", *named, "--classes", str(out / "names.txt"), "--out", store],
        ["cache", str(shards), *named, "--out", store, "--executor", "serial"],
        ["distill", str(shards), store, *student, "--decode-workers", "0", "--out", str(out / "student")],
    ]


def test_commands_import_neither_transformers_nor_the_compiler(
    picture_shards, tiny_clip_teacher, tmp_path: Path
) -> None:
    """They do the same work as in a process that has both."""
    shards = picture_shards.location.path
    lean, full = tmp_path / "lean", tmp_path / "full"
    lean.mkdir(), full.mkdir()
    commands = command_lines(shards, tiny_clip_teacher, lean)
    assert fresh_program(COMMANDS, json.dumps(commands)) == ["open_clip", "timm", "torchvision"]
    for words in command_lines(shards, tiny_clip_teacher, full):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.stderr
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (lean, full))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)


#: What a program does with the compiler after all, once its libraries have been imported without.
LATER = {
    "a part": "import torch._dynamo.eval_frame as part; assert torch._dynamo.eval_frame is part",
    "torchvision's part": "from torch._dynamo.utils import counters",
    "a part of a part": "from torch._dynamo.backends.debugging import eager; assert torch._dynamo.backends.debugging.eager is eager",
    "its own compiler": "torch.compile(fullgraph=True, backend='eager')(lambda x: x + 1)(torch.ones(2))",
    "what torchvision asks": "assert sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu') is True",
}

COMPILER = """
import json, os, sys
from teachonce.pipeline import lean_imports
lean_imports.install(), lean_imports.install()
import open_clip, timm, torch, torchvision

layer = torch.nn.Linear(2, 2)
def train(kind):
    optimizer = kind(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())
for kind in (torch.optim.SGD, torch.optim.AdamW):
    train(kind)
assert "torch._dynamo.eval_frame" not in sys.modules and "transformers" not in sys.modules
@torch.compiler.disable
def marked(x):
    assert not torch.compiler.is_compiling()
    return x + 1
assert marked(1) == 2

failed = []
for what, code in json.loads(sys.argv[1]).items():
    if (child := os.fork()) == 0:
        try:
            exec(code)
            assert "torch._dynamo.eval_frame" in sys.modules, "not imported"
            assert sys.modules["torch._dynamo"].__file__ and torch._dynamo.__file__
            assert torch._dynamo.utils.counters is not None and not any("deferred" in repr(f) for f in sys.meta_path)
            train(torch.optim.AdamW)
            compiled = torch.compile(lambda x: marked(x * 2), backend="eager")
            assert compiled(torch.ones(1)).item() == 3
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(what)
print(json.dumps(failed))
"""


@pytest.mark.slow
def test_the_compiler_is_there_when_it_is_wanted() -> None:
    assert fresh_program(COMPILER, json.dumps(LATER)) == []


TEXT_TOWER = """
import json, sys
from teachonce.pipeline import lean_imports
lean_imports.install()
import open_clip
assert "transformers" not in sys.modules and open_clip.hf_model.transformers is None
from teachonce.stages.teachers import TeacherConfig, load_teacher
teacher = load_teacher(TeacherConfig.of(sys.argv[1]))
assert open_clip.hf_model.transformers.AutoModel is sys.modules["transformers"].AutoModel
assert open_clip.coca_model._has_transformers == bool(int(sys.argv[2]))
assert type(teacher.model.text) is open_clip.model.HFTextEncoder
print(json.dumps(teacher.spec.weights_digest))
"""


@pytest.mark.slow
def test_a_text_tower_of_transformers_has_them(clip_kinds, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = clip_kinds.shrink("roberta-ViT-B-32", tmp_path / "texts")
    folder = clip_kinds.write_model(tmp_path / "model", config, {})
    has = str(int(open_clip.coca_model._has_transformers))
    digest = fresh_program(TEXT_TOWER, f"local-dir:{folder}", has)
    assert digest == load_teacher(TeacherConfig.of(f"local-dir:{folder}")).spec.weights_digest


@dataclass
class Work:
    """What commands did to open models, since it was last asked.

    Attributes:
        files: weights files that were read.
        hashes: modules that were hashed.
        tries: teachers that were tried on images.
    """

    files: int = 0
    hashes: int = 0
    tries: int = 0

    def since(self) -> tuple[int, int, int]:
        counts = self.files, self.hashes, self.tries
        self.files = self.hashes = self.tries = 0
        return counts


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts, with a cache folder of its own. Files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_weights, "_LEAST_AGE_SECONDS", -1.0)
    counts = Work()

    def count(module: Any, name: str, what: str) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            setattr(counts, what, getattr(counts, what) + 1)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    count(clip, "read_weights_file", "files")
    count(known_weights, "weights_digest", "hashes")
    count(teachers_open_clip, "check_contract", "tries")
    load_teacher.cache_clear()
    return counts


def run(*words: str) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_a_command_opens_its_teacher_once_and_later_ones_hash_it_no_more(
    work, picture_shards, tiny_clip_teacher, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_clip_teacher, model)
    vectors, cache, distill = command_lines(picture_shards.location.path, model, tmp_path)
    distill[distill.index("timm:test_vit")] = f"local-dir:{model}"
    digest = "digest " + weights_digest(load_model(model))[:12]
    assert digest in run(*vectors)
    assert work.since() == (1, 1, 1)
    assert digest in run(*cache)
    assert work.since() == (1, 0, 0)
    run(*distill)
    assert work.since() == (1, 1, 0)  # the student: another module of the same file
    run(*distill[:-1], str(tmp_path / "again"))
    assert work.since() == (1, 0, 0)
    run(*distill[:-1], str(tmp_path / "hashed"), "--rehash")
    assert work.since() == (1, 1, 0)
    assert digest in run(*vectors, "--rehash")
    assert work.since() == (1, 1, 1)
    assert digest in run(*vectors)
    assert work.since() == (1, 0, 0)
    assert run(*vectors[:-1], str(tmp_path / "other.zarr"), "--teacher-mean", "0.1,0.2,0.3")
    assert work.since() == (1, 0, 1)  # other pixels, so it was tried

    file = model / "open_clip_model.safetensors"
    times = file.stat()
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, model / "new")
    file.write_bytes((model / "new").read_bytes())  # as long as before
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = CliRunner().invoke(main, cache)
    assert (result.exit_code, work.since()) == (1, (1, 1, 1))
    assert result.stderr.startswith("Error: the store's class vectors are another teacher's: ")


def load_model(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = open_clip.create_model(f"local-dir:{folder}")
    return model


def test_a_teacher_is_let_go_when_its_command_is_done(work, picture_shards, tiny_clip_teacher, tmp_path: Path) -> None:
    vectors, _, _ = command_lines(picture_shards.location.path, tiny_clip_teacher, tmp_path)
    run(*vectors)
    assert load_teacher.cache_info().currsize == 0


def test_a_student_that_was_planned_is_trained_once_and_stays_in_its_process() -> None:
    planned = StudentToTrain(BuiltStudent(student=Any, backbone=Any, logit_scale=1.0, digest="d"))  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(planned)).take() is None
    built = planned.take()
    assert built is not None
    assert (built.digest, planned.take()) == ("d", None)


def test_a_teacher_with_prompts_is_remembered_as_a_whole(work, pictures, tiny_clip_teacher, tmp_path: Path) -> None:
    """Its prompts are no part of the weights file."""

    def pretrain(seed: str) -> list[str]:
        out = str(tmp_path / f"prompts-{seed}")
        named = ["--teacher", f"local-dir:{tiny_clip_teacher}", "--shots", "1", "--batch-size", "3", "--seed", seed]
        run(
            "pretrain", str(pictures), *named, "--epochs", "1", "--vision-depth", "1", "--text-depth", "1", "--out", out
        )
        return ["vectors", "--teacher", f"teachonce:{out}", "--out", str(tmp_path / f"{seed}.zarr")]

    first = pretrain("1")
    assert work.since() == (2, 1, 1)  # prompts are put into a teacher of their own
    lines = [run(*first), run(*first)]
    assert work.since() == (2, 1, 0)  # the whole of model and prompts
    other = pretrain("2")
    assert work.since() == (2, 0, 0)
    lines.append(run(*other))
    assert work.since() == (1, 1, 0)
    digests = [load_teacher(TeacherConfig.of(words[2])).spec.weights_digest for words in (first, other)]
    assert digests[0] != digests[1]
    assert len({line.split("digest ")[1][:12] for line in lines}) == 1  # the line is about the model below

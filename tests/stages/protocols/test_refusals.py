"""What a benchmark refuses before anything runs, and how weights are shared out among students."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages.protocols.request import Model, pair_students
from teachonce.storage_schemas.errors import InputError

NAMES = (
    "imagenet, caltech101, oxford_pets, stanford_cars, oxford_flowers, food101, fgvc_aircraft, sun397, dtd, "
    "eurosat, ucf101"
)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["--datasets", "dtd,flowers"],
            "no such data set: --datasets flowers [dataset-unknown]. Next: did you mean oxford_flowers?",
        ),
        (["--datasets", "dtd,dtd"], "a data set stands twice: --datasets dtd [given-twice]. Next: name each once"),
        (["--datasets", ","], f"no data sets: --datasets [datasets-none-given]. Next: one or more of {NAMES}"),
        (
            ["--datasets", "imagenet_a"],
            "a data set with test images only: --datasets imagenet_a [dataset-test-only]. Next: measure a finished "
            "student on it: teachonce evaluate BUNDLE coop:imagenet_a/test={data}",
        ),
        (
            ["--datasets", "sun397"],
            "a data set is not there: sun397: expected {data}/sun397, found nothing [dataset-incomplete]. Next: lay it out as "
            'the section "SUN397" of CoOp\'s DATASETS.md says',
        ),
        (["--seeds", "1,1"], "a seed stands twice: --seeds 1 [given-twice]. Next: name each once"),
        (
            ["--teacher", "timm:resnet18"],
            "only an open_clip model can be given prompts: --teacher timm:resnet18: expected "
            "ViT-L-14, hf-hub:… or local-dir:…, found timm:resnet18 [prompts-need-open-clip]. Next: name the model without prompts; learned ones go to --prompts",
        ),
        (
            ["--distill-options", "--qqqq 3"],
            "a command's options are wrong: teachonce distill: found No such option "
            "'--qqqq' [command-options-wrong]. Next: teachonce distill --help",
        ),
        (
            ["--cache-options", "--views 'x"],
            "not a list of options: --cache-options --views 'x: found No closing quotation [option-list-malformed]",
        ),
        (
            ["--student-pretrained", "a", "--student-pretrained", "b"],
            "weights must be given once, or once for each "
            "--student: --student-pretrained: expected 1, found 2 [weights-count-wrong]",
        ),
        (
            ["--prompts", "{out}"],
            "no prompts here: {out}/dtd: expected --prompts FOLDER with a folder for each data set below "
            "it, found no config.json [prompts-missing]. Next: teachonce import … or teachonce pretrain …, or leave out --prompts",
        ),
    ],
)
def test_before_anything_runs(options, error, benchmark, data, tmp_path) -> None:
    out = tmp_path / "out"
    options = [word.format(out=out) for word in options]
    defaults = [] if "--datasets" in options else ["--datasets", "dtd"]
    result = benchmark(out, "--protocol", "base2novel", *defaults, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {error.format(data=data, out=out)}\n"
    assert not out.exists()


def test_a_student_that_cannot_be_built_is_refused_before_the_teacher_works(benchmark, tmp_path) -> None:
    out = tmp_path / "out"
    result = benchmark(out, "--protocol", "base2novel", "--datasets", "dtd", "--student", "ViT-B-61", students=())
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: open_clip has no such model: ViT-B-61 [model-unknown]. Next: did you mean ")
    assert not out.exists()


def test_two_students_that_would_share_a_folder(benchmark, tmp_path) -> None:
    result = benchmark(tmp_path / "out", "--protocol", "base2novel", "--datasets", "dtd", students=("student",) * 2)
    assert result.stderr == "Error: two students of one name: --student student [given-twice]. Next: name each once\n"


def test_imagenet_is_no_target_of_its_own_prompts(benchmark, tmp_path) -> None:
    result = benchmark(tmp_path / "out", "--protocol", "cross-dataset", "--datasets", "imagenet,dtd")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: the data set that prompts are learned on is no target: --datasets imagenet [dataset-not-a-target]. Next: leave it out, or use "
        "--protocol base2novel\n"
    )


def test_a_folder_of_other_things_is_left_alone(benchmark, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    result = benchmark(tmp_path, "--protocol", "base2novel", "--datasets", "dtd")
    assert result.stderr == (
        f"Error: the output folder holds something else: {tmp_path}: expected a folder that is new, empty, or begun by "
        "`teachonce benchmark promptkd`, found a folder of other files: thesis.tex [output-holds-other]. Next: teachonce benchmark promptkd … --out "
        f"{tmp_path}-benchmark\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_holds_an_input_is_left_alone(benchmark, data, tmp_path) -> None:
    before = {p: p.is_file() and p.read_bytes() for p in data.rglob("*")}
    result = benchmark(data, "--protocol", "base2novel", "--datasets", "dtd")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: the output folder is or holds an input: {data}: ")
    assert {p: p.is_file() and p.read_bytes() for p in data.rglob("*")} == before


def test_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, error in (
        (
            "none",
            f"no such folder: {tmp_path}/none [folder-missing]. Next: name the folder that holds the data sets' folders",
        ),
        (
            "empty",
            f"no data set that can be used: {tmp_path}/empty [datasets-none-usable]. Next: teachonce datasets {tmp_path}/empty",
        ),
    ):
        words = ["benchmark", "promptkd", "--protocol", "base2novel", "--data", str(tmp_path / folder)]
        result = CliRunner().invoke(main, words)
        assert (result.exit_code, result.stderr) == (1, f"Error: {error}\n")


def test_weights_of_students() -> None:
    b16, b32 = "ViT-B-16", "ViT-B-32"
    assert pair_students((), ()) == (Model(name=b16, pretrained="openai"),)
    assert pair_students((), ("laion2b_s34b_b88k",)) == (Model(name=b16, pretrained="laion2b_s34b_b88k"),)
    assert pair_students((b16, b32), ("random",)) == (
        Model(name=b16, pretrained="random"),
        Model(name=b32, pretrained="random"),
    )
    assert pair_students((b16, b32), ("a", "b"))[1] == Model(name=b32, pretrained="b")
    assert pair_students(("local-dir:x/tiny", "hf-hub:a/b", "timm:resnet18"), ()) == (
        Model(name="local-dir:x/tiny", pretrained=None),
        Model(name="hf-hub:a/b", pretrained=None),
        Model(name="timm:resnet18", pretrained="default"),
    )
    with pytest.raises(InputError) as error:
        pair_students((b16, b32, "x"), ("a", "b"))
    assert (error.value.code, str(error.value.expected), str(error.value.found)) == (
        "weights-count-wrong",
        "1 or 3",
        "2",
    )


@pytest.mark.parametrize(
    ("name", "pretrained", "folder"),
    [
        ("ViT-B-16", "openai", "ViT-B-16-openai"),
        ("local-dir:/models/tiny/", None, "tiny"),
        ("hf-hub:org/clip", None, "clip"),
        ("timm:resnet18", "default", "timm-resnet18-default"),
        ("ViT-B-16", "/weights/mine.pt", "ViT-B-16-mine.pt"),
    ],
)
def test_names_of_folders(name: str, pretrained: str | None, folder: str) -> None:
    assert Model(name=name, pretrained=pretrained).folder == folder

"""`teachonce run`: the stages of a YAML file, checked before they start, skipped where they are done."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.commands.file_options import as_arguments


@pytest.fixture
def folder(tmp_path):
    for i in range(7):
        (tmp_path / "photos" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), (i, 2 * i, 0)).save(tmp_path / "photos" / "cat" / f"{i}.png")
    return tmp_path


def run(folder, content) -> tuple[int, str, str]:
    (folder / "run.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    result = CliRunner().invoke(main, ["run", str(folder / "run.yaml")])
    return result.exit_code, result.stdout, result.stderr


def test_stages_run_in_order_relative_to_the_file_and_are_skipped_when_done(folder):
    teacher = {"teacher": "timm:test_vit", "teacher-pretrained": "random", "threads": 1}
    stages = [
        {"shard": {"corpus": ["photos"], "out": "shards", "shard-size": 3, "json": True}},
        {"vectors": {**teacher, "out": "store.zarr"}},
        {
            "cache": {
                **teacher,
                "shards": "shards",
                "views": 2,
                "out": "store.zarr",
                "view-scale": [0.5, 1.0],
                "view-jitter": [0.4, 0.4, 0.2, 0.1],
                "view-grayscale": 0.2,
            }
        },
    ]
    code, out, err = run(folder, {"executor": "serial", "stages": stages})
    assert code == 0, err
    assert json.loads(out)["done_now"] == 3
    assert [line for line in err.splitlines() if line.startswith("[")] == [
        "[1/3] shard",
        "[2/3] vectors",
        "[3/3] cache",
    ]
    assert len(list((folder / "store.zarr/ledger/cache/receipts").iterdir())) == 3
    views = json.loads((folder / "store.zarr/zarr.json").read_bytes())["attributes"]["cache"]["views"]
    assert (views["scale"], views["jitter"], views["grayscale"]) == ([0.5, 1.0], [0.4, 0.4, 0.2, 0.1], 0.2)
    code, out, err = run(folder, {"executor": "serial", "stages": stages})
    assert code == 0
    assert json.loads(out) == {
        "out": "shards",
        "stage": "shard",
        "units": 3,
        "done_before": 3,
        "done_now": 0,
        "rows": 0,
        "invalid_rows": 0,
        "failed": {},
        "all_rows": 7,
        "unusable": {},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not a YAML file: "),
        ("stages: [{shard: {corpus: 2024-13-45, out: s}}]", "not a YAML file: {file}: month must be in 1..12"),
        pytest.param("[" * 60_000, "not a run file: it is nested too deeply: {file}", id="deep"),
        ("stages: []", "a run file needs a list of stages: "),
        ("stages: [{shard: {corpus: photos, out: s}, cache: {}}]", "a stage is one command with its options: "),
        (
            "stages: [{bake: {}}]",
            "unknown stage: {file}, stage 1 (bake) [run-file-stage-unknown]. Next: one of anomalies, cache, ",
        ),
        (
            "stages: [{cahce: {}}]",
            "unknown stage: {file}, stage 1 (cahce) [run-file-stage-unknown]. Next: did you mean cache?",
        ),
        (
            "worker: 3\nstages: [{shard: {}}]",
            "unknown key in a run file: {file}: worker: expected stages, executor, ray_address, workers, submit, "
            "found worker [run-file-key-unknown]. Next: did you mean workers?",
        ),
        (
            "stages: [{shard: {corpus: fotos, out: s}}]",
            "a stage reads what is not there: {file}, stage 1 (shard): corpus: expected a file "
            "or a folder, or the --out of an earlier stage, found no fotos [run-file-input-missing]. Next: did you mean photos?",
        ),
        (
            "stages: [{shard: {corpus: [photos, 'more=other'], out: s}}]",
            "a stage reads what is not there: {file}, stage 1 (shard): corpus: ",
        ),
        (
            "stages: [{shard: {corpus: photos, out: s}}, {vectors: {teacher: RN50, classes: clases.txt, out: t}}]",
            "a stage reads what is not there: {file}, stage 2 (vectors): classes: ",
        ),
        (
            "stages: [{shard: {corpus: photos, out: shards}}, {cache: {shards: shrads, teacher: RN50, out: t}}]",
            "a stage reads what is not there: {file}, stage 2 (cache): shards: expected a folder of shards, or the --out of an earlier stage, "
            "found no shrads [run-file-input-missing]. Next: did you mean shards?",
        ),
        (
            "stages: [{shard: {corpus: photos, out: s}}, {distill: {shards: s, store: t, student: RN50, recipe: kd, out: b}}]",
            "a stage reads what is not there: {file}, stage 2 (distill): store: expected a target store, ",
        ),
        (
            "stages: [{shard: {corpus: photos, out: s}}, {distill: {shards: s, store: s, student: RN50, recipe: kd, out: b}}]",
            "a stage reads another kind of folder: {file}, stage 2 (distill): store: expected a target store, found s, a folder of shards [run-file-input-other-kind]. ",
        ),
        (
            "stages: [{cache: {shards: photos, teacher: RN50, out: t}}]",
            "a stage reads another kind of folder: {file}, stage 1 (cache): "
            "shards: expected a folder of shards, found photos, a folder of images [run-file-input-other-kind]. Next: teachonce shard photos --out photos-shards, ",
        ),
        ("stages: [{cache: {shards: photos, teacher: 'teachonce:prompts', out: t}}]", "a stage reads "),
        (
            "stages: [{vectors: {teacher: 'local-dir:model', classes: imagenet, out: t}}]",
            "a stage reads what is not there: {file}, stage 1 (vectors): teacher: expected a file or a folder, ",
        ),
        (
            "stages: [{vectors: {teacher: RN50, teacher-pretrained: w.pt, classes: imagenet, out: t}}]",
            "a stage reads what is not there: {file}, stage 1 (vectors): teacher-pretrained: ",
        ),
        (
            "stages: [{shard: {corpus: 'coop:dtd/train=data', out: s}}]",
            "a stage reads what is not there: {file}, stage 1 (shard): corpus: ",
        ),
        ("speed: 3\nstages: [{shard: {}}]", "unknown key in a run file: {file}: speed: expected stages, executor, "),
        (
            "stages: [{shard: {corpus: photos, out: s, colour: 1}}]",
            "a stage has no such option: {file}, stage 1 (shard): found colour [run-file-option-unknown]. Next: teachonce shard --help",
        ),
        (
            "stages: [{shard: {corpus: photos, out: s, shrad_size: 1}}]",
            "a stage has no such option: {file}, stage 1 (shard): found shrad-size [run-file-option-unknown]. Next: did you mean shard-size",
        ),
        (
            "stages: [{cache: {shard: photos, teacher: RN50, out: s}}]",
            "a stage has no such option: {file}, stage 1 (cache): found shard [run-file-option-unknown]. Next: did you mean shards?",
        ),
        (
            "stages: [{shard: {corpus: photos, out: s, shard-size: 0}}]",
            "a stage's options are wrong: {file}, stage 1 (shard): found Invalid value",
        ),
        (
            "stages: [{shard: {corpus: photos, out: s}}, {shard: {corpus: photos}}]",
            "a stage's options are wrong: {file}, stage 2 (shard): found Missing option '--out'",
        ),
    ],
)
def test_mistakes_are_found_before_anything_starts(folder, content, message):
    code, _, err = run(folder, content)
    assert code == 1
    assert err.splitlines()[-1].startswith("Error: " + message.format(file=folder / "run.yaml"))
    assert not (folder / "s").exists()


def test_arguments_say_what_the_file_says():
    options = {
        "corpus": ["a", "-b"],
        "out": "o",
        "json": True,
        "resize": None,
        "flag": False,
        "mean": [0.5, 0.5, 1],
    }
    assert as_arguments(options, ["corpus"]) == [
        "--out",
        "o",
        "--json",
        "--mean",
        "0.5,0.5,1",
        "--",
        "a",
        "-b",
    ]


def test_every_path_of_a_stage_is_known_to_the_check():
    import click
    from teachonce.commands.run_inputs import KNOWN

    written = {"out", "file", "html", "export", "local_cache"}
    for command in main.commands.values():
        paths = {p.name for p in command.params if isinstance(p.type, click.Path)}
        assert paths <= KNOWN | written, command.name


def test_what_earlier_stages_write_is_no_missing_input(folder):
    stages = "{shard: {corpus: photos, out: made/s}}, {status: {path: made/s}}, {status: {path: made}}, {evaluate: {bundle: no, images: photos}}"
    code, _, err = run(folder, f"stages: [{stages}]")
    assert code == 1
    assert "stage 4 (evaluate): bundle: expected a student bundle" in err

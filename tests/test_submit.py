"""`teachonce submit`: scripts that bash and Slurm take, manifests that Kubernetes' schemas take, in the order of the run file."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.batch.slurm import RUN_COMMAND

CHECKOUT = Path(__file__).parents[1]

ODD = 'it\'s a $(touch x) "photo" `id` & 100 %'

STAGES = [
    {"shard": {"corpus": [ODD], "out": f"{ODD} shards"}},
    {"vectors": {"teacher": "RN50", "out": "s.zarr", "grace": 5}},
    {"cache": {"shards": f"{ODD} shards", "teacher": "RN50", "views": 2, "out": "s.zarr", "grace": 90}},
    {"evaluate": {"bundle": "student", "images": ODD}},
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An odd name for everything that goes into a script."""
    place = tmp_path / ODD
    (place / ODD).mkdir(parents=True)
    (place / ODD / "a.png").write_bytes(b"")
    (place / "student").mkdir()
    (place / "student" / "config.json").write_text('{"format": "teachonce student"}')
    return place


def submit(folder: Path, scheduler: str, *words: str, stages=STAGES, **more) -> tuple[int, str, str]:
    (folder / "My run.yaml").write_text(yaml.safe_dump({"stages": stages, **more}, sort_keys=False))
    result = CliRunner().invoke(main, ["submit", scheduler, str(folder / "My run.yaml"), *words])
    return result.exit_code, result.stdout, result.stderr


def without_evaluate(folder: Path, scheduler: str, *words: str, **more) -> tuple[int, str, str]:
    return submit(folder, scheduler, *words, stages=STAGES[:3], **more)


def bash(*words: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *map(str, words)], capture_output=True, text=True, check=True, **options)


def program(folder: Path, name: str, text: str) -> Path:
    """A program of this name, first on the PATH that is returned."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(
        f"#!{sys.executable}\nimport sys\nif sys.argv[1:] == ['--help']:\n    sys.exit()\n{text}"
    )
    (folder / name).chmod(0o755)
    return folder


ORDER = ["1-shard", "1-shard-finish", "2-vectors", "3-cache", "3-cache-finish"]


def test_slurm_scripts_call_what_the_file_says(folder, tmp_path) -> None:
    """Each is run with a program in teachonce's place, which tells what it was called with, and where."""
    code, out, err = without_evaluate(folder, "slurm", "--slices", "3", "--gpus", "1", executor="ray", workers=2)
    assert (code, err) == (0, f"slurm: 5 jobs in {folder / 'My run-slurm'}\n")
    scripts = folder / "My run-slurm"
    assert sorted(p.name for p in scripts.iterdir()) == sorted([*(f"{name}.sh" for name in ORDER), "submit.sh"])
    assert shlex.split(out) == ["bash", str(scripts / "submit.sh")]
    tells = program(
        tmp_path / "bin", "teachonce", "import json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]))"
    )
    environment = {**os.environ, "PATH": f"{tells}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2"}
    said = {name: json.loads(bash(scripts / f"{name}.sh", env=environment).stdout) for name in ORDER}
    shards, where = f"{ODD} shards", str(folder)
    cache = ["--teacher", "RN50", "--views", "2", "--out", "s.zarr", "--grace", "90", "--", shards]
    ray = ["--executor", "ray", "--workers", "2"]
    assert said == {
        "1-shard": [where, "shard", "--slice", "2/3", "--out", shards, "--", ODD],
        "1-shard-finish": [where, "shard", "--finish", "--out", shards, "--", ODD],
        "2-vectors": [where, "vectors", *ray, "--teacher", "RN50", "--out", "s.zarr", "--grace", "5", "--"],
        "3-cache": [where, "cache", "--slice", "2/3", *cache],
        "3-cache-finish": [where, "cache", "--finish", *cache],
    }
    assert not (folder / "x").exists()


def test_slurm_is_asked_for_what_the_options_say(folder) -> None:
    section = {"slurm": {"slices": 4, "time": "2-12", "partition": "a,b", "gpus": 2}, "kubernetes": {"image": "i"}}
    code, _, err = without_evaluate(folder, "slurm", "--slices", "3", "--memory", "16", submit=section)
    assert code == 0, err
    asked = {
        name: " ".join(
            line.removeprefix("#SBATCH ")
            for line in (folder / "My run-slurm" / f"{name}.sh").read_text().splitlines()
            if line.startswith("#SBATCH ")
        )
        for name in ORDER
    }
    tasks = "--ntasks=1 --cpus-per-task=2 --mem=16G --time=2-12 --partition=a,b"
    array = "--array=0-2 --output=%x-%A_%a.log --open-mode=append"
    single = "--output=%x-%j.log --open-mode=append"
    assert asked == {
        "1-shard": f"--job-name=my-run-1-shard {array} {tasks} --requeue --signal=B:USR1@120",
        "1-shard-finish": f"--job-name=my-run-1-shard-finish {single} {tasks} --requeue --signal=B:USR1@120",
        "2-vectors": f"--job-name=my-run-2-vectors {single} {tasks} --gres=gpu:2 --requeue --signal=B:USR1@65",
        "3-cache": f"--job-name=my-run-3-cache {array} {tasks} --gres=gpu:2 --requeue --signal=B:USR1@150",
        "3-cache-finish": f"--job-name=my-run-3-cache-finish {single} {tasks} --gres=gpu:2 --requeue --signal=B:USR1@150",
    }


def test_now_submits_each_job_after_the_one_before(folder, tmp_path, monkeypatch) -> None:
    """A program in sbatch's place writes down what it gets, and gives out numbers."""
    log = tmp_path / "log"
    text = f"import sys\nwith open({str(log)!r}, 'a+') as log:\n print(*sys.argv[1:], file=log)\n log.seek(0)\n print(10 + len(log.readlines()), 'x', sep=';')"
    monkeypatch.setenv("PATH", f"{program(tmp_path / 'bin', 'sbatch', text)}:{os.environ['PATH']}")
    code, out, err = without_evaluate(folder, "slurm", "--now", "--out", str(tmp_path / "there"))
    assert (code, out, err) == (0, "", f"slurm: 5 jobs in {tmp_path / 'there'}\n")
    after = ["", *(f"--dependency=afterok:{number} --kill-on-invalid-dep=yes " for number in range(11, 15))]
    assert log.read_text().splitlines() == [f"--parsable {a}{name}.sh" for a, name in zip(after, ORDER, strict=True)]


@pytest.mark.skipif(shutil.which("sinfo") is None, reason="needs Slurm")
def test_slurm_takes_the_scripts(folder) -> None:
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no Slurm answers")
    without_evaluate(folder, "slurm", "--memory", "1", "--cpus", "1")
    for script in (*(folder / "My run-slurm").glob("?-*.sh"), *(CHECKOUT / "docker/slurm").glob("*.sh")):
        done = subprocess.run(
            ["sbatch", "--test-only", "--mem=1G", "--cpus-per-task=1", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "allocation failure" in done.stderr) == (0, False), f"{script}: {done.stderr}"


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("SIGUSR1", {}, "scontrol requeue 7\n"),
        ("SIGUSR1", {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "scontrol requeue 7_2\n"),
        ("SIGTERM", {}, ""),
    ],
)
def test_a_warning_sends_a_job_back_to_the_queue_and_an_end_does_not(tmp_path, name, task, said) -> None:
    """The lines that all scripts share, with programs in the places of teachonce and scontrol."""
    program(tmp_path, "scontrol", "import sys\nprint('scontrol', *sys.argv[1:])")
    (tmp_path / "sleep").symlink_to(shutil.which("true") or "")
    stops = (
        f"import os, sys\nfrom signal import {name}, pause, signal\nsignal({name}, lambda *_: sys.exit(75))\n"
        f"os.kill(os.getppid(), {name})\npause()"
    )
    program(tmp_path, "teachonce", stops)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **task}
    script = ["bash", "-c", f"command=(teachonce)\n{RUN_COMMAND}"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (75, said, "")


@pytest.mark.parametrize("script", ["array.sh", "ray.sh"])
def test_the_scripts_to_copy_have_the_same_lines(script) -> None:
    assert RUN_COMMAND in (CHECKOUT / "docker/slurm" / script).read_text(encoding="utf-8")


def test_the_manifests_to_copy_are_what_kubernetes_knows() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    folder = CHECKOUT / "docker" / "kubernetes"
    job = yaml.safe_load((folder / "indexed-job.yaml").read_text(encoding="utf-8"))
    validate(job, "1.33", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f"--slice=$(JOB_COMPLETION_INDEX)/{job['spec']['completions']}" in container["args"]
    ray = yaml.safe_load((folder / "rayjob.yaml").read_text(encoding="utf-8"))
    cluster = ray["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        validate({"apiVersion": "v1", "kind": "Pod", **group["template"]}, "1.33", strict=True)
    for command in (container["args"], shlex.split(ray["spec"]["entrypoint"])[1:]):
        words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in command]
        main.commands[words[0]].make_context(words[0], words[1:], parent=click.Context(main))


def test_compose_has_one_name_for_everything() -> None:
    file = yaml.safe_load((CHECKOUT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    services = file["services"]
    assert sorted(services) == ["bucket", "head", "s3", "worker"]
    assert {name for service in services.values() for name in service.get("depends_on", ())} <= services.keys()
    node = services["worker"]
    build = (CHECKOUT / "docker" / node["build"]["context"]).resolve()
    assert (build, (build / node["build"]["dockerfile"]).is_file()) == (CHECKOUT, True)
    assert "--address=head:6379" in node["command"]
    assert "--port=6379" in services["head"]["command"]


def test_the_image_is_built_from_all_packages() -> None:
    let_in = {
        line[1:] for line in (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    }
    packages = {name.split(".")[1] for name in setuptools_packages() if "." in name}
    assert let_in == packages | {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "__init__.py",
        "__main__.py",
        "cli.py",
        "py.typed",
    }


def setuptools_packages() -> list[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    packages: list[str] = project["tool"]["setuptools"]["packages"]
    return packages


@pytest.mark.parametrize("script", sorted((CHECKOUT / "docker").rglob("*.sh")), ids=lambda p: p.name)
def test_bash_takes_the_scripts_to_copy(script) -> None:
    bash("-n", script)


def test_manifests_are_what_kubernetes_knows(folder) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    words = ("--image", "host:5000/teachonce:1", "--claim", "photos", "--secret", "bucket", "--namespace", "vision")
    code, out, err = submit(folder, "kubernetes", *words, "--gpus", "1", "--slices", "3")
    assert code == 0, err
    assert shlex.split(out) == ["bash", str(folder / "My run-kubernetes" / "submit.sh")]
    assert err == f"kubernetes: 6 jobs in {folder / 'My run-kubernetes'}\n"
    jobs = {p.stem: yaml.safe_load(p.read_text()) for p in (folder / "My run-kubernetes").glob("*.yaml")}
    assert sorted(jobs) == sorted([*ORDER, "4-evaluate"])
    for job in jobs.values():
        validate.validate(job, "1.33", strict=True)
    pods = {name: job["spec"]["template"]["spec"] for name, job in jobs.items()}
    odd = ODD.replace("$", "$$")  # Kubernetes makes one of two
    assert pods["3-cache"]["containers"][0]["args"] == [
        *("cache", "--slice", "$(JOB_COMPLETION_INDEX)/3", "--teacher", "RN50", "--views", "2"),
        *("--out", "s.zarr", "--grace", "90", "--", f"{odd} shards"),
    ]
    assert {n: j["spec"].get("completions") for n, j in jobs.items() if "completions" in j["spec"]} == {
        "1-shard": 3,
        "3-cache": 3,
    }
    assert {n: p["terminationGracePeriodSeconds"] for n, p in pods.items()} == {
        **dict.fromkeys(["1-shard", "1-shard-finish"], 120),
        "2-vectors": 65,
        **dict.fromkeys(["3-cache", "3-cache-finish"], 150),
        "4-evaluate": 30,
    }
    with_gpu = {n for n, p in pods.items() if "nvidia.com/gpu" in p["containers"][0]["resources"]["limits"]}
    assert with_gpu == {"2-vectors", "3-cache", "3-cache-finish", "4-evaluate"}


def test_kubernetes_jobs_run_in_turn_until_one_fails(folder, tmp_path, monkeypatch) -> None:
    """A program in kubectl's place: the third job fails."""
    log = tmp_path / "log"
    text = f"""import sys
with open({str(log)!r}, "a") as log:
    print(*sys.argv[1:4], file=log)
if sys.argv[1] == "get":
    print("Failed" if "vectors" in sys.argv[3] else "SuccessCriteriaMet Complete")"""
    monkeypatch.setenv("PATH", f"{program(tmp_path / 'bin', 'kubectl', text)}:{os.environ['PATH']}")
    monkeypatch.setenv("TEACHONCE_POLL_SECONDS", "0")
    code, _, err = without_evaluate(folder, "kubernetes", "--now", "--image", "i", "--claim", "c")
    assert code == 1
    assert err.splitlines()[-1].startswith("Error: not everything could be submitted: ")
    assert log.read_text().splitlines() == [f"{verb} -f {name}.yaml" for name in ORDER[:3] for verb in ("apply", "get")]


@pytest.mark.parametrize(
    ("scheduler", "words", "more", "line"),
    [
        ("slurm", ("--partition", "a b"), {}, "impossible setting: --partition: expected names of partitions"),
        (
            "slurm",
            ("--time", "1h"),
            {},
            "impossible setting: --time: expected a time such as 04:00:00 or 2-12, found 1h",
        ),
        ("slurm", ("--name", "A"), {}, "impossible setting: --name: expected up to 30 lower-case letters"),
        (
            "slurm",
            (),
            {"submit": {"slurm": {"slice": 3}}},
            "`teachonce submit` has no such option: {file}: submit: slurm: expected slices, cpus, memory, gpus, name, partition, time, found slice [run-file-submit-unknown]. Next: did you mean slices?",
        ),
        (
            "slurm",
            (),
            {"submit": {"slurn": {}}},
            "`teachonce submit` has no such option: {file}: submit: slurn: expected slurm, kubernetes, found slurn",
        ),
        (
            "slurm",
            (),
            {"submit": {"slurm": 3}},
            "options for `teachonce submit` are given for each scheduler: {file}: submit: ",
        ),
        (
            "slurm",
            (),
            {"submit": {"slurm": {"slices": 0}}},
            "an option of `teachonce submit` is wrong: {file}: submit: slurm: found slices: ",
        ),
        ("kubernetes", ("--claim", "c"), {}, "no image is named: --image [submit-without-image]. Next: build one"),
        (
            "kubernetes",
            ("--image", "a b"),
            {},
            "impossible setting: --image: expected an image such as HOST/NAME:TAG, found a b",
        ),
        ("kubernetes", ("--image", "i"), {}, "an output would end with its pod: shard: out: found "),
        (
            "slurm",
            ("--now",),
            {},
            "sbatch is not on this machine: --now [submit-tool-missing]. Next: leave out --now, ",
        ),
        ("slurm", ("--out", "s3://bucket/x"), {}, "only local folders can be used here: s3://bucket/x ["),
        (
            "slurm",
            ("--out", "{folder}"),
            {},
            "the output folder is in use: {folder}: expected no folder, an empty one, or one with submit.sh, found ",
        ),
    ],
)
def test_what_cannot_be_submitted_is_one_line_and_writes_nothing(
    folder, monkeypatch, scheduler, words, more, line
) -> None:
    monkeypatch.setenv("PATH", "/nothing")
    names = {"folder": folder, "file": folder / "My run.yaml"}
    code, _, err = without_evaluate(folder, scheduler, *(w.format(**names) for w in words), **more)
    assert (code, err.splitlines()[-1].startswith("Error: " + line.format(**names))) == (1, True), err
    assert not list(folder.glob("*/submit.sh"))
    assert not list(folder.glob("*.sh"))


def test_a_run_file_with_a_section_for_schedulers_is_run_as_without(folder) -> None:
    Image.new("RGB", (8, 8)).save(folder / ODD / "a.png")
    stages = [{"shard": {"corpus": ODD, "out": "shards", "executor": "serial"}}]
    (folder / "run.yaml").write_text(yaml.safe_dump({"submit": {"slurm": {"slices": 2}}, "stages": stages}))
    result = CliRunner().invoke(main, ["run", str(folder / "run.yaml")])
    assert result.exit_code == 0, result.stderr
    assert (folder / "shards" / "000000.tar").exists()

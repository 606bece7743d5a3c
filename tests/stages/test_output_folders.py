"""What a command may write into: folders that are new, empty or its own, and never one that holds an input.

Every command is pointed at every kind of folder that is not its own, and each byte there is compared afterwards.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import teachonce
import zarr
from click.testing import CliRunner
from PIL import Image
from teachonce.cli import main
from teachonce.pipeline.contents import Kind, kind_of
from teachonce.pipeline.output import check_output, claim_output, foreign_names
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from teachonce.storage_schemas.target_store import open_root

MODELS = Path(teachonce.__file__).parent / "stages" / "demo"


@pytest.fixture(scope="module")
def given(tmp_path_factory, picture_shards, taught_store) -> dict[str, str]:
    """Inputs that every command would run with."""
    root = tmp_path_factory.mktemp("given")
    photos(root / "photos")
    (root / "classes.txt").write_text("red fox\nBlue_Jay\nhouse-cat\n")
    safetensors.numpy.save_file({"prompt_learner.ctx": np.zeros((4, 8), np.float32)}, root / "c.safetensors")
    return {
        "photos": str(root / "photos"),
        "classes": str(root / "classes.txt"),
        "checkpoint": str(root / "c.safetensors"),
        "shards": str(picture_shards.location.path),
        "store": str(taught_store.location.path),
        "teacher": f"local-dir:{MODELS}/teacher",
        "student": f"local-dir:{MODELS}/student",
    }


COMMANDS = {
    "shard": "shard {photos} --executor serial",
    "vectors": "vectors --teacher {teacher} --classes {classes}",
    "cache": "cache {shards} --teacher {teacher} --executor serial",
    "pretrain": "pretrain {photos} --teacher {teacher} --shots 1 --batch-size 2",
    "distill": "distill {shards} {store} --student {student} --recipe kd",
    "import": "import {checkpoint} --teacher {teacher} --classes {classes}",
    "demo": "demo",
}


def photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for name in ("1.jpg", "2.jpg"):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / label / name)


def tars(folder: Path) -> None:
    """WebDataset tars with captions, named as `shard` names its own."""
    folder.mkdir(parents=True)
    picture = io.BytesIO()
    Image.new("RGB", (30, 30), "red").save(picture, "JPEG")
    for number in range(2):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as tar:
            for name, data in (("a.jpg", picture.getvalue()), ("a.txt", b"a caption")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def zarr_group(folder: Path, *, version: int = 3) -> None:
    root = zarr.open_group(str(folder), mode="w", zarr_format=version)  # type: ignore[arg-type]
    root.attrs["title"] = "temperatures"
    for name in ("keys", "logits"):
        root.create_array(name, data=np.arange(12.0).reshape(3, 4))


def text(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")


def model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "model.safetensors").write_bytes(b"weights")


def bare_bundle(folder: Path) -> None:
    """What a person gave away of a student: its three files, without books."""
    folder.mkdir()
    (folder / "config.json").write_text('{"kind": "student bundle", "schema_version": 1}')
    for name in ("model.safetensors", "class_vectors.safetensors"):
        (folder / name).write_bytes(b"weights")


def prompts(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"kind": "prompts", "schema_version": 1}')
    (folder / "prompts.safetensors").write_bytes(b"prompts")


def money(folder: Path) -> None:
    """A ledger of another kind."""
    for stage in COMMANDS:
        (folder / "ledger" / stage).mkdir(parents=True)
        (folder / "ledger" / stage / "2024.csv").write_text("1,2")


def demo(folder: Path) -> None:
    folder.mkdir()
    (folder / "demo.json").write_text('{"kind": "teachonce demo"}')


def hidden(folder: Path) -> None:
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")


#: Folders that are no command's own: how to make one, how it is called, and the first thing in it.
FOREIGN: dict[str, tuple[Callable[[Path], None], Kind, str]] = {
    "photos": (photos, Kind.IMAGES, "cat and 1 more"),
    "tars": (tars, Kind.TARS, "000000.tar and 1 more"),
    "zarr": (zarr_group, Kind.ZARR, "keys and 2 more"),
    "zarr v2": (lambda folder: zarr_group(folder, version=2), Kind.ZARR, ".zattrs and 3 more"),
    "text": (text, Kind.OTHER, "thesis.tex"),
    "model": (model, Kind.MODEL, "config.json and 1 more"),
    "bundle": (bare_bundle, Kind.BUNDLE, "class_vectors.safetensors and 2 more"),
    "prompts": (prompts, Kind.PROMPTS, "config.json and 1 more"),
    "hidden": (hidden, Kind.OTHER, ".git"),
    "money": (money, Kind.OTHER, "ledger"),
}


def run(command: str, *more: object) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, [*command.split(), *map(str, more)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines()


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder, and the bytes of the files."""
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes() for p in folder.rglob("*")}


def refusal(out: Path, command: str, found: str, ending: str) -> str:
    return (
        f"Error: the output folder holds something else: {out}: expected a folder that is new, empty, or begun by "
        f"`teachonce {command}`, found {found} [output-holds-other]. Next: teachonce {command} … --out {out}-{ending}"
    )


ENDINGS = {
    "shard": "shards",
    "vectors": "store",
    "cache": "store",
    "pretrain": "prompts",
    "distill": "student",
    "import": "imported",
    "demo": "demo",
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_something_else_is_left_as_it_is(command, foreign, given, tmp_path):
    make, kind, first = FOREIGN[foreign]
    out = tmp_path / "mine"
    make(out)
    before = everything(out)
    line = refusal(out, command, f"{kind}: {first}", ENDINGS[command])
    assert run(COMMANDS[command].format(**given), "--out", out) == (1, [line])
    assert everything(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_another_command_made_is_foreign_too(command, given, tmp_path):
    for name in ("shards", "store"):
        if (command, name) in (("shard", "shards"), ("vectors", "store"), ("cache", "store")):
            continue
        out = tmp_path / f"{name}-of-mine"
        shutil.copytree(given[name], out)
        before = everything(out)
        code, lines = run(COMMANDS[command].format(**given), "--out", out)
        assert code == 1
        assert len(lines) == 1
        kind = Kind.SHARDS if name == "shards" else Kind.STORE
        assert f"the output folder holds something else: {out}: " in lines[0]
        assert f", found {kind}: " in lines[0]
        assert everything(out) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_no_folder_can_be_made_of_a_file(command, given, tmp_path):
    (tmp_path / "notes").write_text("x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for out, found in (("notes", "a file"), ("notes/out", "a file"), ("gone", "a link to nothing")):
        code, lines = run(COMMANDS[command].format(**given), "--out", tmp_path / out)
        where = tmp_path / out.partition("/")[0]
        assert (code, len(lines)) == (1, 1)
        start = f"Error: no folder can be here: {where}: expected a folder, or nothing, found {found} [output-blocked]. Next: "
        assert lines[0].startswith(start + f"teachonce {command} … --out "), lines[0]
    assert (tmp_path / "notes").read_bytes() == b"x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gone", "notes"]


def test_shards_never_replace_the_tars_that_they_are_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tars(tmp_path / "wds")
    (tmp_path / "link").symlink_to("wds")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000000.tar").symlink_to(tmp_path / "wds" / "000001.tar")
    before = everything(tmp_path)
    for corpus, out in (
        ("wds/000000.tar wds/000001.tar", "wds"),
        ("wds/000000.tar", "./link"),
        ("link/000000.tar", "wds"),
        ("x=wds/000000.tar", "out/../wds"),
        ("out/../wds/000000.tar", "wds/"),
        ("out/000000.tar", "out"),
        ("wds", "wds"),
    ):
        code, lines = run(f"shard {corpus} --executor serial --out {out}")
        assert code == 1
        assert lines[0].startswith("Error: the output folder is or holds an input: "), lines
        assert f"found {corpus.split()[0]} [output-holds-input]. Next: teachonce shard … --out " in lines[0]
        assert everything(tmp_path) == before
    # A folder is below what it is made from, or beside it.
    assert run("shard wds/000000.tar --executor serial --out wds/../wds-shards")[0] == 0


@pytest.mark.parametrize(
    "line",
    [
        "shard {shards}/000000.tar --executor serial --out {shards}",
        "cache {shards} --teacher {teacher} --executor serial --out {shards}",
        "distill {shards} {store} --student {student} --recipe kd --out {store}",
        "distill {shards} {store} --student {student} --recipe kd --out {shards}",
        "import {checkpoint} --teacher {teacher} --classes {classes} --out {folder}",
        "pretrain {photos} --teacher {teacher} --out {photos}",
    ],
)
def test_an_output_that_is_or_holds_an_input(line, given, tmp_path):
    names = {**given, "folder": str(tmp_path / "folder")}
    for name in ("shards", "store", "photos"):
        shutil.copytree(given[name], tmp_path / name)
        names[name] = str(tmp_path / name)
    (tmp_path / "folder").mkdir()
    for name in ("checkpoint", "classes"):
        names[name] = shutil.copy(given[name], tmp_path / "folder")
    before = everything(tmp_path)
    code, lines = run(line.format(**names))
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("Error: the output folder is or holds an input: "), lines
    assert everything(tmp_path) == before


def test_what_a_person_adds_to_our_folder_does_not_stop_a_resume(given, tmp_path):
    out = tmp_path / "out"
    line = COMMANDS["shard"].format(**given) + f" --shard-size 2 --out {out}"
    out.mkdir()
    (out / ".DS_Store").write_bytes(b"finder")
    (out / ".manifest.parquet.0123abcd.tmp").write_bytes(b"PAR1")  # all that a killed run had written
    assert run(line)[0] == 0
    assert not (out / ".manifest.parquet.0123abcd.tmp").exists()
    whole = everything(out)
    (out / "README.md").write_text("these are mine")
    (out / "000001.tar").unlink()
    code, lines = run(line)
    assert (code, lines[-1].split("; ")[0]) == (0, "shard: 2 of 2 units done, 1 of them before")
    assert everything(out) == {**whole, "README.md": b"these are mine"} | {
        name: (out / name).read_bytes() for name in whole if name.startswith("ledger/shard/timings/0")
    }


@pytest.mark.parametrize("left", [["ledger/shard"], ["ledger/shard", "manifest.parquet"]])
def test_a_run_that_was_killed_before_it_had_a_plan_is_known_by_its_books(left, given, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "out"
    line = COMMANDS["shard"].format(**given)
    assert run(line, "--out", plain)[0] == 0
    for name in left:
        if (plain / name).is_dir():
            (out / name).mkdir(parents=True)
        else:
            (out / name).write_bytes((plain / name).read_bytes()[:100])
    assert run(line, "--out", out)[0] == 0
    timings = "ledger/shard/timings/000000.json"
    assert {**everything(out), timings: b""} == {**everything(plain), timings: b""}


def test_an_empty_ledger_or_litter_alone_is_an_empty_folder(given, tmp_path):
    """A run that found no images leaves no more than that, and another command may go on there."""
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "out"
    assert run(f"shard {tmp_path / 'nothing'} --executor serial --out {out}")[0] == 1
    assert run(COMMANDS["vectors"].format(**given), "--out", out)[0] == 0
    # Vectors and targets share a store.
    assert kind_of(Location.of(out)) == Kind.STORE
    code, lines = run(COMMANDS["cache"].format(**given), "--out", out)
    assert (code, lines[-1].split("; ")[0]) == (0, "cache: 4 of 4 units done")


def test_a_name_that_is_also_the_output_is_no_input(tmp_path, monkeypatch):
    """`--student ViT-B-16 --out ViT-B-16` is asked for again to resume, when there is such a folder."""
    monkeypatch.chdir(tmp_path)
    out = Location.of("ViT-B-16")
    claim_output(out, "distill")
    (out / "weights.bin").write_bytes(b"")
    check_output(out, "distill", names=("ViT-B-16", "timm:ViT-B-16", "a,ViT-B-16", "imagenet", "", None))
    for name in ("local-dir:ViT-B-16", "teachonce:./ViT-B-16", "ViT-B-16/weights.bin"):
        with pytest.raises(InputError, match=f"is or holds an input: ViT-B-16: .* found {name}"):
            check_output(out, "distill", names=("openai", name))
    for given in ("ViT-B-16", "x=ViT-B-16", "coop:dtd/train=ViT-B-16", out / "weights.bin"):
        with pytest.raises(InputError) as error:
            check_output(out, "distill", inputs=(None, "elsewhere", given))
        assert error.value.code == "output-holds-input"


def test_the_lock_of_a_command_that_is_gone_is_nothing(tmp_path):
    out = Location.of(tmp_path / "out")
    (out / "ledger" / "driver.json").write_bytes(b"{}")
    (out / "ledger" / "shard").make_dir()
    check_output(out, "cache")
    assert foreign_names(out) == []
    (out / "ledger" / "shard" / "plan.json").write_bytes(b"{}")
    check_output(out, "shard")
    with pytest.raises(InputError) as error:
        check_output(out, "cache")
    assert (error.value.code, str(error.value.found)) == ("output-holds-other", "a folder of shards: ledger")


def test_a_foreign_group_is_no_store_even_for_who_opens_it_directly(tmp_path):
    zarr_group(tmp_path / "z")
    before = everything(tmp_path)
    with pytest.raises(MismatchError) as error:
        open_root(str(tmp_path / "z"), mode="a")
    assert error.value.code == "store-other-group"
    assert error.value.where is not None
    assert str(error.value.found).startswith("'keys' in it")
    assert everything(tmp_path) == before
    # A killed run may have got so far.
    zarr.open_group(str(tmp_path / "begun"), mode="w").require_group("ledger")
    assert open_root(str(tmp_path / "begun"), mode="a").attrs["teachonce"]["kind"] == "target store"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "distill {photos} {store} --student {student} --recipe kd --out {out}",
            "no shards here: {photos}: expected a folder of shards, found a folder of images [shards-missing]. Next: teachonce shard {photos} --out "
            "{photos}-shards, then give {photos}-shards",
        ),
        (
            "distill {store} {shards} --student {student} --recipe kd --out {out}",
            "two folders are swapped: {store} {shards}: expected a folder of shards first, found a target store first, then a folder "
            "of shards [folders-swapped]. Next: teachonce distill {shards} {store} …",
        ),
        (
            "distill {shards} {photos} --student {student} --recipe kd --out {out}",
            "no target store here: {photos}: expected a target store, found a folder of images [store-missing]. Next: give the folder that "
            "`teachonce cache` wrote",
        ),
        (
            "distill {store} {store} --student {student} --recipe kd --out {out}",
            "no shards here: {store}: expected a folder of shards, found a target store [shards-missing]. Next: give the folder that "
            "`teachonce shard` wrote",
        ),
        (
            "cache {bundle} --teacher {teacher} --out {out}",
            "no shards here: {bundle}: expected a folder of shards, found a student bundle [shards-missing]. Next: give the folder that "
            "`teachonce shard` wrote",
        ),
        (
            "cache {tars} --teacher {teacher} --out {out}",
            "no shards here: {tars}: expected a folder of shards, found a folder of tars [shards-missing]. Next: teachonce shard {tars}/*.tar --out "
            "{tars}-shards, then give {tars}-shards",
        ),
        (
            "cache {out} --teacher {teacher} --out {out}-2",
            "no shards here: {out}: expected a folder of shards, found nothing [shards-missing]. Next: teachonce shard CORPUS --out {out}",
        ),
        (
            "vectors --teacher {teacher} --classes {photos} --out {out}",
            "not a class list: {photos}: expected a file of names, or a folder of shards, found a folder of images [class-list-other-kind]. Next: write the "
            "names to a file, one a line, and give that",
        ),
        (
            "vectors --teacher teachonce:{photos} --classes {classes} --out {out}",
            "no prompts here: {photos}: expected a folder of prompts, found a folder of images [prompts-missing]. Next: give the folder that "
            "`teachonce pretrain` wrote",
        ),
        (
            "evaluate {photos} {bundle}",
            "two folders are swapped: {photos} {bundle}: expected a student bundle first, found a folder of images first, then a "
            "student bundle [folders-swapped]. Next: teachonce evaluate {bundle} {photos} …",
        ),
        (
            "evaluate {store} {photos}",
            "no student bundle here: {store}: expected a student bundle, found a target store [bundle-missing]. Next: give the folder that "
            "`teachonce distill` wrote",
        ),
        (
            "inspect {shards}",
            "no target store here: {shards}: expected a target store, found a folder of shards [store-missing]. Next: give the folder that "
            "`teachonce cache` wrote",
        ),
    ],
)
def test_an_error_says_what_was_given_and_suggests_no_mistake(line, error, given, tmp_path):
    names = {
        **given,
        "out": str(tmp_path / "new"),
        "bundle": str(tmp_path / "bundle"),
        "tars": str(tmp_path / "wds"),
    }
    bare_bundle(tmp_path / "bundle")
    tars(tmp_path / "wds")
    assert run(line.format(**names)) == (1, [f"Error: {error.format(**names)}"])
    assert not (tmp_path / "new").exists()


def test_what_a_path_is(given, tmp_path):
    def kind(name: str) -> Kind:
        return kind_of(Location.of(tmp_path / name))

    assert kind("nothing") == Kind.NOTHING
    (tmp_path / "empty").mkdir()
    assert kind("empty") == Kind.EMPTY
    demo(tmp_path / "demo")
    assert kind("demo") == Kind.DEMO
    for name in ("a.tar", "a.JPG", "a.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [kind(n) for n in ("a.tar", "a.JPG", "a.txt")] == [Kind.TAR, Kind.IMAGE, Kind.FILE]
    for name, (make, expected, _) in FOREIGN.items():
        make(tmp_path / f"f-{name}")
        assert kind(f"f-{name}") == expected
    # What marks a folder may be a stranger's: deep, binary, a list, or no file.
    for name, data in (("deep", b"[" * 100_000), ("binary", b"\xff\xfe\0"), ("list", b"[1]")):
        (tmp_path / name).mkdir()
        for marker in ("corpus.json", "config.json", "demo.json"):
            (tmp_path / name / marker).write_bytes(data)
        assert kind(name) == Kind.OTHER
    (tmp_path / "odd" / "corpus.json").mkdir(parents=True)
    assert kind("odd") == Kind.OTHER
    assert kind_of(Location.of(given["shards"])) == Kind.SHARDS
    assert kind_of(Location.of(given["store"])) == Kind.STORE


def test_an_edited_class_list_costs_no_targets(given, tmp_path):
    """The store may hold a week of a teacher's work: the hint keeps it, and works."""
    store, edited = tmp_path / "store", tmp_path / "edited.txt"
    assert run(COMMANDS["vectors"].format(**given), "--out", store)[0] == 0
    edited.write_text("red fox\nblue jay\nhouse cat\nlynx\n")
    code, lines = run(COMMANDS["vectors"].format(**{**given, "classes": edited}), "--out", store)
    assert code == 1
    assert lines[-1].endswith(
        f"Next: use the options of the first run, or keep {store} and write to another store: --out {store}-2, then "
        f"teachonce distill … --vectors {store}-2"
    )
    assert run(COMMANDS["vectors"].format(**{**given, "classes": edited}), "--out", f"{store}-2")[0] == 0


def test_the_way_to_have_one_unit_done_anew_works_as_it_is_typed(given, tmp_path):
    out = tmp_path / "the shards"  # with a blank in its name
    line = [*COMMANDS["shard"].format(**given).split(), "--shard-size", "2", "--out", str(out)]
    assert CliRunner().invoke(main, line).exit_code == 0
    whole = everything(out)
    tar = out / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:700] + b"\0" + tar.read_bytes()[701:])
    with pytest.raises(DamagedError) as caught:
        ShardSet.open(str(out)).reader(1).read(2)
    assert caught.value.code == "image-in-tar-changed"
    typed, _, rest = str(caught.value.hint).removeprefix("restore the tar, or ").partition(", then ")
    assert rest == "run the same `teachonce shard` command again"
    subprocess.run(["sh", "-c", typed], check=True)
    result = CliRunner().invoke(main, line)
    assert result.stderr.splitlines()[-1].startswith("shard: 2 of 2 units done, 1 of them before; ")
    receipt = "ledger/shard/receipts/000001.json"
    timings = {name: b"" for name in whole if "timings/0" in name}
    assert everything(out) | timings == whole | timings | {f"{receipt}.old": whole[receipt]}


def test_no_advice_deletes_anything():
    """A hint names the way that keeps what is there."""
    root = Path(teachonce.__file__).parent
    told = [
        f"{path.relative_to(root)}: {word}"
        for folder in ("stages", "pipeline", "storage_schemas")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        for word in (
            '"delete ',
            " delete {",
            "or delete",
            "delete it",
            "delete this",
            "rm -r",
            "remove it and",
            "remove {",
        )
        if word in line
    ]
    assert told == []


def test_a_damaged_plan_keeps_its_work(given, tmp_path):
    out = tmp_path / "out"
    assert run(COMMANDS["shard"].format(**given), "--out", out)[0] == 0
    plan = out / "ledger" / "shard" / "plan.json"
    plan.write_text(json.dumps([]))
    code, lines = run(COMMANDS["shard"].format(**given), "--out", out)
    assert (code, lines[-1]) == (
        1,
        f"Error: not a plan: {plan}: found Expected `object`, got `array` [plan-malformed]. Next: restore it from a copy, or run `teachonce shard` with another --out",
    )

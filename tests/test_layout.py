"""The layout's rules, checked on the sources: who imports whom, who opens files, no pickle, no teacher."""

from __future__ import annotations

import ast
import graphlib
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import teachonce

ROOT = Path(teachonce.__file__).parent
CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("commands", "pipeline", "stages", "storage_schemas")

#: Scripts for developers that lie beside what they make; no command runs them.
SCRIPTS = {"stages/demo/train_weights.py"}

OPEN_TO_STAGES = tuple(
    f"pipeline.{name}"
    for name in (
        "types",
        "interrupt",
        "storage",
        "user_files",
        "user_cache",
        "ledger",
        "progress",
        "output",
        "contents",
        "driver",
        "kinds_of_time",
        "tables",
        "command_runner",
        "settings",
        "cores",
        "lean_imports",
        "stopping",
        "requests",
    )
)

#: What opens local files: the local place, and what a user names on his own machine.
OPENS_FILES = {
    "pipeline/places/local.py",
    "pipeline/places/durable.py",
    "pipeline/places/files.py",
    "pipeline/user_files.py",
    "pipeline/cores.py",
    "pipeline/executors/shipped.py",  # this package's own
}

#: What may speak of paths, and why.
KNOWS_PATHS = {
    "pipeline/storage.py": "turns what a user types into names",
    "pipeline/cores.py": "asks the kernel",
    "pipeline/driver.py": "one lock, whatever links lead to it",
    "pipeline/places": "the local place",
    "pipeline/user_cache.py": "the user's cache folder",
    "pipeline/user_files.py": "files of the user's",
    "pipeline/executors/site.py": "the working folder",
    "pipeline/executors/shipped.py": "hands this package to Ray",
    "pipeline/executors/ray_train.py": "Ray Train keeps its books in a folder that all nodes share",
    "stages/demo": "draws images for a user's folder",
    "stages/corpora/spelling.py": "files of the user's",
    "stages/exporting": "hands a local folder to other programs' loaders",
    "stages/corpora/shards.py": "takes what users name",
    "stages/models": "files of the user's",
    "stages/pairs/stream.py": "takes what users name",
    "stages/pairs/target_join.py": "takes what users name",
    "commands/runner.py": "the working folder",
}

#: Gives the path of an output to another program, which takes nothing else.
HANDS_ON_PATHS = {"pipeline/executors/ray_train.py", "pipeline/user_files.py"}

#: What the modules of each package may import of ours, as dotted prefixes.
ALLOWED = {
    "storage_schemas": ("storage_schemas",),
    "pipeline": ("pipeline", "storage_schemas"),
    "stages": ("stages", "storage_schemas", *OPEN_TO_STAGES),
    "commands": ("commands", "pipeline", "stages", "storage_schemas"),
    "cli": ("commands", "pipeline", "storage_schemas"),
    "__main__": ("cli", "pipeline"),
    "__init__": ("stages.library", "stages.pairs", "stages.students"),  # the public names
}

#: The rooms, which are the folders of the package, from the ground up: each may import those that stand before it.
ROOMS = (
    "storage_schemas/encodings",
    "storage_schemas",
    "pipeline/places",
    "pipeline",
    "pipeline/batch",
    "pipeline/executors",
    "stages/decoding",
    "stages/encodings",
    "stages/prompts",
    "stages/corpora",
    "stages/corpora/coop",
    "stages/corpora/defects",
    "stages/views",
    "stages/samples",
    "stages/inputs",
    "stages/models",
    "stages/students",
    "stages/pairs",
    "stages/naming",
    "stages/measures",
    "stages/teachers",
    "stages/caching",
    "stages/verifying",
    "stages/anomaly",
    "stages/growth",
    "stages/recipes",
    "stages/training/loggers",
    "stages/training",
    "stages/pretraining",
    "stages/published",
    "stages/reports",
    "stages/library",
    "stages/pages",
    "stages/settings",
    "stages/distilling",
    "stages/recoding",
    "stages/planning",
    "stages/exporting",
    "stages",
    "stages/demo",
    "stages/protocols",
    "commands",
)

#: What never needs a teacher: nothing that these import, directly or through others, may be one.
WITHOUT_TEACHER = tuple(
    f"stages/{name}"
    for name in (
        "anomalies",
        "anomaly",
        "distill",
        "distilling",
        "evaluate",
        "predict",
        "pairs",
        "training",
        "reports",
        "pages",
        "measures",
        "students",
        "recipes",
        "recode",
        "recoding",
        "library",
        "exporting",
        "export",
    )
)

#: What looks at what others have made, and makes it again; what makes it first needs none of that.
LOOKS_AGAIN = ("commands/verify.py", "stages/verify.py", "stages/fill_mended.py", "stages/verifying/")


def sources() -> list[str]:
    """Every module of the package, relative to its root."""
    files = [*ROOT.glob("*.py"), *(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))]
    return sorted(f.relative_to(ROOT).as_posix() for f in files)


@cache
def tree(source: str) -> ast.Module:
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def module_name(source: str) -> str:
    """`pipeline/ledger.py` is `pipeline.ledger`, `pipeline/__init__.py` is `pipeline`."""
    return source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it is ours) of everything that a module imports, at any depth of its code.

    Our own names lack the leading `teachonce.`; `from . import x` yields the name of x.
    """
    folder = source.split("/")[:-1]
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                ours = alias.name == "teachonce" or alias.name.startswith("teachonce.")
                yield alias.name.removeprefix("teachonce").lstrip(".") if ours else alias.name, ours
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            ours = node.level > 0 or base[:1] == ["teachonce"]
            if node.level > 0:
                base = folder[: len(folder) - node.level + 1] + base
            elif ours:
                base = base[1:]
            for alias in node.names:
                yield ".".join([*base, alias.name]), ours


@cache
def our_imports(source: str) -> frozenset[str]:
    """The modules of ours that a module imports, as files; importing `a.b` runs `a/__init__.py` too."""
    known = {module_name(s): s for s in sources()}
    found = set()
    for name, ours in imports(source):
        parts = name.split(".") if ours else []
        found |= {known[m] for n in range(1, len(parts) + 1) if (m := ".".join(parts[:n])) in known}
    return frozenset(found)


def reach(source: str) -> set[str]:
    """Every module of ours that importing and calling this one may import."""
    seen: set[str] = set()
    left = [source]
    while left:
        current = left.pop()
        if current not in seen:
            seen.add(current)
            left += our_imports(current)
    return seen


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name as written, node) of every call by name."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a call passes by keyword, or None."""
    for item in call.keywords:
        if item.arg == name and isinstance(item.value, ast.Constant):
            return item.value.value
    return None


def test_pyproject_lists_every_package() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {ROOT, *(f.parent for package in PACKAGES for f in (ROOT / package).rglob("*.py"))}
    found = sorted(".".join(["teachonce", *folder.relative_to(ROOT).parts]) for folder in folders)
    assert sorted(project["tool"]["setuptools"]["packages"]) == found
    assert [f for f in folders if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize("source", sources())
def test_imports_point_one_way(source: str) -> None:
    allowed = ALLOWED[source.removesuffix(".py").split("/")[0]]
    strangers = [n for n, ours in imports(source) if ours and not any(n == a or n.startswith(f"{a}.") for a in allowed)]
    if source == "cli.py":
        strangers = [n for n in strangers if n != "__version__"]
    assert strangers == []


def test_no_import_goes_in_a_circle() -> None:
    """Not even one that is put off until a function runs."""
    modules = {module_name(source): source for source in sources()}
    graph = {
        name: {
            found
            for there, ours in imports(source)
            if ours and (found := _module_of(there, modules)) not in (None, name)
        }
        for name, source in modules.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(order) == set(modules)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downwards(room: str) -> None:
    """Not even by an import that is put off until a function runs."""
    below = {*ROOMS[: ROOMS.index(room)], room}
    upwards = [
        f"{source} imports {there}"
        for source in sources()
        if _room(source) == room
        for there in our_imports(source)
        # Importing `stages.pairs.order` runs `stages/__init__.py`, which holds a docstring alone.
        if not there.endswith("__init__.py") and _room(there) not in below
    ]
    assert upwards == []


def test_every_room_has_its_floor() -> None:
    assert {_room(s) for s in sources()} == {*ROOMS, "."}


def _room(source: str) -> str:
    return Path(source).parent.as_posix()


def _module_of(name: str, modules: Mapping[str, str]) -> str | None:
    """The module that a dotted name is, or is in; None for the package itself."""
    return name if name in modules else next((n for n in (name.rpartition(".")[0],) if n in modules), None)


@pytest.mark.parametrize("source", sources())
def test_only_its_executors_import_ray(source: str) -> None:
    if not source.startswith("pipeline/executors/"):
        assert [n for n, ours in imports(source) if not ours and n.split(".")[0] == "ray"] == []


@pytest.mark.parametrize("source", sorted(set(sources()) - SCRIPTS - OPENS_FILES))
def test_only_places_and_user_files_open_files(source: str) -> None:
    by_name = {
        "open",
        "io.open",
        "os.open",
        "os.listdir",
        "os.makedirs",
        "os.remove",
        "os.rename",
        "os.replace",
    }
    found = [f"{name} in line {node.lineno}" for name, node in calls(source) if name in by_name]
    found += [
        n
        for n, ours in imports(source)
        if not ours and (n.startswith("os.path") or n.split(".")[0] in {"glob", "shutil"})
    ]
    found += [
        f"os.path.{node.attr} in line {node.lineno}"
        for node in ast.walk(tree(source))
        # `splitext` looks at a name and builds no path.
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.path" and node.attr != "splitext"
    ]
    assert found == []


@pytest.mark.parametrize("source", sources())
def test_artefacts_have_no_paths(source: str) -> None:
    found = []
    if not source.startswith(tuple(KNOWS_PATHS)):
        found = [n for n, ours in imports(source) if not ours and n.split(".")[0] == "pathlib"]
    if not any(n.endswith(".UserFile") for n, ours in imports(source) if ours) and source not in HANDS_ON_PATHS:
        # An attribute of these names is a place's in such a module, and has a path on this machine at most.
        places = {"location", "folder", "store", "out", "root"}
        found += [
            f"{ast.unparse(node)} in line {node.lineno}"
            for node in ast.walk(tree(source))
            if isinstance(node, ast.Attribute)
            and node.attr == "path"
            and ast.unparse(node.value).rpartition(".")[2] in places
        ]
    assert found == []


@pytest.mark.parametrize("source", sources())
def test_only_the_registry_of_places_is_asked_for_one(source: str) -> None:
    """Whoever needs a place needs `Location` alone, so another kind of place is one file and one line."""
    if not source.startswith(("pipeline/places/", "pipeline/storage.py", "pipeline/user_files.py")):
        assert [n for n, ours in imports(source) if ours and n.startswith("pipeline.places")] == []


@pytest.mark.parametrize("source", sources())
def test_no_pickle(source: str) -> None:
    modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    found = [n for n, ours in imports(source) if not ours and n.split(".")[0] in modules]
    for name, node in calls(source):
        if name == "torch.save" or (name == "torch.load" and keyword(node, "weights_only") is not True):
            found.append(f"{name} in line {node.lineno}")
        if name.endswith((".load", ".save")) and keyword(node, "allow_pickle") not in (None, False):
            found.append(f"{name} in line {node.lineno}")
    assert found == []


@pytest.mark.parametrize("source", [s for s in sources() if s.startswith(WITHOUT_TEACHER)])
def test_students_never_reach_a_teacher(source: str) -> None:
    assert sorted(s for s in reach(source) if s.startswith("stages/teachers")) == []


@pytest.mark.parametrize("source", [s for s in sources() if not s.startswith(LOOKS_AGAIN)])
def test_what_makes_things_never_imports_what_checks_them(source: str) -> None:
    assert [s for s in our_imports(source) if s.startswith("stages/verifying/")] == []


def test_the_rules_above_cover_what_they_are_about() -> None:
    covered = {prefix for prefix in WITHOUT_TEACHER for s in sources() if s.startswith(prefix)}
    assert covered == set(WITHOUT_TEACHER)
    assert any(s.startswith("stages/teachers/") for s in sources())
    assert all(any(s.startswith(name) for s in sources()) for name in LOOKS_AGAIN)
    assert "stages/corpora/shards.py" in reach("cli.py")


@pytest.mark.parametrize("source", sources())
def test_first_line_says_what_a_module_owns(source: str) -> None:
    words = ast.get_docstring(tree(source))
    assert words, "a module starts with a docstring"
    assert words.splitlines()[0].endswith((".", ":")), words.splitlines()[0]

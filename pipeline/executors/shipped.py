"""Owns what the nodes of a cluster are given by a command that joins it: this package, and the variables that say where places are.

The package goes through Ray's `py_modules`: workers run the code of the command, on nodes that have no teachonce or another one too.
Never the working directory, which may hold a corpus.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..storage import handed_on

#: How threads of torch wait for each other, which the command has set for its own: see docs/demo.md. Workers of a cluster begin with its nodes' variables.
_FOR_THREADS = ("OMP_WAIT_POLICY",)

_PACKAGE = Path(__file__).parents[2]


@contextlib.contextmanager
def shipped() -> Iterator[dict[str, Any]]:
    """Ray's `runtime_env`. Inside, the copy that Ray uploads is there."""
    variables = {name: os.environ[name] for name in _FOR_THREADS if name in os.environ} | handed_on()
    with tempfile.TemporaryDirectory(prefix="teachonce-") as folder:
        copy_package(Path(folder) / "teachonce")
        modules: dict[str, Any] = {"py_modules": [f"{folder}/teachonce"]}
        yield modules | ({"env_vars": variables} if variables else {})


def copy_package(to: Path) -> None:
    """The files of this package alone: in a checkout much else lies beside them."""
    to.mkdir()
    for path in sorted(_PACKAGE.iterdir()):
        if path.suffix == ".py" or path.name == "py.typed":
            shutil.copyfile(path, to / path.name)
        elif (path / "__init__.py").is_file():
            shutil.copytree(path, to / path.name, ignore=shutil.ignore_patterns("__pycache__"))

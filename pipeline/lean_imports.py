"""Owns imports in processes of this program: open_clip and timm come without what they bring along and no command uses.

Two imports take longer than all others: transformers, which open_clip imports where it is installed, and torch's compiler,
which torchvision, timm and torch's optimizers import for functions that do nothing in a process that compiles nothing. In a
process that is ours alone (the program, a worker on Ray) both wait until they are needed; a user's own process stays as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

from . import deferred_compiler

if TYPE_CHECKING:
    from importlib.abc import Loader

_TRANSFORMERS = "transformers"

#: The modules of open_clip that import transformers if they can, and do without if they cannot.
_USE_TRANSFORMERS = ("open_clip.hf_model", "open_clip.coca_model")

#: Of these, the ones that were imported while they could not.
_incomplete: set[str] = set()


def install() -> None:
    """From now on, libraries are imported without those two. Once is enough; what is imported already stays."""
    deferred_compiler.install()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def complete_open_clip() -> None:
    """Let open_clip have transformers, if it was imported without: for its text towers, and for code of other packages.

    Its modules run once more in their own namespaces, so classes that others hold see the names that were missing.
    """
    for name in sorted(_incomplete):
        _incomplete.discard(name)
        importlib.reload(sys.modules[name])


class _Finder:
    """Finds modules that use transformers as other finders do, to import them without it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _USE_TRANSFORMERS or target is not None:  # with a target, it is imported once more
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(fullname, path, None)
            if spec is not None and spec.loader is not None:
                spec.loader = cast(
                    "Loader", _Without(spec.loader)
                )  # by its methods; importing the class costs more than all of this
            if spec is not None:
                return spec
        return None


class _Without:
    """Another loader, while transformers cannot be imported. The module keeps that loader as its own."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        with _without_transformers(module.__name__):
            self._loader.exec_module(module)


@contextlib.contextmanager
def _without_transformers(name: str) -> Iterator[None]:
    """Inside, `import transformers` fails as where it is not installed; `name` is the module that is imported."""
    if sys.modules.get(_TRANSFORMERS) is not None:
        yield
        return
    is_first = _TRANSFORMERS not in sys.modules  # one of the modules imports the other
    sys.modules[_TRANSFORMERS] = None  # type: ignore[assignment]  # so Python documents it
    try:
        yield
    finally:
        if is_first:
            del sys.modules[_TRANSFORMERS]
    _incomplete.add(name)

"""Owns stand-ins for torch's compiler (`torch._dynamo`), which is imported when something is wanted that only it can do.

Importing it takes as long as torch itself. Three libraries do so and compile nothing: torchvision, for a function that it may
call later; timm, to mark functions that are not to be compiled; torch's optimizers, for that too, and for a mark at each step that
means nothing outside of compiled code. The stand-ins do these three things. Any other use of them, and any import of a part of
the compiler, imports the real one, which takes their place for good; marks that were set before are marks for it too.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, MutableSequence, Sequence
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

_PACKAGE = "torch._dynamo"
_PARTS = f"{_PACKAGE}.utils"


def install() -> None:
    """Put the stand-ins in place, unless the compiler is imported already, or they are there."""
    if _PACKAGE not in sys.modules:
        sys.modules |= {_PACKAGE: _Compiler(_PACKAGE), _PARTS: _Parts(_PARTS)}
        sys.meta_path.insert(0, _Finder())


def _is_deferred() -> bool:
    return isinstance(sys.modules.get(_PACKAGE), _Compiler)


def _import(name: str) -> Any:
    """A module of the real compiler."""
    if _is_deferred():
        for each in (_PACKAGE, _PARTS):
            sys.modules.pop(each, None)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    return importlib.import_module(name)


class _StandIn(ModuleType):
    """A module whose attributes are the real one's. Python's own, of which some are looked up in every module, are not."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_import(self.__name__), name)


class _Compiler(_StandIn):
    """`torch._dynamo`."""

    __path__: MutableSequence[str] = []  # noqa: RUF012  # as Python has it

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """It ends a part that is compiled, and there is none."""

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """The function, which from now on is not compiled, as `torch._dynamo.disable` has it."""
        if not isinstance(fn, FunctionType):
            return _import(_PACKAGE).disable(fn, recursive, **options)
        disabled: Callable[..., Any] | None = None

        @functools.wraps(fn)
        def uncompiled(*arguments: Any, **named: Any) -> Any:
            nonlocal disabled
            if disabled is None and not _is_deferred():
                disabled = _import(_PACKAGE).disable(fn, recursive, **options)
            return (disabled or fn)(*arguments, **named)

        marked: Any = uncompiled
        marked._torchdynamo_disable = True  # what the compiler looks for
        return marked


class _Parts(_StandIn):
    """`torch._dynamo.utils`."""

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        return _import(_PARTS).is_compile_supported(device_type)


class _Finder:
    """Finds parts of the compiler: imports the real one, and gives those of its own."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{_PACKAGE}.") or not _is_deferred():
            return None
        return ModuleSpec(fullname, cast("Loader", _Imported(_import(fullname))))


class _Imported:
    """Gives a module that is imported already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec

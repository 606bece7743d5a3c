"""Owns building a module whose weights come from a file: none are drawn first, and no second copy stays in memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Methods that end in `_` and change no values.
_NO_VALUES = frozenset(
    (
        "as_strided_",
        "detach_",
        "rename_",
        "requires_grad_",
        "resize_",
        "resize_as_",
        "set_",
        "share_memory_",
        "squeeze_",
        "swapaxes_",
        "swapdims_",
        "t_",
        "transpose_",
        "unsqueeze_",
    )
)

#: Operators that change values in place.
_OPERATORS = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]

#: Bytes of converted tensors after which freed memory goes back to the system.
_GIVE_BACK = 32 << 20


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Modules built here allocate their parameters and write nothing into them; buffers are computed as ever.

    Starting weights of a large model take seconds to draw, and the pages that they lie in count twice beside a file's.
    In-place changes of parameters, by `torch.nn.init` or directly or through `.data`, are left out; what a parameter
    is created from (`nn.Parameter(torch.randn(…))`) is not. Every parameter must be loaded afterwards: until then it
    holds whatever memory held. Fewer random numbers are drawn, so what is drawn next differs.
    """
    with _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # torch.nn.init passes itself on with its tensor by name; what it calls below cannot be seen here.
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, Tensor) and _of_parameter(target):
            name = getattr(func, "__name__", "")
            if (
                name in _OPERATORS
                or name == "__setitem__"
                or (name.endswith("_") and not name.endswith("__") and name not in _NO_VALUES)
            ):
                return target
            if func == _DATA:
                inside: Any = func(*args, **kwargs)
                inside.of_parameter = True
                return inside
        return func(*args, **kwargs)


def _of_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or getattr(tensor, "of_parameter", False)


def take_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Move `weights` into `module` and empty the dict as it goes; names and shapes are known to fit.

    Where type, device and strides agree the tensor itself becomes the parameter's memory. Otherwise it is converted
    into the parameter's own, which `unfilled` left untouched, and dropped. Parameter objects stay the same, so tied
    ones stay tied. Nothing is freed that the caller holds elsewhere too, as in a second dict.
    """
    own = module.state_dict(keep_vars=True)
    holders = Counter(_memory(tensor) for tensor in weights.values())
    converted = 0
    with torch.no_grad():
        for name in list(weights):
            value, target = weights.pop(name).detach(), own[name]
            if isinstance(target, nn.Parameter) and _can_become(target, value, holders[_memory(value)]):
                target.data = value
                continue
            target.copy_(value)
            converted += value.nbytes
            del value
            if converted >= _GIVE_BACK:
                give_back_memory()
                converted = 0
    if converted:
        give_back_memory()


def _memory(tensor: Tensor) -> int:
    return id(tensor) if tensor.layout != torch.strided else tensor.untyped_storage().data_ptr()


def _can_become(target: Tensor, value: Tensor, holders: int) -> bool:
    """Whether the value's memory can be the target's: of the same form, and not shared with another tensor."""
    return (
        value.layout == target.layout == torch.strided
        and (value.dtype, value.device, value.stride()) == (target.dtype, target.device, target.stride())
        and holders == 1
        and value.untyped_storage().nbytes() == value.nbytes
    )


def give_back_memory() -> None:
    """Return freed memory to the system. glibc keeps it where the blocks were small or the process was set to."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)

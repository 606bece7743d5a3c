"""Owns intermediate feature maps: which ones a model gives, by name, and one pass that computes them.

Both libraries have `forward_intermediates`, with other names and results; what is here hides that, for teachers and
students alike. Maps are (N, C, Y, X) whatever the model: the tokens of a vision transformer lie on its grid of patches,
without its class and other prefix tokens.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Target names of maps begin so: `features.layer3`.
FEATURES = "features."

#: The last map behind the model's last norm (where it has one before pooling), as tokens.
TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """Results of one pass, all fp32.

    Attributes:
        maps: (N, C, Y, X), and for `tokens` (N, T, C): T = Y · X, row by row.
        end: what the model's own head or pooling takes, or has made, see `Intermediates.run`; None where it was not requested.
    """

    maps: dict[str, Tensor]
    end: Tensor | None


class Intermediates:
    """The maps of one image tower or timm model.

    Attributes:
        names: `features.LEVEL` in the model's order, then `tokens`; empty where the library computes none. LEVEL is
            timm's name of the module (`layer3`, `stages.2`, `blocks.5`), or open_clip's (`resblocks.5`, `layer3`).
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._is_open_clip = "normalize_intermediates" in _parameters(module)
        levels = _levels(module)
        self._index = {f"{FEATURES}{level}": index for index, level in enumerate(levels)}
        self.names = (*self._index, TOKENS) if levels else ()

    def run(self, pixels_NCHW: Tensor, names: Sequence[str], *, to_the_end: bool = False) -> PassResult:
        """One pass.

        Args:
            pixels_NCHW: normalised images.
            names: of `names`.
            to_the_end: also give `end`: open_clip's pooled features (N, D), or timm's argument for `forward_head`.
        """
        tokens = TOKENS in names
        indices = sorted({self._index[name] for name in names if name != TOKENS})
        # The norm acts on all maps of a pass, so tokens take one of their own where maps are wanted too.
        if tokens and indices:
            first = self.run(pixels_NCHW, [n for n in names if n != TOKENS], to_the_end=to_the_end)
            return PassResult(maps=first.maps | self.run(pixels_NCHW, [TOKENS]).maps, end=first.end)
        found, end = self._call(pixels_NCHW, [len(self._index) - 1] if tokens else indices, tokens, to_the_end)
        if tokens:
            return PassResult(maps={TOKENS: found[0].float().flatten(2).transpose(1, 2)}, end=end)
        by_index = dict(zip(indices, found, strict=True))
        return PassResult(maps={name: by_index[self._index[name]].float().contiguous() for name in names}, end=end)

    def pooled(self, passed: PassResult) -> Tensor:
        """The module's own result of a pass that went to the end: what calling it would have given.

        Raises:
            ValueError: it did not go to the end.
        """
        if passed.end is None:
            raise ValueError("a pass that was not asked for its end")
        return passed.end if self._is_open_clip else self._module.forward_head(passed.end)  # type: ignore[no-any-return]

    @torch.no_grad()
    def shapes(self, pixels_NCHW: Tensor) -> dict[str, tuple[int, ...]]:
        """The shape of each, without the first axis, found with these images; the module's mode stays.

        `tokens` are not among them where the model's norm does not fit its last map, as in CoCa.
        """
        training = self._module.training
        self._module.eval()
        try:
            maps = self.run(pixels_NCHW[:1], [n for n in self.names if n != TOKENS]).maps
            with contextlib.suppress(RuntimeError):
                maps |= self.run(pixels_NCHW[:1], self.names[-1:]).maps
        finally:
            self._module.train(training)
        return {name: tuple(values.shape[1:]) for name, values in maps.items()}

    def _call(
        self, pixels_NCHW: Tensor, indices: list[int], norm: bool, to_the_end: bool
    ) -> tuple[list[Tensor], Tensor | None]:
        if self._is_open_clip:
            # Its ResNets go no further than the last index, and then pool what is there.
            last = [len(self._index) - 1] if to_the_end and indices[-1:] != [len(self._index) - 1] else []
            found = self._module.forward_intermediates(
                pixels_NCHW,
                indices=[*indices, *last],
                normalize_intermediates=norm,
                output_fmt="NCHW",
                stop_early=not to_the_end,
                intermediates_only=not to_the_end,
            )
            return found["image_intermediates"][: len(indices)], found.get("image_features")
        common = {"indices": indices, "stop_early": not to_the_end, "intermediates_only": not to_the_end}
        found = self._module.forward_intermediates(pixels_NCHW, norm=norm, output_fmt="NCHW", **common)
        return (found[1], found[0]) if to_the_end else (found, None)


def _levels(module: Any) -> list[str]:
    """Names of what `forward_intermediates` gives, in its order; empty where there is no such thing."""
    if not _parameters(module):
        return []
    trunk = getattr(module, "trunk", None)
    if trunk is not None:  # open_clip's wrapper of a timm model
        return _levels(trunk)
    blocks = getattr(getattr(module, "transformer", None), "resblocks", None)
    if isinstance(blocks, nn.ModuleList):
        return [f"resblocks.{i}" for i in range(len(blocks))]
    if hasattr(module, "attnpool") and hasattr(module, "stem"):  # open_clip's ModifiedResNet
        return ["stem", "layer1", "layer2", "layer3", "layer4"]
    info = getattr(module, "feature_info", None)
    return [str(level["module"]) for level in info] if info else []


def tower_layers(module: Any) -> dict[str, Any] | None:
    """Which weight of an image tower of open_clip's belongs to which layer, as timm's `group_matcher` says it; None for other modules.

    As its `lock` has them: the stem, each block (the last with the norm behind it), and what pools and projects.
    """
    if isinstance(getattr(getattr(module, "transformer", None), "resblocks", None), nn.ModuleList):
        blocks = [(r"^transformer\.resblocks\.(\d+)", None), (r"^ln_post", (99999,))]
        return {"stem": r"^class_embedding|^positional_embedding|^conv1|^ln_pre", "blocks": blocks}
    if hasattr(module, "attnpool") and hasattr(module, "stem"):
        return {"stem": r"^(?:conv|bn)\d", "blocks": [(r"^layer(\d+)\.(\d+)", None)]}
    return None


def _parameters(module: Any) -> frozenset[str]:
    method = getattr(module, "forward_intermediates", None)
    return frozenset() if method is None else frozenset(inspect.signature(method).parameters)

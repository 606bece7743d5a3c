"""Owns what every student has, whatever it reads: its shape beyond the backbone, what trains of it, and what training changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..models.class_head import TrainedHead
from .head import Head


class BaseStudent(nn.Module):
    """A module that is trained. Of images it is a `Student`, of a teacher's maps a `MapStudent`.

    Attributes:
        head: its shape beyond the backbone.
        backbone: what the library, or this program, built.
        frozen: backbone weights take no gradient and the backbone stays in eval mode (its dropout and batch
            norm too).
        fixed_averages: the backbone's batch norms stay in eval mode; their weights may train.
        still: names of modules that stay in eval mode, with all that is in them; see `hold_still`.
        classes: a layer for the classes that trains with it; None for most.
    """

    head: Head
    backbone: nn.Module
    frozen: bool
    fixed_averages = False
    still: tuple[str, ...] = ()
    classes: TrainedHead | None

    def __init__(self) -> None:
        super().__init__()
        self.classes = None

    def outputs(self, inputs: Any) -> dict[str, Tensor]:
        """All that a loss may look at, by the names of targets; fp32."""
        raise NotImplementedError

    def freeze_backbone(self) -> None:
        """Only prompts and projector train from now on."""
        self.frozen = True
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name == "prompts_LPD")

    def hold_still(self, names: Sequence[str] = ()) -> None:
        """Keep in eval mode, from now on: modules by these names, and all whose parameters take no gradient."""
        found = dict.fromkeys(names)
        for name, module in self.named_modules():
            parameters = list(module.parameters())
            if name and parameters and not any(p.requires_grad for p in parameters):
                found[name] = None
        self.still = tuple(found)
        self.train(self.training)

    def train(self, mode: bool = True) -> BaseStudent:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.fixed_averages:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        for name in self.still:
            self.get_submodule(name).eval()
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def changing(self) -> dict[str, Tensor]:
        """All that training changes, by name: trained parameters, and buffers such as batch norm's averages."""
        fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name not in fixed}


class Outputs(nn.Module):
    """A student whose call gives all of its `outputs`: what is wrapped to train on several processes, or compiled."""

    def __init__(self, student: BaseStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        return self.student.outputs(inputs)

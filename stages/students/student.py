"""Owns the student that is trained: backbone, prompts if any, projector to the teacher's width; logits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.json_file import Count, Positive, as_schema
from ..models.layout import use_channels_last
from ..models.preprocess import Normalize, Preprocess
from ..prompts.vision import PromptedVisionTransformer

PROJECTORS = ("linear", "mlp", "none")


@dataclass(frozen=True, kw_only=True)
class Head:
    """A student's shape beyond its backbone; lies in the bundle's config.

    Attributes:
        width: channels of the backbone's features.
        embed_dim: channels of the teacher's embedding.
        projector: `linear`, `mlp` (linear, batch norm, ReLU, linear: PromptKD's 1x1 convolutions), or `none`.
        prompt_length, prompt_depth: deep visual prompts; depth 0 means none.
        normalized: whether embeddings are L2-normalised.
    """

    width: Positive
    embed_dim: Positive
    projector: str
    prompt_length: Count = 0
    prompt_depth: Count = 0
    normalized: bool

    def to_json(self) -> Json:
        return asdict(self)

    @staticmethod
    def from_json(fields: Json, where: object) -> Head:
        """What `to_json` gave.

        Raises:
            DamagedError: something else.
        """
        return as_schema(
            fields, Head, what="not a head of a student", where=where, hint="copy the bundle again"
        )


class Student(nn.Module):
    """uint8 images (N, 3, H, W) on its device to fp32 embeddings (N, D of the teacher).

    What comes out is ready for `ClassVectors.logits`: normalised where the class vectors want it. Autocast,
    where a caller switches it on, reaches the backbone only; projector and normalisation are fp32.

    Attributes:
        frozen: backbone weights take no gradient and the backbone stays in eval mode (its dropout and batch
            norm too).
    """

    def __init__(self, backbone: nn.Module, preprocess: Preprocess, head: Head) -> None:
        """New parts (prompts, projector) are drawn from torch's global generator."""
        super().__init__()
        self.head = head
        self.frozen = False
        self.normalize = Normalize(preprocess)
        self.backbone: nn.Module = backbone
        if head.prompt_depth:
            self.backbone = PromptedVisionTransformer(
                backbone, length=head.prompt_length, depth=head.prompt_depth
            )
        self.projector = make_projector(head)
        self._channels_last = use_channels_last(backbone)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Embeddings (N, D), fp32."""
        pixels_NCHW = self.normalize(images_NCHW)
        if self._channels_last:
            pixels_NCHW = pixels_NCHW.contiguous(memory_format=torch.channels_last)
        features = self.backbone(pixels_NCHW)
        if isinstance(features, tuple):  # open_clip towers made for captioning return (pooled, tokens)
            features = features[0]
        with torch.autocast(images_NCHW.device.type, enabled=False):
            embedding_ND: Tensor = self.projector(features.float())
            return F.normalize(embedding_ND, dim=-1) if self.head.normalized else embedding_ND

    def freeze_backbone(self) -> None:
        """Only prompts and projector train from now on."""
        self.frozen = True
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name == "prompts_LPD")

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def changing(self) -> dict[str, Tensor]:
        """All that training changes, by name: trained parameters, and buffers such as batch norm's averages."""
        fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name not in fixed}


def make_projector(head: Head) -> nn.Module:
    """The projector (N, width) to (N, embed_dim).

    PromptKD writes its `mlp` as 1x1 convolutions and 2-d batch norm over 1x1 maps; linear layers and 1-d
    batch norm are the same arithmetic with the same initial distribution.

    Raises:
        InputError: unknown, or `none` between different widths.
    """
    if head.projector == "linear":
        return nn.Linear(head.width, head.embed_dim)
    if head.projector == "mlp":
        return nn.Sequential(
            nn.Linear(head.width, head.embed_dim),
            nn.BatchNorm1d(head.embed_dim),
            nn.ReLU(inplace=True),
            nn.Linear(head.embed_dim, head.embed_dim),
        )
    if head.projector != "none":
        raise InputError("unknown projector", where="--projector", expected=PROJECTORS, found=head.projector)
    if head.width != head.embed_dim:
        raise InputError(
            "the student's features need a projector to the teacher's width", where="--projector none",
            expected=f"{head.embed_dim} channels", found=head.width, hint="--projector linear",
        )  # fmt: skip
    return nn.Identity()


class ClassHead(nn.Module):
    """Class vectors on a device: fp32 embeddings (N, D) to fp32 logits (N, C); see `ClassVectors.logits`."""

    vectors_CD: Tensor
    bias_C: Tensor | None

    def __init__(self, vectors: ClassVectors, logit_scale: float | None = None) -> None:
        super().__init__()
        self.logit_scale = vectors.logit_scale if logit_scale is None else logit_scale
        self.register_buffer("vectors_CD", torch.tensor(vectors.vectors_CD))
        self.register_buffer("bias_C", None if vectors.bias_C is None else torch.tensor(vectors.bias_C))

    def forward(self, embedding_ND: Tensor) -> Tensor:
        with torch.autocast(embedding_ND.device.type, enabled=False):
            logits_NC = self.logit_scale * (embedding_ND.float() @ self.vectors_CD.T)
            return logits_NC if self.bias_C is None else logits_NC + self.bias_C

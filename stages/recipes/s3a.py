"""Owns the recipe `s3a`: self-training on names that clusters got, and on what the moving average of the student is sure of.

Zhang et al., Towards Realistic Zero-Shot Classification via Self Structural Semantic Alignment, AAAI 2024, arXiv 2308.12960.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.store_description import TargetSpec
from ..models.preprocess import Preprocess
from ..students.base import BaseStudent
from ..students.family import Backbone
from ..students.head import Head
from ..views.anew import StrongView, ViewAnew, WeakView
from .recipe import BaseRecipe, LossInputs, all_with_decay_on_matrices
from .s3a_settings import S3aSettings

#: The view that the moving average looks at.
WEAK = "weak"


class S3a(BaseRecipe):
    """The student begins as the teacher's image tower, or what gives the same embeddings; the vocabulary is its head and stays as it is.

    The store gives the vocabulary, and which images can be used. Labels come from `--labels`; pseudo labels of the moving average cannot
    come from any store.
    """

    name = "s3a"
    defaults = S3aSettings()

    def targets(self, settings: S3aSettings, stored: Sequence[TargetSpec]) -> tuple[str, ...]:
        return ("cluster",)

    def views_anew(self, settings: S3aSettings, preprocess: Preprocess) -> Mapping[str, ViewAnew]:
        red, green, blue = (min(255, round(255 * mean)) for mean in preprocess.mean)  # as timm fills
        strong = StrongView(scale=settings.strong_scale, augment=settings.strong_augment, fill=(red, green, blue))
        return {"image": strong, WEAK: WeakView()}

    def average_sees(self, settings: S3aSettings) -> str:
        return WEAK

    def average_weights(self, average: Mapping[str, Tensor], settings: S3aSettings) -> Tensor:
        """1 where the moving average is sure, else 0: divided by their mean, the mean over a batch is that over the sure ones."""
        return (average["logits"].softmax(dim=1).amax(dim=1) > settings.confidence).float()

    def head(
        self,
        settings: S3aSettings,
        backbone: Backbone,
        vectors: ClassVectors | None,
        targets: Mapping[str, TargetSpec],
    ) -> Head:
        assert vectors is not None  # labels are places among them
        return Head(
            width=backbone.width,
            embed_dim=vectors.embed_dim,
            projector=settings.projector,
            normalized=vectors.normalized,
        )

    def parameter_groups(self, student: BaseStudent, settings: S3aSettings) -> list[dict[str, Any]]:
        """As is usual; but the norm behind CLIP's last block has the full rate under layer decay, as the authors have it."""
        last = [p for name, p in student.trained().items() if name.startswith("backbone.ln_post.")]
        own = {id(parameter) for parameter in last}
        groups = [
            {**group, "params": [p for p in group["params"] if id(p) not in own]}
            for group in all_with_decay_on_matrices(student, settings)
        ]
        return [*groups, *([{"params": last, "weight_decay": 0.0, "lr_scale": 1.0}] if last else [])]

    def loss(self, outputs: LossInputs, settings: S3aSettings) -> Tensor:
        """Cross entropy to the classes that the moving average is sure of, mean over these images; and `cluster_weight` times that to
        the clusters' names, over all. The first is 0 where it is sure of none; images without a label add nothing to the second.
        """
        student_NC, cluster_N = outputs.student["logits"], outputs.teacher["cluster"]
        assert outputs.weights_N is not None
        own_N = F.cross_entropy(student_NC, outputs.average["logits"].argmax(dim=1), reduction="none")
        named_N = F.cross_entropy(student_NC, cluster_N, ignore_index=-1, reduction="none")
        return (outputs.weights_N * own_N).mean() + settings.cluster_weight * named_N.mean()

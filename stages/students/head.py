"""Owns the shape of a student beyond its backbone, as the bundle's config holds it. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ...storage_schemas.fingerprint import Json
from ...storage_schemas.json_file import Count, Positive, as_schema

#: The layer of a level that is the student's pooled features.
POOLED = "pooled"


@dataclass(frozen=True, kw_only=True)
class Level:
    """A map of the student, or its pooled features, brought to the shape of one of the teacher's targets.

    Attributes:
        target: name of that target.
        layer: the student's map, by a name of `Intermediates` (`features.layer3`, `tokens`), or `pooled`.
        width: channels of that map.
        shape: of the target, without sample and view: (channel, y, x), (token, channel) for a square grid of tokens, or (channel,) of
            another teacher's embedding, which the pooled features are compared with.
        projector: from the student's channels to the target's, at each place: see `Head.projector`.
    """

    target: str
    layer: str
    width: Positive
    shape: list[Positive]
    projector: str


@dataclass(frozen=True, kw_only=True)
class Head:
    """A student's shape beyond its backbone; lies in the bundle's config.

    Attributes:
        width: channels of the backbone's features.
        embed_dim: channels of the teacher's embedding.
        projector: `linear`, `mlp` (linear, batch norm, ReLU, linear: PromptKD's 1x1 convolutions), or `none`.
        prompt_length, prompt_depth: deep visual prompts; depth 0 means none.
        normalized: whether embeddings are L2-normalised.
        levels: maps that are compared with the teacher's.
        classes: outputs of a linear layer of its own on the embedding, which trains with it and becomes its class vectors; 0
            for none, as in every bundle.
    """

    width: Positive
    embed_dim: Positive
    projector: str
    prompt_length: Count = 0
    prompt_depth: Count = 0
    normalized: bool
    levels: tuple[Level, ...] = ()
    classes: Count = 0

    def to_json(self) -> Json:
        fields = asdict(self)
        if not self.levels:
            del fields["levels"]
        if not self.classes:
            del fields["classes"]
        return fields

    @staticmethod
    def from_json(fields: Json, where: object) -> Head:
        """What `to_json` gave.

        Raises:
            DamagedError: something else.
        """
        return as_schema(
            fields,
            Head,
            what="not a head of a student",
            code="head-malformed",
            where=where,
            hint="copy the bundle again",
        )

"""Owns a teacher's text tower: embeddings of any text, and the facts of its tokenizer that decide them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...storage_schemas.fingerprint import Json
from ..models.tokenizer import Tokenizer, cut_texts

#: Texts by whose tokens two tokenizers are told apart.
_PROBES = (
    "A photo of the QUICK brown fox, jumping over 13 lazy dogs!",
    "it's a café in Zürich — 東京, Москва, 🐈",
    "  white\tspace\nand_under-scores/slashes  ",
    "a",
    "",
)


@dataclass(frozen=True, kw_only=True)
class TextTower:
    """See `OpenClipTeacher.text_tower`.

    Attributes:
        encode: token ids, int64 (text, token), to L2-normalised embeddings, fp32 (text, channel), on the teacher's device.
        tokenizer: the model's own.
        logit_scale: from cosines to the model's logits.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    tokenizer: Tokenizer
    logit_scale: float

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """fp32 (text, channel), at length 1."""
        return self.encode(self.tokenizer(list(texts))).float()

    def facts(self) -> dict[str, Json]:
        """What of the tokenizer decides embeddings: its context length, and what it makes of a few texts."""
        digest = hashlib.blake2b(digest_size=16)
        for text in _PROBES:
            digest.update(self.tokenizer([text])[0].numpy().astype("<i8").tobytes())
        length = self.tokenizer.context_length
        return {"context_length": length, "tokens": digest.hexdigest()}

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Indices of texts that are longer than the context: their ends do not count."""
        return cut_texts(self.tokenizer, texts)

"""Owns what a model's text is made of: its tokenizer, and class names that the tokenizer cuts or cannot tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

Tokenizer = Callable[..., Tensor]

BPE_FILE = "bpe_simple_vocab.txt.gz"


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model."""
    import open_clip

    if name.startswith("local-dir:"):
        vocabulary = Path(name.removeprefix("local-dir:")) / BPE_FILE
        if vocabulary.exists():
            config = open_clip.get_model_config(name) or {}
            length = config.get("text_cfg", {}).get("context_length", 77)
            return open_clip.tokenizer.SimpleTokenizer(bpe_path=str(vocabulary), context_length=length)  # type: ignore[no-any-return]
    return open_clip.get_tokenizer(name)  # type: ignore[no-any-return]


def name_notes(tokenizer: Any, names: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    return ()

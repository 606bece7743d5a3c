"""What the demo's models read: captions of images, and the vocabulary that is trimmed to their words."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .images import DIGITS, class_names
from .styles import BACKGROUNDS, COLOURS

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

CONTEXT_LENGTH = 16
VOCABULARY_NAME = "bpe_simple_vocab.txt.gz"
PLAIN = "a photo of a {}."


def templates() -> tuple[str, ...]:
    """open_clip's ImageNet templates without those that name a colour or a number, and the bare name."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    written = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return ("{}", *(text for text in written if not set(text.split()) & {"white", "one", "many"}))


def banks() -> dict[str, tuple[str, ...]]:
    """Names to distinguish, by their topic: each bank is one classification task."""
    return {
        "class": class_names(),
        "digit": DIGITS,
        "colour": tuple(COLOURS),
        "background": tuple(f"{name} background" for name in BACKGROUNDS),
    }


def draw_captions(generator: np.random.Generator) -> list[str]:
    """One caption for every name of every bank, in order, each in a random template (3 in 10: `PLAIN`)."""
    choices = templates()
    names = [name for bank in banks().values() for name in bank]
    plain, which = generator.random(len(names)) < 0.3, generator.integers(len(choices), size=len(names))
    return [(PLAIN if plain[row] else choices[which[row]]).replace("{}", name) for row, name in enumerate(names)]


def write_vocabulary(
    directory: Path, names: Sequence[str] | None = None, *, context_length: int = CONTEXT_LENGTH
) -> SimpleTokenizer:
    """Write open_clip's BPE vocabulary, reduced to the merges that captions need; return its tokenizer.

    Captions are the templates with `names` in them: the demo's unless given. Words of captions are split exactly as
    with the full vocabulary; any other word falls into smaller pieces.
    """
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    full = SimpleTokenizer(context_length=context_length)
    if names is None:
        names = [name for bank in banks().values() for name in bank]
    needed = set()
    unused = "white one many"  # words of the templates left out: a user may well write them
    for text in [*templates(), unused, *names]:
        for word in full.pat.findall(full.clean_fn(text.replace("{}", " "))):
            needed.update(_merges(full, word))
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        header = file.readline()
    ranked = sorted(needed, key=lambda pair: int(full.bpe_ranks[pair]))
    # no final newline: open_clip would read it as one more merge
    body = header + "\n".join(" ".join(pair) for pair in ranked)
    path = directory / VOCABULARY_NAME
    path.write_bytes(gzip.compress(body.encode("utf-8"), mtime=0))
    return SimpleTokenizer(bpe_path=str(path), context_length=context_length)


def _merges(tokenizer: SimpleTokenizer, word: str) -> list[tuple[str, str]]:
    """The merges that byte pair encoding applies to one word, in order."""
    letters = [tokenizer.byte_encoder[byte] for byte in word.encode("utf-8")]
    pieces, merges = [*letters[:-1], letters[-1] + "</w>"], []
    while len(pieces) > 1:
        pairs = [pair for pair in itertools.pairwise(pieces) if pair in tokenizer.bpe_ranks]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: int(tokenizer.bpe_ranks[pair]))
        merges.append(best)
        joined: list[str] = []
        for piece in pieces:
            # a piece just joined is longer than best[0], so it is never joined twice
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return merges

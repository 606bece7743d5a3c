"""Owns the step "prompt" of S3A: clusters choose among their likeliest names again, by what each of these is described as.

The paper asks a language model for phrases that tell the candidates of a cluster apart. Here they come in a file that a person, or any
program, has written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import counted
from .embeddings import Floats, unit
from .votes import Ints

#: Names of a cluster that are compared, and phrases that each member votes for.
CANDIDATES, NEAREST = 3, 3

#: Candidates of each cluster, by their places in the vocabulary, the likeliest first.
Candidates = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A phrase that describes a name.

    Attributes:
        name: place in the vocabulary.
        text: what the text tower is asked about: phrase and name, as in "grey African grey".
        weight: how often the name's phrases hold it, over their number.
    """

    name: int
    text: str
    weight: float


def candidates_of(shares_CV: Floats) -> Candidates:
    """The names that most members voted for: up to three, those with votes; of equals the first in the vocabulary."""
    order_CV = np.argsort(-shares_CV, axis=1, kind="stable")[:, :CANDIDATES]
    return [[name for name in row if shares_CV[c, name] > 0] for c, row in enumerate(order_CV.tolist())]


def read_prompts(file: str) -> dict[str, list[str]]:
    """The phrases of each name: a JSON object from names to lists of phrases. One that stands there twice counts twice.

    Raises:
        InputError: no such file, or another form.
    """
    location = UserFile.of(file)
    if not location.exists() or location.is_dir():
        raise InputError("no such file of prompts", code="prompts-file-missing", where=file)
    try:
        found = json.loads(location.read_file())
    except (ValueError, RecursionError) as error:
        raise _malformed(file, error) from error
    if not isinstance(found, dict):
        raise _malformed(file, type(found).__name__)
    for name, phrases in found.items():
        if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
            raise _malformed(file, f"{name!r}: {phrases!r:.60}")
    return found


def _malformed(file: str, found: object) -> InputError:
    return InputError(
        "not a file of prompts",
        code="prompts-file-malformed",
        where=file,
        expected='a JSON object from names to lists of phrases: {"NAME": ["PHRASE", …], …}',
        found=found,
        hint="fill in the lists of candidates.json",
    )


def phrases_of(
    candidates: Candidates, prompts: Mapping[str, Sequence[str]], names: Sequence[str], where: object
) -> list[list[Phrase]]:
    """The phrases of each cluster's candidates, without those that two of them share; in the order of names and phrases.

    Raises:
        InputError: a candidate has no phrase, or none of its own.
    """
    missing = sorted({names[name] for row in candidates for name in row if not prompts.get(names[name])})
    if missing:
        raise InputError(
            f"{counted(len(missing), 'name')} without a phrase that describes it, the first is {missing[0]!r}",
            code="prompts-name-missing",
            where=where,
            expected="a phrase or more for each name in candidates.json",
            found="none",
            hint="add them to the file",
        )
    return [_of_cluster(sorted(row), prompts, names, where) for row in candidates]


def _of_cluster(
    row: Sequence[int], prompts: Mapping[str, Sequence[str]], names: Sequence[str], where: object
) -> list[Phrase]:
    own = {name: Counter(prompts[names[name]]) for name in row}
    shared = {text for text, count in Counter(text for texts in own.values() for text in texts).items() if count > 1}
    found = []
    for name, texts in own.items():
        left = {text: count for text, count in sorted(texts.items()) if text not in shared}
        if not left:
            raise InputError(
                "a name has no phrase that tells it from the others of its cluster",
                code="prompts-name-missing",
                where=f"{where}: {names[name]!r}",
                expected=f"a phrase that is not also one of {', '.join(repr(names[n]) for n in row if n != name)}",
                found="none",
                hint="add one to the file",
            )
        total = sum(left.values())
        found += [Phrase(name=name, text=f"{text} {names[name]}", weight=count / total) for text, count in left.items()]
    return found


def prompt_scores(
    blocks: Iterable[Floats],
    voters_N: Ints,
    phrases: Sequence[Sequence[Phrase]],
    vectors: Mapping[str, Floats],
    names: int,
) -> Floats:
    """What takes the place of the shares of votes: fp32 (cluster, name), 0 but for candidates.

    Each member votes for its three nearest phrases, by cosine. A name's score is the sum of the votes for its phrases, each times its
    weight; over 1 + the number of the other candidates' phrases, as the authors' code has it.

    Args:
        voters_N: cluster of each sample, 0, 1, … without gaps.
        phrases: of each cluster.
        vectors: fp32 (channel,) of length 1, by text.
    """
    votes = [np.zeros(len(row), np.int64) for row in phrases]
    tables = [np.stack([vectors[phrase.text] for phrase in row]) for row in phrases]
    start = 0
    for block in blocks:
        values_ND, clusters_N = unit(block), voters_N[start : start + len(block)]
        start += len(block)
        for c in np.unique(clusters_N).tolist():
            cosines_NK = values_ND[clusters_N == c] @ tables[c].T
            nearest = np.argsort(-cosines_NK, axis=1, kind="stable")[:, :NEAREST]
            votes[c] += np.bincount(nearest.ravel(), minlength=len(votes[c]))
    scores_CV = np.zeros((len(phrases), names), np.float32)
    for c, row in enumerate(phrases):
        for name in {phrase.name for phrase in row}:
            own = [place for place, phrase in enumerate(row) if phrase.name == name]
            total = sum(row[place].weight * int(votes[c][place]) for place in own)
            scores_CV[c, name] = total / (1 + len(row) - len(own))
    return scores_CV

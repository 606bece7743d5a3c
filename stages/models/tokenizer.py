"""Owns what a model's text is made of: its tokenizer, and class names that the tokenizer cuts or cannot distinguish."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError, MissingDependency
from .hub import hub_access, one_line
from .names import HUB_PREFIX, LOCAL_PREFIX, unknown_name

#: A model folder may bring its own (smaller) BPE vocabulary under this name.
BPE_FILE = "bpe_simple_vocab.txt.gz"

#: What a configuration may set of its tokenizer. open_clip hands everything on to its own class, which would open
#: `bpe_path`, or to transformers', which would open or fetch what other names refer to.
_SETTINGS = {"clean": str, "strip_sep_token": bool, "language": str, "reduction_mask": str}

#: How much of a name a note shows.
_SHOWN = 60


class Tokenizer(Protocol):
    """Texts to token ids, as open_clip's tokenizers are."""

    @property
    def context_length(self) -> int | None:
        """Tokens of a text, padding and special tokens included."""

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """int64 (text, token)."""


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a model was trained with, as open_clip finds it.

    Args:
        name: `ViT-L-14` (or `ViT-L/14`), `hf-hub:ORG/REPO`, or `local-dir:FOLDER`, which may bring its own BPE vocabulary
            as `BPE_FILE`.

    Raises:
        InputError: no such model, no way to the tokenizer's files, or files that are missing or hold no vocabulary.
        MissingDependency: the tokenizer is one of transformers, which is not installed.
    """
    import open_clip

    local, hub = name.startswith(LOCAL_PREFIX), name.startswith(HUB_PREFIX)
    if not (local or hub):
        name = name.replace("/", "-")
    with _hub(name, name) if hub else _here(name, "check the folder's open_clip_config.json"):
        config = open_clip.get_model_config(name)
    if config is None:
        # open_clip would take CLIP's tokenizer.
        raise unknown_name(
            "open_clip has no such model",
            name,
            open_clip.list_models(),
            "check the model's name",
            code="model-unknown",
        )
    text_cfg = config.get("text_cfg", {})
    _check_settings(text_cfg.get("tokenizer_kwargs", {}), name)
    files = text_cfg.get("hf_tokenizer_name")
    if local and (vocabulary := UserFile.of(name.removeprefix(LOCAL_PREFIX)) / BPE_FILE).exists():
        own = {} if files else text_cfg.get("tokenizer_kwargs", {})
        length = text_cfg.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
        with _here(str(vocabulary), "give open_clip's own kind of file: a merge a line, gzipped"):
            return open_clip.tokenizer.SimpleTokenizer(  # type: ignore[no-any-return]
                bpe_path=str(vocabulary.path), context_length=length, **own
            )
    if files:
        return _of_transformers(name, files)
    with _hub(name, name) if hub else _here(name, "check the folder's open_clip_config.json"):
        return open_clip.get_tokenizer(name)  # type: ignore[no-any-return]


def cut_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Indices of the texts that are longer than the context: their last tokens do not count.

    A text fits if a longer context gives the same tokens and more padding, wherever the padding stands.
    """
    short_NL, long_NM, padding = _at_two_lengths(tokenizer, texts)
    length = short_NL.shape[1]
    fits_N = (long_NM[:, :length] == short_NL).all(axis=1) & (long_NM[:, length:] == padding).all(axis=1)
    return [i for i in np.flatnonzero(~fits_N).tolist() if not _only_padded(short_NL[i], long_NM[i], padding)]


def same_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of indices of texts that are the same to the model: their token ids are equal, so their features are.

    Groups have two members or more, in order; they stand in the order of their first members.
    """
    groups: dict[bytes, list[int]] = {}
    for i, ids_L in enumerate(_ids(tokenizer, texts, None)):
        groups.setdefault(ids_L.tobytes(), []).append(i)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def name_notes(tokenizer: Tokenizer, names: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """Notes for people on the class names, before vectors are computed from them: a line a finding.

    Args:
        tokenizer: the model's.
        names: class names.
        texts: the text of each, a template with the name in it.
    """
    notes = []
    if cut := cut_texts(tokenizer, texts):
        verb = "class name is" if len(cut) == 1 else "class names are"
        which = ":" if len(cut) == 1 else ", the first:"
        notes.append(
            f"{len(cut)} {verb} cut at the context length of {tokenizer.context_length} tokens{which} "
            f"{_quoted(names[cut[0]])}"
        )
    if same := same_tokens(tokenizer, texts):
        kind = "pair" if all(len(group) == 2 for group in same) else "group"
        count = f"{len(same)} {kind}s" if len(same) > 1 else f"1 {kind}"
        verb = "have" if len(same) > 1 else "has"
        which = ", the first:" if len(same) > 1 else ":"
        shown = [_quoted(names[i]) for i in same[0][:3]] + (["…"] if len(same[0]) > 3 else [])
        notes.append(f"{count} of class names {verb} equal vectors{which} {', '.join(shown[:-1])} and {shown[-1]}")
    return tuple(notes)


def _check_settings(settings: Any, name: str) -> None:
    if not isinstance(settings, dict):
        raise InputError(
            "not a tokenizer's settings",
            code="tokenizer-settings-malformed",
            where=name,
            expected="an object",
            found=settings,
        )
    for key, value in settings.items():
        kind = _SETTINGS.get(key)
        if key == "trust_remote_code" or (kind is not None and isinstance(value, kind)):
            continue  # the first is always answered by False
        raise InputError(
            "a tokenizer's setting that is not known",
            code="tokenizer-setting-unknown",
            where=f"{name}: tokenizer_kwargs",
            expected=", ".join(f"{k} ({v.__name__})" for k, v in _SETTINGS.items()),
            found=f"{key}: {value!r}",
        )


def _of_transformers(name: str, files: str) -> Tokenizer:
    """A tokenizer of the transformers library, from the model's folder or the hub. No code of a repository is run."""
    import open_clip

    local = name.startswith(LOCAL_PREFIX)
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependency(f"the tokenizer of {name} needs transformers", "pip install 'teachonce[hf]'")
    hint = f"put the files of tokenizer {files} into the folder: tokenizer.json, tokenizer_config.json, and the like"
    try:
        with _here(name, hint) if local else _hub(name, f"{name}, tokenizer {files}"):
            tokenizer: Any = open_clip.get_tokenizer(name, trust_remote_code=False)
            # Where vocabulary files are missing, transformers makes a tokenizer to which all words are unknown.
            known = tokenizer.tokenizer
            vocabulary = known.get_vocab().keys() - set(known.all_special_tokens) - known.get_added_vocab().keys()
            if len(vocabulary) < 2:
                raise InputError(
                    "a tokenizer without words",
                    code="tokenizer-empty",
                    where=name if local else files,
                    expected="a vocabulary",
                    found="special tokens only",
                    hint=hint if local else "check the repository's files",
                )
            return tokenizer  # type: ignore[no-any-return]
    except InputError as error:
        cause = error.__cause__
        vague = isinstance(cause, ImportError) or any(w in str(cause) for w in ("sentencepiece", "tiktoken"))
        if vague and importlib.util.find_spec("sentencepiece") is None:
            raise MissingDependency(
                f"the tokenizer of {name} needs sentencepiece", "pip install 'teachonce[hf]'"
            ) from error
        raise


@contextlib.contextmanager
def _here(where: str, hint: str) -> Iterator[None]:
    """Inside, only files of this machine are read; libraries print nothing, and an error is one line."""
    with (
        warnings.catch_warnings(),
        one_line("cannot load the tokenizer", where, hint, code="tokenizer-unloadable"),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _hub(name: str, where: str) -> Iterator[None]:
    """Inside, files of the hub are fetched, or found in its cache."""
    hint = (
        f"check name and network; or load {name} once where there is a network, copy ~/.cache/huggingface from there, "
        "and set HF_HOME to the copy"
    )
    with warnings.catch_warnings(), hub_access(where, hint):
        warnings.simplefilter("ignore")
        yield


def _ids(tokenizer: Tokenizer, texts: Sequence[str], length: int | None) -> NDArray[np.int64]:
    if not texts:
        return np.zeros((0, length or tokenizer.context_length or 0), np.int64)
    return np.ascontiguousarray(tokenizer(list(texts), length).numpy(), np.int64)


def _at_two_lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The tokens at the context length, those at more than twice that, and the token that pads: most of an empty text."""
    short_NL = _ids(tokenizer, texts, None)
    more = 2 * short_NL.shape[1] + 16
    padding = int(torch.mode(tokenizer([""], more)[0]).values)
    return short_NL, _ids(tokenizer, texts, more), padding


def _only_padded(short_L: NDArray[np.int64], long_M: NDArray[np.int64], padding: int) -> bool:
    """Whether `long_M` is `short_L` with padding put in at one place: in front, before a closing token, or behind."""
    more = len(long_M) - len(short_L)
    return any(
        (long_M[:at] == short_L[:at]).all()
        and (long_M[at : at + more] == padding).all()
        and (long_M[at + more :] == short_L[at:]).all()
        for at in range(len(short_L) + 1)
    )


def _quoted(name: str) -> str:
    return f'"{name}"' if len(name) <= _SHOWN else f'"{name[:_SHOWN]}…"'

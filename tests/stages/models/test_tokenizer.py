"""Tokenizers as open_clip finds them, what they cut and cannot tell apart, and what a person is told of it.

Those of the transformers library are tested where it is installed: `pip install 'teachonce[hf]'`.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import teachonce
import torch
from open_clip.tokenizer import SimpleTokenizer
from teachonce.stages.models.tokenizer import (
    BPE_FILE,
    cut_texts,
    load_tokenizer,
    name_notes,
    same_tokens,
)
from teachonce.storage_schemas.errors import InputError, MissingDependency, TeachonceError

DEMO = Path(teachonce.__file__).parent / "stages" / "demo" / "teacher"
WORDS = ("sea", "horse", "a", "photo", "of")
CONTEXT = 16


def folder_of(path: Path, **text_cfg: Any) -> str:
    """A model folder with a configuration alone."""
    path.mkdir()
    text_cfg = {"context_length": CONTEXT, "vocab_size": 40, "width": 8, "heads": 1, "layers": 1} | text_cfg
    vision_cfg = {"layers": 1, "width": 8, "patch_size": 8, "image_size": 16}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision_cfg, "text_cfg": text_cfg}}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{path}"


def refused(name: str, capfd: pytest.CaptureFixture[str], kind: type[TeachonceError] = InputError) -> str:
    """The one line for a tokenizer that cannot be had; the libraries print nothing."""
    capfd.readouterr()
    with pytest.raises(kind) as caught:
        load_tokenizer(name)
    assert capfd.readouterr() == ("", "")
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "name", "length"), [("ViT-B/32", "ViT-B-32", 77), ("coca_ViT-B/32", "coca_ViT-B-32", 76)]
)
def test_a_built_in_models_own(typed: str, name: str, length: int) -> None:
    tokenizer, own = load_tokenizer(typed), open_clip.get_tokenizer(name)
    texts = ["a photo of a sea horse.", "Great White Shark", "one " * 90]
    assert tokenizer.context_length == length
    assert torch.equal(tokenizer(texts), own(texts))


def test_a_folder_may_bring_its_own_vocabulary() -> None:
    tokenizer = load_tokenizer(f"local-dir:{DEMO}")
    own = SimpleTokenizer(bpe_path=str(DEMO / BPE_FILE), context_length=16)
    texts = ["a photo of a red seven.", "blue two"]
    assert torch.equal(tokenizer(texts), own(texts))
    assert not torch.equal(own(texts), SimpleTokenizer(context_length=16)(texts))


def test_a_folders_own_vocabulary_is_cleaned_for_as_its_configuration_says(tmp_path: Path) -> None:
    name = folder_of(tmp_path / "m", tokenizer_kwargs={"clean": "canonicalize"})
    (tmp_path / "m" / BPE_FILE).write_bytes((DEMO / BPE_FILE).read_bytes())
    assert same_tokens(load_tokenizer(name), ["red_seven!", "red seven"]) == [(0, 1)]


def test_what_cannot_be_loaded_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused("ViT-Z-32", capfd).startswith("open_clip has no such model: ViT-Z-32. Next: did you mean ViT-")
    assert refused(f"local-dir:{tmp_path}/gone", capfd) == (
        f"cannot load the tokenizer: local-dir:{tmp_path}/gone: found [Errno 2] No such file or directory: "
        f"'{tmp_path}/gone/open_clip_config.json'. Next: check the folder's open_clip_config.json"
    )
    name = folder_of(tmp_path / "m")
    (tmp_path / "m" / BPE_FILE).write_bytes(b"no gzip")
    assert refused(name, capfd).startswith(f"cannot load the tokenizer: {tmp_path}/m/{BPE_FILE}: found ")
    (tmp_path / "m" / BPE_FILE).write_bytes(gzip.compress(b"\xff\xfe"))
    assert "utf-8" in refused(name, capfd)

    # No machine can look up a name below .invalid (RFC 2606).
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    assert refused("hf-hub:teachonce/none-of-this-name", capfd) == (
        "cannot download from the hub: hf-hub:teachonce/none-of-this-name: found no network: https://hub.invalid cannot be "
        "found. Next: check name and network; or load hf-hub:teachonce/none-of-this-name once where there is a network, "
        "copy ~/.cache/huggingface from there, and set HF_HOME to the copy"
    )


def test_without_transformers_its_tokenizers_ask_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in (
        "ViT-B-16-SigLIP",
        "roberta-ViT-B-32",
        folder_of(tmp_path / "m", hf_tokenizer_name="roberta-base"),
    ):
        assert refused(name, capfd, MissingDependency) == (
            f"the tokenizer of {name} needs transformers. Next: pip install 'teachonce[hf]'"
        )


@pytest.mark.parametrize("length", [77, 5])
def test_a_text_is_cut_if_it_has_more_tokens_than_the_context(length: int) -> None:
    tokenizer = SimpleTokenizer(context_length=length)
    texts = ["sea " * words for words in range(length + 2)]  # a token a word
    # Exclamation marks are token 0, which is also the padding; an end token in the text; nothing at all.
    texts += ["!" * marks for marks in (1, 3, 7, 5 * length)] + [
        "",
        "cat <end_of_text>",
        "<end_of_text> " * length,
    ]
    expected = [i for i, text in enumerate(texts) if len(tokenizer.encode(text)) + 2 > length]
    assert cut_texts(tokenizer, texts) == expected
    assert length - 2 not in expected  # it fits exactly
    assert length - 1 in expected
    assert cut_texts(tokenizer, []) == []


class Padded:
    """Numbers for words, and ways to pad: in front, as GPT does; with the end token; or before a closing token, as CLIPS does.

    Token 1 ends a text where there is a token for that.
    """

    context_length = 6

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        rows = []
        for text in texts:
            length = context_length or self.context_length
            ids = [10 + ord(word[0]) for word in text.split()]
            if self.kind == "in front":
                ids = [*ids[: length - 1], 1]
                rows.append([0] * (length - len(ids)) + ids)
            elif self.kind == "with the end token":
                ids = [*ids[: length - 1], 1]
                rows.append(ids + [1] * (length - len(ids)))
            elif self.kind == "before a closing token":
                ids = [*ids[: length - 2], 1]
                rows.append([*ids, *[0] * (length - 1 - len(ids)), 2])
            else:
                rows.append((ids + [0] * length)[:length])
        return torch.tensor(rows)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("in front", 5),
        ("with the end token", 5),
        ("before a closing token", 4),
        ("without special tokens", 6),
    ],
)
def test_wherever_the_padding_stands(kind: str, most: int) -> None:
    texts = ["a b c d e f g h i j k l m n o p q r s t u v w x y z"[: 2 * words] for words in range(20)]
    assert cut_texts(Padded(kind), texts) == list(range(most + 1, 20))  # type: ignore[arg-type]


def test_names_that_are_the_same_to_the_model() -> None:
    tokenizer = SimpleTokenizer()
    texts = ["a sea horse.", "a crane.", "a Sea Horse.", "a  sea horse.", "a sea-horse.", "a Crane."]
    groups = same_tokens(tokenizer, texts)
    assert groups == [(0, 2, 3), (1, 5)]
    encoded = [tuple(tokenizer.encode(text)) for text in texts]
    assert all(len({encoded[i] for i in group}) == 1 for group in groups)
    assert len(set(encoded)) == 3
    assert same_tokens(tokenizer, []) == []
    long = "sea " * 80
    assert same_tokens(tokenizer, [long + "horse", long + "lion"]) == [(0, 1)]


def notes(*names: str) -> tuple[str, ...]:
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in names]
    return name_notes(SimpleTokenizer(), names, texts)


def test_what_a_person_is_told() -> None:
    long = "sea " * 80
    assert notes("cat", "sea horse", "Sea lion") == ()
    assert notes("sea horse", "cat", "sea_horse", "crane", "Crane") == (
        '2 pairs of class names have equal vectors, the first: "sea horse" and "sea_horse"',
    )
    assert notes("crane", "Crane") == ('1 pair of class names has equal vectors: "crane" and "Crane"',)
    assert notes("crane", "Crane", "CRANE", "sea_horse", "sea horse") == (
        '2 groups of class names have equal vectors, the first: "crane", "Crane" and "CRANE"',
    )
    assert notes("a a", "a_a", "A a", "A A") == ('1 group of class names has equal vectors: "a a", "a_a", "A a" and …',)
    assert notes("cat", f"lion {long}") == (
        f'1 class name is cut at the context length of 77 tokens: "{f"lion {long}"[:60]}…"',
    )
    assert notes(f"cat {long}", "dog", f"lion {long}") == (
        f'2 class names are cut at the context length of 77 tokens, the first: "{f"cat {long}"[:60]}…"',
    )


def tokenizer_files(path: Path, *, pads: str = "<pad>", side: str = "right", **config: Any) -> None:
    """The files of a small tokenizer of the transformers library, in a folder."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    pieces = [(f"▁{word}", -2.0) for word in WORDS] + [(c, -5.0) for c in "▁abcdefghijklmnopqrstuvwxyz."]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -1.0), ("<s>", 0.0), ("<cls>", 0.0)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([*special, *pieces], unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    names = {
        "pad_token": pads,
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "cls_token": "<cls>",
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": side, **names, **config}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("files", "text_cfg"),
    [
        ({}, {}),
        ({"pads": "</s>"}, {}),
        ({"side": "left"}, {}),
        ({}, {"tokenizer_mode": "clips"}),
        ({"sep_token": "</s>"}, {"tokenizer_kwargs": {"clean": "canonicalize", "strip_sep_token": True}}),
    ],
    ids=["padded", "padded with the end token", "padded in front", "clips", "without end token"],
)
def test_tokenizers_of_transformers(
    tmp_path: Path, files: dict[str, Any], text_cfg: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    name = folder_of(tmp_path / "m", hf_tokenizer_name="timm/ViT-B-16-SigLIP", **text_cfg)
    tokenizer_files(tmp_path / "m", **files)
    tokenizer: Any = load_tokenizer(name)
    texts = ["sea " * words for words in range(CONTEXT + 4)] + [
        "a photo of a sea horse",
        "a photo of a horse",
    ]
    special = 3 if text_cfg.get("tokenizer_mode") == "clips" else 1
    lengths = [len(tokenizer.tokenizer(t.strip(), add_special_tokens=False).input_ids) + special for t in texts]
    assert cut_texts(tokenizer, texts) == [i for i, length in enumerate(lengths) if length > CONTEXT]
    assert CONTEXT in lengths
    assert same_tokens(tokenizer, ["sea horse", "sea  horse ", "horse sea"]) == [(0, 1)]
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_its_files_or_words_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    name = folder_of(tmp_path / "m", hf_tokenizer_name="timm/ViT-B-16-SigLIP")
    line = refused(name, capfd)
    assert line.startswith(f"cannot load the tokenizer: {name}: found ")
    hint = "put the files of tokenizer timm/ViT-B-16-SigLIP into the folder: tokenizer.json, tokenizer_config.json, and the like"
    assert line.endswith(f". Next: {hint}")
    # From a class alone transformers makes a tokenizer that knows no word; class vectors would all be the same.
    for kind in ("T5Tokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "BertTokenizer"):
        (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
        line = refused(name, capfd)
        assert line.startswith(("a tokenizer without words", "cannot load the tokenizer")), line
        assert line.endswith(f". Next: {hint}")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert refused("ViT-B-16-SigLIP", capfd).startswith(
        "cannot download from the hub: ViT-B-16-SigLIP, tokenizer timm/ViT-B-16-SigLIP: found no network: "
    )


def test_no_code_of_a_folder_is_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = folder_of(
        tmp_path / "m", hf_tokenizer_name="timm/ViT-B-16-SigLIP", tokenizer_kwargs={"trust_remote_code": True}
    )
    mark = tmp_path / "was run"
    (tmp_path / "m" / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast as Own\n"
    )
    tokenizer_files(tmp_path / "m", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    assert refused(name, capfd).startswith(f"cannot load the tokenizer: {name}: found ")
    assert not mark.exists()

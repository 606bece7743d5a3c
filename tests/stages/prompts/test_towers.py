"""Prompted towers against the published description written out, and, without prompts, against open_clip itself."""

from __future__ import annotations

import open_clip
import pytest
import torch
from teachonce.stages.models.attention import fold_attention
from teachonce.stages.prompts.clip import PromptedClip, PromptShape, class_ids
from teachonce.stages.prompts.text import text_features, text_tower
from teachonce.storage_schemas.errors import InputError
from torch.nn import functional as F

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 3},
}
NAMES = ("red_fox", "house cat", "lear's macaw that is long")
TOKENIZER = open_clip.SimpleTokenizer(context_length=20)


def tiny(**text) -> open_clip.CLIP:
    torch.manual_seed(3)
    return open_clip.CLIP(**{**TINY, "text_cfg": {**TINY["text_cfg"], **text}}).eval()


def prompted(model, vision=(4, 3), text=(4, 2)) -> PromptedClip:
    torch.manual_seed(5)
    shape = PromptShape(vision_length=vision[0], vision_depth=vision[1], text_length=text[0], text_depth=text[1])
    clip = PromptedClip(model, shape).eval()
    with torch.no_grad():  # of the size of real tokens, so that they matter
        for prompts in clip.trained().values():
            prompts.normal_(std=0.3)
    return clip


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def as_published(published, clip, pixels, ids, heads, *, quick=False):
    """(image features, text features), both of length 1."""
    model = clip.model
    weights = model.state_dict()
    text = published.part(weights, "text.") or weights
    vision = published.part(weights, "visual.")
    image_ND = published.image_features(vision, list(clip.vision_prompts_LPD), pixels, heads[0], quick)
    text_CD = published.text_features(text, list(clip.text_prompts_LPD), ids, heads[1], quick)
    return published.unit(image_ND), published.unit(text_CD)


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize(("vision", "text"), [((4, 3), (4, 2)), ((2, 1), (3, 3)), ((1, 4), (2, 1))])
def test_tiny_towers_are_the_published_ones(published, kind, vision, text):
    torch.manual_seed(3)
    clip = prompted(getattr(open_clip, kind)(**TINY).eval(), vision, text)
    ids = class_ids("a photo of a", NAMES, TOKENIZER)
    with torch.no_grad():
        image_ND, text_CD = as_published(published, clip, images(32), ids, (2, 3))
        torch.testing.assert_close(clip.image_features(images(32)), image_ND, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clip.class_features(ids), text_CD, atol=1e-5, rtol=1e-5)
        plain = F.normalize(clip.model.encode_text(ids), dim=-1)
        assert not torch.allclose(plain, text_CD, atol=1e-2)
        assert not torch.allclose(clip.plain_image_features(images(32)), image_ND, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heads", "quick"), [("ViT-B-16", (12, 8), True), ("ViT-L-14", (16, 12), False)])
def test_real_sizes_are_the_published_ones(published, name, heads, quick):
    """As PromptKD has them: 4 + 4 tokens, 9 layers deep; random weights, OpenAI's activation for one of the two."""
    config = open_clip.get_model_config(name) | {"quick_gelu": quick}
    torch.manual_seed(3)
    model = open_clip.CLIP(**config).eval()
    fold_attention(model)
    clip = prompted(model, (4, 9), (4, 9))
    ids = class_ids("a photo of a", NAMES, open_clip.get_tokenizer(name))
    with torch.no_grad():
        image_ND, text_CD = as_published(published, clip, images(224, 1), ids, heads, quick=quick)
        torch.testing.assert_close(clip.image_features(images(224, 1)), image_ND, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(clip.class_features(ids, chunk=2), text_CD, atol=1e-5, rtol=1e-4)
        none = torch.zeros(1, 0, model.token_embedding.weight.shape[1])
        without = text_features(text_tower(model), none, ids)
        torch.testing.assert_close(without, model.encode_text(ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pool", [{}, {"pool_type": "eos", "eos_id": 49407}])
def test_without_prompts_both_towers_are_open_clips(pool):
    clip = prompted(tiny(**pool), (0, 4), (0, 3))
    ids = class_ids("a photo of a", NAMES, TOKENIZER)
    with torch.no_grad():
        assert torch.equal(clip.image_features(images(32)), clip.model.encode_image(images(32), normalize=True))
        expected = clip.model.encode_text(ids, normalize=True)
        torch.testing.assert_close(clip.class_features(ids), expected, atol=1e-6, rtol=1e-6)
    assert clip.trained() == {}


def test_chunks_give_the_same_features_and_gradients():
    ids = class_ids("a photo of a", [f"thing {'and thing ' * (i % 4)}" for i in range(11)], TOKENIZER)
    found = []
    for chunk in (None, 4, 1, 100):
        clip = prompted(tiny())
        features = clip.class_features(ids, chunk=chunk)
        (features @ torch.linspace(-1, 1, 8)).square().sum().backward()
        found.append((features.detach(), clip.text_prompts_LPD.grad))
    for features, gradient in found[1:]:
        torch.testing.assert_close(features, found[0][0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-6, rtol=1e-5)
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_prompts_start_from_words():
    clip = prompted(tiny())
    clip.start_from("a photo of a", TOKENIZER)
    ids = class_ids("a photo of a", NAMES, TOKENIZER)
    with torch.no_grad():
        words = clip.model.token_embedding(ids[0, 1:5])
        assert torch.equal(clip.text_prompts_LPD[0], words)
        shallow = PromptedClip(tiny(), PromptShape(vision_length=0, vision_depth=1, text_length=4, text_depth=1))
        shallow.start_from("a photo of a", TOKENIZER)
        expected = shallow.model.encode_text(ids, normalize=True)
        torch.testing.assert_close(shallow.class_features(ids), expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError) as error:
        clip.start_from("photo", TOKENIZER)
    assert error.value.fields == {
        "code": "context-too-short",
        "where": "--context 'photo'",
        "expected": "at least 4 tokens",
        "found": "1",
        "hint": "use more words, or a smaller --text-length",
    }


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"no_causal_mask": True}, "attention in both directions"),
        ({"pool_type": "last"}, "pooling 'last'"),
        ({"embed_cls": True}, "a class token"),
        ({"proj_type": "none"}, "no output projection"),
    ],
)
def test_text_towers_that_cannot_take_prompts_are_refused(changes, found):
    model = open_clip.CustomTextCLIP(**{**TINY, "text_cfg": {**TINY["text_cfg"], **changes}})
    with pytest.raises(InputError) as error:
        prompted(model)
    assert error.value.fields == {
        "code": "text-prompts-impossible",
        "where": "--teacher",
        "expected": "open_clip's causal text transformer, read at its end token",
        "found": str(found),
        "hint": "choose such a model (ViT-B-16, ViT-B-32, ViT-L-14, …)",
    }


def test_deeper_than_the_towers_is_refused():
    with pytest.raises(InputError) as error:
        prompted(tiny(), (4, 5))
    assert (error.value.code, str(error.value.where), str(error.value.expected), str(error.value.found)) == (
        "prompt-size-impossible",
        "--vision-length, --vision-depth",
        "length from 0 on, depth 1 to 4",
        "4, 5",
    )
    with pytest.raises(InputError) as error:
        prompted(tiny(), (4, 3), (4, 4))
    assert (error.value.code, str(error.value.where), str(error.value.expected), str(error.value.found)) == (
        "prompt-size-impossible",
        "--text-length, --text-depth",
        "length from 0 on, depth 1 to 3",
        "4, 4",
    )

"""Teachers of every timm family with a classifier, against plain timm on the same photographs."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import timm
import torch
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.teachers.offers import choose_offers
from teachonce.stages.teachers.timm import TimmTeacher
from teachonce.stages.teachers.timm_heads import AnyHead
from teachonce.storage_schemas.errors import InputError
from timm.models._registry import _module_to_models

#: The cheapest model with a classifier of each of timm's modules (parameters x pixels). A newer timm's modules, which
#: are not here, give their first.
CHEAPEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_336",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "hieradet_small",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}

#: Heads of other kinds than one linear layer: averaged ones, and 1x1 convolutions. Quick enough for every run.
OTHER_HEADS = (
    "deit_tiny_distilled_patch16_224",
    "levit_128s",
    "repvit_m0_9",
    "efficientformer_l1",
    "swiftformer_xs",
    "crossvit_tiny_240",
    "resnetv2_18",
    "dpn48b",
)


def check_equal(name: str, photographs, pixels_for) -> None:
    """Embedding · class vectors + bias of our teacher are plain timm's logits, to 1e-5 of the largest."""
    teacher = TimmTeacher.load(TeacherConfig(model=f"timm:{name}", pretrained="random"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = timm.create_model(name).eval()
    config = timm.data.resolve_data_config(model=plain)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        embedding_ND = teacher.embed(torch.from_numpy(pixels_for(teacher, photographs)))
        # Channels last, as teachers run: some nets with random weights make 1e-4 of the difference in rounding.
        images_NCHW = torch.stack([transform(image) for image in photographs])
        plain.to(memory_format=torch.channels_last)
        logits_NC = plain(images_NCHW.contiguous(memory_format=torch.channels_last))
    vectors = teacher.class_vectors([str(i) for i in range(logits_NC.shape[1])], ())
    scale = max(1.0, float(logits_NC.abs().max()))
    np.testing.assert_allclose(vectors.logits(embedding_ND.numpy()), logits_NC, atol=1e-5 * scale)
    assert teacher.spec.embed_dim == embedding_ND.shape[1] == vectors.embed_dim


def cheapest(module: str) -> str | None:
    """A model of the module that has a classifier, or None."""
    if module in CHEAPEST:
        return CHEAPEST[module]
    for name in sorted(_module_to_models[module]):
        config = timm.models.get_pretrained_cfg(name)
        if config is not None and config.num_classes and config.classifier:
            return name
    return None


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_heads_that_are_no_single_linear_layer(name, photographs, pixels_for):
    check_equal(name, photographs, pixels_for)


def test_logits_that_are_no_linear_map_are_the_embedding(photographs, pixels_for):
    teacher = TimmTeacher.load(TeacherConfig(model="timm:volo_d1_224", pretrained="random", size=64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = timm.create_model("volo_d1_224", img_size=64).eval()
    images_NCHW = torch.from_numpy(pixels_for(teacher, photographs))
    with torch.no_grad():
        expected = plain(teacher._normalize(images_NCHW))
        torch.testing.assert_close(teacher.embed(images_NCHW), expected, rtol=1e-4, atol=1e-5)
        found = teacher.outputs(images_NCHW, ("embedding", *teacher._maps.names[:1]))
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-4, atol=1e-5)
    names = teacher.class_names([str(i) for i in range(1000)])
    vectors = teacher.class_vectors(names, ())
    np.testing.assert_array_equal(vectors.vectors_CD, np.eye(1000, dtype=np.float32))
    assert (vectors.bias_C, vectors.logit_scale, teacher.spec.embed_dim) == (None, 1.0, 1000)
    assert teacher.loaded.count("its logits are its embedding") == 1
    assert [offer.shape for offer in choose_offers(teacher, vectors, "auto")] == [(1000,)]
    assert [offer.name for offer in choose_offers(teacher, vectors, "auto")] == ["logits"]


@pytest.mark.parametrize(
    ("logits", "found"),
    [(torch.zeros(2, 3, 4), r"\(2, 3, 4\)"), ([torch.zeros(2, 3)], "list"), (torch.zeros(2, 8193), "8193")],
)
def test_logits_that_are_not_one_number_a_class_are_refused(logits, found):
    with pytest.raises(
        InputError, match=f"this model gives no logits that can be stored as they are: timm:x: .*{found}"
    ):
        AnyHead(logits, "x")


def test_a_model_without_a_classifier_teaches_features(photographs, pixels_for):
    name = "vit_small_patch14_dinov2"
    teacher = TimmTeacher.load(TeacherConfig(model=f"timm:{name}", pretrained="random", size=56))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = timm.create_model(name, img_size=56).eval()
    images_NCHW = torch.from_numpy(pixels_for(teacher, photographs))
    with torch.no_grad():
        expected = plain(teacher._normalize(images_NCHW))
        torch.testing.assert_close(teacher.embed(images_NCHW), expected, rtol=1e-4, atol=1e-5)
        tokens = teacher.outputs(images_NCHW, ("tokens", "embedding"))
    torch.testing.assert_close(tokens["embedding"], expected, rtol=1e-4, atol=1e-5)
    assert tokens["tokens"].shape == (3, 16, 384)
    with pytest.raises(InputError, match="this teacher has no class vectors"):
        teacher.class_names(None)


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(set(_module_to_models)))
def test_every_family(module, photographs, pixels_for):
    name = cheapest(module)
    if name is None:
        return
    check_equal(name, photographs[1:], pixels_for)  # one of each orientation
    gc.collect()

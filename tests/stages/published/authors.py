"""Small models with the names and the arithmetic of PromptSRC's and PromptKD's, from their description; no open_clip code.

Their `state_dict` has the key layout of the authors' files. Prompts come last in the image tower and behind the start token in
the text tower, and are replaced at the input of blocks 1 to depth-1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-1.702 * x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, quick: bool, prompts: int | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        activation = QuickGELU() if quick else nn.GELU()
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=activation, c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = nn.LayerNorm(width)
        if prompts is not None:
            self.VPT_shallow = nn.Parameter(torch.randn(prompts, width))

    def forward(self, x_LND: Tensor, first: int, mask: Tensor | None) -> Tensor:
        """`first`: where prompts start, from the end where negative."""
        if hasattr(self, "VPT_shallow"):
            x_LND = x_LND.clone()
            start = first % len(x_LND)
            x_LND[start : start + len(self.VPT_shallow)] = self.VPT_shallow[:, None]
        normed = self.ln_1(x_LND)
        x_LND = x_LND + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x_LND + self.mlp(self.ln_2(x_LND))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, quick: bool, prompts: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(
            *(Block(width, heads, quick, prompts if 0 < i < depth else None) for i in range(layers))
        )

    def forward(self, x_NLD: Tensor, first: int, mask: Tensor | None = None) -> Tensor:
        x_LND = x_NLD.transpose(0, 1)
        for block in self.resblocks:
            x_LND = block(x_LND, first, mask)
        return x_LND.transpose(0, 1)


class Vision(nn.Module):
    def __init__(self, cfg: dict, width_out: int, quick: bool, prompts: int, depth: int) -> None:
        super().__init__()
        width, patch = cfg["width"], cfg["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((cfg["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        heads = width // cfg["head_width"]
        self.transformer = Transformer(width, cfg["layers"], heads, quick, prompts, depth)
        self.proj = nn.Parameter(torch.empty(width, width_out))
        if depth:
            self.VPT = nn.Parameter(torch.randn(prompts, width))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        patches = self.conv1(x_NCHW).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        x = x + self.positional_embedding
        count = 0
        if hasattr(self, "VPT"):
            count = len(self.VPT)
            x = torch.cat([x, self.VPT.expand(len(x), -1, -1)], dim=1)
        x = self.transformer(self.ln_pre(x), -count)
        return self.ln_post(x[:, 0]) @ self.proj


class TextEncoder(nn.Module):
    def __init__(self, cfg: dict, width_out: int, quick: bool, prompts: int, depth: int) -> None:
        super().__init__()
        width = cfg["width"]
        self.transformer = Transformer(width, cfg["layers"], cfg["heads"], quick, prompts, depth)
        self.positional_embedding = nn.Parameter(torch.empty(cfg["context_length"], width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, width_out))

    def forward(self, tokens_CTD: Tensor, ids_CT: Tensor) -> Tensor:
        length = tokens_CTD.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(tokens_CTD + self.positional_embedding, 1, mask))
        return x[torch.arange(len(x)), ids_CT.argmax(dim=1)] @ self.text_projection


class PromptLearner(nn.Module):
    def __init__(self, ctx: Tensor, tokens_CTD: Tensor, frozen: Vision) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)
        self.ZS_image_encoder = frozen
        self.register_buffer("token_prefix", tokens_CTD[:, :1])
        self.register_buffer("token_suffix", tokens_CTD[:, 1 + len(ctx) :])


class Teacher(nn.Module):
    """PromptSRC's model: tuned on `names`. `state` is an open_clip model's, `text` the prefix of its text tower."""

    def __init__(
        self,
        cfg: dict,
        state: dict,
        names: Sequence[str],
        *,
        vision=(4, 3),
        text=(4, 3),
        context: str = "a photo of a",
        inner: str = "",
    ) -> None:
        super().__init__()
        quick, width_out = cfg.get("quick_gelu", False), cfg["embed_dim"]
        self.image_encoder = Vision(cfg["vision_cfg"], width_out, quick, *vision)
        copy = Vision(cfg["vision_cfg"], width_out, quick, 0, 0)
        self.text_encoder = TextEncoder(cfg["text_cfg"], width_out, quick, *text)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.vocabulary = [state[f"{inner}token_embedding.weight"]]  # in a list: the files do not have it
        tokens = self.vocabulary[0][class_ids(context, names)]
        self.prompt_learner = PromptLearner(torch.randn(text[0], tokens.shape[-1]) / 4, tokens, copy)
        self.context = context
        visual = {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}
        words = {n.removeprefix(inner): v for n, v in state.items() if n.startswith(inner)}
        for module, weights in ((self.image_encoder, visual), (copy, visual), (self.text_encoder, words)):
            own = module.state_dict()
            module.load_state_dict({n: weights[n] for n in own if "VPT" not in n}, strict=False)
        self.logit_scale.data.copy_(state["logit_scale"])

    @torch.no_grad()
    def image_features(self, x_NCHW: Tensor) -> Tensor:
        return F.normalize(self.image_encoder(x_NCHW), dim=-1)

    @torch.no_grad()
    def text_features(self, names: Sequence[str]) -> Tensor:
        ids_CT, ctx = class_ids(self.context, names), self.prompt_learner.ctx
        tokens = self.vocabulary[0][ids_CT].clone()
        tokens[:, 1 : 1 + len(ctx)] = ctx
        return F.normalize(self.text_encoder(tokens, ids_CT), dim=-1)


class Projector(nn.Module):
    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(width, width_out, 1),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 1),
        )
        norm = self.conv1[1]
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.data.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(77)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.conv1(x_ND[..., None, None])[..., 0, 0]


class Student(nn.Module):
    """PromptKD's model: an image tower with prompts, and a projector to `channels`."""

    def __init__(self, cfg: dict, state: dict, channels: int, *, vision=(4, 2)) -> None:
        super().__init__()
        self.image_encoder = Vision(cfg["vision_cfg"], cfg["embed_dim"], cfg.get("quick_gelu", False), *vision)
        self.logit_scale = nn.Parameter(state["logit_scale"].clone())
        self.VPT_image_trans = Projector(cfg["embed_dim"], channels)
        weights = {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}
        self.image_encoder.load_state_dict(weights, strict=False)

    @torch.no_grad()
    def logits(self, x_NCHW: Tensor, vectors_CD: Tensor) -> Tensor:
        self.eval()
        embedding = F.normalize(self.VPT_image_trans(self.image_encoder(x_NCHW)), dim=-1)
        return self.logit_scale.exp() * embedding @ vectors_CD.T


def class_ids(context: str, names: Sequence[str]) -> Tensor:
    return open_clip.tokenize([f"{context} {name.replace('_', ' ')}." for name in names])


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the authors keep in fp16: convolutions, linear layers, attention, projections, token vectors and `ctx`."""
    ends = (
        "conv1.weight",
        "attn.in_proj_weight",
        "attn.in_proj_bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
        "mlp.c_fc.weight",
        "mlp.c_fc.bias",
        "mlp.c_proj.weight",
        "mlp.c_proj.bias",
        ".proj",
        "text_projection",
        "token_prefix",
        "token_suffix",
        ".ctx",
        "conv1.0.weight",
        "conv1.0.bias",
        "conv1.3.weight",
        "conv1.3.bias",
    )
    return {name: value.half() if name.endswith(ends) else value.clone() for name, value in state.items()}


def training_state(state: dict[str, Tensor], epoch: int = 20) -> dict:
    """A file as CoOp's (Dassl's) trainer saves it: the schedule pickles another one, which holds the optimiser."""
    prompt = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([prompt], lr=0.1, momentum=0.9)
    prompt.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20.0)  # type: ignore[arg-type]
    return {
        "state_dict": OrderedDict(state),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": schedule, "warmup_epoch": 1, "last_epoch": 1},
        "val_result": 85.5,
    }

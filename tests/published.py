"""PromptKD and PromptSRC written out from their published descriptions: no open_clip and no teachonce code.

Weights go by open_clip's names; everything computes in the type of the weights it is given. Images are normalised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(x_NTD: Tensor, block: Weights, heads: int, mask_TT: Tensor | None) -> Tensor:
    count, length, width = x_NTD.shape
    qkv = x_NTD @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
    q, k, v = (t.reshape(count, length, heads, width // heads).transpose(1, 2) for t in qkv.chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
    if mask_TT is not None:
        scores = scores + mask_TT
    out_NTD = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(count, length, width)
    return out_NTD @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]


def run_block(x: Tensor, block: Weights, heads: int, mask: Tensor | None, quick: bool) -> Tensor:
    x = x + attention(norm(x, block, "ln_1"), block, heads, mask)
    hidden = norm(x, block, "ln_2") @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
    if quick:
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    else:
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + hidden @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]


def blocks(weights: Weights) -> list[dict[str, Tensor]]:
    prefix = "transformer.resblocks."
    count = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith(prefix))
    return [part(weights, f"{prefix}{i}.") for i in range(count)]


def image_features(weights: Weights, prompts: Sequence[Tensor], images_NCHW: Tensor, heads: int, quick=False) -> Tensor:
    """`encode_image` with the prompts of each layer (prompt, channel); none for the plain tower. Not normalised."""
    kernel = weights["conv1.weight"]
    width, _, size, _ = kernel.shape
    count, _, height, _ = images_NCHW.shape
    grid = height // size
    patches = images_NCHW.reshape(count, 3, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5)
    tokens = patches.reshape(count, grid * grid, -1) @ kernel.reshape(width, -1).T
    first = weights["class_embedding"].expand(count, 1, width)
    tokens = torch.cat([first, tokens], 1) + weights["positional_embedding"]
    if prompts:
        tokens = torch.cat([tokens, prompts[0].expand(count, -1, -1)], 1)
    x = norm(tokens, weights, "ln_pre")
    for layer, block in enumerate(blocks(weights)):
        if 1 <= layer < len(prompts):
            x = torch.cat([x[:, : -len(prompts[layer])], prompts[layer].expand(count, -1, -1)], 1)
        x = run_block(x, block, heads, None, quick)
    return norm(x[:, 0], weights, "ln_post") @ weights["proj"]


def text_features(weights: Weights, prompts: Sequence[Tensor], ids_CT: Tensor, heads: int, quick=False) -> Tensor:
    """`encode_text` with the prompts of each layer in positions 1 to n; none for the plain tower. Not normalised."""
    count, length = ids_CT.shape
    x = weights["token_embedding.weight"][ids_CT]
    if prompts:
        x = torch.cat([x[:, :1], prompts[0].expand(count, -1, -1), x[:, 1 + len(prompts[0]) :]], 1)
    x = x + weights["positional_embedding"]
    mask = torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
    for layer, block in enumerate(blocks(weights)):
        if 1 <= layer < len(prompts):
            x = torch.cat([x[:, :1], prompts[layer].expand(count, -1, -1), x[:, 1 + len(prompts[layer]) :]], 1)
        x = run_block(x, block, heads, mask, quick)
    end = norm(x, weights, "ln_final")[torch.arange(count), ids_CT.argmax(-1)]
    return end @ weights["text_projection"]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def divergence(target_NC: Tensor, other_NC: Tensor) -> Tensor:
    """KL(target ‖ other) of logits, summed and divided by batch · classes."""
    p, q = torch.log_softmax(target_NC, 1), torch.log_softmax(other_NC, 1)
    return (p.exp() * (p - q)).sum() / target_NC.numel()


def promptsrc_loss(
    image_ND: Tensor,
    text_CD: Tensor,
    plain_image_ND: Tensor,
    plain_text_CD: Tensor,
    scale: Tensor,
    labels_N: Tensor,
) -> Tensor:
    """Stage I: all features are unit vectors."""
    logits, plain = scale * image_ND @ text_CD.T, scale * plain_image_ND @ plain_text_CD.T
    crossed = -torch.log_softmax(logits, 1)[torch.arange(len(labels_N)), labels_N].mean()
    text, image = (text_CD - plain_text_CD).abs().mean(), (image_ND - plain_image_ND).abs().mean()
    return crossed + 25 * text + 10 * image + divergence(plain, logits)


def project(features_ND: Tensor, weights: Weights) -> Tensor:
    """Stage II's projector in training: 1x1 convolution, batch norm over the batch, ReLU, 1x1 convolution."""
    hidden = features_ND @ weights["0.weight"].T + weights["0.bias"]
    mean, variance = hidden.mean(0), hidden.var(0, unbiased=False)
    hidden = (hidden - mean) / torch.sqrt(variance + 1e-5) * weights["1.weight"] + weights["1.bias"]
    return hidden.clamp(min=0) @ weights["3.weight"].T + weights["3.bias"]


def learning_rate(epoch: int, lr: float, epochs: int = 20) -> float:
    """1e-5 in epoch 0, then half a cosine over all epochs, counted from epoch 1."""
    return 1e-5 if epoch == 0 else lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


class Sgd:
    """Momentum 0.9 and weight decay 5e-4 on everything, as torch's SGD has it, written out."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters, self._velocity = parameters, {}  # type: ignore[var-annotated]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for name, value in self._parameters.items():
            gradient = value.grad + 5e-4 * value
            before = self._velocity.get(name)
            self._velocity[name] = gradient if before is None else 0.9 * before + gradient
            value -= lr * self._velocity[name]
            value.grad = None

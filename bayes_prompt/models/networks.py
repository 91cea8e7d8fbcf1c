"""The default networks of `GenerativeDifficulty`, after the ones that GPS describes (arXiv 2602.01970).

A researcher's own network is any `nn.Module` with the same `forward`. Leading dimensions T are those of a stack of
batches. Parameters are drawn from torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SKIP_SCALE = 0.5  # standard deviation, in logits, that the prior gives the linear and the hidden part of the decoder
LATENT_SCALE = 0.3  # and what a latent context moves


@dataclass(frozen=True)
class Size:
    """How large the default networks are.

    width, layers, heads: of the Transformer encoder; its feed-forward layers are four times as wide. hidden: units of
    the decoder's one or two hidden layers. latent: Z, the width of the context z.
    """

    width: int
    layers: int
    heads: int
    hidden: tuple[int, ...]
    latent: int


SIZES = {
    "small": Size(width=32, layers=1, heads=2, hidden=(64,), latent=8),
    "base": Size(width=128, layers=2, heads=4, hidden=(256, 256), latent=32),
    "paper": Size(width=512, layers=6, heads=8, hidden=(1024, 512), latent=64),  # 20 million weights at D = 256
}


class TransformerEncoder(nn.Module):
    """A batch of (embedding, success rate) pairs to the location and scale of a latent context z.

    Args:
        features: D, width of an embedding. latent: Z. size: of the Transformer.
    """

    def __init__(self, features: int, latent: int, size: Size) -> None:
        super().__init__()
        self.pair = nn.Linear(features + 2, size.width)
        layer = nn.TransformerEncoderLayer(
            size.width,
            size.heads,
            4 * size.width,
            dropout=0.0,
            activation=torch.relu,  # not "relu": torch's fused path for evaluation, which rounds otherwise, knows that
            batch_first=True,
            norm_first=True,
        )
        self.attention = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)
        self.location = nn.Linear(size.width, latent)
        self.log_scale = nn.Linear(size.width, latent)
        for head in (self.location, self.log_scale):  # so that z starts as its base distribution
            nn.init.zeros_(head.bias)
            nn.init.normal_(head.weight, std=1e-2)

    def forward(self, embeddings: Tensor, rates: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of z, each (T, Z).

        Args:
            embeddings: (T, B, D) with rows of about unit length. rates: (T, B) observed success rates in [0, 1].
            present: (T, B) bool, False where a batch has fewer than B prompts; a batch may have none.
        """
        pairs = torch.cat([embeddings, (2 * rates - 1)[..., None], torch.ones_like(rates)[..., None]], dim=-1)
        nobody = ~present.any(-1, keepdim=True)  # attention over nothing would be NaN
        hidden = self.attention(self.pair(pairs), src_key_padding_mask=~(present | nobody))
        weight = present.to(hidden.dtype)[..., None]
        pooled = (hidden * weight).sum(-2) / weight.sum(-2).clamp_min(1.0)
        return self.location(pooled), torch.exp(self.log_scale(pooled).clamp(-5.0, 2.0))


class AdditiveDecoder(nn.Module):
    """logit of the success rate from an embedding x and a context z: linear in x, plus a network of hidden layers.

    The first hidden layer adds a product with x and one with z, so that the former is shared by all draws of z.
    Every weight has a Gaussian prior; with it the linear part is a Bayesian logistic regression, which few labels can
    hardly overfit, and the hidden part a network that grows out of it as evidence comes in.
    """

    start: Tensor  # (H, D), where the first layer's weights began

    def __init__(self, features: int, latent: int, size: Size) -> None:
        super().__init__()
        self.skip = nn.Parameter(torch.zeros(features))
        self.first = nn.Linear(features, size.hidden[0])
        self.context = nn.Parameter(torch.randn(size.hidden[0], latent) / math.sqrt(max(1, latent)))
        self.second = nn.Linear(size.hidden[0], size.hidden[1]) if len(size.hidden) > 1 else None
        self.last = nn.Parameter(torch.zeros(size.hidden[-1]))
        self.offset = nn.Parameter(torch.full((latent,), LATENT_SCALE / math.sqrt(max(1, latent))))
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.first.weight)  # rows of about unit length make pre-activations of about 1
        nn.init.zeros_(self.first.bias)
        if self.second is not None:
            nn.init.normal_(self.second.weight, std=math.sqrt(2.0 / size.hidden[0]))
            nn.init.zeros_(self.second.bias)
        self.register_buffer("start", self.first.weight.detach().clone())

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return (
            (self.first.out_features,) if self.second is None else (self.first.out_features, self.second.out_features)
        )

    def forward(self, embeddings: Tensor, z: Tensor) -> Tensor:
        """Logits (T, B) of embeddings (T, B, D) under contexts z (T, Z)."""
        hidden = torch.relu(self.first(embeddings) + (z @ self.context.T)[..., None, :])
        if self.second is not None:
            hidden = torch.relu(self.second(hidden))
        return hidden @ self.last + embeddings @ self.skip + (z @ self.offset)[..., None] + self.bias

    def log_prior(self) -> Tensor:
        """Log density of the weights, of shape (), up to a constant: each Gaussian around where it started."""
        spread = SKIP_SCALE / math.sqrt(self.last.numel())
        total = (self.skip / SKIP_SCALE).square().sum() + (self.last / spread).square().sum()
        total = total + (self.first.weight - self.start).square().sum() + self.first.bias.square().sum()
        total = (
            total + self.context.square().sum() * self.context.shape[1] + (self.offset / LATENT_SCALE).square().sum()
        )
        if self.second is not None:
            total = total + self.second.weight.square().sum() * (self.second.in_features / 2.0)
        return -0.5 * (total + (self.bias / 2.0).square())

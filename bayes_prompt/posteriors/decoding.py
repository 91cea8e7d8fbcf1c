"""Success rates of a whole pool from its embeddings, averaged over draws of the latent context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import bayes_prompt.kernels.backend as backends
from bayes_prompt.kernels import difficulty_decoder
from bayes_prompt.models.networks import AdditiveDecoder

if TYPE_CHECKING:
    from bayes_prompt.models.difficulty import DifficultyProgram

_CHUNK = 1 << 14  # rows that a network of a researcher's own is shown at a time


class Decoding:
    """A program's decoder over a pool of embeddings (N, D), which it sees centred and of unit length on average.

    The default decoder runs in the kernel `difficulty_decoder`, which reads the embeddings as they are: centre and
    scale are folded into its weights. Any other runs as it is, once for each draw.
    """

    def __init__(self, program: DifficultyProgram, embeddings: Tensor, backend: str) -> None:
        self._program, self._pool, self._backend = program, embeddings, backend
        self._centre, self._scale = _moments(embeddings)

    def standardised(self, rows: Tensor) -> Tensor:
        """Embeddings of shape (..., D), float32, of rows of shape (...)."""
        return self._seen(self._pool[rows])

    def concentration(self) -> Tensor:
        """c (N,) float32, pseudo-counts that each prompt's text is worth."""
        with torch.no_grad():
            parts = torch.arange(len(self._pool), device=self._pool.device).split(_CHUNK)
            return torch.cat([self._program.concentration(self.standardised(rows)) for rows in parts])

    def rates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (N,) float32 of the success rate over contexts z (S, Z)."""
        mean = torch.empty(len(self._pool), device=self._pool.device)
        variance = torch.empty_like(mean)
        with torch.no_grad():
            decoder = self._program.decoder
            if type(decoder) is AdditiveDecoder and self._fits(decoder, len(z)):
                tables, shifts, offsets = self._folded(decoder, z)
                kernel = backends.load("difficulty_decoder", self._backend)
                kernel.decode(self._pool, tables, shifts, offsets, 1, mean, variance, None)
            else:
                for start in range(0, len(self._pool), _CHUNK):
                    part = slice(start, start + _CHUNK)
                    seen = self._seen(self._pool[part])
                    rate = torch.stack([torch.sigmoid(self._program.logits(seen[None], each[None])[0]) for each in z])
                    mean[part], variance[part] = rate.mean(0), rate.var(0, correction=0)
        return mean, variance

    def _seen(self, embeddings: Tensor) -> Tensor:
        return (embeddings.float() - self._centre) * self._scale

    def _fits(self, decoder: AdditiveDecoder, draws: int) -> bool:
        """Whether the kernel takes networks and pools of these widths."""
        return (
            max(decoder.widths) <= difficulty_decoder.MAX_HIDDEN
            and self._pool.shape[1] <= difficulty_decoder.MAX_FEATURES
            and draws <= difficulty_decoder.MAX_DRAWS
        )

    def _folded(self, decoder: AdditiveDecoder, z: Tensor) -> tuple[difficulty_decoder.Decoder, Tensor, Tensor]:
        """The weights, biases (S, H) of the first layer and offsets (S,) with centre, scale and contexts folded in."""
        stored = self._pool.dtype
        first, skip = (decoder.first.weight * self._scale).to(stored), decoder.skip * self._scale
        # With the weights as they are stored: what rounding does to them then meets centred embeddings alone.
        shifts = decoder.first.bias + z @ decoder.context.T - first.float() @ self._centre
        offsets = decoder.bias + z @ decoder.offset - skip @ self._centre
        second = decoder.second
        tables = difficulty_decoder.Decoder(
            first.contiguous(),
            skip.contiguous(),
            None if second is None else second.weight.to(stored).contiguous(),
            None if second is None else second.bias.detach(),
            decoder.last.detach(),
        )
        return tables, shifts.contiguous(), offsets.contiguous()


def _moments(embeddings: Tensor) -> tuple[Tensor, float]:
    """The pool's mean (D,), and one over the root mean squared distance from it (1 where all are alike)."""
    count, parts = len(embeddings), embeddings.split(_CHUNK)
    centre = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
    square = sum(float((part.double() - centre).square().sum()) for part in parts) / count
    return centre.float(), square**-0.5 if square > 1e-12 * float(centre.square().sum()) and square > 0 else 1.0

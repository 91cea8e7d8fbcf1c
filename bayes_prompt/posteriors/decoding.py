"""Success rates of a whole pool from its embeddings, averaged over draws of the latent context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import bayes_prompt.kernels.backend as backends
from bayes_prompt.kernels import difficulty_decoder
from bayes_prompt.models.networks import AdditiveDecoder

if TYPE_CHECKING:
    from bayes_prompt.models.difficulty import DifficultyProgram

_LEAST_SPREAD = 1e-36  # float32 holds its inverse, and products with it
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
        with undisturbed(self._pool.device), torch.no_grad():
            out = torch.empty(len(self._pool), dtype=torch.float32, device=self._pool.device)
            weights = self._program.slope * self._scale
            start = self._program.log_concentration - weights @ self._centre
            for rows, part in zip(out.split(_CHUNK), self._pool.split(_CHUNK), strict=True):
                rows.copy_(self._program.worth(part.float() @ weights + start))
        return out

    def rates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (N,) float32 of the success rate over contexts z (S, Z)."""
        with undisturbed(self._pool.device), torch.no_grad():
            mean = torch.zeros(len(self._pool), dtype=torch.float32, device=self._pool.device)
            variance, new, spread = torch.zeros_like(mean), torch.empty_like(mean), torch.empty_like(mean)
            seen = 0
            for part in z.split(difficulty_decoder.MAX_DRAWS):
                self._rates(part, new, spread)
                seen += len(part)
                share, off = len(part) / seen, new - mean
                variance.lerp_(spread, share).add_(off.square(), alpha=share * (1 - share))
                mean.lerp_(new, share)
        return mean, variance

    def _rates(self, z: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Fill in mean and variance (N,) over as many contexts z (S, Z) as the kernel takes."""
        decoder = self._program.decoder
        if type(decoder) is AdditiveDecoder and self._fits(decoder):
            tables, shifts, offsets = self._folded(decoder, z)
            kernel = backends.load("difficulty_decoder", self._backend)
            kernel.decode(self._pool, tables, shifts, offsets, 1, mean, variance, None)
        else:
            self._through_networks(z, mean, variance)

    def _through_networks(self, z: Tensor, mean: Tensor, variance: Tensor) -> None:
        """The same without the kernel. The default decoder's product with the embeddings is shared by all draws."""
        shared = type(self._program.decoder) is AdditiveDecoder
        size = _CHUNK // 8 if shared else _CHUNK
        for start in range(0, len(self._pool), size):
            part = slice(start, start + size)
            seen = self._seen(self._pool[part])[None]
            logits = (
                self._program.decoder(seen, z)
                if shared
                else torch.cat([self._program.logits(seen, each[None]) for each in z])
            )
            rate = torch.sigmoid(logits)
            mean[part], variance[part] = rate.mean(0), rate.var(0, correction=0)

    def _seen(self, embeddings: Tensor) -> Tensor:
        return (embeddings.float() - self._centre) * self._scale

    def _fits(self, decoder: AdditiveDecoder) -> bool:
        """Whether the kernel takes networks and pools of these widths."""
        return (
            max(decoder.widths) <= difficulty_decoder.MAX_HIDDEN
            and self._pool.shape[1] <= difficulty_decoder.MAX_FEATURES
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


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """A trainer's inference mode and autocast do not reach in here: parameters learn, and numbers stay float32."""
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        yield


def _moments(embeddings: Tensor) -> tuple[Tensor, float]:
    """The pool's mean (D,), and one over the root mean squared distance from it.

    0 where all are alike, or differ by what rounding may have made of them: then all are seen at the centre.
    """
    count, parts = len(embeddings), embeddings.split(_CHUNK)
    centre = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
    square = sum(float((part.double() - centre).square().sum()) for part in parts) / count
    if square <= 1e-12 * float(centre.square().sum()) or square == 0:
        return centre.float(), 0.0
    if not _LEAST_SPREAD < square**0.5 < 1 / _LEAST_SPREAD:
        raise ValueError(
            f"embeddings must spread by between {_LEAST_SPREAD:g} and {1 / _LEAST_SPREAD:g} around their mean; "
            f"these by {square**0.5:.3g}"
        )
    return centre.float(), square**-0.5

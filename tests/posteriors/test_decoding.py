"""Rates of a whole pool: the kernel against the networks themselves, whatever embeddings look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.kernels import difficulty_decoder
from bayes_prompt.models.difficulty import DifficultyProgram
from bayes_prompt.models.networks import SIZES, AdditiveDecoder
from bayes_prompt.posteriors import decoding
from bayes_prompt.posteriors.decoding import Decoding

N, D = 50, 6


class Same(AdditiveDecoder):
    """The default decoder under another name, which no kernel knows."""


def program(size: str = "small", features: int = D, **settings: Any) -> DifficultyProgram:
    """One whose decoder has a say: logits of a few units that bend with the embedding and with z."""
    made = bp.GenerativeDifficulty(size=size, **settings).program(features)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.decoder.named_parameters():
            if name in ("skip", "last", "bias", "offset"):
                parameter.copy_(torch.randn(parameter.shape, generator=g) / max(1, parameter.numel()) ** 0.5)
        made.slope.copy_(torch.randn(features, generator=g))
    return made


def pool(rows: int = N, features: int = D, seed: int = 1) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)) + 0.5


def contexts(made: DifficultyProgram, draws: int = 4) -> Tensor:
    return torch.randn(draws, made.declaration.latent_width, generator=torch.Generator().manual_seed(2))


def generic(made: DifficultyProgram, embeddings: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """From the page: standardised with the pool's moments in float64, decoded draw by draw."""
    wide = embeddings.double()
    centred = wide - wide.mean(0)
    spread = float(centred.square().sum(1).mean().sqrt())
    seen = (centred / (spread or 1.0)).float()
    with torch.no_grad():
        rates = torch.stack([made.decoder(seen[None], each[None])[0].double().sigmoid() for each in z])
    return rates.mean(0), rates.var(0, correction=0)


# Products of some ten float32 numbers of about 1, before a sigmoid that flattens them.
ROUNDING = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("latent", ["default", None], ids=["z", "no z"])
def test_the_kernel_says_what_the_networks_say(backend: str, size: str, latent: Any) -> None:
    made = program(size, latent=latent)
    z = contexts(made)
    found = Decoding(made, pool(), backend).rates(z)
    for ours, theirs in zip(found, generic(made, pool(), z), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **ROUNDING)
    assert float(found[0].std()) > 0.05  # the rates differ, so that there was something to agree about
    assert (float(found[1].max()) > 1e-4) == (latent == "default")


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
def test_other_networks_run_as_they_are(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, of which the last one may be short."""
    monkeypatch.setattr(decoding, "_CHUNK", 4)
    made = program(decoder=lambda features, latent: Same(features, latent, SIZES["small"]))
    z, embeddings = contexts(made), pool(rows)
    found = Decoding(made, embeddings, "cpu")
    for ours, theirs in zip(found.rates(z), generic(made, embeddings, z), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **ROUNDING)
    expected = made.concentration(found.standardised(torch.arange(rows)))
    torch.testing.assert_close(found.concentration(), expected.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("draws", [1, 3, 4, 11])
@pytest.mark.parametrize("size", ["small", "paper"])
def test_many_draws_are_pooled(size: str, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three at a time, the last time fewer; the spread between the parts counts as that within them does."""
    made = program(size)
    z = contexts(made, draws) * torch.linspace(1, 4, draws)[:, None]
    asked = []
    monkeypatch.setattr(difficulty_decoder, "MAX_DRAWS", 3)
    found = Decoding(made, pool(5), "reference")
    rates = found._rates
    monkeypatch.setattr(found, "_rates", lambda z, *out: (asked.append(len(z)), rates(z, *out)))
    for ours, theirs in zip(found.rates(z), generic(made, pool(5), z), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **ROUNDING)
    assert sum(asked) == draws and max(asked) <= 3


def test_the_kernel_takes_more_draws_than_it_can_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = program()
    z = contexts(made, 2 * difficulty_decoder.MAX_DRAWS + 1)
    found = Decoding(made, pool(), "cpu")
    monkeypatch.setattr(found, "_through_networks", None)  # fails if the kernel were not asked
    for ours, theirs in zip(found.rates(z), generic(made, pool(), z), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **ROUNDING)


def test_what_is_too_large_for_the_kernel_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = program("paper")
    z = contexts(made, 2)
    found = Decoding(made, pool(5), "cpu")
    monkeypatch.setattr(found, "_folded", None)  # fails if the kernel were asked
    for ours, theirs in zip(found.rates(z), generic(made, pool(5), z), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **ROUNDING)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_where_the_origin_lies_and_what_the_unit_is_does_not_matter(backend: str) -> None:
    made = program()
    z, plain = contexts(made), pool()
    rates, _ = Decoding(made, plain, backend).rates(z)
    for scale, shift in ((1e-15, 0.0), (1e15, 0.0), (4.0, 8.0), (1.0, 100.0)):
        moved = plain * scale + shift * scale
        # Embeddings 100 spreads from the origin have lost 7 of their 24 bits, and products of theirs as many.
        atol = 1e-5 * max(1.0, shift)
        torch.testing.assert_close(Decoding(made, moved, backend).rates(z)[0], rates, rtol=0, atol=atol)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_narrow_embeddings_are_near_the_wide_ones(shift: float) -> None:
    """The pool is what bfloat16 makes of it; only the weights are rounded, and meet centred embeddings."""
    made = program()
    z, narrow = contexts(made), (pool() + shift).to(torch.bfloat16)
    found = Decoding(made, narrow, "cpu").rates(z)[0]
    expected = generic(made, narrow.float(), z)[0]
    # 64 hidden units of weight 1/8, each off by 2**-9 of a product of about 1: some 2**-9 in all, times the sigmoid's
    # slope of at most 1/4, and the same from the linear part; ten times that for the worst of 50 prompts.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=10 * 2**-9 / 2)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_prompts_that_are_all_alike(backend: str) -> None:
    made = program()
    z = contexts(made)
    expected = generic(made, torch.zeros(5, D), z)[0]
    near = 3e18 * (1 + 1e-7 * torch.randn(5, D, generator=torch.Generator().manual_seed(3)))  # rounding, at most
    when = (1.7e9 + torch.linspace(-1000, 1000, 5))[:, None].repeat(1, D)  # seconds, of about half an hour
    for alike in (torch.full((5, D), 0.1), near, when, pool(1), torch.zeros(5, D)):
        found = Decoding(made, alike, backend)
        assert not bool(found.standardised(torch.arange(len(alike))).any())  # at the centre, not blown up
        mean, variance = found.rates(z)
        torch.testing.assert_close(mean.double(), expected[: len(alike)], **ROUNDING)
        assert len(set(mean.tolist())) == 1 and len(set(variance.tolist())) == 1
        assert len(set(found.concentration().tolist())) == 1


def test_standardised_rows_are_centred_and_of_unit_length_on_average() -> None:
    seen = Decoding(program(), pool(), "cpu").standardised(torch.arange(N))
    torch.testing.assert_close(seen.mean(0), torch.zeros(D), rtol=0, atol=1e-6)
    assert float(seen.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-5)
    rows = torch.tensor([[3, 4, 0], [1, 1, 49]])
    assert torch.equal(Decoding(program(), pool(), "cpu").standardised(rows), seen[rows])

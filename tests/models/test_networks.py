"""The default networks of `GenerativeDifficulty`: what they compute, what they must not look at, and their priors."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes_prompt.models.networks import (
    LATENT_SCALE,
    SIZES,
    SKIP_SCALE,
    AdditiveDecoder,
    Size,
    TransformerEncoder,
)

T, B, D, Z = 3, 6, 4, 5
TINY = Size(width=8, layers=2, heads=2, hidden=(7, 3), latent=Z)
ONE_LAYER = Size(width=8, layers=1, heads=1, hidden=(7,), latent=Z)
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of some ten terms of about 1


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, rates and presence of three batches; the last one is empty."""
    g = torch.Generator().manual_seed(0)
    present = torch.rand(T, B, generator=g) < 0.6
    present[0, 0], present[2] = True, False
    return torch.randn(T, B, D, generator=g), torch.rand(T, B, generator=g), present


def encoder(seed: int = 0, size: Size = TINY) -> TransformerEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = TransformerEncoder(D, Z, size)
        for head in (made.location, made.log_scale):
            torch.nn.init.normal_(head.weight)
        return made


def decoder(seed: int = 0, size: Size = TINY, features: int = D, latent: int = Z) -> AdditiveDecoder:
    """One whose weights have all left where they start."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = AdditiveDecoder(features, latent, size)
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        return made


def test_an_encoder_sees_a_set(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    made, order = encoder(), torch.randperm(B, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(made(*batch), made(*(x[:, order] for x in batch)), strict=True):
        assert ours.shape == (T, Z)
        torch.testing.assert_close(ours, theirs, **ROUNDING)


def test_an_encoder_does_not_see_who_is_absent(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    made, (embeddings, rates, present) = encoder(), batch
    absent = ~present
    other = torch.where(absent[..., None], 100.0, embeddings), torch.where(absent, 0.3, rates), present
    wider = [torch.cat([x, x.new_ones(T, 2, *x.shape[2:])], 1) for x in (embeddings, rates)]
    wide = *wider, torch.cat([present, torch.zeros(T, 2, dtype=torch.bool)], 1)
    for changed in (other, wide):
        for ours, theirs in zip(made(*batch), made(*changed), strict=True):
            torch.testing.assert_close(ours, theirs, **ROUNDING)
    moved = made(torch.where(present[..., None], embeddings + 1, embeddings), rates, present)
    assert not torch.allclose(moved[0][:2], made(*batch)[0][:2], **ROUNDING)  # those who are present are seen
    assert not torch.allclose(made(embeddings, 1 - rates, present)[0][:2], made(*batch)[0][:2], **ROUNDING)


def test_batches_of_a_stack_do_not_see_one_another(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    made = encoder()
    together = made(*batch)
    for t in range(T):
        for whole, alone in zip(together, made(*(x[t : t + 1] for x in batch)), strict=True):
            torch.testing.assert_close(whole[t : t + 1], alone, **ROUNDING)


def test_without_prompts_the_context_is_as_the_heads_say(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    made = encoder()
    with torch.no_grad():
        made.location.bias.fill_(0.7)
        made.log_scale.bias.fill_(-0.5)
    location, scale = made(*batch)
    torch.testing.assert_close(location[2], torch.full((Z,), 0.7))
    torch.testing.assert_close(scale[2], torch.full((Z,), -0.5).exp())


def test_a_fresh_context_is_close_to_its_base(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    location, scale = TransformerEncoder(D, Z, SIZES["small"])(*batch)
    assert bool((location.abs() < 0.5).all()) and bool(((scale > 0.6) & (scale < 1.7)).all())


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_built(size: str) -> None:
    made = SIZES[size]
    assert made.width % made.heads == 0
    decoder = AdditiveDecoder(D, made.latent, made)
    assert decoder.widths == made.hidden
    assert decoder(torch.zeros(1, 2, D), torch.zeros(1, made.latent)).shape == (1, 2)


@pytest.mark.parametrize("size", [ONE_LAYER, TINY], ids=["one", "two"])
def test_a_decoder_prompt_by_prompt(size: Size) -> None:
    """The page's formula, in float64, with loops."""
    made = decoder(size=size)
    g = torch.Generator().manual_seed(3)
    x, z = torch.randn(T, B, D, generator=g), torch.randn(T, Z, generator=g)
    found = made(x, z)
    wide = {name: value.double() for name, value in made.named_parameters()}
    for t in range(T):
        for b in range(B):
            hidden = wide["first.weight"] @ x[t, b].double() + wide["first.bias"] + wide["context"] @ z[t].double()
            hidden = hidden.clamp(min=0)
            if size is TINY:
                hidden = (wide["second.weight"] @ hidden + wide["second.bias"]).clamp(min=0)
            logit = wide["last"] @ hidden + wide["skip"] @ x[t, b].double() + wide["offset"] @ z[t].double()
            torch.testing.assert_close(found[t, b].double(), logit + wide["bias"], **ROUNDING)


@pytest.mark.parametrize("latent", [0, 1, 5])
@pytest.mark.parametrize("size", [ONE_LAYER, TINY], ids=["one", "two"])
def test_the_prior_is_gaussian_around_the_start(size: Size, latent: int) -> None:
    """Differences of log densities, in which the constants that `log_prior` leaves out cancel."""

    def density(made: AdditiveDecoder) -> Tensor:
        def normal(value: Tensor, location: Tensor | float, scale: float) -> Tensor:
            return dist.Normal(torch.as_tensor(location).double(), scale).log_prob(value.double()).sum()

        units = made.widths[-1]
        total = normal(made.skip, 0.0, SKIP_SCALE) + normal(made.last, 0.0, SKIP_SCALE / units**0.5)
        total = total + normal(made.first.weight, made.start, 1.0) + normal(made.first.bias, 0.0, 1.0)
        if latent:
            total = total + normal(made.context, 0.0, latent**-0.5) + normal(made.offset, 0.0, LATENT_SCALE)
        if made.second is not None:  # of the variance of He's initialisation
            total = total + normal(made.second.weight, 0.0, (2 / made.second.in_features) ** 0.5)
        return total + normal(made.bias, 0.0, 2.0)

    one, other = decoder(1, size, latent=latent), decoder(2, size, latent=latent)
    other.start.copy_(one.start)
    difference = one.log_prior() - other.log_prior()
    torch.testing.assert_close(difference.double(), density(one) - density(other), rtol=1e-4, atol=1e-3)
    assert bool(difference != 0)


def test_a_fresh_decoder_says_one_half_of_everyone_whatever_their_embedding() -> None:
    torch.manual_seed(0)
    made = AdditiveDecoder(D, 0, SIZES["small"])
    assert torch.equal(made(torch.randn(2, B, D), torch.zeros(2, 0)), torch.zeros(2, B))

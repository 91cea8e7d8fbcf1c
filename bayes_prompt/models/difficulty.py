"""GenerativeDifficulty: a latent-variable model of difficulty that all prompts share, over their embeddings (GPS)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn
from torch.distributions import Distribution

from bayes_prompt.models import checks, distributions
from bayes_prompt.models.networks import SIZES, AdditiveDecoder, TransformerEncoder
from bayes_prompt.models.seeding import seeded

if TYPE_CHECKING:
    from bayes_prompt.posteriors.difficulty import DifficultyPosterior

#: Makes a network from (D, Z), the widths of an embedding and of the latent context.
Network = Callable[[int, int], nn.Module]
LIKELIHOODS = ("beta_binomial", "binomial")
LEAST_RATE = 1e-4
LOG_WORTH = (math.log(1e-2), math.log(1e3))  # of the text, in pseudo-counts
SLOPE_SCALE = 1.0  # standard deviation that the prior gives to log c over prompts
START_WORTH = 2.0  # c where nothing is known
TRUST_SCALE = 2.0  # standard deviation that the prior gives to log w
MOST_EVIDENCE = 1e4  # pseudo-counts: beyond, float32 has no digits left for the differences of log gamma functions


class Batches(NamedTuple):
    """T batches of up to B observed prompts, and for each the batch before it.

    embeddings: (T, B, D). successes, trials: (T, B), 0 where there is no prompt. record: (T, B, M, 2) successes and
    failures of each prompt before this batch, forgotten at M rates. present: (T, B) bool. weight: (T,) how much a batch
    counts. before: (embeddings, rates, present) of the batch before each, shaped likewise.
    """

    embeddings: Tensor
    successes: Tensor
    trials: Tensor
    record: Tensor
    present: Tensor
    weight: Tensor
    before: tuple[Tensor, Tensor, Tensor]

    @property
    def rates(self) -> Tensor:
        """Observed success rates (T, B)."""
        return self.successes / self.trials.clamp_min(1)


@dataclass(frozen=True, eq=False)
class GenerativeDifficulty:
    """Prompts have difficulties that follow from their embeddings and from a latent context z of the training step.

    Source: GPS, Generalizable Predictive Prompt Selection (arXiv 2602.01970). In step t, z_t ~ p(z | last batch); a
    prompt with embedding x has success rate m = sigmoid(decoder(x, z_t)) on average over such prompts; its counts are
    Beta-Binomial. The guide q(z_t | current batch) and all networks are learned online by the ELBO, a few gradient
    steps for each training step, over the new batch and a replay of earlier ones.

    Beyond GPS, a prompt's own record joins in. Its belief before a rollout is Beta(c m + w . s, c (1 - m) + w . f),
    where s and f are its successes and failures so far, forgotten at several rates. The concentration c, log-linear in
    the embedding, and the weights w are learned with the networks: cold prompts follow the text, warm prompts their
    own record.

    Args:
        size: of the default networks: "small" (for a CPU), "base" or "paper".
        encoder: makes q's network, as `networks.TransformerEncoder`; None: that one.
        prior: makes p's network, of the same kind; None: the encoder itself, shown the last batch, as neural processes
            do.
        decoder: makes the decoder, as `networks.AdditiveDecoder`; None: that one, which the kernels know. A decoder may
            have `log_prior()`, the log density () of its weights. Networks predict in evaluation mode.
        latent: base distribution of z with event shape (Z,): z = location + scale * base, the two from a network.
            Normal, low-rank, a flow with an inverse, which is learned too: what has a log density everywhere.
            "default": a standard Normal of the size's width; None: no z.
        output: prior of the decoder's logit at an observed prompt, of event shape (). None: flat.
        likelihood: of counts: "beta_binomial", or "binomial", in which prompts have their mean rate exactly; with own
            records it tells c and w from one another by their priors alone.
        own_record: join a prompt's own record. False is GPS as published.
        memory: rates at which records are forgotten, each what is left after one step, in [0, 1].
        recency: in [0, 1], how much a batch counts for each step that it is older: the policy improves.
        gradient_steps: for each training step. replay: earlier batches in each of them. capacity: batches learned from.
        learning_rate: of Adam.
        kl_weight: weight of the KL divergence between guide and prior of z; 1 is the ELBO.
        draws: S, draws of z that a prediction averages.
        seed: of weights and of all draws in training, in [0, 2**63).

    Raises:
        CannotLower: `latent` or `output` has another shape, or no log density everywhere. ValueError, TypeError: a
            number is out of range.
    """

    size: str = "small"
    encoder: Network | None = None
    prior: Network | None = None
    decoder: Network | None = None
    latent: Any = "default"
    output: Any = field(default_factory=lambda: dist.Normal(0.0, 10.0))
    likelihood: str = "beta_binomial"
    own_record: bool = True
    memory: tuple[float, ...] = (0.5, 0.8, 0.95, 1.0)
    recency: float = 0.97
    gradient_steps: int = 15
    replay: int = 3
    capacity: int = 128
    learning_rate: float = 0.01
    kl_weight: float = 1.0
    draws: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}; got {self.size!r}")
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}; got {self.likelihood!r}")
        for name in ("encoder", "prior", "decoder"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must make a network from (D, Z), or be None; got {getattr(self, name)!r}")
        checks.flag("own_record", self.own_record)
        if not isinstance(self.memory, Sequence) or isinstance(self.memory, str):
            raise TypeError(f"memory must be a sequence of rates; got {self.memory!r}")
        for entry, rate in enumerate(self.memory):
            checks.unit_interval(f"memory[{entry}]", rate)
        if self.own_record and not self.memory:
            raise ValueError("memory must name at least one rate; own_record=False does without")
        checks.unit_interval("recency", self.recency)
        # Python's own numbers, which checkpoints compare.
        numbers: dict[str, Any] = {"memory": tuple(map(float, self.memory)), "recency": float(self.recency)}
        for name, least in (("gradient_steps", 0), ("replay", 0), ("capacity", 1), ("draws", 1), ("seed", 0)):
            numbers[name] = checks.whole(name, getattr(self, name), least)
        if self.seed >= 2**63:
            raise ValueError(f"seed must lie in [0, 2**63); got {self.seed}")
        for name in ("learning_rate", "kl_weight"):
            checks.number(name, getattr(self, name))
            numbers[name] = float(getattr(self, name))
            if not 0 <= numbers[name] < math.inf:
                raise ValueError(f"{name} must be finite and at least 0; got {numbers[name]}")
        for name, value in numbers.items():
            object.__setattr__(self, name, value)
        if isinstance(self.latent, str) and self.latent != "default":
            raise ValueError(f"latent must be a distribution, 'default' or None; got {self.latent!r}")
        distributions.check("latent", self.base, 1, "dist.Normal(0., 1.).expand([8]).to_event(1) works, or None")
        if self.output is not None:
            distributions.check("output", self.output, 0, "dist.Normal(0., 10.) works, or None")

    @property
    def base(self) -> Distribution:
        """The base distribution of z, of event shape (Z,); Z = 0 where there is no z."""
        if isinstance(self.latent, str):
            return _standard_normal(SIZES[self.size].latent)
        return _standard_normal(0) if self.latent is None else self.latent

    @property
    def latent_width(self) -> int:
        """Z, the width of the context; 0 where there is none."""
        return int(self.base.event_shape[0])

    def program(self, features: int) -> DifficultyProgram:
        """The Pyro model and guide with fresh networks, drawn with `seed`, for embeddings of width `features`."""
        with seeded(self.seed, torch.device("cpu")):
            return DifficultyProgram(self, checks.whole("features", features, 1)).float()

    def posterior(self, num_prompts: int | None = None, *, embeddings: Any, **options: Any) -> DifficultyPosterior:
        """The online state of N prompts under this model.

        Args:
            num_prompts: N; by default the rows of `embeddings`.
            embeddings: (N, D) array, tensor or memory-mapped file of numbers; see `bayes_prompt.embedding`.
            options: device, dtype, backend and first_prompt, as of every posterior; `storage`, the dtype in which
                embeddings are kept: torch.float32 or torch.bfloat16.

        Raises:
            ValueError, TypeError: embeddings of another shape, or that are not finite; a bad option.
        """
        from bayes_prompt.posteriors.difficulty import DifficultyPosterior

        return DifficultyPosterior(self, embeddings, num_prompts, **options)

    def describe(self) -> dict[str, Any]:
        """The model as JSON-able numbers and strings: equal for models that learn and predict alike."""
        plain = ("size", "likelihood", "own_record", "recency", "gradient_steps", "replay", "capacity")
        return {
            "model": "GenerativeDifficulty",
            **{name: getattr(self, name) for name in (*plain, "learning_rate", "kl_weight", "draws", "seed")},
            "memory": list(self.memory),
            "latent": distributions.name(self.base),
            "output": None if self.output is None else distributions.name(self.output),
            **{
                name: getattr(getattr(self, name), "__qualname__", None if getattr(self, name) is None else "custom")
                for name in ("encoder", "prior", "decoder")
            },
        }


class DifficultyProgram(nn.Module):
    """The networks of a `GenerativeDifficulty`, with the Pyro model and guide over them.

    Sites: `z` (T, 1, Z) and `successes` (T, B), in the plates `batches` (dim -2) and `prompts` (dim -1); where there is
    such a prior, the observed `output` (T, B); the priors of parameters, as factors: `weights` of the decoder's, where
    it has any, and `evidence_prior` of c and w. Parameters: those of the networks and of a flow; `log_concentration` ()
    and `slope` (D,), so that log c = log_concentration + slope . x; and `log_trust` (M,), the logarithm of w.
    """

    def __init__(self, declaration: GenerativeDifficulty, features: int) -> None:
        super().__init__()
        size, latent = SIZES[declaration.size], declaration.latent_width
        self.declaration = declaration
        self.encoder: nn.Module | None = None
        self.prior: nn.Module | None = None  # None: the encoder
        if latent:
            self.encoder = _made(
                "encoder", declaration.encoder or partial(TransformerEncoder, size=size), features, latent
            )
            self.prior = None if declaration.prior is None else _made("prior", declaration.prior, features, latent)
        self.decoder = _made("decoder", declaration.decoder or partial(AdditiveDecoder, size=size), features, latent)
        self.base, self.output = _copied(declaration.base), _copied(declaration.output)
        self.flow = nn.ModuleList(part for part in distributions.parts(self.base) if isinstance(part, nn.Module))
        memories = len(declaration.memory)
        self.log_concentration = nn.Parameter(torch.tensor(math.log(START_WORTH)))
        self.slope = nn.Parameter(torch.zeros(features))
        self.start_trust = -math.log(max(1, memories))
        self.log_trust = nn.Parameter(torch.full((memories,), self.start_trust))

    def at_rest(self) -> DifficultyProgram:
        """Ready to predict and to be copied: dropout and the like are off, and no flow keeps a gradient's graph."""
        self.eval()
        for law in self._laws():
            distributions.forget_graphs(law)
        return self

    def concentration(self, embeddings: Tensor) -> Tensor:
        """c of shape (..., B), pseudo-counts that the text of prompts with embeddings (..., B, D) is worth."""
        return self.worth(self.log_concentration + embeddings @ self.slope)

    def worth(self, log_concentration: Tensor) -> Tensor:
        """c from its logarithm, of any shape."""
        if self.declaration.likelihood == "binomial" and not self.declaration.own_record:
            return torch.full_like(log_concentration, MOST_EVIDENCE)  # the rate is known with the context
        return log_concentration.clamp(*LOG_WORTH).exp()

    @property
    def trust(self) -> Tensor:
        """w, what a rollout of the own record is worth, by rate of forgetting, (M,)."""
        return self.log_trust.exp()

    def context(self, network: nn.Module | None, embeddings: Tensor, rates: Tensor, present: Tensor) -> Distribution:
        """Distribution of z, batch shape (T, 1) and event shape (Z,), given T batches."""
        if network is None:  # there is no z
            return self.base.expand((len(rates), 1))
        location, scale = network(embeddings, rates, present)
        expected = (len(rates), self.declaration.latent_width)
        if location.shape != expected or scale.shape != expected:
            name = "encoder" if network is self.encoder else "prior"
            got = f"{tuple(location.shape)} and {tuple(scale.shape)}"
            raise ValueError(f"{name} must give a location and a scale of shape (T, Z) = {expected}; got {got}")
        base = self.base.expand((len(rates), 1))
        return dist.TransformedDistribution(base, [AffineTransform(location[:, None], scale[:, None], event_dim=1)])

    def predicted(self, before: tuple[Tensor, Tensor, Tensor]) -> Distribution:
        """p(z_t | last batch), of batch shape (T, 1), for T batches."""
        return self.context(self.encoder if self.prior is None else self.prior, *before)

    def logits(self, embeddings: Tensor, z: Tensor) -> Tensor:
        """The decoder's logits (T, B) of embeddings (T, B, D) under contexts z (T, Z)."""
        logits: Tensor = self.decoder(embeddings, z)
        if logits.shape != embeddings.shape[:-1]:
            raise ValueError(
                f"decoder must give logits of shape (T, B) = {tuple(embeddings.shape[:-1])}; got {tuple(logits.shape)}"
            )
        return logits

    def belief(self, embeddings: Tensor, logits: Tensor, record: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta of the success rates, of shape (..., B), from logits (..., B) and records (..., B, M, 2)."""
        mean, c = torch.sigmoid(logits).clamp(LEAST_RATE, 1 - LEAST_RATE), self.concentration(embeddings)
        own = (record * self.trust[:, None]).sum(-2) if self.declaration.own_record else record.new_zeros(2)
        return c * mean + own[..., 0], c * (1 - mean) + own[..., 1]

    def model(self, batches: Batches) -> None:
        """p(counts, z) of T batches."""
        declaration = self.declaration
        pyro.module("difficulty", self)
        log_prior = getattr(self.decoder, "log_prior", None)
        if callable(log_prior):
            pyro.factor("weights", log_prior())
        # Without them c and w could leave the range in which the counts say anything about them, and never come back.
        worth = (self.log_concentration - math.log(START_WORTH)).square()
        trust = ((self.log_trust - self.start_trust) / TRUST_SCALE).square().sum()
        pyro.factor("evidence_prior", -0.5 * (worth + trust + (self.slope / SLOPE_SCALE).square().sum()))
        with pyro.plate("batches", len(batches.weight), dim=-2):
            with _counted(declaration.kl_weight * batches.weight):
                law = self.predicted(batches.before)
                z = pyro.sample("z", law) if declaration.latent_width else _nothing(batches)
            logits = self.logits(batches.embeddings, z[:, 0])
            with (
                pyro.plate("prompts", batches.present.shape[1], dim=-1),
                _counted(batches.weight),
                poutine.mask(mask=batches.present),
            ):
                if self.output is not None:
                    pyro.sample("output", self.output.expand(logits.shape), obs=logits)
                alpha, beta = self.belief(batches.embeddings, logits, batches.record)
                counts: Any = dist.BetaBinomial(alpha, beta, batches.trials)
                if declaration.likelihood == "binomial":
                    counts = dist.Binomial(batches.trials, alpha / (alpha + beta))
                pyro.sample("successes", counts, obs=batches.successes)

    def guide(self, batches: Batches) -> None:
        """q(z | current batch) of T batches."""
        if not self.declaration.latent_width:
            return
        law = self.context(self.encoder, batches.embeddings, batches.rates, batches.present)
        with (
            pyro.plate("batches", len(batches.weight), dim=-2),
            _counted(self.declaration.kl_weight * batches.weight),
        ):
            pyro.sample("z", law)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> DifficultyProgram:
        """Move what the distributions are made of along with the networks."""
        super()._apply(function, recurse)
        for part in (part for law in self._laws() for part in (*distributions.laws(law), *distributions.parts(law))):
            if not isinstance(part, nn.Module):
                moved = {name: function(value) for name, value in vars(part).items() if isinstance(value, Tensor)}
                vars(part).update(moved)
        return self

    def _laws(self) -> list[Distribution]:
        return [self.base] if self.output is None else [self.base, self.output]


@contextmanager
def _counted(weight: Tensor) -> Iterator[None]:
    """Log densities of batches count by their weights (T,); Pyro itself refuses one that is 0, or has underflowed."""
    weight = weight[:, None]
    with poutine.mask(mask=weight > 0), poutine.scale(scale=weight.clamp_min(torch.finfo(weight.dtype).tiny)):
        yield


def _made(name: str, make: Network, features: int, latent: int) -> nn.Module:
    network = make(features, latent)
    if not isinstance(network, nn.Module):
        raise TypeError(f"{name} must make an nn.Module from (D, Z); got a {type(network).__name__}")
    return network


def _copied(law: Any) -> Any:
    if law is not None:
        distributions.forget_graphs(law)
    return copy.deepcopy(law)


def _nothing(batches: Batches) -> Tensor:
    return batches.embeddings.new_zeros(len(batches.weight), 1, 0)


def _standard_normal(width: int) -> Distribution:
    return dist.Normal(0.0, 1.0).expand([width]).to_event(1)

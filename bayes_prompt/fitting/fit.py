"""Fit a family of declarations to a rollout history."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_median, init_to_value
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import Distribution

from bayes_prompt.fitting.evidence import check_filter
from bayes_prompt.fitting.families import named
from bayes_prompt.fitting.laplace import Laplace, Tell, laplace
from bayes_prompt.fitting.outcomes import judged, small_operations
from bayes_prompt.fitting.program import DECAY, Program, forgets
from bayes_prompt.fitting.results import Estimate, FitResult
from bayes_prompt.history import History
from bayes_prompt.labels import Labels, codes
from bayes_prompt.models import checks
from bayes_prompt.models.seeding import seeded

METHODS = ("svi", "nuts", "map")
LIKELIHOODS = ("predictive", "generative")
DRAWS = 1000  # from what SVI found
_NESTING = 2  # plates of the declarations' programs
_STEPS = {"predictive": 40, "generative": 600}  # of SVI; the first starts at the mode, in its own coordinates
_RATE = 0.05  # of SVI, at its start
_DEPTH = 7  # of NUTS's trees
_LEAST_DRAWS = 4  # of which an effective sample size is told


def fit(
    history: History,
    family: str | Callable[..., Any],
    *,
    groups: Labels | None = None,
    method: str = "svi",
    likelihood: str = "predictive",
    steps: int | None = None,
    draws: int = 300,
    warmup: int = 100,
    seed: int = 0,
    start: Mapping[str, Any] | None = None,
    progress: Tell | None = None,
    **parameters: Any,
) -> FitResult:
    """Learn what is free in a declaration from a history::

        bp.fit(
            history,
            lambda a, b, decay: bp.SuccessRate(dist.Beta(a, b), decay=decay),
            a=dist.LogNormal(0.0, 1.0),
            b=dist.LogNormal(0.0, 1.0),
            decay=dist.Uniform(0.0, 1.0),
        )

    Gradients go through the filters of `SolvingProgress` and `SuccessRate`. Declarations whose prompts learn from each
    other (pooling, sharing, a bank with groups), `LogitGaussian` and those of your own are asked through their
    posterior instead, as are all where the history's steps took other times than 1 (`elapsed`), and gradients are
    central differences: for D numbers the history is run through 2 D + 1 times where the others take two. Such a
    declaration may turn parameters into plain numbers::

        bp.fit(history, lambda scale: bp.LogitGaussian(drift=float(scale)), scale=dist.LogNormal(-1.0, 1.0))

    Torch's generators and Pyro's parameter store are left as they were.

    Args:
        history: counts (T, N).
        family: makes a declaration of the parameters, which it takes by name, as float64 tensors; one called `decay`
            comes as a number. Or the name of one of `families.FAMILIES`, whose priors are used where none are given.
        groups: labels of the prompts (N,), such as their data set, for declarations that learn by group; see `compare`.
        method: "svi" (a multivariate normal of the unconstrained parameters, from the mode on), "nuts" (Hamiltonian
            Monte Carlo: for small histories, hundreds of evaluations), or "map" (the mode alone).
        likelihood: "predictive": the filter's `log_count_evidence`, by `pyro.factor`; where the filter is exact
            inference (no forgetting, and transitions that are fixed) that is the likelihood of the
            declaration's own Pyro program, summed exactly over its latent variables. "generative": that program itself,
            whose discrete variables are enumerated and whose others are inferred too, with "svi" by independent
            normals: their parameters' intervals are too narrow, and transitions of each prompt's own look more alike
            than they are; "nuts" has no such bias. Not with forgetting, nor with "map", nor for declarations that
            gradients do not go through. Both start at the mode of the predictive likelihood.
        steps: of SVI; None: 40, or 600 for a generative likelihood.
        draws, warmup: of NUTS.
        seed: of all randomness.
        start: values of free parameters to start from, by name; the others start at their priors' medians, or where the
            family says.
        progress: is called with (stage, done, in all).
        parameters: for each a continuous distribution of Pyro's, of batch shape (), its prior, that of `decay` within
            [0, 1]; or a value, which then is fixed: handed to a function as it is, to a named family as its others are.

    Returns:
        The declaration at the posterior means, and the parameters.

    Raises:
        ValueError, TypeError: an argument, or parameters that the evidence does not depend on, such as a decay where no
        prompt is looked at twice; the message says how to hold them at values. What the family raises has a note with
        the parameters' values. FloatingPointError: a search that left the finite numbers.
    """
    judged(history)
    _choice("method", method, METHODS)
    _choice("likelihood", likelihood, LIKELIHOODS)
    for name, number in (("draws", draws), ("warmup", warmup), *((("steps", steps),) if steps is not None else ())):
        checks.whole(name, number, 0 if name == "warmup" else 1)
    known = named(family) if isinstance(family, str) else None
    given = parameters if known is None else {**known.priors, **parameters}
    if known is not None and given.keys() != known.priors.keys():
        raise ValueError(f"{sorted(given.keys() - known.priors.keys())[0]} is no parameter of {family!r}")
    if known is not None:
        given = {n: v if isinstance(v, Distribution) else known.value(n, v) for n, v in given.items()}
    build = named(family).make if isinstance(family, str) else family
    numbers = None if groups is None else codes(groups, history.num_prompts)
    program = Program(build, *_split(given), history, numbers)
    for name in start or {}:
        if name not in program.priors:
            raise ValueError(f"start has {name!r}, which is {'fixed' if name in given else 'no parameter'}")
    tell = progress or (lambda stage, done, total: None)
    alone = seeded(seed, torch.device("cpu")), pyro.get_param_store().scope()
    with alone[0], alone[1], torch.enable_grad(), small_operations(history):
        begin = _start(program, {**(known.start if known else {}), **(start or {})})
        program, model = program.checked(begin)
        if likelihood == "generative":
            check_filter(model, numbers is not None)
            if history.elapsed is not None:
                raise ValueError("likelihood must be 'predictive': to declarations' programs all steps take the time 1")
            if forgets(model) or "decay" in program.priors:
                raise ValueError("likelihood must be 'predictive': forgetting has no generative counterpart")
        shape = laplace(program.predictive, begin, tell, program.follows)
        if likelihood == "generative":
            mode = {name: value[0] for name, value in shape.values(torch.zeros_like(shape.mode)[None]).items()}
            found, elbo = _generative(program, mode, method, steps, draws, warmup, tell)
        else:
            found, elbo = _predictive(shape, method, steps, draws, warmup, tell)
    for name, values in found.items():
        if not bool(values.isfinite().all()):
            raise FloatingPointError(f"{name} is not finite; give other priors, another start or more steps")
    estimates = {name: Estimate(found[name].double()) for name in program.priors}
    with torch.no_grad():
        means = {name: estimate.mean for name, estimate in estimates.items()}
        evidence = float(program.log_evidence(means))
        fitted = program.family(**program.fixed, **{n: float(v) if n == "decay" else v for n, v in means.items()})
    return FitResult(
        model=fitted,
        parameters=estimates,
        fixed=program.fixed,
        log_count_evidence=evidence,
        observations=int((history.trials > 0).sum()),
        elbo=tuple(elbo),
        method=method,
        likelihood=likelihood,
        effective_draws=_effective(estimates) if method == "nuts" else {},
        family=family if isinstance(family, str) else None,
    )


def _predictive(
    shape: Laplace, method: str, steps: int | None, draws: int, warmup: int, tell: Tell
) -> tuple[dict[str, Tensor], list[float]]:
    """Draws of the parameters (S, ...), and the ELBO of each step, in the mode's own coordinates."""
    size = len(shape.mode)
    centre = torch.zeros(size, dtype=torch.float64)
    if method == "map":
        return shape.values(centre[None]), []
    if method == "nuts":
        kernel = NUTS(potential_fn=lambda place: shape.at(place["z"]), adapt_mass_matrix=False, max_tree_depth=_DEPTH)
        samples = _sample(kernel, draws, warmup, tell, initial_params={"z": centre})
        return shape.values(samples["z"]), []

    def program() -> None:
        flat = dist.Normal(centre, torch.ones_like(centre)).to_event(1).mask(False)
        z = pyro.sample("z", flat)
        with poutine.block():  # the program within has sites of its own, which are counted already
            joint = -shape.at(z)
        pyro.factor("joint", joint)

    guide = AutoMultivariateNormal(program, init_loc_fn=init_to_value(values={"z": centre}), init_scale=1.0)
    elbo = _descend(program, guide, Trace_ELBO(), steps or _STEPS["predictive"], tell)
    volume = float(shape.factor.diagonal().log().sum())
    return shape.values(guide.get_posterior().sample((DRAWS,))), [bound + volume for bound in elbo]


def _generative(
    program: Program, begin: Mapping[str, Tensor], method: str, steps: int | None, draws: int, warmup: int, tell: Tell
) -> tuple[dict[str, Tensor], list[float]]:
    """The same through the declaration's own program: discrete latent variables summed out, the others inferred."""
    if method == "map":
        raise ValueError("method must be 'svi' or 'nuts' with a generative likelihood")
    if method == "nuts":
        kernel = NUTS(
            program.generative,
            max_plate_nesting=_NESTING,
            max_tree_depth=_DEPTH,
            init_strategy=init_to_value(values=dict(begin), fallback=init_to_median(num_samples=5)),
        )
        return _sample(kernel, draws, warmup, tell), []
    continuous = poutine.block(program.generative, hide_fn=_enumerated)
    begin = init_to_value(values=dict(begin), fallback=init_to_median(num_samples=5))
    guide = AutoNormal(continuous, init_loc_fn=begin, init_scale=0.05)
    bound = TraceEnum_ELBO(max_plate_nesting=_NESTING)
    elbo = _descend(program.generative, guide, bound, steps or _STEPS["generative"], tell)
    with torch.no_grad():
        drawn = [guide() for _ in range(DRAWS)]
    return {name: torch.stack([each[name] for each in drawn]) for name in program.priors}, elbo


def _descend(program: Callable[[], None], guide: Any, bound: Any, steps: int, tell: Tell) -> list[float]:
    """SVI with a rate that falls to a tenth; the ELBO of each step."""
    optimizer = ClippedAdam({"lr": _RATE, "lrd": 0.1 ** (1 / steps), "clip_norm": math.inf})
    svi, elbo = SVI(program, guide, optimizer, bound), []
    for step in range(steps):
        elbo.append(-float(svi.step()))
        if not math.isfinite(elbo[-1]):
            raise FloatingPointError(f"the evidence lower bound is {elbo[-1]}; give other priors or another start")
        tell("svi", step + 1, steps)
    return elbo


def _sample(kernel: NUTS, draws: int, warmup: int, tell: Tell, **options: Any) -> dict[str, Tensor]:
    made = iter(range(1, draws + warmup + 1))
    chain = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=warmup,
        disable_progbar=True,
        hook_fn=lambda *_: tell("nuts", next(made), draws + warmup),
        **options,
    )
    chain.run()
    samples: dict[str, Tensor] = chain.get_samples()
    return samples


def _enumerated(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and site.get("infer", {}).get("enumerate") == "parallel"


def _split(parameters: Mapping[str, Any]) -> tuple[dict[str, Distribution], dict[str, Any]]:
    """Priors and values; ValueError or TypeError where there is nothing to fit, or a prior that cannot be one."""
    laws = {name: value for name, value in parameters.items() if isinstance(value, Distribution)}
    if not laws:
        raise ValueError("parameters must have at least one prior, a distribution; all are fixed")
    for name, law in laws.items():
        if law.batch_shape:
            raise ValueError(f"{name} has a prior of batch shape {tuple(law.batch_shape)}; .to_event() makes it one")
        support: Any = law.support
        if not isinstance(law, TorchDistributionMixin) or support.is_discrete:
            raise TypeError(f"{name} has the prior {law}; continuous distributions of pyro.distributions work")
        ends = [getattr(support, end, math.nan) for end in ("lower_bound", "upper_bound")]
        if name == DECAY and not (ends[0] >= 0 and ends[1] <= 1):
            raise ValueError(f"decay must have a prior whose support lies in [0, 1]; that of {law} is {support}")
    return laws, {name: value for name, value in parameters.items() if name not in laws}


def _start(program: Program, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Values of the free parameters to start from."""
    found = {}
    for name, law in program.priors.items():
        if name in given:
            found[name] = torch.as_tensor(given[name], dtype=torch.float64)
            if found[name].shape != law.event_shape:
                raise ValueError(f"start of {name} must have shape {tuple(law.event_shape)}; got {given[name]!r}")
            support: Any = law.support
            if not bool(support.check(found[name]).all()):
                raise ValueError(f"start of {name} must lie where its prior does; got {given[name]!r}")
        else:
            middle: Tensor = law.sample((15,)).median(0).values.double()
            found[name] = middle / middle.sum() if law.support is torch.distributions.constraints.simplex else middle
    return found


def _effective(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """At least 0, which stands for draws that never moved, too; nan where they are too few to tell."""
    from pyro.ops.stats import effective_sample_size

    found = {}
    for name, estimate in estimates.items():
        found[name] = math.nan
        if len(estimate.draws) >= _LEAST_DRAWS:
            size = float(effective_sample_size(estimate.draws[None], 0, 1).min())
            found[name] = size if size > 0 else 0.0
    return found


def _choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}; got {value!r}")

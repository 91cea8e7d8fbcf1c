"""Teachers: programs of `GenerativeDifficulty` whose weights are drawn from the model's own prior, and their counts.

What has a prior is drawn from it: the decoder's weights (`AdditiveDecoder.log_prior`), c and its slopes, and w. The
encoder has none; its weights are drawn as those of a new network are, from a seed of their own. Where the first layer
began, the mean of its prior, is part of the declaration: teacher and learner share it. `output` and a `recency` below 1
belong to no generative program: the models here go without.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from pyro import poutine
from sbc import CPU, GROUP
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models.difficulty import SLOPE_SCALE, START_WORTH, TRUST_SCALE, Batches
from bayes_prompt.models.seeding import seeded

POOL, FEATURES, BATCH = 64, 6, 16


class Teacher:
    """One program from the prior, and a learner of it that starts where every learner does.

    Step by step, counts of the whole pool come from the program's own Pyro model, given the last batch and the record
    that the learner has of every prompt; the learner is shown those of a random batch.
    """

    def __init__(self, model: bp.GenerativeDifficulty, seed: int) -> None:
        self.seed = seed
        self._source = torch.Generator().manual_seed(_stream(seed, 0))
        embeddings = torch.randn(POOL, FEATURES, generator=self._source)
        self.learner: Any = model.posterior(embeddings=embeddings, dtype=torch.float64)
        self.embeddings = self.learner._decoding.standardised(torch.arange(POOL))
        self.program = drawn(model, seed)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Successes (N,) of the coming rollouts, and the rates (N,) that gave them, were all prompts picked."""
        record = self.learner.own_record
        if not self.learner.model.own_record:
            record = torch.zeros(POOL, len(self.learner.model.memory), 2)
        trials, there = torch.full((1, POOL), float(GROUP)), torch.ones(1, POOL, dtype=torch.bool)
        x, nothing, before = self.embeddings[None], torch.zeros(1, POOL), self.learner._replay.last()
        batches = Batches(x, nothing, trials, record[None], there, torch.ones(1), before)
        with seeded(_stream(self.seed, 2, self.learner.step), CPU), torch.no_grad():
            sites = poutine.trace(poutine.uncondition(self.program.model)).get_trace(batches).nodes
            z = sites["z"]["value"][:, 0] if "z" in sites else torch.zeros(1, 0)
            successes = sites["successes"]["value"].double()
            alpha, beta = self.program.belief(x, self.program.logits(x, z), record[None])
            # The program has summed the rates out; given the counts, they are these Betas.
            rate = torch.distributions.Beta(alpha + successes, beta + trials - successes).sample()
        return successes[0].long(), rate[0]

    def teach(self, steps: int) -> None:
        """So many training steps."""
        for _ in range(steps):
            rows = torch.randperm(POOL, generator=self._source)[:BATCH]
            self.learner.update(rows, self.counts()[0][rows], GROUP)


def drawn(model: bp.GenerativeDifficulty, seed: int) -> Any:
    """The model's program with parameters from its prior."""
    program: Any = model.program(FEATURES)
    if program.encoder is not None:
        fresh: Any = dataclasses.replace(model, seed=seed + 1).program(FEATURES)
        program.encoder.load_state_dict(fresh.encoder.state_dict())
    with seeded(_stream(seed, 1), CPU):
        gaussian(program.decoder)
        with torch.no_grad():
            program.log_concentration.copy_(math.log(START_WORTH) + torch.randn(()))
            program.slope.copy_(SLOPE_SCALE * torch.randn(FEATURES))
            program.log_trust.copy_(program.start_trust + TRUST_SCALE * torch.randn_like(program.log_trust))
    return program.at_rest()


def gaussian(decoder: Any) -> None:
    """Draw a decoder's weights from its log prior, which is quadratic: slopes at two points tell means and widths."""
    weights = list(decoder.parameters())

    def slopes() -> list[Tensor]:
        return [*torch.autograd.grad(decoder.log_prior(), weights, allow_unused=True, materialize_grads=True)]

    here = slopes()
    with torch.no_grad():
        for each in weights:
            each += 1
    there = slopes()
    with torch.no_grad():
        for each, first, second in zip(weights, here, there, strict=True):
            precision = first - second
            assert bool((precision > 0).all())
            each += first / precision - 1 + torch.randn_like(each) / precision.sqrt()


def _stream(seed: int, use: int, step: int = 0) -> int:
    """A seed for one use: weights drawn with the numbers that made the embeddings would depend on them."""
    return (4 * seed + use) * 1_000 + step

"""What all methods of an experiment share."""

from __future__ import annotations

from dataclasses import dataclass, field

from bayes_prompt.posteriors.checks import integer
from bayes_prompt.testbed import checks
from bayes_prompt.testbed.warm_start import WarmStart


@dataclass(frozen=True)
class Settings:
    """What all methods of an experiment share.

    steps: of GRPO.  prompts: in the training pool.  batch_size: prompts a step.  group_size: rollouts of each.
    learning_rate: of MuonAndAdamW; over the first `warm_up` steps it rises linearly, from learning_rate / warm_up in
    the first to learning_rate in the last of them.  temperature: of every sampling.  held_out: prompts never trained
    on, on which the mean reward is measured before, after, and every `evaluate_every` steps, with `held_out_samples`
    completions of each; twice as many before and after.

    Raises ValueError or TypeError when a field is out of range or no number.
    """

    steps: int = 80
    # Every prompt then comes up about ten times when they are chosen uniformly. In a larger pool uniform choice meets
    # many more distinct useful prompts in so few rollouts than DPS does (twice as many of 512), and a difference in
    # reward could come from that variety as well as from the share of useful groups.
    prompts: int = 256
    # The trainer reads one batch ahead, so that two picks in a row are of distinct prompts: with 64 of 256, every other
    # one was left with those that the pick before had not wanted.
    batch_size: int = 32
    group_size: int = 8
    learning_rate: float = 1e-4
    warm_up: int = 5
    temperature: float = 1.0
    held_out: int = 256
    held_out_samples: int = 4
    evaluate_every: int = 20
    warm_start: WarmStart = field(default_factory=WarmStart)

    def __post_init__(self) -> None:
        """Check what the trainer would only fail on later."""
        least_of = {"steps": 1, "batch_size": 1, "held_out_samples": 1, "evaluate_every": 1, "warm_up": 0}
        least_of |= {"group_size": 2, "held_out": 2}  # for an advantage, and for a standard error
        for name, least in least_of.items():
            integer(name, getattr(self, name), least)
        integer("prompts", self.prompts, max(self.batch_size, self.warm_start.check_prompts))
        for name in ("learning_rate", "temperature"):
            checks.number(name, getattr(self, name))

"""Stochastic variational inference that goes on for as long as training does: a few gradient steps at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from bayes_prompt.checkpoint import require_keys, require_like, require_no_less
from bayes_prompt.errors import CheckpointError
from bayes_prompt.models.difficulty import Batches, DifficultyProgram
from bayes_prompt.models.seeding import seeded

_ENCODER_RATE = 0.1  # of the learning rate: what a Transformer takes, and the decoder's linear part is too slow with
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # signed, not negative, not negative
_REMEDY = "; try a lower learning_rate"


class OnlineSVI:
    """The optimizer of a program's parameters; their gradients are those of the ELBO.

    Pyro's global parameter store is neither read nor left changed, and neither are torch's global generators. So one
    that was restored from `state` goes on as the one that gave it would have.
    """

    def __init__(self, program: DifficultyProgram) -> None:
        self.program = program.at_rest()
        self._optimizer = self._fresh()

    def learn(self, draw: Callable[[], Batches], steps: int, seed: int) -> float:
        """Make `steps` gradient steps, each on the batches that `draw` gives; returns the last loss (nats).

        All randomness, that of `draw` too, follows from `seed`. Where it fails, all is as it was; a loss or a parameter
        that is not finite is a FloatingPointError.
        """
        before = self.state()
        loss = float("nan")
        try:
            self.program.train()
            with torch.enable_grad(), seeded(seed, self.program.slope.device), pyro.get_param_store().scope():
                svi = SVI(self.program.model, self.program.guide, self._optimizer, Trace_ELBO())
                for _ in range(steps):
                    loss = float(svi.step(draw()))
                    if not math.isfinite(loss):
                        raise FloatingPointError(f"the loss of the difficulty model is {loss}{_REMEDY}")
            for name, parameter in self.program.named_parameters():
                if not bool(torch.isfinite(parameter).all()):
                    raise FloatingPointError(f"{name} of the difficulty model is not finite{_REMEDY}")
        except BaseException:
            self.restore(before)
            raise
        finally:
            self.program.at_rest()
        return loss

    def state(self) -> dict[str, Any]:
        """Copies of the parameters and of the optimizer's moments, by name."""
        moments = {}
        for name, parameter in self.program.named_parameters():
            if parameter in self._optimizer.optim_objs:
                kept = self._optimizer.optim_objs[parameter].state[parameter]
                if not kept:  # a parameter that nothing depends on has no gradient
                    continue
                moments[name] = {moment: torch.as_tensor(kept[moment]).clone() for moment in _MOMENTS}
                moments[name]["step"] = moments[name]["step"].float()  # whatever torch's default type is
        return {
            "networks": {name: value.detach().clone() for name, value in self.program.state_dict().items()},
            "moments": moments,
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """CheckpointError unless `restore` can take all of it."""
        require_keys("fit", state, ("networks", "moments"))
        mine = self.program.state_dict()
        require_keys("fit.networks", state["networks"], mine)
        for name, value in mine.items():
            require_like(f"fit.networks.{name}", state["networks"][name], value)
        parameters = dict(self.program.named_parameters())
        if not isinstance(state["moments"], Mapping) or not state["moments"].keys() <= parameters.keys():
            raise CheckpointError("fit.moments must be those of the networks' parameters")
        for name, kept in state["moments"].items():
            require_keys(f"fit.moments.{name}", kept, _MOMENTS)
            for moment in _MOMENTS[:2]:
                require_like(f"fit.moments.{name}.{moment}", kept[moment], parameters[name])
            require_like(f"fit.moments.{name}.step", kept["step"], torch.zeros((), dtype=torch.float32))
            for moment in _MOMENTS[1:]:
                require_no_less(f"fit.moments.{name}.{moment}", kept[moment], 0)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` gave."""
        self.program.load_state_dict(dict(state["networks"]))
        self._optimizer = self._fresh()
        for name, parameter in self.program.named_parameters():
            parameter.grad = None  # a step that failed may have left half of one
            if name in state["moments"]:
                own = self._optimizer.optim_objs[parameter] = torch.optim.Adam([parameter], **self._options(name))
                self._optimizer.grad_clip[parameter] = None
                own.state[parameter] = {
                    moment: value.clone().to(value.device if moment == "step" else parameter.device)
                    for moment, value in state["moments"][name].items()
                }

    def _fresh(self) -> Adam:
        return Adam(self._options)

    def _options(self, name: str) -> dict[str, Any]:
        """Adam's settings for a parameter, by its name in the program or, behind "difficulty.", in Pyro's store."""
        part = name.removeprefix("difficulty.").partition(".")[0]
        rate = self.program.declaration.learning_rate
        return {"lr": rate * (_ENCODER_RATE if part in ("encoder", "prior") else 1.0), "betas": (0.9, 0.99)}

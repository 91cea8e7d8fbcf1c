"""Posterior of `GenerativeDifficulty`: a predictor that all prompts share, and what each prompt's own record adds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_keys, require_no_less
from bayes_prompt.errors import CheckpointError
from bayes_prompt.kernels import rng
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.models.difficulty import LEAST_RATE
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Counts
from bayes_prompt.posteriors.beta import BetaBelief
from bayes_prompt.posteriors.decoding import Decoding, undisturbed
from bayes_prompt.posteriors.replay import BEFORE, Batch, Replay

if TYPE_CHECKING:
    from bayes_prompt.models.difficulty import GenerativeDifficulty

_WARM_BATCH = 256  # prompts of one batch of what was known before training
_MOST_LOG_WORTH = 50.0  # of a checkpoint's c and w, whose priors keep them within a few of 0
_STORAGE = (torch.float32, torch.bfloat16)


class DifficultyPosterior(BetaBelief):
    """Beta beliefs over the success rates of N prompts, from their embeddings and their own records.

    Before each step the decoder's rates, averaged over draws of the latent context, and the spread of these draws give
    every prompt a Beta prior; its own successes and failures so far, forgotten at several rates, are added with learned
    weights. The networks learn in `advance`, which waits for a GPU: gradient steps are many launches anyway.

    Args:
        model: the declaration.
        embeddings: (N, D) finite numbers; a tensor, an array, or a memory-mapped file, which is copied.
        num_prompts: N, if given. storage: torch.float32 or torch.bfloat16, of the embeddings. The other keywords are
            those of `Posterior`.
    """

    def __init__(
        self,
        model: GenerativeDifficulty,
        embeddings: Tensor | np.ndarray,
        num_prompts: int | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
        storage: torch.dtype = torch.float32,
    ) -> None:
        from bayes_prompt.models.online_svi import OnlineSVI

        if storage not in _STORAGE:
            raise TypeError(f"storage must be torch.float32 or torch.bfloat16; got {storage}")
        given = checks.embeddings("embeddings", embeddings, num_prompts)
        super().__init__(len(given), device=device, dtype=dtype, backend=backend, first_prompt=first_prompt)
        with undisturbed(self.device):
            self.model = model
            self.embeddings: Tensor = given.to(self.device, storage, copy=True).contiguous()
            checks.embeddings(f"embeddings in {storage}", self.embeddings)
            self._digest = _digest(self.embeddings)
            self._fit = OnlineSVI(model.program(given.shape[1]).to(self.device))
            self._decoding = Decoding(self._fit.program, self.embeddings, self.backend)
            memories = len(model.memory) if model.own_record else 0
            self._own_record = torch.zeros(memories, 2, self.num_prompts, dtype=torch.float32, device=self.device)
            self._replay = Replay(model.capacity, memories, self.device, self._decoding.standardised)
            self._answer: tuple[Tensor, Tensor] | None = None

    @property
    def alpha(self) -> Tensor:  # type: ignore[override]
        """(N,) pseudo-counts of successes before the coming rollout."""
        return self._belief()[0]

    @property
    def beta(self) -> Tensor:  # type: ignore[override]
        """(N,) pseudo-counts of failures before the coming rollout."""
        return self._belief()[1]

    @property
    def own_record(self) -> Tensor:
        """(N, M, 2) successes and failures of every prompt, as far as they are remembered at each rate."""
        return self._own_record.permute(2, 0, 1)

    def predicted_rate(self) -> Tensor:
        """(N,) the shared predictor's mean success rate, without prompts' own records."""
        return self._decoded(self.model.draws, self.model.seed, self.step, rng.CONTEXT)[0].to(self.dtype)

    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """One draw of every prompt's success rate, (N,): one context for the whole pool, then each prompt's Beta."""
        alpha, beta = self._prior_and_record(*self._decoded(1, seed, step, rng.CONTEXT_DRAW))
        out = torch.empty_like(alpha)
        self._kernel("thompson").sample_beta(alpha, beta, seed, step, self.first_prompt, out)
        return out

    def _decoded(self, draws: int, seed: int, step: int, stream: int) -> tuple[Tensor, Tensor]:
        """Mean and variance (N,) of the decoder's rates over draws of z, a function of (seed, step, stream)."""
        from bayes_prompt.models.seeding import seeded

        draws = draws if self.model.latent_width else 1
        derived = rng.derived_seed(seed, step % rng.STEP_LIMIT, stream)
        with undisturbed(self.device), torch.no_grad(), seeded(derived, self.device):
            law = self._fit.program.predicted(self._replay.last())
            return self._decoding.rates(law.sample((draws,))[:, 0, 0])

    def _prior_and_record(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta (N,): a Beta with the mean and variance of the mixture over draws, and what is on record.

        Given a draw m the rate has variance m (1 - m) / (c + 1); in all it is (mean (1 - mean) + c variance) / (c + 1).
        """
        program = self._fit.program
        c = self._decoding.concentration().double()
        mean = mean.double().clamp(LEAST_RATE, 1 - LEAST_RATE)
        alone = mean * (1 - mean)
        worth = (c * (alone - variance.double()) / (alone + c * variance.double())).clamp(min=1e-2)
        alpha, beta = worth * mean, worth * (1 - mean)
        for trust, (successes, failures) in zip(program.trust.tolist(), self._own_record, strict=False):
            alpha += trust * successes
            beta += trust * failures
        return alpha.to(self.dtype), beta.to(self.dtype)

    def _belief(self) -> tuple[Tensor, Tensor]:
        if self._answer is None:
            self._answer = self._prior_and_record(
                *self._decoded(self.model.draws, self.model.seed, self.step, rng.CONTEXT)
            )
        return self._answer

    def _forget_answers(self) -> None:
        self._answer = None

    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        seen = self._observations(counts)
        rows = counts.index[counts.leader]
        if rows.numel():
            successes, trials = counts.successes[counts.leader], counts.trials[counts.leader]
            self._learn(self.step, rows, successes, trials)
        for memory, kept in zip(self.model.memory, self._own_record, strict=False):
            kept *= memory**elapsed
        if rows.numel():
            self._add(rows, successes, trials)
        self._forget_answers()
        return seen

    def _learn(self, step: int, rows: Tensor, successes: Tensor, trials: Tensor) -> None:
        """The gradient steps of one training step, for observed prompts (B,); nothing has changed where they fail."""
        seed = rng.derived_seed(self.model.seed, step % rng.STEP_LIMIT, rng.LEARNING)
        with undisturbed(self.device):
            record = self._own_record[:, :, rows].permute(2, 0, 1).contiguous()
            replay = self._replay.with_newest(Batch(step, rows.clone(), successes.clone(), trials.clone(), record))
            self._fit.learn(
                partial(replay.draw, self.model.replay, self.model.recency), self.model.gradient_steps, seed
            )
        self._replay = replay

    def _add(self, rows: Tensor, successes: Tensor, trials: Tensor) -> None:
        counts = torch.stack([successes, trials - successes]).to(self._own_record.dtype)
        self._own_record[:, :, rows] += counts

    def _warm_start(self, counts: Counts) -> None:
        """The networks learn from what is known, in batches of random prompts, as many as the replay keeps."""
        rows, successes, trials = (part[counts.leader] for part in (counts.index, counts.successes, counts.trials))
        keys = rng.tie_keys(self.model.seed, 0, rows)
        before = self._fit.state(), self._replay
        try:
            for part in keys.argsort(stable=True).split(_WARM_BATCH)[: self.model.capacity]:
                self._learn(BEFORE, rows[part], successes[part], trials[part])
        except BaseException:
            self._fit.restore(before[0])
            self._replay = before[1]
            raise
        self._add(rows, successes, trials)
        self._forget_answers()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The whole state, networks, optimizer and replay included; the embeddings are not, only their digest."""
        return {**super().state_dict(), "fit": self._fit.state(), "replay": self._replay.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, bit for bit. Another model, pool or embeddings raise CheckpointError."""
        with undisturbed(self.device):
            super().load_state_dict(state)
            self._fit.restore(state["fit"])
            self._replay.restore(state["replay"])
        self._forget_answers()

    def _check_state(self, state: Mapping[str, Any]) -> None:
        mine = ("fit", "replay")
        if not isinstance(state, Mapping) or not all(name in state for name in mine):
            require_keys("posterior", state, ("version", "model", "step", "pending", "tensors", *mine))
        super()._check_state({name: entry for name, entry in state.items() if name not in mine})
        self._fit.check(state["fit"])
        for name in ("log_concentration", "log_trust"):
            values = state["fit"]["networks"][name]
            if bool((values.abs() > _MOST_LOG_WORTH).any()):
                raise CheckpointError(
                    f"fit.networks.{name} must lie within {_MOST_LOG_WORTH} of 0; got {values.tolist()}"
                )
        self._replay.check(state["replay"], self.num_prompts, state["step"])
        learned = len(state["replay"]["size"]) > 0 and self.model.gradient_steps > 0
        if ("log_concentration" in state["fit"]["moments"]) != learned:  # which has a prior, and so always a gradient
            raise CheckpointError("fit.moments must be there if a batch was learned from, and only then")

    def _describe(self) -> dict[str, Any]:
        return {
            "model": self.model.describe(),
            "embeddings": self._digest,
            "num_prompts": self.num_prompts,
            "first_prompt": self.first_prompt,
            "dtype": str(self.dtype),
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {"record": self._own_record}

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        require_no_less("posterior.tensors.record", tensors["record"], 0)


def _digest(embeddings: Tensor) -> str:
    digest = hashlib.sha256(f"{embeddings.dtype} {tuple(embeddings.shape)}".encode())
    for part in embeddings.split(1 << 16):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]

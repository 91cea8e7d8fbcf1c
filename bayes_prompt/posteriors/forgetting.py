"""Power forgetting: what a belief over points becomes where some of it is forgotten (MoPPS on a grid)."""

from __future__ import annotations

import torch
from torch import Tensor


def forgotten(belief: Tensor, prior: Tensor, decay: Tensor) -> Tensor:
    """belief ** decay * prior ** (1 - decay), normalised, (J, M, states) float64.

    On Beta densities it is decay * a + (1 - decay) * a0 (MoPPS, arXiv 2507.04632).

    Args:
        belief: (M, states) float64. prior: (states,) float64. decay: (J,) in [0, 1].
    """
    kept = decay[:, None, None]
    logs = torch.special.xlogy(kept, belief) + torch.special.xlogy(1 - kept, prior)
    highest = logs.amax(2, keepdim=True)
    mixed = (logs - torch.where(highest.isfinite(), highest, 0.0)).exp()
    total = mixed.sum(2, keepdim=True)
    return torch.where(total > 0, mixed / total, belief)  # what shares no point with the prior is kept

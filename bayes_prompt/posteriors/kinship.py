"""Which prompts are alike by their embeddings: clusters of them, and how near clusters lie to one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

MOST_CLUSTERS = 256
_SAMPLE = 16_384  # prompts that the clusters' centres are found from
_CHUNK = 1 << 14
# What a first look at one prompt is worth to another falls with their squared distance, in units of the median one:
# nothing is lost up to `_NEAR`, and a factor e for each 2 * `_WIDTH` beyond. Chosen on recorded data: docs/recipe.md.
_NEAR, _WIDTH = 0.3, 0.06


@dataclass(frozen=True)
class Kinship:
    """Clusters of N prompts. cluster: (N,) int64 in [0, R). likeness: (R, R) float64 in [0, 1], 1 on the diagonal."""

    cluster: Tensor
    likeness: Tensor


def kinship(embeddings: Tensor, most: int = MOST_CLUSTERS) -> Kinship:
    """At most `most` clusters of prompts with embeddings (N, D), on the device of the embeddings.

    Every prompt is a cluster of its own where there are no more than that; else they are found by k-means, from a
    sample of a large pool. A function of the embeddings alone.
    """
    count = len(embeddings)
    if count <= most:
        cluster, centres = torch.arange(count, device=embeddings.device), embeddings.double()
    else:
        picked = np.sort(np.random.default_rng(0).choice(count, min(count, _SAMPLE), replace=False))
        sample = embeddings[torch.from_numpy(picked).to(embeddings.device)].double().cpu().numpy()
        found, _ = kmeans2(sample, most, minit="++", seed=0, missing="warn")
        centres = torch.from_numpy(found).to(embeddings.device)
        cluster = torch.cat([_distances(part.double(), centres).argmin(1) for part in embeddings.split(_CHUNK)])
        used, cluster = cluster.unique(return_inverse=True)
        centres = centres[used]
    apart = _distances(centres, centres)
    unit = apart[~torch.eye(len(apart), dtype=torch.bool, device=apart.device)]
    median = unit[unit > 0].median() if bool((unit > 0).any()) else torch.ones((), dtype=torch.float64)
    likeness = (-(apart / median - _NEAR) / (2 * _WIDTH)).exp().clamp(max=1)
    return Kinship(cluster, likeness.fill_diagonal_(1.0))


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (B, R)."""
    squares = rows.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (squares - 2 * rows @ centres.T).clamp(min=0)

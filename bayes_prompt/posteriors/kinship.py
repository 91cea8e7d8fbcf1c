"""Which prompts are alike: by their group, by their embedding, or by both."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

MOST_CLUSTERS = 2048
_MOST_GROUPED = 64
_SAMPLE = 16_384  # prompts that the clusters' centres are found from
_CHUNK = 1 << 13
_ROUNDING = 1e-12  # squared distance of copies, in units of the largest squared length
_NEAR = 0.3  # squared distance, in units of the median one, up to which prompts are as good as the same


class Kinship:
    """Clusters of N prompts, and how like clusters are to one another, in one way or several.

    With groups alone the clusters are the groups. With embeddings every prompt is a cluster of its own, as far as there
    are no more than `MOST_CLUSTERS` of them; else clusters are found by k-means, each within one group where there are
    up to 64 groups. Of a larger pool with more groups than that, embeddings alone say who is alike.

    Attributes:
        cluster: (N,) int32 in [0, number). number: R. ways: names of ways of being alike, W of them.

    Args:
        groups: (N,) int64 from 0 up. embeddings: (N, D), or None. widths: see `models.sharing.EmpiricalBayes`.
    """

    def __init__(self, groups: Tensor, embeddings: Tensor | None, widths: Sequence[float]) -> None:
        self._widths, self._labels = tuple(widths), groups
        self._group: Tensor | None = None
        self._centres: Tensor | None = None
        if embeddings is None:
            self.cluster, self.number = groups.int(), int(groups.max()) + 1
            self._group = torch.arange(self.number, device=groups.device)
        else:
            grouped = 1 < int(groups.max()) + 1 <= _MOST_GROUPED
            cluster, centres = _clusters(embeddings, MOST_CLUSTERS // (int(groups.max()) + 1 if grouped else 1))
            if grouped and len(centres) < len(groups):  # a cluster lies within one group
                pair, cluster = (cluster * (int(groups.max()) + 1) + groups).unique(return_inverse=True)
                centres = centres[pair // (int(groups.max()) + 1)]
                self._group = pair % (int(groups.max()) + 1)
            elif len(centres) == len(groups) and int(groups.max()) > 0:
                self._group = groups
            self.cluster = cluster.int()
            self.number, self._centres = len(centres), centres - centres.mean(0)
            sample = self._centres[:: max(1, self.number // 512)]
            apart = _distances(sample, sample)
            apart = apart[apart > _ROUNDING * sample.square().sum(1).amax()]
            self._median = float(apart.median()) if len(apart) else 1.0
        alone = self.number == 1
        self.ways = [*["like"] * (0 if embeddings is None or alone else len(self._widths))]
        if self._group is not None and not alone:
            self.ways += ["group", *["like in the group"] * (0 if embeddings is None else len(self._widths))]

    def likeness(self, seen: Tensor) -> Tensor:
        """How like each cluster is to the clusters `seen` (M,) int64, (W, R, M) in [0, 1]."""
        found = []
        same = None if self._group is None else (self._group[:, None] == self._group[seen]).double()
        near = []
        if self._centres is not None:
            apart = _distances(self._centres, self._centres[seen]) / self._median - _NEAR
            near = [(-apart / (2 * width)).exp().clamp(max=1) for width in self._widths]
        found += near
        if same is not None:
            found += [same, *(same * each for each in near)]
        return torch.stack(found) if self.ways else torch.zeros(0, self.number, len(seen), device=seen.device).double()

    def spread(self, seen: Tensor, met: Tensor) -> Tensor:
        """likeness @ met: masses (W, R, states) of all clusters, of those met (M, states) at clusters `seen` (M,)."""
        if self._centres is None:  # groups, of which there may be many
            return met.new_zeros(1, self.number, met.shape[1]).index_add_(1, seen, met[None])
        return self.likeness(seen) @ met

    def digest(self) -> str | None:
        """Of what it was made of; None where all prompts are one cluster, of one group."""
        if self.number == 1 and not bool(self._labels.any()):
            return None
        parts = [self._labels, self.cluster, *(() if self._centres is None else (self._centres,))]
        return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()[:16]


def _clusters(embeddings: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The cluster (N,) int64 of each prompt, and centres (R, D) float64: a function of the embeddings alone.

    most: clusters of a pool of more than `MOST_CLUSTERS` prompts, at most.
    """
    count, device = len(embeddings), embeddings.device
    if count <= MOST_CLUSTERS:
        return torch.arange(count, device=device), embeddings.detach().double()
    picked = np.sort(np.random.default_rng(0).choice(count, min(count, _SAMPLE), replace=False))
    sample = embeddings[torch.from_numpy(picked).to(device)].detach().double().cpu().numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")  # of copies: left out below
        found, _ = kmeans2(sample, most, iter=5, minit="points", rng=0, missing="warn")
    centres = torch.from_numpy(found).to(device)
    nearest = [_distances(part.double(), centres).argmin(1) for part in embeddings.detach().split(_CHUNK)]
    used, cluster = torch.cat(nearest).unique(return_inverse=True)
    return cluster, centres[used]


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (B, R)."""
    squares = rows.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (squares - 2 * rows @ centres.T).clamp(min=0)

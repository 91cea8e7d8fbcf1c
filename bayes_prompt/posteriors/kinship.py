"""Which prompts are alike: by their group, by their embedding, or by both."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

MOST_CLUSTERS = 2048
_SAMPLE = 64  # prompts for each cluster that its cell is divided by
_CHUNK = 1 << 13
_SEEN = 256  # clusters whose likeness to all others is held at a time
_ROUNDING = 1e-12  # squared distance of copies, in units of the largest squared length
_NEAR = 0.3  # squared distance, in units of the median one, up to which prompts are as good as the same


class Kinship:
    """Clusters of N prompts, and how like clusters are to one another, in one way or several.

    With groups alone the clusters are the groups. With embeddings every prompt is a cluster of its own, as far as there
    are no more than `MOST_CLUSTERS` of them; else clusters are found by k-means, each within one group. If there are
    more groups than that, each is one cluster, and the k-means of their centres tells which of them are alike.

    Attributes:
        cluster: (N,) int32 in [0, number). number: R. ways: names of ways of being alike, W of them.

    Args:
        groups: (N,) int64 from 0 up. embeddings: (N, D), or None. widths: see `models.sharing.EmpiricalBayes`.
    """

    def __init__(self, groups: Tensor, embeddings: Tensor | None, widths: Sequence[float]) -> None:
        self._widths, self._labels = tuple(widths), groups
        self._group: Tensor | None = None  # of each cluster
        self._centres: Tensor | None = None
        if embeddings is None:
            self.cluster, self.number = groups.int(), int(groups.max()) + 1
            self._group = torch.arange(self.number, device=groups.device)
        else:
            cluster, centres = _clusters(embeddings, groups)
            self.cluster, self.number = cluster.int(), len(centres)
            if int(groups.max()) > 0:
                self._group = torch.empty(self.number, dtype=torch.int64, device=groups.device)
                self._group[cluster] = groups
            #: The centre of each cluster, of which each has its own unless there are too many.
            self._place = torch.arange(self.number, device=groups.device)
            if self.number > MOST_CLUSTERS:
                self._place, centres = _clusters(centres, torch.zeros_like(self._place))
            self._centres = centres - centres.mean(0)
            sample = self._centres[:: max(1, len(centres) // 512)]
            apart = _distances(sample, sample)
            apart = apart[apart > _ROUNDING * sample.square().sum(1).amax()]
            self._median = float(apart.median()) if len(apart) else 1.0
        alone, embedded = self.number == 1, embeddings is not None
        self.ways = ["like"] * (len(self._widths) if embedded and not alone else 0)
        if self._group is not None and not alone:
            both = embedded and self.number <= MOST_CLUSTERS  # else clusters are the groups
            self.ways += ["group", *["like in the group"] * (len(self._widths) if both else 0)]

    def likeness(self, seen: Tensor) -> Tensor:
        """How like each cluster is to the clusters `seen` (M,) int64, (W, R, M) in [0, 1]."""
        if not self.ways:
            return torch.zeros(0, self.number, len(seen), device=seen.device).double()
        near = [] if self._centres is None else [*self._near(self._place[seen])[:, self._place]]
        if self._group is None:
            return torch.stack(near)
        same = (self._group[:, None] == self._group[seen]).double()
        both = (same * each for each in near) if "like in the group" in self.ways else ()
        return torch.stack([*near, same, *both])

    def spread(self, seen: Tensor, met: Tensor) -> Tensor:
        """likeness @ met: masses (W, R, states) of all clusters, of those met (M, states) at clusters `seen` (M,)."""
        out = met.new_zeros(len(self.ways), self.number, met.shape[1])
        if not self.ways:
            return out
        if self._group is not None and "like in the group" not in self.ways:
            out[-1].index_add_(0, seen, met)  # clusters are the groups, of which there may be many
            if self._centres is not None:
                places, masses = _added_up(self._place[seen], met)
                out[:-1] = (self._near(places) @ masses)[:, self._place]
            return out
        for clusters, masses in zip(*(each.split(_SEEN) for each in _added_up(seen, met)), strict=True):
            out += self.likeness(clusters) @ masses
        return out

    def _near(self, places: Tensor) -> Tensor:
        """How near all centres are to those of some (P,), (widths, C, P) in [0, 1]."""
        assert self._centres is not None
        apart = _distances(self._centres, self._centres[places]) / self._median - _NEAR
        return torch.stack([(-apart / (2 * width)).exp().clamp(max=1) for width in self._widths])

    def digest(self) -> str | None:
        """Of what it was made of; None where all prompts are one cluster, of one group."""
        if self.number == 1 and not bool(self._labels.any()):
            return None
        parts = [self._labels, self.cluster, *(() if self._centres is None else (self._centres,))]
        return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()[:16]


def _added_up(rows: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows (P,) of those given (M,), and the sums (P, states) of their masses (M, states)."""
    distinct, which = rows.unique(return_inverse=True)
    return distinct, masses.new_zeros(len(distinct), masses.shape[1]).index_add_(0, which, masses)


def _clusters(embeddings: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The cluster (N,) int64 of each prompt, within its group, and centres (R, D) float64.

    They are worked out on the host, and in double precision, so that a checkpoint is of the same clusters anywhere.
    """
    count, device = len(embeddings), embeddings.device
    if count <= MOST_CLUSTERS:
        return torch.arange(count, device=device), embeddings.detach().double()
    rows, cell = embeddings.detach().cpu(), groups.cpu().unique(return_inverse=True)[1]
    # In two steps: so a prompt is compared with twice the root of MOST_CLUSTERS centres, not with all.
    for most in (min(int(cell.max()) + 1 + math.isqrt(MOST_CLUSTERS), MOST_CLUSTERS), MOST_CLUSTERS):
        cell = divided(rows, cell, most)
    sizes, sums = cell.bincount(), torch.zeros(int(cell.max()) + 1, rows.shape[1], dtype=torch.float64)
    for start in range(0, count, _CHUNK):
        sums.index_add_(0, cell[start : start + _CHUNK], rows[start : start + _CHUNK].double())
    return cell.to(device), (sums / sizes[:, None]).to(device)


def divided(rows: Tensor, cell: Tensor, most: int) -> Tensor:
    """Cells (N,) int64 that lie within those given (N,), none of them empty: each divided by its share of `most`."""
    sizes = cell.bincount()
    parts = 1 + max(0, most - len(sizes)) * sizes // len(cell)
    first = parts.cumsum(0) - parts  # the number of a cell's first part
    finer = first[cell]
    members = cell.argsort(stable=True).split(sizes.tolist())
    for old in (parts > 1).nonzero()[:, 0].tolist():
        finer[members[old]] += _nearest(rows, members[old], int(parts[old]))
    return finer.unique(return_inverse=True)[1]


def _nearest(rows: Tensor, members: Tensor, parts: int) -> Tensor:
    """Which of `parts` means each of the members (n,) of a cell is nearest to, (n,) int64: k-means of a sample."""
    picked = np.random.default_rng(0).choice(len(members), min(len(members), _SAMPLE * parts), replace=False)
    sample = rows[members[torch.from_numpy(np.sort(picked))]].double()
    origin = sample.mean(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")  # of copies: nobody is nearest
        found, _ = kmeans2((sample - origin).numpy(), parts, iter=5, minit="points", rng=0, missing="warn")
    centres = torch.from_numpy(found)
    lengths = centres.square().sum(1) / 2
    chunks = members.split(_CHUNK)
    return torch.cat(
        [torch.addmm(lengths, rows[part].double() - origin, centres.T, alpha=-1).argmin(1) for part in chunks]
    )


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (B, R)."""
    squares = rows.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (squares - 2 * rows @ centres.T).clamp(min=0)

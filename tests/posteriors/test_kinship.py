"""Which prompts are alike: by group, by embedding, by both; clusters where there are many prompts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_prompt.posteriors import kinship
from bayes_prompt.posteriors.kinship import Kinship

WIDTHS = (0.05, 0.2)
N = 15
LABELS = torch.arange(N) % 3
ALL = torch.arange(N)


def points(seed: int, rows: int = N, features: int = 4) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Six clouds far apart, and which one each of their points is of."""
    of = torch.arange(6).repeat(each)
    return 100 * points(seed, 6)[of] + points(seed + 1, len(of)), of


def test_ways_of_being_alike() -> None:
    one = torch.zeros(N, dtype=torch.int64)
    assert Kinship(one, None, WIDTHS).ways == []
    assert Kinship(LABELS, None, WIDTHS).ways == ["group"]
    assert Kinship(one, points(0), WIDTHS).ways == ["like", "like"]
    both = ["like", "like", "group", "like in the group", "like in the group"]
    assert Kinship(LABELS, points(0), WIDTHS).ways == both
    assert Kinship(one[:1], points(0, 1), WIDTHS).ways == []  # nobody to be like


def test_groups_alone_are_the_clusters() -> None:
    kin = Kinship(LABELS, None, WIDTHS)
    assert kin.number == 3 and torch.equal(kin.cluster, LABELS.int())
    assert torch.equal(kin.likeness(torch.tensor([2, 0])), torch.eye(3).double()[None][:, :, [2, 0]])


@pytest.mark.parametrize("grouped", [False, True])
def test_likeness_written_out(grouped: bool) -> None:
    embeddings = points(1)
    embeddings[7] = embeddings[2]  # copies, of different groups
    kin = Kinship(LABELS if grouped else torch.zeros_like(LABELS), embeddings, WIDTHS)
    assert kin.number == N and torch.equal(kin.cluster, ALL.int())
    rows = embeddings.numpy()
    apart = ((rows[:, None] - rows) ** 2).sum(2)
    known = np.sort(apart[np.arange(N)[:, None] != np.arange(N)])
    median = np.sort(known[known > 0])[(len(known) - 2 - 1) // 2]
    near = [np.minimum(1, np.exp(-(apart / median - 0.3) / (2 * width))) for width in WIDTHS]
    same = (LABELS[:, None] == LABELS).numpy()
    wanted = [*near, same, *(same * each for each in near)] if grouped else near
    found = kin.likeness(ALL)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    assert bool((found[:2, ALL, ALL] == 1).all()) and float(found[0, 2, 7]) == 1.0
    seen = torch.tensor([3, 3, 11])
    assert torch.equal(kin.likeness(seen), found[:, :, seen])


@pytest.mark.parametrize("embedded", [False, True])
def test_masses_are_spread_by_likeness(embedded: bool) -> None:
    kin = Kinship(LABELS, points(2) if embedded else None, WIDTHS)
    seen, met = torch.tensor([1, 2, 1, 0]), points(3, 4, 5).abs()
    torch.testing.assert_close(kin.spread(seen, met), kin.likeness(seen) @ met, rtol=0, atol=1e-14)
    nobody = kin.spread(seen[:0], met[:0])
    assert nobody.shape == (len(kin.ways), kin.number, 5) and not bool(nobody.any())


def test_many_groups_need_no_table_of_all_pairs() -> None:
    """300,000 groups, of which 3,000 are met in a step: a table would have 7 GB."""
    size = 300_000
    kin = Kinship(torch.arange(size), None, WIDTHS)
    spread = kin.spread(torch.arange(3_000), torch.ones(3_000, 2, dtype=torch.float64))
    assert spread.shape == (1, size, 2) and float(spread.sum()) == 6_000.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float32])
def test_numbers_of_any_kind(dtype: torch.dtype) -> None:
    embeddings = torch.tensor([[0, 0], [1, 0], [4, 4]]).repeat(5, 1)
    kin, wide = (Kinship(LABELS, each, WIDTHS) for each in (embeddings.to(dtype), embeddings.double()))
    assert torch.equal(kin.likeness(ALL), wide.likeness(ALL)) and kin.digest() == wide.digest()


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("rows", [2, 3, 10])
def test_copies_are_no_distance(rows: int, offset: float) -> None:
    """What rounding leaves of the distance of a prompt to itself is not among the distances that set the unit."""
    for seed in range(20):
        embeddings = points(seed, rows, 64).repeat(3, 1) + offset
        kin = Kinship(torch.zeros(3 * rows, dtype=torch.int64), embeddings, WIDTHS)
        copies = kin.likeness(torch.arange(rows))
        assert bool((copies.unflatten(1, (3, rows)).diagonal(dim1=2, dim2=3) == 1).all())
        # Others lie about as far apart as the median pair: with the larger width, exp(-0.7 / 0.4), give or take.
        others = copies[1, :rows][~torch.eye(rows, dtype=torch.bool)]
        assert float(others.min()) > 0.01 and float(others.max()) < 0.7


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_prompts_that_are_all_the_same(value: float) -> None:
    kin = Kinship(torch.zeros(N, dtype=torch.int64), torch.full((N, 7), value), WIDTHS)
    assert bool((kin.likeness(ALL) == 1).all())


def test_one_that_is_far_off_does_not_change_the_unit() -> None:
    """Its 39 pairs of 780 are the farthest: the median of all is then at a quantile of 0.55 of the others at most."""
    embeddings = points(4, 40)
    apart = np.sort(((embeddings[:, None] - embeddings) ** 2).sum(2).numpy()[np.triu_indices(40, 1)])
    embeddings[5] = 1e5
    likeness = Kinship(torch.zeros(40, dtype=torch.int64), embeddings, WIDTHS).likeness(torch.tensor([0]))[0, 1, 0]
    first = float((embeddings[0] - embeddings[1]).square().sum())
    unit = first / (0.3 - 2 * WIDTHS[0] * float(likeness.log()))
    assert apart[int(0.5 * 780) - 1] <= unit * (1 + 1e-9) and unit <= apart[int(0.55 * 780) + 1]


def test_a_digest_tells_what_it_was_made_of() -> None:
    one, embeddings = torch.zeros(N, dtype=torch.int64), points(5)
    made = [
        Kinship(one, None, WIDTHS),
        Kinship(LABELS, None, WIDTHS),
        Kinship((LABELS + 1) % 3, None, WIDTHS),
        Kinship(one, embeddings, WIDTHS),
        Kinship(one, embeddings + 0.1 * points(6), WIDTHS),
        Kinship(LABELS, embeddings, WIDTHS),
        Kinship((LABELS + 1) % 3, embeddings, WIDTHS),
    ]
    digests = [kin.digest() for kin in made]
    assert digests[0] is None and len(set(digests)) == len(digests)
    assert Kinship(LABELS.clone(), embeddings.clone(), WIDTHS).digest() == digests[5]


def test_many_prompts_are_put_into_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", 20)
    embeddings, of = blobs(10)
    labels = torch.zeros(60, dtype=torch.int64)
    kin = Kinship(labels, embeddings, WIDTHS)
    assert 6 <= kin.number <= 20 and kin.ways == ["like", "like"]
    assert kin.cluster.dtype == torch.int32 and kin.cluster.unique().tolist() == list(range(kin.number))
    # 20 first centres of 60 points miss one of six clouds with a probability of 0.1, and never meet in the middle.
    mixed = [len(of[kin.cluster == cluster].unique()) for cluster in range(kin.number)]
    assert sum(each > 1 for each in mixed) <= 1
    again = Kinship(labels, embeddings.clone(), WIDTHS)
    assert torch.equal(again.cluster, kin.cluster) and again.digest() == kin.digest()
    grouped = torch.arange(60) % 2  # a bank's weights go by groups, too
    assert Kinship(grouped, embeddings, WIDTHS).digest() != Kinship(1 - grouped, embeddings, WIDTHS).digest()
    likeness = kin.likeness(torch.arange(kin.number))
    assert bool((likeness.diagonal(dim1=1, dim2=2) == 1).all())
    torch.testing.assert_close(likeness, likeness.transpose(1, 2), rtol=0, atol=1e-12)


def test_clusters_lie_within_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large pool, too: what is seen of one group says more about it than about another."""
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", 20)
    embeddings, _ = blobs(10)
    labels = torch.arange(60) % 3
    kin = Kinship(labels, embeddings, WIDTHS)
    assert kin.ways == ["like", "like", "group", "like in the group", "like in the group"]
    for cluster in range(kin.number):
        assert len(labels[kin.cluster == cluster].unique()) == 1
    _, _, group, *within = kin.likeness(torch.arange(kin.number))
    own = torch.stack([labels[kin.cluster == cluster][0] for cluster in range(kin.number)])
    assert torch.equal(group, (own[:, None] == own).double())
    assert all(bool((each <= group).all()) for each in within)


def test_many_groups_of_a_large_pool_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, as long as each can have a cluster; the larger ones have more."""
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", 100)
    labels = torch.arange(400) % 70
    labels[:150] = 0
    embeddings = points(8, 400)
    kin = Kinship(labels, embeddings, WIDTHS)
    assert 70 < kin.number <= 100
    assert kin.ways == ["like", "like", "group", "like in the group", "like in the group"]
    clusters = [len(kin.cluster[labels == label].unique()) for label in range(70)]
    assert sum(clusters) == kin.number  # none is of two groups
    assert clusters[0] > 5 and max(clusters[1:]) <= 2
    group = kin.likeness(torch.arange(kin.number))[2]
    own = torch.empty(kin.number, dtype=torch.int64)
    own[kin.cluster.long()] = labels
    assert torch.equal(group, (own[:, None] == own).double())


def test_more_groups_than_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a cluster; that they are alike is told by the twenty places where they lie."""
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", 20)
    labels = torch.arange(90) % 30
    of = labels % 6  # six clouds, one as far from another as the next, each of five groups
    embeddings = 100 * torch.eye(6).double()[of] + points(10, 90, 6)
    kin = Kinship(labels, embeddings, WIDTHS)
    assert kin.number == 30 and torch.equal(kin.cluster, labels.int())
    assert kin.ways == ["like", "like", "group"]
    likeness = kin.likeness(torch.arange(30))
    assert torch.equal(likeness[2], torch.eye(30).double())
    assert bool((likeness.diagonal(dim1=1, dim2=2) == 1).all())
    assert 6 <= len(likeness[0].unique(dim=0)) <= 20
    same = (torch.arange(30) % 6)[:, None] == torch.arange(30) % 6
    assert bool((likeness[:2][:, same] == 1).all()) and float(likeness[:2][:, ~same].max()) < 0.5


def test_a_large_group_among_nearly_as_many_groups_as_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is divided as far as there are clusters left, and no further."""
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", 40)
    for number in (38, 42):
        labels = torch.cat([torch.arange(number), torch.zeros(100, dtype=torch.int64)])
        kin = Kinship(labels, points(13, len(labels)), WIDTHS)
        assert number <= kin.number <= max(40, number)
        seen, met = kin.cluster.long(), points(14, len(labels), 3).abs()
        torch.testing.assert_close(kin.spread(seen, met), kin.likeness(seen) @ met, rtol=0, atol=1e-10)


@pytest.mark.parametrize("most", [2_048, 100, 20])
@pytest.mark.parametrize("groups", [1, 3, 30])
def test_masses_are_added_up_before_they_are_spread(monkeypatch: pytest.MonkeyPatch, most: int, groups: int) -> None:
    """Many first looks at few clusters, some of them the same: never are more held than there is room for."""
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", most)
    monkeypatch.setattr(kinship, "_SEEN", 7)
    kin = Kinship(torch.arange(150) % groups, points(11, 150), WIDTHS)
    seen = torch.randint(kin.number, (500,), generator=torch.Generator().manual_seed(0))
    met = points(12, 500, 3).abs()
    wanted = kin.likeness(seen) @ met
    held, likeness = [], kin.likeness
    monkeypatch.setattr(kin, "likeness", lambda rows: held.append(len(rows)) or likeness(rows))
    # Sums of up to 500 numbers of up to 4: 500 * 4 * 500 * 2**-53.
    torch.testing.assert_close(kin.spread(seen, met), wanted, rtol=0, atol=1e-10)
    assert max(held, default=0) <= 7 and (bool(held) or groups > most)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_clusters_are_found_wherever_they_lie(monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    """Two steps of k-means leave hardly more within clusters than the pairs that lie nearest."""
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", 64)
    embeddings = (points(13, 8)[:, None] * 100 + points(14, 8)[None]).repeat(1, 25, 1).reshape(-1, 4)  # 64 points
    embeddings = embeddings + 1e-3 * points(15, len(embeddings)) + offset
    cluster, centres = kinship._clusters(embeddings, torch.zeros(len(embeddings), dtype=torch.int64))
    within = float((embeddings - centres[cluster]).square().sum(1).mean())
    around = float((embeddings - embeddings.mean(0)).square().sum(1).mean())
    assert within < 1e-3 * around  # the eight clouds are told apart, of which each is 1e-4 of the whole


@pytest.mark.parametrize("sample", [2, 1_000])
def test_copies_make_fewer_clusters_and_no_noise(monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    monkeypatch.setattr(kinship, "MOST_CLUSTERS", 30)
    monkeypatch.setattr(kinship, "_SAMPLE", sample)
    monkeypatch.setattr(kinship, "_CHUNK", 7)  # which leaves a rest
    embeddings = points(7, 5).repeat(20, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kin = Kinship(torch.zeros(100, dtype=torch.int64), embeddings, WIDTHS)
    assert kin.number <= 5
    assert torch.equal(kin.cluster, kin.cluster[:5].repeat(20))

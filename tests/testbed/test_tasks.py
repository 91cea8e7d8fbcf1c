from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise

import pytest

from bayes_prompt.testbed.tasks import ALPHABET, FAMILIES, LEVELS, MAX_ANSWER, Task, make_split, make_tasks, stream

MANY = make_tasks(2000, seed=3)


def test_every_family_and_level_occurs() -> None:
    cells = Counter((task.family, task.level) for task in MANY)
    assert set(cells) == {(family, level) for family in FAMILIES for level in range(1, LEVELS + 1)}
    assert len(FAMILIES) >= 5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_solver_passes_the_verifier(family: str) -> None:
    tasks = [task for task in islice(stream(11), 5000) if task.family == family]
    assert len(tasks) > 500
    for task in tasks:
        assert task.reward(task.answer) == 1.0, task
        assert task.reward(f" {task.answer} ") == 1.0, task


def test_wrong_answers_fail() -> None:
    for task in MANY:
        for wrong in ("", " ", "?", task.answer + "0", task.answer + "=", task.answer + " 1", "x" + task.answer):
            assert task.reward(wrong) == 0.0, (task, wrong)


def _recomputed(task: Task) -> str:
    """The answer, worked out a second time from the text alone."""
    body = task.text.removesuffix("=")
    match task.family:
        case "max":
            return str(max(int(number) for number in body.removeprefix("max ").split(",")))
        case "sort":
            return "".join(sorted(body.removeprefix("sort ")))
        case "rev":
            return "".join(reversed(body.removeprefix("rev ")))
        case "cnt":
            letter, word = body.removeprefix("cnt ").split(":")
            return str(sum(character == letter for character in word))
        case "nth":
            place, word = body.removeprefix("nth ").split(":")
            return word[int(place) - 1]
        case family:
            sign = {"add": "+", "sub": "-", "mul": "*"}[family]
            a, b = (int(number) for number in body.split(sign))
            return str({"+": a + b, "-": a - b, "*": a * b}[sign])


def test_answers_are_right() -> None:
    for task in MANY:
        if task.puzzle is None:
            assert task.answer == _recomputed(task), task
        else:
            numbers, target = task.text.removeprefix("cd ").removesuffix("=").split(":")
            assert task.puzzle.numbers == tuple(int(number) for number in numbers.split(",")), task
            assert task.puzzle.target == int(target), task


def test_a_countdown_has_many_right_answers() -> None:
    task = next(task for task in stream(0) if task.family == "cd" and "-" not in task.answer and task.level == 1)
    assert task.puzzle is not None
    a, b = task.puzzle.numbers
    assert task.reward(f"{a}+{b}") == task.reward(f"{b}+{a}") == 1.0


def test_texts_are_distinct_and_of_the_alphabet() -> None:
    assert len({task.text for task in MANY}) == len(MANY)
    for task in MANY:
        assert set(task.text + task.answer) <= set(ALPHABET), task
        assert 0 < len(task.answer) <= MAX_ANSWER, task


def test_a_function_of_the_seed() -> None:
    assert make_tasks(300, seed=5) == make_tasks(300, seed=5)
    assert make_tasks(300, seed=5) != make_tasks(300, seed=6)


def test_a_smaller_pool_is_a_prefix() -> None:
    assert make_tasks(700, seed=5)[:300] == make_tasks(300, seed=5)


def test_held_out_is_disjoint_and_does_not_depend_on_the_pool() -> None:
    train, held_out = make_split(600, 256, seed=1)
    assert (len(train), len(held_out)) == (600, 256)
    assert not {task.text for task in train} & {task.text for task in held_out}
    assert make_split(300, 256, seed=1)[1] == held_out


def test_difficulty_is_graded() -> None:
    lengths = [[len(task.text) for task in MANY if task.level == level] for level in range(1, LEVELS + 1)]
    means = [sum(part) / len(part) for part in lengths]
    assert means == sorted(means)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_graded(family: str) -> None:
    """From level to level the text grows, and the best of the constant answers gains nothing."""
    tasks = [task for task in islice(stream("graded"), 72_000) if task.family == family]
    lengths, shares, counts = [], [], []
    for level in range(1, LEVELS + 1):
        part = [task for task in tasks if task.level == level]
        counts.append(len(part))
        lengths.append(sum(len(task.text) for task in part) / len(part))
        shares.append(Counter(task.answer for task in part).most_common(1)[0][1] / len(part))
    assert min(counts) == 2000
    assert all(before + 0.5 < after for before, after in pairwise(lengths)), lengths
    # Four standard errors of a share, and of the difference of two.
    variances = [share * (1 - share) / count for share, count in zip(shares, counts, strict=True)]
    for (before, after), (one, other) in zip(pairwise(shares), pairwise(variances), strict=True):
        assert after <= before + 4 * math.sqrt(one + other), shares
    # Counting is the easiest to guess: the middle one of Binomial(3, 1/2) has 3/8, of Binomial(11, 1/2) 462/2048.
    assert shares[0] <= 3 / 8 + 4 * math.sqrt(variances[0])
    assert shares[-1] <= 462 / 2048 + 4 * math.sqrt(variances[-1])


def test_stream_keeps_out_what_is_excluded() -> None:
    kept = {task.text for task in make_tasks(200, "held out")}
    assert not kept & {task.text for task in islice(stream(0, exclude=kept), 3000)}


def test_counts_that_cannot_be_had() -> None:
    assert make_tasks(0, seed=0) == []
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        make_tasks(-1, seed=0)

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from bayes_prompt.testbed.tasks import ALPHABET, FAMILIES, LEVELS, MAX_ANSWER, Task, make_split, make_tasks, stream

MANY = make_tasks(2000, seed=3)


def test_every_family_and_level_occurs() -> None:
    cells = Counter((task.family, task.level) for task in MANY)
    assert set(cells) == {(family, level) for family in FAMILIES for level in range(1, LEVELS + 1)}


def test_the_solver_passes_the_verifier() -> None:
    for task in islice(stream(11), 5000):
        assert task.reward(task.answer) == 1.0, task
        assert task.reward(f" {task.answer} ") == 1.0, task


def test_wrong_answers_fail() -> None:
    for task in MANY:
        for wrong in ("", " ", "?", task.answer + "0", task.answer + "=", task.answer + " 1", "x" + task.answer):
            assert task.reward(wrong) == 0.0, (task, wrong)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("37+85=", 37 + 85), ("37-85=", 37 - 85), ("7*12=", 7 * 12), ("85%7=", 85 % 7)],
)
def test_arithmetic_is_right(text: str, answer: int) -> None:
    assert {"+", "-", "*", "%"} & set(text)
    for task in MANY:
        if task.family in ("add", "sub", "mul", "mod"):
            # Computed a second time, from the text alone.
            operator = next(sign for sign in "+*%-" if sign in task.text)
            left, right = (int(part) for part in task.text[:-1].split(operator))
            values = {"+": left + right, "-": left - right, "*": left * right, "%": left % right if right else 0}
            assert task.answer == str(values[operator]), task

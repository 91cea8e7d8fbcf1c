"""Verifiable tasks of graded difficulty, made by a procedure: nine families, four levels each.

Every task is one short line of text that ends in "=", and its verifier reads what the model wrote after it. Tasks are a
function of the seed alone. Texts never repeat within a pool, and held-out texts never occur in the training pool.

    37+85=    37-85=    7*12=    max 37,85=    sort 40315=    rev hqbzk=    cnt a:abbab=    nth 3:hqbzk=
    cd 3,4,2:14=   (Countdown: reach 14 with 3, 4 and 2; 3*4+2)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

from bayes_prompt.testbed.countdown import Countdown, evaluate

LEVELS = 4
#: The characters that prompts and answers are made of.
ALPHABET = "0123456789" + ascii_lowercase + "+-*/(),:= "
#: No answer that is made here is longer than this many characters. Countdown has longer correct ones, such as
#: "(4+5)*6-7", but the policy is not given the room to write them.
MAX_ANSWER = 7


@dataclass(frozen=True)
class Task:
    """A prompt with its verifier.

    text: the prompt.  family, level: which generator made it; levels run from 1 (easy) to LEVELS.  answer: a correct
    completion, for supervised warm start.  puzzle: set where many answers are right.
    """

    text: str
    family: str
    level: int
    answer: str
    puzzle: Countdown | None = None

    def reward(self, completion: str) -> float:
        """1.0 when the completion is a correct answer (spaces around it are forgiven) and 0.0 for any other string."""
        if self.puzzle is not None:
            return float(self.puzzle.accepts(completion))
        return float(completion.strip(" ") == self.answer)


def _digits(rng: Random, count: int) -> int:
    """A number of exactly `count` digits (0 counts as one digit)."""
    return rng.randrange(10 ** (count - 1) if count > 1 else 0, 10**count)


def _add(rng: Random, level: int) -> Task:
    a, b = _pair(rng, level)
    return Task(f"{a}+{b}=", "add", level, str(a + b))


def _sub(rng: Random, level: int) -> Task:
    a, b = _pair(rng, level)
    return Task(f"{a}-{b}=", "sub", level, str(a - b))


def _pair(rng: Random, level: int) -> tuple[int, int]:
    left, right = ((1, 1), (2, 1), (2, 2), (3, 3))[level - 1]
    return _digits(rng, left), _digits(rng, right)


def _mul(rng: Random, level: int) -> Task:
    left, right = ((1, 1), (2, 1), (2, 2), (3, 2))[level - 1]
    a, b = _digits(rng, left), _digits(rng, right)
    return Task(f"{a}*{b}=", "mul", level, str(a * b))


def _max(rng: Random, level: int) -> Task:
    # More numbers make the largest possible answer likelier, more digits less likely: both grow together.
    count, digits = ((2, 1), (2, 2), (3, 3), (3, 4))[level - 1]
    numbers = [_digits(rng, digits) for _ in range(count)]
    return Task(f"max {','.join(map(str, numbers))}=", "max", level, str(max(numbers)))


def _sort(rng: Random, level: int) -> Task:
    digits = [rng.choice("0123456789") for _ in range((2, 4, 5, 7)[level - 1])]
    return Task(f"sort {''.join(digits)}=", "sort", level, "".join(sorted(digits)))


def _rev(rng: Random, level: int) -> Task:
    word = "".join(rng.choice(ascii_lowercase) for _ in range((2, 3, 5, 7)[level - 1]))
    return Task(f"rev {word}=", "rev", level, word[::-1])


def _cnt(rng: Random, level: int) -> Task:
    # Of two letters, so that the count is spread out: with more of them it is nearly always 0 or 1.
    pair = rng.sample("abcd", 2)
    word = "".join(rng.choice(pair) for _ in range((3, 5, 8, 11)[level - 1]))
    letter = rng.choice(pair)
    return Task(f"cnt {letter}:{word}=", "cnt", level, str(word.count(letter)))


def _nth(rng: Random, level: int) -> Task:
    word = "".join(rng.choice(ascii_lowercase) for _ in range((3, 5, 7, 9)[level - 1]))
    place = rng.randint(1, len(word))
    return Task(f"nth {place}:{word}=", "nth", level, word[place - 1])


def _countdown(rng: Random, level: int) -> Task:
    """The target is what a random expression gives, so that there is an answer."""
    count, largest, operators = ((2, 9, "+-"), (2, 19, "+-*"), (3, 9, "+-*"), (4, 9, "+-*"))[level - 1]
    while True:
        numbers = [rng.randint(1, largest) for _ in range(count)]
        expression = str(numbers[0])
        for number in numbers[1:]:
            expression += rng.choice(operators) + str(number)
        target, _ = evaluate(expression)
        if 0 <= target < 100:
            break
    given = tuple(rng.sample(numbers, count))
    text = f"cd {','.join(map(str, given))}:{target}="
    return Task(text, "cd", level, expression, Countdown(given, int(target)))


#: Family name -> generator(rng, level).
FAMILIES: dict[str, Callable[[Random, int], Task]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "max": _max,
    "sort": _sort,
    "rev": _rev,
    "cnt": _cnt,
    "nth": _nth,
    "cd": _countdown,
}


def stream(seed: int | str, exclude: Collection[str] = (), weights: tuple[int, ...] = (1,) * LEVELS) -> Iterator[Task]:
    """Tasks without end. Texts may repeat; those in `exclude` never occur.

    Every family occurs equally often, and its levels as often as `weights` says.
    """
    rng = Random(f"bayes_prompt tasks {seed}")  # a string seed: hashed the same by every Python
    cells = [
        (make, level) for make in FAMILIES.values() for level, weight in enumerate(weights, 1) for _ in range(weight)
    ]
    while True:
        rng.shuffle(cells)
        for make, level in cells:
            task = make(rng, level)
            if task.text not in exclude:
                yield task


def make_tasks(count: int, seed: int | str, exclude: Collection[str] = ()) -> list[Task]:
    """`count` tasks with distinct texts, none of them in `exclude`; a smaller count gives a prefix of a larger one.

    Families and levels occur equally often until the small ones run out (there are only 100 sums of two digits).
    Raises ValueError when `count` is negative.
    """
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}")
    tasks: dict[str, Task] = {}
    endless = stream(seed, exclude)
    while len(tasks) < count:
        task = next(endless)
        tasks.setdefault(task.text, task)
    return list(tasks.values())


def make_split(prompts: int, held_out: int, seed: int) -> tuple[list[Task], list[Task]]:
    """(training pool, held-out tasks), disjoint. The held-out tasks do not depend on the size of the pool."""
    kept = make_tasks(held_out, f"{seed} held out")
    return make_tasks(prompts, f"{seed} training", exclude={task.text for task in kept}), kept

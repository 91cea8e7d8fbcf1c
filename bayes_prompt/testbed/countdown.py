"""Countdown: combine given numbers with + - * / into a target. Answers are parsed here, never evaluated by Python.

The rule is the one of the Countdown task of reasoning RL: an answer is one arithmetic expression that uses **each given
number exactly once** and equals the target exactly (rational arithmetic: 3/2*4 is 6). The grammar, in full:

    expression = term   { ("+" | "-") term }
    term       = factor { ("*" | "/") factor }
    factor     = number | "(" expression ")"
    number     = the digits 0-9, without leading zeros

There are no signs, no powers, no decimal points and no other digits than the ten of ASCII; spaces may stand between the
tokens; anything that is left over makes the answer wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

#: Longer answers are wrong unread. It bounds the nesting (one level takes two characters) and the size of every number.
MAX_LENGTH = 64

_TOKEN = re.compile(r" *(0|[1-9][0-9]*|[-+*/()])")


@dataclass(frozen=True)
class Countdown:
    """One puzzle: reach `target` using each of `numbers` exactly once."""

    numbers: tuple[int, ...]
    target: int

    def accepts(self, answer: str) -> bool:
        """Whether `answer` is a correct expression. False, never an error, for any other string."""
        try:
            value, used = evaluate(answer)
        except ValueError:
            return False
        return value == self.target and sorted(used) == sorted(self.numbers)


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the numbers in it, left to right.

    Raises ValueError when the string is longer than MAX_LENGTH, is not an expression of the grammar above as a whole,
    or divides by zero.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are read")
    return _Parser(_tokens(expression)).parse()


def _tokens(expression: str) -> Iterator[str]:
    text, at = expression.rstrip(" "), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"unexpected {text[at]!r} at character {at} of {expression!r}")
        yield match[1]
        at = match.end()


class _Parser:
    """Recursive descent over the tokens, one method per rule of the grammar."""

    def __init__(self, tokens: Iterator[str]) -> None:
        self.tokens = list(tokens)
        self.at = 0
        self.numbers: list[int] = []

    def parse(self) -> tuple[Fraction, list[int]]:
        value = self.expression()
        if self.peek():
            raise ValueError(f"unexpected {self.peek()!r} after the expression")
        return value, self.numbers

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def expression(self) -> Fraction:
        value = self.term()
        while self.peek() in ("+", "-"):
            value = value + self.term() if self.take() == "+" else value - self.term()
        return value

    def term(self) -> Fraction:
        value = self.factor()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.factor()
            else:
                divisor = self.factor()
                if divisor == 0:
                    raise ValueError("division by zero")
                value /= divisor
        return value

    def factor(self) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.expression()
            if self.take() != ")":
                raise ValueError("a parenthesis is never closed")
            return value
        if not token.isdigit():  # only 0-9 get here: the tokens are ASCII
            raise ValueError(f"a number or '(' was expected, not {token!r}")
        self.numbers.append(int(token))
        return Fraction(int(token))

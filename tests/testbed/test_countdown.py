from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayes_prompt.testbed.countdown import MAX_LENGTH, Countdown, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3*4+2", 14),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("8-3-2", 3),
        ("8/4/2", 1),
        ("3/2*4", 6),
        ("1/3+2/3", 1),
        ("((7))", 7),
        (" 1 + ( 2 ) ", 3),
        ("0*5", 0),
        ("(" * 31 + "5" + ")" * 31, 5),
    ],
)
def test_value(expression: str, value: int) -> None:
    assert evaluate(expression)[0] == value


def test_numbers_in_order() -> None:
    assert evaluate("(12-3)*12")[1] == [12, 3, 12]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "+",
        "-3+5",  # signs are not numbers
        "3*-2",
        "+3",
        "1/0",
        "1/(2-2)",
        "2**3",
        "7//2",
        "7%2",
        "1.5+1",
        "1e3",
        "1_000",
        "03",
        "0x10",
        "(1+2",
        "1+2)",
        ")(",
        "()",
        "(1)(2)",
        "1 2",
        "1+2=3",
        "1+2 is right",
        "1+2\n",
        "1\t+2",
        "1+2\x00",
        "٣+٤",  # Arabic digits: int() would take them
        "²",
        "\uff11+\uff12",  # full-width digits
        "1\u22122",  # a minus sign that is not ASCII
        "abs(1)",
        "__import__('os')",
        "9" * (MAX_LENGTH + 1),
        "(" * 10_000,
        "1+" * 10_000 + "1",
    ],
)
def test_not_an_expression(expression: str) -> None:
    with pytest.raises(ValueError):
        evaluate(expression)
    assert not Countdown((1, 2), 3).accepts(expression)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("4*5-6", True),
        ("5*4-6", True),
        ("(4)*5-6", True),
        ("20-6", False),  # a number that was not given
        ("4+5+6-1", False),
        ("4*5", False),  # leaves a number out
        ("4*5-6+6-6", False),  # uses one too often
        ("4+5+6", False),  # another value
        ("14", False),
    ],
)
def test_each_number_exactly_once(answer: str, right: bool) -> None:
    assert Countdown((4, 5, 6), 14).accepts(answer) is right


def test_repeated_numbers_count() -> None:
    assert Countdown((7, 7), 14).accepts("7+7")
    assert not Countdown((7, 7), 7).accepts("7")


def test_value_is_exact() -> None:
    # In floating point 1/49*49 is 0.9999999999999999.
    assert Countdown((1, 49, 49), 1).accepts("1/49*49")
    assert not Countdown((10, 3), 3).accepts("10/3")


@given(st.text())
def test_any_text_is_judged_without_an_error(text: str) -> None:
    assert Countdown((1, 2), 3).accepts(text) in (True, False)


@given(st.text(alphabet="0123456789+-*/() ", max_size=MAX_LENGTH))
def test_agrees_with_python_on_what_it_accepts(text: str) -> None:
    try:
        value, numbers = evaluate(text)
    except ValueError:
        return
    # Python reads the same string, with every number exact. Only tests may: the text consists of the characters above.
    exact = "".join(f"Fraction({token})" if token.isdigit() else token for token in _split(text))
    assert value == eval(exact, {"Fraction": Fraction})
    assert numbers == [int(token) for token in _split(text) if token.isdigit()]


def _split(text: str) -> list[str]:
    tokens: list[str] = []
    for character in text:
        if character.isdigit() and tokens and tokens[-1].isdigit():
            tokens[-1] += character
        else:
            tokens.append(character)
    return tokens


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return str(draw(st.integers(0, 99)))
    left, right = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    inner = f"{left}{draw(st.sampled_from('+-*/'))}{right}"
    return f"({inner})" if draw(st.booleans()) else inner


@given(expressions().filter(lambda text: len(text) <= MAX_LENGTH))
def test_every_expression_of_the_grammar_is_read(text: str) -> None:
    exact = "".join(f"Fraction({token})" if token.isdigit() else token for token in _split(text))
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="division by zero"):
            evaluate(text)
    else:
        assert evaluate(text)[0] == expected

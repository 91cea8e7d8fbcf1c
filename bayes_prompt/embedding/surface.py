"""Surface features: what can be counted in a prompt without understanding it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from bayes_prompt.embedding.texts import checked

# Single characters.
_CHARACTERS = {
    "commas": ",",
    "questions": "?",
    "lines": "\n",
    "equalities": "=",
    "powers": "^",
    "subscripts": "_",
    "backslashes": "\\",
    "dollars": "$",
    "percents": "%",
}
# Patterns that are read in time linear in the text's length.
_PATTERNS = {
    "sentences": r"[.?!](?=\s|$)",
    "capitals": r"[A-Z]",
    "short_names": r"\b[A-Z]{1,3}\b",  # points, sets and matrices: A, AB, ABC
    "variables": r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])",
    "numbers": r"\d+(?:\.\d+)?",
    "digits": r"\d",
    "colons": r"[:;]",
    "brackets": r"[()\[\]]",
    "braces": r"[{}]",
    "quotes": r"[\"']",
    "operators": "[-+*/=<>^\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}\N{MIDDLE DOT}]",
    "comparisons": r"[<>≤≥]|\\[lg]eq?\b",
    "commands": r"\\[A-Za-z]+",
    "fractions": r"\\[dt]?frac|\d/\d",
    "roots": r"\\sqrt|√",
    "long_sums": r"\\(?:sum|prod|[cl]?dots)\b|\.\.\.|…",
    "foreign": r"[^\x00-\x7f]",
}
# Words in lower case; those with a star may go on.
_VOCABULARY = {
    "how": "how",
    "what": "what which who",
    "find": "find",
    "determine": "determine",
    "compute": "compute calculate evaluate simplify solve",
    "prove": "prove proof show justify explain",
    "premises": "let suppose given consider assume",
    "conditions": "if such where when then",
    "connectives": "and or not no never only",
    "quantifiers": "all any every each exist* exactly least most possible",
    "extremes": "max* min minim* largest smallest greatest least most",
    "geometry": "triangle* circle* angle* point* line* square* plane* segment* parallel* perpendicular* tangent* "
    "radius area* sphere* polygon*",
    "arithmetic": "integer* prime* divis* divides positive natural real modulo mod",
    "functions": "function* polynomial* sequence* series",
    "chance": "probab* random* dice die coin* card*",
    "figures": "asy figure* diagram* includegraphics shown below",
    "units": "cm km kg hour* minute* day* week* year* mile* feet inch* meter* metre* dollar* cent cents percent*",
}
_COMPILED = [re.compile(pattern) for pattern in _PATTERNS.values()]
_GROUPS = {group: re.compile("|".join(words.replace("*", "[a-z]*").split())) for group, words in _VOCABULARY.items()}
_SENTENCE_END = re.compile(r"[.?!]\s")
_NUMBER = re.compile(r"[0-9]+")
_WORD = re.compile(r"[A-Za-z]+")

SURFACE_NAME = "surface-1"  # by which they are cached: another number wherever a feature means something else
SURFACE_FEATURES: tuple[str, ...] = (
    *("characters", "words", "distinct_words", "longest_sentence", "letters", "long_words", "longest_word"),
    *("distinct_numbers", "longest_number"),
    *_CHARACTERS,
    *_PATTERNS,
    *_VOCABULARY,
)


def surface_features(texts: Iterable[str]) -> np.ndarray:
    """log(1 + count) of what `SURFACE_FEATURES` names, as (N, F) float32.

    Lengths are in characters; words are what white space parts, long ones have eight Latin letters or more. `numbers`
    may have a decimal point and digits of any script; `distinct_numbers` and `longest_number` look at runs of the
    digits 0 to 9, of which 3.5 holds two. The vocabulary is that of English mathematics; on other texts its columns are
    nearly constant. Scale the columns before use (`Scaling`). An empty text is a row of zeros.

    Raises:
        TypeError: `texts` is one string, or an entry is none; the message names it.
        ValueError: `texts` is empty.
    """
    return np.log1p(np.array([_counts(text) for text in checked(texts)], dtype=np.float64)).astype(np.float32)


def _counts(text: str) -> list[int]:
    words = text.split()
    latin = _WORD.findall(text)
    letters = [len(word) for word in latin]
    numbers = _NUMBER.findall(text)
    groups = Counter(group for word in latin for group in _groups(word))
    return [
        len(text),
        len(words),
        len({word.lower() for word in words}),
        max(map(len, _SENTENCE_END.split(text))),
        sum(letters),
        sum(length >= 8 for length in letters),
        max(letters, default=0),
        len(set(numbers)),
        max(map(len, numbers), default=0),
        *[text.count(character) for character in _CHARACTERS.values()],
        *[len(pattern.findall(text)) for pattern in _COMPILED],
        *[groups[group] for group in _VOCABULARY],
    ]


@lru_cache(maxsize=1 << 16)
def _groups(word: str) -> tuple[str, ...]:
    """The parts of the vocabulary that a word belongs to; most words of a pool have been asked about before."""
    return tuple(group for group, pattern in _GROUPS.items() if pattern.fullmatch(word.lower()))

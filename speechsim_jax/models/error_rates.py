"""How far transcripts are from what was said: word and character error rates."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from speechsim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """Error rates pooled over utterances, and the length of the references they are relative to.

    `wer` and `cer` are edits per word and per character, `words` and `characters` how many the
    references have. A rate may exceed 1; without a word (or character) in any reference it is NaN.

    >>> rates = ss.error_rates(["to be"], ["to bee"])
    >>> rates.wer, rates.cer, rates.words
    (0.5, 0.2, 2)
    """

    wer: float
    cer: float
    words: int
    characters: int


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRates:
    """Word and character error rates of `hypotheses` against `references`, utterance by utterance.

    rate = sum over utterances of the edit distance (insertions, deletions and substitutions, each
    1; Levenshtein 1966) / sum of the references' lengths. Both sides are normalised (`normalise`);
    the space between two words is a character. An empty reference adds what was inserted.

    >>> ss.error_rates(["a cat sat", "on a mat"], ["a cat sad", "on mat"])
    ErrorRates(wer=0.3333333333333333, cer=0.17647058823529413, words=6, characters=17)

    Raises:
        UserError: there are not as many of one as of the other.
    """
    if len(references) != len(hypotheses):
        raise UserError(
            f"{len(references)} references and {len(hypotheses)} hypotheses; expected one of each "
            "for every utterance"
        )
    edits, lengths = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for texts in zip(references, hypotheses):
        spoken, found = map(normalise, texts)
        levels = [(spoken.split(), found.split()), (spoken, found)]
        edits += [edit_distance(*_numbered(a, b)) for a, b in levels]
        lengths += [len(a) for a, _ in levels]
    wer, cer = (int(e) / int(n) if n else math.nan for e, n in zip(edits, lengths))
    return ErrorRates(wer, cer, words=int(lengths[0]), characters=int(lengths[1]))


def normalise(text: str) -> str:
    """Upper case, one space between words, none at the ends.

    Nothing else changes: apostrophes count, and so does punctuation.
    """
    return " ".join(text.upper().split())


def edit_distance(a: Int[np.ndarray, " _a"], b: Int[np.ndarray, " _b"]) -> int:
    """The fewest insertions, deletions and substitutions that turn `a` into `b`.

    D(i, j) = min(D(i-1, j) + 1, D(i-1, j-1) + (a_i != b_j), D(i, j-1) + 1), a row i at a time: with
    M(j) the minimum of the first two, D(i, j) = j + min over k <= j of (M(k) - k).
    """
    steps = np.arange(len(b) + 1)
    row = steps
    for symbol in a:
        above = row + 1
        above[1:] = np.minimum(above[1:], row[:-1] + (b != symbol))
        row = np.minimum.accumulate(above - steps) + steps
    return int(row[-1])


def _numbered(
    a: Sequence[str], b: Sequence[str]
) -> tuple[Int[np.ndarray, " _a"], Int[np.ndarray, " _b"]]:
    """Two sequences as numbers, equal where the words or characters are."""
    number: dict[str, int] = {}
    first, second = ([number.setdefault(item, len(number)) for item in side] for side in (a, b))
    return np.array(first, np.int64), np.array(second, np.int64)

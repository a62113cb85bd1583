"""Word and character error rates of transcripts."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from speechsim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """Error rates pooled over utterances.

    A rate may exceed 1; without a word (or character) in any reference it is NaN.

    Attributes:
        wer: edits per word.
        cer: edits per character.
        words: in the references.
        characters: in the references.

    >>> rates = ss.error_rates(["to be"], ["to bee"])
    >>> rates.wer, rates.cer, rates.words
    (0.5, 0.2, 2)
    """

    wer: float
    cer: float
    words: int
    characters: int


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRates:
    """Word and character error rates.

        rate = sum over utterances of the edit distance / sum of the references' lengths

    Insertions, deletions and substitutions count 1 each. Both sides are normalised (`normalise`);
    the space between two words is a character.

    Args:
        references: the correct text of each utterance; an empty one adds insertions only.
        hypotheses: the transcript of each utterance.

    >>> ss.error_rates(["a cat sat", "on a mat"], ["a cat sad", "on mat"])
    ErrorRates(wer=0.3333333333333333, cer=0.17647058823529413, words=6, characters=17)

    Raises:
        UserError: the two differ in number.

    Source: Levenshtein 1966.
    """
    if len(references) != len(hypotheses):
        raise UserError(
            f"{len(references)} references and {len(hypotheses)} hypotheses; expected one of each "
            "for every utterance"
        )
    edits, lengths = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for texts in zip(references, hypotheses):
        reference, hypothesis = map(normalise, texts)
        levels = [(reference.split(), hypothesis.split()), (reference, hypothesis)]
        edits += [edit_distance(*_numbered(a, b)) for a, b in levels]
        lengths += [len(a) for a, _ in levels]
    wer, cer = (int(e) / int(n) if n else math.nan for e, n in zip(edits, lengths))
    return ErrorRates(wer, cer, words=int(lengths[0]), characters=int(lengths[1]))


def normalise(text: str) -> str:
    """Upper case, one space between words, none at the ends.

    Nothing else changes: apostrophes and punctuation count.
    """
    return " ".join(text.upper().split())


def edit_distance(a: Int[np.ndarray, " _a"], b: Int[np.ndarray, " _b"]) -> int:
    """The least number of insertions, deletions and substitutions that turn `a` into `b`.

        D(i, j) = min(D(i-1, j) + 1, D(i-1, j-1) + (a_i != b_j), D(i, j-1) + 1)

    computed a row i at a time: with M(j) the minimum of the first two,
    D(i, j) = j + min over k <= j of (M(k) - k).

    Source: Levenshtein 1966; Wagner & Fischer 1974.
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
    """Two sequences as numbers, which are equal where the words or characters are."""
    number: dict[str, int] = {}
    first, second = ([number.setdefault(item, len(number)) for item in side] for side in (a, b))
    return np.array(first, np.int64), np.array(second, np.int64)

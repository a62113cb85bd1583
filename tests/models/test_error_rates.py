"""Error rates: worked by hand, and against the recursion written out."""

import functools
import math

import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models.error_rates import ErrorRates, edit_distance, error_rates, normalise


def recursion(a, b) -> int:
    """Levenshtein's definition, one case after the other."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        changed = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(changed, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("saturday", "sunday", 3),
        ("abcdef", "bcdefg", 2),
        ("aaaa", "bbbb", 4),
        ("intention", "execution", 5),
    ],
)
def test_distances_worked_by_hand(a, b, edits):
    numbers = (np.array([ord(c) for c in side], np.int64) for side in (a, b))
    assert edit_distance(*numbers) == edits == recursion(a, b)


def test_distance_is_the_recursion():
    rng = np.random.default_rng(0)
    for _ in range(300):
        symbols = rng.integers(1, 6)
        a, b = (rng.integers(0, symbols, rng.integers(0, 12)) for _ in range(2))
        expected = recursion(a.tolist(), b.tolist())
        assert edit_distance(a, b) == edit_distance(b, a) == expected


def test_distance_of_long_sequences():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 30, 2000)
    b = np.delete(a, slice(500, 520))
    b[[3, 1500]] += 30
    assert edit_distance(a, b) == 22


def test_rates_worked_by_hand():
    # 1 word of 3 replaced, 2 letters of 11; 1 word of 2 left out, 5 of 9 characters with its space.
    rates = error_rates(["the cat sat", "good dogs"], ["THE BAD SAT", "good"])
    assert rates == ErrorRates(wer=2 / 5, cer=7 / 20, words=5, characters=20)


def test_rates_are_pooled_not_averaged():
    rates = error_rates(["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"])
    assert rates.wer == 1 / 10 and rates.cer == 1 / 18


def test_rates_are_those_of_the_recursion():
    rng = np.random.default_rng(2)
    words = ["it", "its", "it's", "is", "sit", "tis"]
    texts = [[" ".join(rng.choice(words, rng.integers(0, 7))) for _ in range(40)] for _ in range(2)]
    pairs = [*zip(*texts)]
    rates = error_rates(*texts)
    edits = sum(recursion(a.split(), b.split()) for a, b in pairs)
    assert rates.words == sum(len(a.split()) for a, _ in pairs)
    assert rates.wer == edits / rates.words
    edits = sum(recursion(a, b) for a, b in pairs)
    assert rates.characters == sum(len(a) for a, _ in pairs)
    assert rates.cer == edits / rates.characters


def test_normalisation():
    assert normalise("  It's\tthe\n  Été, isn't it?  ") == "IT'S THE ÉTÉ, ISN'T IT?"
    assert error_rates(["It's  so "], ["IT'S SO"]) == ErrorRates(0.0, 0.0, 2, 7)
    assert error_rates(["it's"], ["its"]) == ErrorRates(1.0, 1 / 4, 1, 4)


def test_a_rate_may_exceed_one():
    assert error_rates(["no"], ["no no no no"]).wer == 3.0


def test_empty_references():
    assert error_rates(["", "a b"], ["c", "a b"]) == ErrorRates(1 / 2, 1 / 3, 2, 3)
    for nothing in (error_rates([], []), error_rates(["  "], ["a b"])):
        assert math.isnan(nothing.wer) and math.isnan(nothing.cer)
        assert (nothing.words, nothing.characters) == (0, 0)


def test_one_hypothesis_for_each_reference():
    with pytest.raises(UserError, match="2 references and 1 hypotheses"):
        error_rates(["a", "b"], ["a"])

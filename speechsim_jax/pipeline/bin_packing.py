"""Pairs of representations into few passes, where pairs of one pass share the representations.

Bin packing with shared items: to find the fewest passes is hard. A pass should hold many pairs of
few representations, so the triangle of pairs is walked block after block, or a pass is grown
representation by representation; `plan` keeps the best of several such ways. (The tests compare
them with all ways there are, on small triangles.)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

# Blocks along a side of the triangle that are tried. For 2 base and 2 large models and 4.5 to 20 GB
# the best of up to 10 were 1, 3 or 6; cutting at the models' own bounds was never fewer passes.
_MOST_BLOCKS = 6

IndexPair = tuple[int, int]
"""Two representations by number, the smaller first; layers of the first model come first."""


@runtime_checkable
class Triangle(Protocol):
    """All pairs of `count` representations, and what a pass that holds some of them takes."""

    count: int
    nothing: Any

    def with_pair(self, load: Any, pair: IndexPair) -> Any:
        """The load of a pass that takes one pair more."""
        ...

    def total(self, load: Any) -> int:
        """The bytes of a pass; never fewer with one pair more."""
        ...


class Filling:
    """A pass that is being filled."""

    def __init__(self, triangle: Triangle, budget_bytes: int):
        self.triangle, self.budget = triangle, budget_bytes
        self.load = triangle.nothing
        self.pairs: list[IndexPair] = []
        self.total = 0

    def added(self, pair: IndexPair) -> int | None:
        """Bytes that the pair would add; None if it does not fit."""
        total = self.triangle.total(self.triangle.with_pair(self.load, pair))
        return total - self.total if total <= self.budget else None

    def take(self, pair: IndexPair) -> bool:
        """Add the pair if it fits; says whether it did."""
        load = self.triangle.with_pair(self.load, pair)
        total = self.triangle.total(load)
        if total > self.budget:
            return False
        self.load, self.total = load, total
        self.pairs.append(pair)
        return True

    def copy(self) -> "Filling":
        """One to try things on."""
        other = Filling(self.triangle, self.budget)
        other.load, other.pairs, other.total = self.load, list(self.pairs), self.total
        return other


def candidates(triangle: Triangle, budget_bytes: int) -> Iterator[list[Filling]]:
    """Ways to fill passes, each with the passes dissolved that find room in the others."""
    count = triangle.count
    for blocks in range(1, min(count, _MOST_BLOCKS) + 1):
        for back in (False, True):
            order = _in_blocks(count, blocks, back)
            yield _dissolved(_filled_in_order(triangle, budget_bytes, order))
    yield _dissolved(_grown(triangle, budget_bytes))


def _in_blocks(count: int, blocks: int, back: bool) -> Iterator[IndexPair]:
    """The triangle of pairs block after block, so that neighbours share representations.

    Rows of blocks from left to right; with `back` every second one from right to left.
    """
    size = math.ceil(count / blocks)
    sides = [range(start, min(start + size, count)) for start in range(0, count, size)]
    for k, rows in enumerate(sides):
        for columns in sides[k:][:: -1 if back and k % 2 else 1]:
            yield from ((i, j) for i in rows for j in columns if i <= j)


def _filled_in_order(
    triangle: Triangle, budget_bytes: int, order: Iterable[IndexPair]
) -> list[Filling]:
    """Each pair into the last pass; if that is full where it adds least; else into a new one."""
    fillings = [Filling(triangle, budget_bytes)]
    for pair in order:
        if not fillings[-1].take(pair) and not _take_cheaply(fillings, pair):
            fillings.append(Filling(triangle, budget_bytes))
            fillings[-1].take(pair)
    return fillings


def _take_cheaply(fillings: Sequence[Filling], pair: IndexPair) -> bool:
    """Add the pair to the pass in which it needs the fewest bytes; says whether it fits in any."""
    added = [(one.added(pair), k) for k, one in enumerate(fillings)]
    fitting = [(more, k) for more, k in added if more is not None]
    return bool(fitting) and fillings[min(fitting)[1]].take(pair)


def _grown(triangle: Triangle, budget_bytes: int) -> list[Filling]:
    """Pass by pass: next the representation with the most open pairs within the pass."""
    fillings: list[Filling] = []
    representations = range(triangle.count)
    left = {
        k: set(representations) for k in representations
    }  # by representation, those it still has to meet
    while any(left.values()):
        filling = Filling(triangle, budget_bytes)
        start = next(k for k in representations if left[k])
        found = [(start, min(left[start]))]
        while found:
            for i, j in found:
                left[i].discard(j)
                left[j].discard(i)
            for pair in found:
                filling.take(pair)
            found = _next_pairs(filling, left)
        fillings.append(filling)
    return fillings


def _next_pairs(filling: Filling, left: dict[int, set[int]]) -> list[IndexPair]:
    """Open pairs of one more representation with those of the pass, as many of them as fit."""
    inside = filling.load.representations
    met = {k: others & (inside | {k}) for k, others in left.items()}
    for representation in sorted(met, key=lambda k: (-len(met[k]), k)):
        trial = filling.copy()
        pairs = [
            (min(representation, other), max(representation, other))
            for other in sorted(met[representation])
        ]
        if fitting := [pair for pair in pairs if trial.take(pair)]:
            return fitting
    return []


def _dissolved(fillings: list[Filling]) -> list[Filling]:
    """The same pairs without the passes, smallest first, whose pairs all fit in the others."""
    for one in sorted(fillings, key=lambda one: len(one.pairs)):
        others = [other.copy() for other in fillings if other is not one]
        if others and all(_take_cheaply(others, pair) for pair in one.pairs):
            return _dissolved(others)
    return fillings

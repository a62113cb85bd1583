"""Pairs of representations into few passes, where pairs of one pass share the representations.

Bin packing with shared items: to find the fewest passes is hard. A pass should hold many pairs of
few representations, so the triangle of pairs is walked block after block, or a pass is grown
representation by representation; `plan` keeps the best of several such ways. (The tests compare
them with all ways there are, on small triangles.)
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from speechsim_jax.pipeline.pass_memory import IndexPair, Triangle

# Blocks along a side of the triangle that are tried. For 2 base and 2 large models and 4.5 to 20 GB
# the best of up to 10 were 1, 3 or 6; cutting at the models' own bounds was never fewer passes.
_MOST_BLOCKS = 6


class Filling:
    """A pass that is being filled with pairs.

    Args:
      triangle: all pairs.
      budget_bytes: memory that the pass may take on each device.
    """

    def __init__(self, triangle: Triangle, budget_bytes: int):
        self.triangle, self.budget = triangle, budget_bytes
        self.load = triangle.empty
        self.pairs: list[IndexPair] = []
        self.total = 0

    def added_bytes(self, pair: IndexPair) -> int | None:
        """Bytes that the pair would add; None if it does not fit."""
        total = self.triangle.memory(self.triangle.with_pair(self.load, pair)).total
        return total - self.total if total <= self.budget else None

    def add(self, pair: IndexPair) -> bool:
        """Add the pair if it fits; whether it did."""
        load = self.triangle.with_pair(self.load, pair)
        total = self.triangle.memory(load).total
        if total > self.budget:
            return False
        self.load, self.total = load, total
        self.pairs.append(pair)
        return True

    def copy(self) -> "Filling":
        """A copy for trial moves."""
        copy = Filling(self.triangle, self.budget)
        copy.load, copy.pairs, copy.total = self.load, list(self.pairs), self.total
        return copy


def candidates(triangle: Triangle, budget_bytes: int) -> Iterator[list[Filling]]:
    """Ways to fill passes, each without the passes whose pairs find room in the others."""
    count, wanted = triangle.count, set(triangle.pairs)
    for blocks in range(1, min(count, _MOST_BLOCKS) + 1):
        for back in (False, True):
            order = (pair for pair in _in_blocks(count, blocks, back) if pair in wanted)
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
        if not fillings[-1].add(pair) and not _add_cheaply(fillings, pair):
            fillings.append(Filling(triangle, budget_bytes))
            fillings[-1].add(pair)
    return fillings


def _add_cheaply(fillings: Sequence[Filling], pair: IndexPair) -> bool:
    """Add the pair to the pass in which it needs the fewest bytes; whether it fits in any."""
    added = [(filling.added_bytes(pair), k) for k, filling in enumerate(fillings)]
    fitting = [(more, k) for more, k in added if more is not None]
    return bool(fitting) and fillings[min(fitting)[1]].add(pair)


def _grown(triangle: Triangle, budget_bytes: int) -> list[Filling]:
    """Pass by pass: next the representation with the most open pairs within the pass."""
    fillings: list[Filling] = []
    representations = range(triangle.count)
    # By representation, those that it still has to be paired with.
    left: dict[int, set[int]] = {k: set() for k in representations}
    for i, j in triangle.pairs:
        left[i].add(j)
        left[j].add(i)
    while any(left.values()):
        filling = Filling(triangle, budget_bytes)
        start = next(k for k in representations if left[k])
        pairs = [(start, min(left[start]))]
        while pairs:
            for i, j in pairs:
                left[i].discard(j)
                left[j].discard(i)
            for pair in pairs:
                filling.add(pair)
            pairs = _next_pairs(filling, left)
        fillings.append(filling)
    return fillings


def _next_pairs(filling: Filling, left: dict[int, set[int]]) -> list[IndexPair]:
    """Open pairs of one more representation with those of the pass, as many of them as fit."""
    inside = filling.load.representations
    open_with = {k: others & (inside | {k}) for k, others in left.items()}
    for representation in sorted(open_with, key=lambda k: (-len(open_with[k]), k)):
        trial = filling.copy()
        pairs = [
            (min(representation, other), max(representation, other))
            for other in sorted(open_with[representation])
        ]
        if fitting := [pair for pair in pairs if trial.add(pair)]:
            return fitting
    return []


def _dissolved(fillings: list[Filling]) -> list[Filling]:
    """The same pairs without the passes, smallest first, whose pairs all fit in the others."""
    for smallest in sorted(fillings, key=lambda filling: len(filling.pairs)):
        others = [filling.copy() for filling in fillings if filling is not smallest]
        if others and all(_add_cheaply(others, pair) for pair in smallest.pairs):
            return _dissolved(others)
    return fillings

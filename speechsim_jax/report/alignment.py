"""Which layers of two models belong together: row by row, and in one order."""

import numpy as np
from jaxtyping import Float, Int

Similarity = Float[np.ndarray, "x y"]
Columns = Int[np.ndarray, " x"]


def best_match(similarity: Similarity) -> Columns:
    """The most similar column of each row, the first of equals; -1 where none is defined."""
    best = np.nan_to_num(similarity, nan=-np.inf).argmax(axis=1)
    return np.where(np.isnan(similarity).all(axis=1), -1, best)


def monotone_path(similarity: Similarity) -> Columns:
    """A column for each row, never falling from row to row, of the greatest summed similarity.

    argmax over j_0 <= j_1 <= ... of sum_i s[i, j_i]: layers are matched as if both models went the
    same way, at any pace. By dynamic programming, in O(x y): t[i, j], the best sum of the rows up
    to i that ends in column j, is s[i, j] + max_{k <= j} t[i - 1, k]. A path through a cell that is
    not defined (NaN) is taken only if there is no other; of equals the leftmost end wins.
    """
    defined = np.isfinite(similarity)
    if not defined.any():
        return np.full(len(similarity), -1)
    low, high = similarity[defined].min(), similarity[defined].max()
    # One such cell costs more than the whole rest of a path can gain.
    total = np.where(defined, similarity, low - (high - low + 1) * len(similarity))
    for i in range(1, len(total)):
        total[i] += np.maximum.accumulate(total[i - 1])
    path, stop = np.empty(len(total), dtype=np.int64), total.shape[1]
    for i in reversed(range(len(total))):
        path[i] = total[i, :stop].argmax()
        stop = path[i] + 1
    return path


def same_depth(
    x_depth: Float[np.ndarray, " x"], y_depth: Float[np.ndarray, " y"]
) -> Int[np.ndarray, " x"]:
    """The column at the nearest relative depth of each row, the first of equals."""
    return np.abs(x_depth[:, None] - y_depth).argmin(axis=1)

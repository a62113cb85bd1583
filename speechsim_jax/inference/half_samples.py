"""Balanced halves of groups of rows, whose scores tell how much each group moves a score.

For statistics that are not smooth in the weights of rows, such as those of nearest neighbours.
With s_A and s_B the scores of the two halves of one way h to halve the rows (+1 or -1 for each of G
groups), p the share of A, and I_g the influence of group g,

    2 p (1 - p) (s_A - s_B) = sum_g h_g I_g

for a mean over rows; and as the ways are orthogonal, I_g = (sum over ways of h_g times this) / N.

Source: balanced half-samples, McCarthy 1969 (Review of the International Statistical Institute 37).
"""

import functools

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int64


@functools.cache
def signs(groups: int) -> Int64[np.ndarray, "way group"]:
    """The ways to halve up to 20 groups: orthogonal to each other, and to taking all together.

    Rows of a Hadamard matrix but for the first, which is all ones.

    Source: Paley 1933 (Journal of Mathematics and Physics 12), for orders other than 16.
    """
    order = max(-(-groups // 4) * 4, 4)
    if order == 16:
        return scipy.linalg.hadamard(16)[1:, :groups]
    q = order - 1  # a prime with remainder 3 modulo 4
    squares = {k * k % q for k in range(1, q)}
    character = np.array([0, *(1 if k in squares else -1 for k in range(1, q))])
    matrix = np.ones((order, order), np.int64)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = character[np.subtract.outer(np.arange(q), np.arange(q)) % q] + np.eye(q)
    return matrix[1:, :groups]


def of_groups(differences: Float[np.ndarray, " way"], groups: int) -> Float[np.ndarray, " group"]:
    """I_g of every group from the weighted differences of the scores of halves."""
    ways = signs(groups)
    influence = differences @ ways / (len(ways) + 1)
    return influence - influence.mean()
